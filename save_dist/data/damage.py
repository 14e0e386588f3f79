"""Finds files of a store whose bytes have changed.

Tiles carry checksums, but TileDB's errors do not say where one is wrong: that is found by reading
less and less. What describes tiles has none in TileDB, and may hide whole fragments without an
error when a byte changes: digests of these files stand in the store.
"""

import bisect
import json
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import tiledbsoma
from jaxtyping import Int64
from numpy import ndarray

from save_dist.core.durable import file_digest
from save_dist.core.errors import DataError, listed

STORE_ERRORS = (tiledbsoma.SOMAError, RuntimeError)
"""What a damaged or unreachable store raises; RuntimeError from the library beneath."""


COMPLETE_KEY = "save_dist_complete"
"""Experiment metadata: "false" while cells are being written. Stores of others have none."""
DIGESTS_KEY = "save_dist_digests"
"""Experiment metadata: JSON of file -> digest, written when all cells are there."""

_DESCRIPTIONS = ("__fragments/*/__fragment_metadata.tdb", "__schema/**/*")


def description_digests(store: Path, arrays: Sequence[str]) -> dict[str, str]:
    """Path below `store` -> digest of every file that describes these arrays; some kB each."""
    files = [p for array in arrays for d in _DESCRIPTIONS for p in (store / array).glob(d)]
    return {str(p.relative_to(store)): _digest(p) for p in sorted(files) if p.is_file()}


def check_descriptions(uri: str, metadata: Mapping[str, Any]) -> None:
    """Compare these files with the digests in the metadata of a local experiment, if it has any.

    Raises:
        DataError: naming the files that have changed or are gone.
    """
    folder = Path(uri.removeprefix("file://"))
    digests = json.loads(metadata.get(DIGESTS_KEY, "{}"))
    changed = [name for name, digest in digests.items() if not _is_sound(folder / name, digest)]
    if changed:
        raise DataError(
            f"{listed(changed, 3)} of {uri} is damaged: these are not the bytes that were "
            f"written: {remedy(metadata)}"
        )


def remedy(metadata: Mapping[str, Any]) -> str:
    """What helps against changed bytes of an experiment."""
    other = "copy the store again"
    if COMPLETE_KEY in metadata:
        other = "ingest again into another run folder"
    return f"check the disk and restore the folder from a backup, or {other}"


def _is_sound(path: Path, digest: str) -> bool:
    return _digest(path) == digest if path.is_file() else _is_consolidated(path.parent)


def _is_consolidated(fragment: Path) -> bool:
    """Whether a later fragment spans the time of one that is gone."""
    if fragment.parent.name != "__fragments":
        return False
    start, end = _times(fragment)
    spans = map(_times, fragment.parent.glob("__*"))
    return any(first <= start and end <= last for first, last in spans)


def _times(fragment: Path) -> tuple[int, int]:
    """Milliseconds since 1970 between which a fragment was written."""
    start, end = fragment.name.split("_")[2:4]
    return int(start), int(end)


def _digest(path: Path) -> str:
    return file_digest(path)[:16]


def damaged_fragments(
    kind: Any, uri: str, context: Any, until: int | None, read: Callable[[Any], object]
) -> list[str]:
    """Fragments of the first write from which on an array cannot be read.

    Args:
        kind: class of the array in tiledbsoma.
        uri: of the array; a local folder.
        context: to open it with.
        until: milliseconds since 1970, if the store is read as it was then.
        read: fails with one of `STORE_ERRORS` as long as the open array it is given is damaged.

    Returns:
        Names, mostly one: fragments of the same millisecond are not told apart. None if the array
        can be read after all, or if what is broken is no fragment.
    """
    written: dict[int, list[str]] = defaultdict(list)
    for path in sorted(Path(uri.removeprefix("file://")).glob("__fragments/__*")):
        time = _times(path)[1]
        if until is None or time <= until:
            written[time].append(path.name)

    def is_broken_at(time: int) -> bool:
        try:
            with kind.open(uri, context=context, tiledb_timestamp=time) as array:
                read(array)
        except STORE_ERRORS:
            return True
        return False

    times = sorted(written)
    first = bisect.bisect_left(times, True, key=is_broken_at)
    return written[times[first]] if first < len(times) else []


def damaged_cell(
    joinids: Int64[ndarray, " cell"], read: Callable[[Int64[ndarray, " some"]], object]
) -> int:
    """One of `joinids`, which cannot be read together, that cannot be read alone either."""
    while joinids.size > 1:
        half = joinids[: joinids.size // 2]
        try:
            read(half)
            joinids = joinids[half.size :]
        except STORE_ERRORS:
            joinids = half
    return int(joinids[0])


def stranger(
    uri: str, joinid: int, column: int, joinids: Int64[ndarray, " cell"], n_genes: int
) -> DataError | None:
    """The error of an entry that is of none of the cells asked for, or of no gene."""
    if joinid in joinids and 0 <= column < n_genes:
        return None
    return DataError(
        f"{uri} gave an entry of cell {joinid} and gene column {column}, but cells {joinids[0]}.."
        f"{joinids[-1]} of {n_genes} genes were asked for: its files are damaged; restore it from "
        "a backup, or write it again"
    )
