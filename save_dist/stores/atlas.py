"""The generated atlas: laid out, filled part by part, marked complete at the end; it may grow.

Part p owns rows [p * cells_per_part, ...): one shard file of X and one chunk file of every obs
array. Tasks share no file, and a part written twice is written alike, so any number of workers in
any order, killed at any moment, leave the same bytes.
"""

import logging
import warnings
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import zarr

from save_dist.core.durable import json_bytes, parse_json
from save_dist.core.errors import AtlasError, CheckpointError, InfrastructureError
from save_dist.stores.receipts import (
    AtlasRecord,
    Problem,
    VerifyReport,
    atlas_digest,
    file_facts,
    missing_parts,
    read_receipt,
    read_record,
    receipt_name,
    receipts_of,
    write_record,
)
from save_dist.stores.storage import Storage, Where, storage_of
from save_dist.stores.template import COMPLETE, CONFIG, AtlasLayout, lay_out

logger = logging.getLogger(__name__)

_END = "complete.json"
_CHANGING = ("zarr.json", f"{COMPLETE}/c")
"""The files that `finish` rewrites: consolidated metadata and the mark itself."""


def create_template(path: Where, layout: AtlasLayout, versions: Mapping[str, str]) -> AtlasRecord:
    """Lay out an empty atlas, adopt one begun from the same plan, or extend one to this plan.

    The record is what decides: once it is written, the atlas is the one it describes. Files of
    the template that are not as recorded, after a crash or damage, are put back.

    Args:
        path: its place; the receipts go to `<path>.receipts`.
        layout: shape and identity.
        versions: of the packages that decide results, for uns.

    Raises:
        AtlasError: if the place is taken by an atlas of another plan or by something else.
        InfrastructureError: if the disk refuses.
    """
    begun, store = _begun(path, layout), storage_of(path)
    if begun is not None and begun.plan_hash == layout.plan_hash:
        if store.exists() and not _altered(store, begun.template):
            _note_missing(path)
            return begun
        versions = begun.versions
    try:
        with store.workspace() as aside:
            record = _lay_out_aside(aside, layout, versions)
            if begun is not None and begun.plan_hash == layout.plan_hash and record != begun:
                raise AtlasError(
                    f"the template of {path} is not as recorded and this version lays out another "
                    "one; restore its files, or finish it with the version it was begun with"
                )
            write_record(path, record)
            _put_in_place(aside, path)
    except OSError as e:
        raise InfrastructureError(
            f"could not lay out {path}: {e}; free space or fix permissions, then run again"
        ) from e
    logger.info("event=atlas_begun path=%s cells=%d parts=%d", path, layout.n_cells, record.n_parts)
    return record


def _lay_out_aside(aside: Path, layout: AtlasLayout, versions: Mapping[str, str]) -> AtlasRecord:
    """Fill a workspace with a whole template; the record of the atlas it is for."""
    arrays = lay_out(aside, layout, versions)
    facts = file_facts(aside, _files(aside))
    return AtlasRecord(
        plan_hash=layout.plan_hash,
        model_hash=layout.model_hash,
        n_cells=layout.n_cells,
        n_genes=len(layout.gene_ids),
        cells_per_part=layout.cells_per_part,
        cells_per_chunk=layout.cells_per_chunk,
        arrays=arrays,
        plan=layout.plan,
        template={name: sha for name, (sha, _) in facts.items() if name not in _CHANGING},
        versions=dict(versions),
        history=layout.history,
    )


def _put_in_place(aside: Path, path: Where) -> None:
    """Make a template that of the atlas at `path`; the parts that are there stay.

    First the atlas says that it is incomplete; last come the root's metadata, by which readers
    find the shapes of all arrays.
    """
    receipts_of(path).delete(_END)
    first, last = f"{COMPLETE}/c", "zarr.json"
    between = [name for name in _files(aside) if name not in (first, last)]
    storage_of(path).adopt(aside, [first, *between, last])


def _files(workspace: Path) -> list[str]:
    """Names of all files that were prepared."""
    return sorted(str(p.relative_to(workspace)) for p in workspace.rglob("*") if p.is_file())


