"""The generated atlas: laid out, filled part by part, marked complete at the end; it may grow.

Part p owns rows [p * cells_per_part, ...): one shard file of X and one chunk file of every obs
array. Tasks share no file, and a part written twice is written alike, so any number of workers in
any order, killed at any moment, leave the same bytes.
"""

import logging
import secrets
import shutil
import warnings
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import zarr

from save_dist.core.durable import file_digest, read_json, write_json
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
    receipt_path,
    receipts_folder,
    sync,
    write_record,
)
from save_dist.stores.template import COMPLETE, CONFIG, AtlasLayout, lay_out

logger = logging.getLogger(__name__)

_END = "complete.json"
_CHANGING = ("zarr.json", f"{COMPLETE}/c")
"""The files that `finish` rewrites: consolidated metadata and the mark itself."""


def create_template(path: Path, layout: AtlasLayout, versions: Mapping[str, str]) -> AtlasRecord:
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
    begun = _begun(path, layout)
    if begun is not None and begun.plan_hash == layout.plan_hash:
        if path.exists() and not _altered(path, begun.template):
            _note_missing(path)
            return begun
        versions = begun.versions
    aside = path.with_name(f".{path.name}.{secrets.token_hex(4)}.part")
    try:
        record = _lay_out_aside(aside, layout, versions)
        if begun is not None and begun.plan_hash == layout.plan_hash and record != begun:
            raise AtlasError(
                f"the template of {path} is not as recorded and this version lays out another one; "
                "restore its files, or finish it with the version it was begun with"
            )
        write_record(path, record)
        _put_in_place(aside, path)
    except OSError as e:
        raise InfrastructureError(
            f"could not lay out {path}: {e}; free space or fix permissions, then run again"
        ) from e
    finally:
        shutil.rmtree(aside, ignore_errors=True)
    logger.info("event=atlas_begun path=%s cells=%d parts=%d", path, layout.n_cells, record.n_parts)
    return record


def _lay_out_aside(aside: Path, layout: AtlasLayout, versions: Mapping[str, str]) -> AtlasRecord:
    """A whole template on disk, and the record of the atlas it is for."""
    arrays = lay_out(aside, layout, versions)
    names = sorted(str(p.relative_to(aside)) for p in aside.rglob("*") if p.is_file())
    sync(aside / name for name in names)
    facts = file_facts(aside, names)
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


def _put_in_place(aside: Path, path: Path) -> None:
    """Make a template that of the atlas at `path`; the parts that are there stay.

    First the atlas says that it is incomplete; last come the root's metadata, by which readers
    find the shapes of all arrays.
    """
    if not path.exists():
        aside.rename(path)
        return
    (receipts_folder(path) / _END).unlink(missing_ok=True)
    names = [str(p.relative_to(aside)) for p in aside.rglob("*") if p.is_file()]
    first, last = f"{COMPLETE}/c", "zarr.json"
    for name in [first, *sorted(set(names) - {first, last}), last]:
        (path / name).parent.mkdir(parents=True, exist_ok=True)
        (aside / name).replace(path / name)
    sync({(path / name).parent for name in names})


def finish(path: Path) -> str:
    """Mark an atlas complete, once every part has its receipt.

    Returns:
        digest of the whole atlas: of its template and of every part.

    Raises:
        AtlasError: if parts are missing.
        InfrastructureError: if the disk refuses.
    """
    record = read_record(path)
    if missing := missing_parts(path):
        raise AtlasError(
            f"{path} lacks {len(missing)} of {record.n_parts} parts, the first is {missing[0]}; "
            "run generate again, it writes what is missing"
        )
    try:
        with warnings.catch_warnings():
            # zarr 3.1 warns that the v3 specification has no consolidated metadata yet
            warnings.simplefilter("ignore", UserWarning)
            zarr.consolidate_metadata(path)
        _mark(path, complete=True)
        sync(path / name for name in _CHANGING)
        facts = {name: sha for name, (sha, _) in file_facts(path, _CHANGING).items()}
        whole = atlas_digest(path)
        write_json(receipts_folder(path) / _END, {"digest": whole, "files": facts})
    except OSError as e:
        raise InfrastructureError(
            f"could not mark {path} complete: {e}; free space or fix permissions, then run again"
        ) from e
    own = path.parent.glob(f".{path.name}.*.part")
    for left in [*own, *receipts_folder(path).glob(".*.part")]:  # of killed drivers and workers
        if left.is_dir():
            shutil.rmtree(left, ignore_errors=True)
        else:
            left.unlink(missing_ok=True)
    logger.info("event=atlas_complete path=%s cells=%d", path, record.n_cells)
    return whole


