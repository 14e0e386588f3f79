"""The generated atlas: laid out once, filled part by part, marked complete at the end.

Part p owns rows [p * cells_per_part, ...): one shard file of X and one chunk file of every obs
array. Tasks share no file, and a part written twice is written alike, so any number of workers in
any order, killed at any moment, leave the same bytes.
"""

import logging
import os
import shutil
import tempfile
import warnings
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import zarr
from jaxtyping import Int16, Int64, UInt16, UInt64
from numpy import ndarray

from save_dist.core.durable import file_digest, read_json, write_json
from save_dist.core.errors import AtlasError, CheckpointError, InfrastructureError
from save_dist.stores.receipts import (
    AtlasRecord,
    Problem,
    Receipt,
    VerifyReport,
    atlas_digest,
    file_facts,
    missing_parts,
    read_receipt,
    read_record,
    receipt_path,
    receipts_folder,
    sync,
    write_receipt,
    write_record,
)
from save_dist.stores.template import COMPLETE, CONFIG, AtlasLayout, lay_out

logger = logging.getLogger(__name__)

MAX_COUNT = 65_535
_END = "complete.json"
_CHANGING = ("zarr.json", f"{COMPLETE}/c")
"""The files that `finish` rewrites: consolidated metadata and the mark itself."""


@dataclass(frozen=True)
class PartColumns:
    """The cells of one part."""

    counts: UInt16[ndarray, "cell gene"]
    codes: Int16[ndarray, "cell field"]
    n_train_cells: Int64[ndarray, " cell"]
    """Training cells of the cell's combination; 0 marks an unseen one."""
    route: Int16[ndarray, " cell"]
    """Position in the routes of the layout."""
    n_route_cells: Int64[ndarray, " cell"]
    """Training cells of the combination that the cell's route starts at."""
    cell_seed: UInt64[ndarray, " cell"]


def create_template(path: Path, layout: AtlasLayout, versions: Mapping[str, str]) -> AtlasRecord:
    """Lay out an empty atlas, or adopt one begun from the same plan.

    Args:
        path: its place; the receipts go to `<path>.receipts`.
        layout: shape and identity.
        versions: of the packages that decide results, for uns.

    Raises:
        AtlasError: if the place is taken by an atlas of another plan or by something else.
        InfrastructureError: if the disk refuses.
    """
    if (record := _begun(path, layout)) is not None:
        return record
    aside = path.with_name(f".{path.name}.{os.getpid()}.part")
    shutil.rmtree(aside, ignore_errors=True)
    try:
        arrays = lay_out(aside, layout, versions)
        names = sorted(str(p.relative_to(aside)) for p in aside.rglob("*") if p.is_file())
        sync(aside / name for name in names)
        facts = file_facts(aside, names)
        record = AtlasRecord(
            plan_hash=layout.plan_hash,
            model_hash=layout.model_hash,
            n_cells=layout.n_cells,
            n_genes=len(layout.gene_ids),
            cells_per_part=layout.cells_per_part,
            cells_per_chunk=layout.cells_per_chunk,
            arrays=arrays,
            plan=layout.plan,
            template={name: sha for name, (sha, _) in facts.items() if name not in _CHANGING},
        )
        write_record(path, record)
        aside.rename(path)
    except OSError as e:
        raise InfrastructureError(
            f"could not lay out {path}: {e}; free space or fix permissions, then run again"
        ) from e
    finally:
        shutil.rmtree(aside, ignore_errors=True)
    logger.info("event=atlas_begun path=%s cells=%d parts=%d", path, layout.n_cells, record.n_parts)
    return record


def write_part(
    path: Path,
    record: AtlasRecord,
    part: int,
    columns: PartColumns,
    *,
    n_evaluations: int,
    seconds: float,
) -> Receipt:
    """Write the files of a part, sync them, then publish its receipt.

    Raises:
        AtlasError: if the columns do not fill the part, or the store is not as recorded.
        InfrastructureError: if the disk refuses; the part stays missing.
    """
    start, stop = record.rows(part)
    if columns.counts.shape != (stop - start, record.n_genes):
        raise AtlasError(
            f"part {part} of {path} is rows {start}..{stop} with {record.n_genes} genes, got "
            f"counts of shape {columns.counts.shape}; write whole parts only"
        )
    try:
        files = _fill(path, record, part, columns)
        receipt = Receipt(
            part=part,
            start=start,
            n_cells=stop - start,
            n_saturated=int(np.count_nonzero(columns.counts == MAX_COUNT)),
            n_evaluations=n_evaluations,
            plan_hash=record.plan_hash,
            model_hash=record.model_hash,
            files=files,
            seconds=round(seconds, 3),
        )
        write_receipt(path, receipt)
    except OSError as e:
        raise InfrastructureError(
            f"could not write part {part} of {path}: {e}; free space or fix permissions, then run "
            "again: finished parts are kept"
        ) from e
    return receipt