def finish(path: Where) -> str:
    """Mark an atlas complete, once every part has its receipt.

    Returns:
        digest of the whole atlas: of its template and of every part.

    Raises:
        AtlasError: if parts are missing.
        InfrastructureError: if the disk refuses.
    """
    record, store, receipts = read_record(path), storage_of(path), receipts_of(path)
    if missing := missing_parts(path):
        raise AtlasError(
            f"{path} lacks {len(missing)} of {record.n_parts} parts, the first is {missing[0]}; "
            "run generate again, it writes what is missing"
        )
    try:
        with warnings.catch_warnings():
            # zarr 3.1 warns that the v3 specification has no consolidated metadata yet
            warnings.simplefilter("ignore", UserWarning)
            zarr.consolidate_metadata(store.zarr)
        _mark(path, complete=True)
        store.sync(_CHANGING)
        facts = {name: store.sha256(name) for name in _CHANGING}
        whole = atlas_digest(path)
        receipts.write(_END, json_bytes({"digest": whole, "files": facts}))
    except OSError as e:
        raise InfrastructureError(
            f"could not mark {path} complete: {e}; free space or fix permissions, then run again"
        ) from e
    for place in (store, receipts):
        place.sweep()
    logger.info("event=atlas_complete path=%s cells=%d", path, record.n_cells)
    return whole


def discard_parts(path: Where, parts: Iterable[int]) -> None:
    """Make parts missing again, so that the next run writes them anew; the atlas says so."""
    if parts := list(parts):
        logger.warning("event=parts_discarded path=%s parts=%s", path, parts)
        _reopen(path)
    for part in parts:
        receipts_of(path).delete(receipt_name(part))


def is_complete(path: Where) -> bool:
    """Whether the atlas says of itself that it is complete."""
    return bool(zarr.open_array(storage_of(path).zarr, path=COMPLETE, mode="r")[()])


def verify(path: Where) -> VerifyReport:
    """Compare every byte of an atlas with its receipts, and these with its plan.

    Raises:
        AtlasError: if there is no atlas with a plan record at `path`.
    """
    record = read_record(path)
    problems = [Problem(None, text) for text in _altered(storage_of(path), record.template)]
    is_marked = receipts_of(path).n_bytes(_END) is not None
    if is_marked:
        problems += [Problem(None, text) for text in _end_problems(path)]

    def look(part: int) -> int | Problem:
        try:
            return read_receipt(path, record, part, deep=True).n_saturated
        except AtlasError as e:
            return Problem(part, str(e))

    found = list(storage_of(path).each(look, range(record.n_parts)))
    problems += [f for f in found if isinstance(f, Problem)]
    n_saturated = sum(f for f in found if isinstance(f, int))
    return VerifyReport(record.n_parts, record.n_cells, n_saturated, is_marked, tuple(problems))


def _begun(path: Where, layout: AtlasLayout) -> AtlasRecord | None:
    """The record of an atlas at `path` that has this plan, or one it extends; None: there is none.

    Raises:
        AtlasError: if something else stands there.
    """
    try:
        record = read_record(path)
    except AtlasError as e:
        if storage_of(path).exists():
            raise AtlasError(
                f"{path} exists but cannot be continued: {e}; remove it, or generate elsewhere"
            ) from e
        return None
    if record.plan_hash not in (layout.plan_hash, *(sha for _, sha in layout.history)):
        raise AtlasError(
            f"{path} holds an atlas of plan {record.plan_hash}, this plan is {layout.plan_hash}; "
            f"generate into another run folder, or remove {path} and {receipts_of(path)}"
        )
    return record


def _note_missing(path: Where) -> None:
    if receipts_of(path).n_bytes(_END) is not None and missing_parts(path):
        _reopen(path)


def _mark(path: Where, *, complete: bool) -> None:
    mark = zarr.open_array(storage_of(path).zarr, path=COMPLETE, mode="r+")
    mark.with_config(CONFIG)[()] = complete


def _reopen(path: Where) -> None:
    receipts_of(path).delete(_END)
    _mark(path, complete=False)


def _end_problems(path: Where) -> list[str]:
    receipts = receipts_of(path)
    place = f"{receipts}/{_END}"
    try:
        end = parse_json(receipts.read(_END), place)
        return _altered(storage_of(path), end["files"])
    except (CheckpointError, KeyError, TypeError, ValueError) as e:
        return [f"{place} is truncated or altered: {e}"]


def _altered(store: Storage, files: Any) -> list[str]:
    """Which files are absent or do not have the sha256 given."""
    problems = []
    for name, sha256 in dict(files).items():
        place = f"{store}/{name}"
        if store.n_bytes(name) is None:
            problems.append(f"{place} is missing")
        elif (found := store.sha256(name)) != sha256:
            problems.append(f"{place} was altered: sha256 {found}, recorded {sha256}")
    return problems