def discard_parts(path: Path, parts: Iterable[int]) -> None:
    """Make parts missing again, so that the next run writes them anew; the atlas says so."""
    if parts := list(parts):
        logger.warning("event=parts_discarded path=%s parts=%s", path, parts)
        _reopen(path)
    for part in parts:
        receipt_path(path, part).unlink(missing_ok=True)


def is_complete(path: Path) -> bool:
    """Whether the atlas says of itself that it is complete."""
    return bool(zarr.open_array(path / COMPLETE, mode="r")[()])


def verify(path: Path) -> VerifyReport:
    """Compare every byte of an atlas with its receipts, and these with its plan.

    Raises:
        AtlasError: if there is no atlas with a plan record at `path`.
    """
    record = read_record(path)
    problems = [Problem(None, text) for text in _altered(path, record.template)]
    is_marked = (receipts_folder(path) / _END).is_file()
    if is_marked:
        problems += [Problem(None, text) for text in _end_problems(path)]
    n_saturated = 0
    for part in range(record.n_parts):
        try:
            n_saturated += read_receipt(path, record, part, deep=True).n_saturated
        except AtlasError as e:
            problems.append(Problem(part, str(e)))
    return VerifyReport(record.n_parts, record.n_cells, n_saturated, is_marked, tuple(problems))


def _begun(path: Path, layout: AtlasLayout) -> AtlasRecord | None:
    """The record of an atlas at `path` that has this plan, or one it extends; None: there is none.

    Raises:
        AtlasError: if something else stands there.
    """
    try:
        record = read_record(path)
    except AtlasError as e:
        if path.exists():
            raise AtlasError(
                f"{path} exists but cannot be continued: {e}; remove it, or generate elsewhere"
            ) from e
        return None
    if record.plan_hash not in (layout.plan_hash, *(sha for _, sha in layout.history)):
        raise AtlasError(
            f"{path} holds an atlas of plan {record.plan_hash}, this plan is {layout.plan_hash}; "
            f"generate into another run folder, or remove {path} and {receipts_folder(path)}"
        )
    return record


def _note_missing(path: Path) -> None:
    if (receipts_folder(path) / _END).is_file() and missing_parts(path):
        _reopen(path)


def _mark(path: Path, *, complete: bool) -> None:
    zarr.open_array(path / COMPLETE, mode="r+").with_config(CONFIG)[()] = complete


def _reopen(path: Path) -> None:
    (receipts_folder(path) / _END).unlink(missing_ok=True)
    _mark(path, complete=False)


def _end_problems(path: Path) -> list[str]:
    place = receipts_folder(path) / _END
    try:
        return _altered(path, read_json(place)["files"])
    except (CheckpointError, KeyError, TypeError, ValueError) as e:
        return [f"{place} is truncated or altered: {e}"]


def _altered(path: Path, files: Any) -> list[str]:
    """Which files are absent or do not have the sha256 given."""
    problems = []
    for name, sha256 in dict(files).items():
        place = path / name
        if not place.is_file():
            problems.append(f"{place} is missing")
        elif (found := file_digest(place)) != sha256:
            problems.append(f"{place} was altered: sha256 {found}, recorded {sha256}")
    return problems