def finish(path: Path) -> str:
    """Mark an atlas complete, once every part has its receipt.

    Returns:
        digest of the whole atlas: of its template and of every part.

    Raises:
        AtlasError: if parts are missing.
    """
    record = read_record(path)
    if missing := missing_parts(path):
        raise AtlasError(
            f"{path} lacks {len(missing)} of {record.n_parts} parts, the first is {missing[0]}; "
            "run generate again, it writes what is missing"
        )
    with warnings.catch_warnings():
        # zarr 3.1 warns that the v3 specification has no consolidated metadata yet
        warnings.simplefilter("ignore", UserWarning)
        zarr.consolidate_metadata(path)
    _mark(path, complete=True)
    facts = {name: sha for name, (sha, _) in file_facts(path, _CHANGING).items()}
    for left in receipts_folder(path).glob(".*.part"):
        shutil.rmtree(left, ignore_errors=True)  # of killed workers
    whole = atlas_digest(path)
    write_json(receipts_folder(path) / _END, {"digest": whole, "files": facts})
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
    """The record of an atlas that stands at `path`; None where there is nothing to adopt."""
    try:
        record = read_record(path)
    except AtlasError as e:
        if path.exists():
            raise AtlasError(
                f"{path} exists but cannot be continued: {e}; remove it, or generate elsewhere"
            ) from e
        return None
    if record.plan_hash != layout.plan_hash:
        raise AtlasError(
            f"{path} holds an atlas of plan {record.plan_hash}, this plan is {layout.plan_hash}; "
            f"generate into another run folder, or remove {path} and {receipts_folder(path)}"
        )
    if not path.exists():
        return None
    if (receipts_folder(path) / _END).is_file() and missing_parts(path):
        _reopen(path)
    return record


def _fill(
    path: Path, record: AtlasRecord, part: int, columns: PartColumns
) -> dict[str, tuple[str, int]]:
    """Put the files of a part in place, whatever stands there; their sha256 and lengths.

    They are written aside and renamed, so that two writers of one part never see each other, and
    since zarr 3.1 would read an old shard before replacing it and fail on a torn one.
    """
    start, stop = record.rows(part)
    names = record.files(part)
    with tempfile.TemporaryDirectory(".part", f".{part:06d}.", receipts_folder(path)) as folder:
        aside = Path(folder)
        for name, values in _values(record, part, columns):
            (aside / name).mkdir(parents=True)
            shutil.copyfile(path / name / "zarr.json", aside / name / "zarr.json")
            array = zarr.open_array(aside / name, mode="r+").with_config(CONFIG)
            if name == "X":
                _check_x(array, path, record)
            array[start:stop] = values
        sync(aside / name for name in names)
        facts = file_facts(aside, names)
        for name in names:
            (path / name).parent.mkdir(parents=True, exist_ok=True)
            (aside / name).replace(path / name)
    sync({(path / name).parent for name in names})
    return facts


def _values(record: AtlasRecord, part: int, columns: PartColumns) -> Iterator[tuple[str, ndarray]]:
    """Values of the part for every array, in the order of the record."""
    start, stop = record.rows(part)
    known = {
        "X": columns.counts,
        "obs/_index": np.array([f"cell-{row}" for row in range(start, stop)], dtype=object),
        "obs/seen": columns.n_train_cells > 0,
        "obs/n_train_cells": columns.n_train_cells,
        "obs/n_route_cells": columns.n_route_cells,
        "obs/part": np.full(stop - start, part, np.int32),
        "obs/cell_seed": columns.cell_seed,
        "obs/route/codes": columns.route,
    }
    fields = iter(columns.codes.T)
    for name in record.arrays:
        yield name, known[name] if name in known else next(fields)


def _check_x(array: Any, path: Path, record: AtlasRecord) -> None:
    n_genes = record.n_genes
    found = (array.shape, array.chunks, array.shards, str(array.dtype))
    expected = (
        (record.n_cells, n_genes),
        (record.cells_per_chunk, n_genes),
        (record.cells_per_part, n_genes),
        "uint16",
    )
    if found != expected:
        raise AtlasError(
            f"X of {path} has (shape, chunks, shards, dtype) = {found}, its plan says {expected}: "
            "parts would share files; remove the atlas and its receipts"
        )


def _mark(path: Path, *, complete: bool) -> None:
    zarr.open_array(path / COMPLETE, mode="r+").with_config(CONFIG)[()] = complete
    sync([path / f"{COMPLETE}/c"])


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
