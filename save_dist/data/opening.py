"""How a SOMA store is opened for reading: TileDB's settings, and what is said if it cannot be."""

from typing import Any

import tiledbsoma

from save_dist.core.errors import DataError
from save_dist.core.memory import keep_freed_memory
from save_dist.data.locator import StoreLocator, is_remote

SAFE_READS = {
    # libtiledb 2.30 merges tiles on several threads and frees what one of them may still use: now
    # and then a process died of it (TileDB pull requests 5417 and 5723). 0: tile after tile.
    "sm.query.sparse_global_order.preprocess_tile_merge": "0",
}
"""Settings of TileDB that every reader of a store needs."""
_LOCAL_BUFFER_BYTES, _REMOTE_BUFFER_BYTES = 8 * 2**20, 64 * 2**20  # portions, and all at once


def open_experiment(locator: StoreLocator) -> Any:
    """The experiment, open for reading; the settings of the locator come last.

    Raises:
        DataError: if there is none, or none at the time asked for.
    """
    keep_freed_memory()
    n_bytes = _REMOTE_BUFFER_BYTES if is_remote(locator.uri) else _LOCAL_BUFFER_BYTES
    config = {
        "soma.init_buffer_bytes": n_bytes,
        # Else every read ends by handing its memory back, and the next one faults it in again.
        "sm.mem.malloc_trim": "false",
        **SAFE_READS,
        **dict(locator.tiledb),
    }
    context = tiledbsoma.SOMATileDBContext(tiledb_config=config)
    try:
        return tiledbsoma.Experiment.open(
            locator.uri, context=context, tiledb_timestamp=locator.timestamp
        )
    except (tiledbsoma.DoesNotExistError, tiledbsoma.SOMAError, TypeError) as e:
        when = "" if locator.timestamp is None else f" at timestamp {locator.timestamp} ms"
        raise DataError(
            f"{locator.uri} is not a SOMA experiment{when}: {e}; run the ingest job first, or "
            f"correct the path{'' if locator.timestamp is None else ' or source.timestamp'}"
        ) from e
