"""One part of an atlas: its cells into their files, then its receipt."""

import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
import zarr
from jaxtyping import Float32, Int16, Int64, UInt16, UInt64
from numpy import ndarray

from save_dist.core.errors import AtlasError, InfrastructureError
from save_dist.stores.receipts import (
    AtlasRecord,
    Receipt,
    file_facts,
    read_record,
    write_receipt,
)
from save_dist.stores.shard import encode_shard
from save_dist.stores.storage import Where, storage_of
from save_dist.stores.template import CONFIG

MAX_COUNT = 65_535


@dataclass(frozen=True)
class PartColumns:
    """The cells of one part."""

    counts: UInt16[ndarray, "cell gene"]
    codes: Int16[ndarray, "cell field"]
    """One column per categorical column of the layout but `route`, in its order."""
    n_train_cells: Int64[ndarray, " cell"]
    """Training cells of the cell's combination; 0 marks an unseen one."""
    route: Int16[ndarray, " cell"]
    """Position in the routes of the layout."""
    n_route_cells: Int64[ndarray, " cell"]
    """Training cells of the combination that the cell's route starts at."""
    cell_seed: UInt64[ndarray, " cell"]
    mean: Float32[ndarray, "cell gene"] | None = None
    """Expected counts, where the atlas has that layer."""
    latent: Float32[ndarray, "cell latent"] | None = None
    """z, where the atlas stores it."""
    names: ndarray | None = None
    """Text per cell; None: named by their rows."""

    @classmethod
    def joined(cls, columns: Sequence["PartColumns"]) -> "PartColumns":
        """Cells of several, one after the other."""
        if len(columns) == 1:
            return columns[0]
        names = [f.name for f in fields(cls) if getattr(columns[0], f.name) is not None]
        return cls(**{n: np.concatenate([getattr(c, n) for c in columns]) for n in names})


def write_part(
    path: Where,
    record: AtlasRecord,
    part: int,
    columns: PartColumns,
    *,
    n_evaluations: int,
    start_s: float,
    n_threads: int = 1,
) -> Receipt:
    """Write the files of a part, sync them, then publish its receipt.

    Args:
        path: atlas.
        record: its plan.
        part: number of the part.
        columns: its cells.
        n_evaluations: evaluations of the velocity networks, for the receipt.
        start_s: `time.perf_counter()` when work on the part began.
        n_threads: threads that compress.

    Raises:
        AtlasError: if the columns do not fill the part, the store is not as recorded, or it has
            grown meanwhile.
        InfrastructureError: if the disk refuses; the part stays missing.
    """
    sampled_s = time.perf_counter()
    start, stop = record.rows(part)
    if columns.counts.shape != (stop - start, record.n_genes):
        raise AtlasError(
            f"part {part} of {path} is rows {start}..{stop} with {record.n_genes} genes, got "
            f"counts of shape {columns.counts.shape}; write whole parts only"
        )
    try:
        files = _fill(path, record, part, columns, n_threads)
        now_s = time.perf_counter()
        receipt = Receipt(
            part=part,
            start=start,
            n_cells=stop - start,
            n_counts=n_counts(columns.counts),
            n_saturated=_n_saturated(columns.counts),
            n_evaluations=n_evaluations,
            plan_hash=record.plan_hash_of(part),
            model_hash=record.model_hash,
            files=files,
            seconds=round(now_s - start_s, 3),
            writing_s=round(now_s - sampled_s, 3),
        )
        write_receipt(path, receipt)
    except OSError as e:
        raise InfrastructureError(
            f"could not write part {part} of {path}: {e}; free space or fix permissions, then run "
            "again: finished parts are kept"
        ) from e
    return receipt


def part_values(
    record: AtlasRecord, part: int, columns: PartColumns
) -> Iterator[tuple[str, ndarray]]:
    """Values of the part for every array, in the order of the record."""
    start, stop = record.rows(part)
    known = {
        "X": columns.counts,
        "layers/mean": columns.mean,
        "obsm/X_save": columns.latent,
        "obs/_index": _row_names(start, stop) if columns.names is None else columns.names,
        "obs/seen": columns.n_train_cells > 0,
        "obs/n_train_cells": columns.n_train_cells,
        "obs/n_route_cells": columns.n_route_cells,
        "obs/part": np.full(stop - start, part, np.int32),
        "obs/cell_seed": columns.cell_seed,
        "obs/route/codes": columns.route,
    }
    codes = iter(columns.codes.T)
    for name in record.arrays:
        values = known[name] if name in known else next(codes)
        if values is None:
            raise AtlasError(f"part {part} comes without {name}, which its atlas stores")
        yield name, values


def _row_names(start: int, stop: int) -> ndarray:
    return np.array([f"cell-{row}" for row in range(start, stop)], dtype=object)


def _fill(
    path: Where, record: AtlasRecord, part: int, columns: PartColumns, n_threads: int
) -> dict[str, tuple[str, int]]:
    """Put the files of a part in place, whatever stands there; their sha256 and lengths.

    They are written aside and renamed, so that two writers of one part never see each other, and
    since zarr 3.1 would read an old shard before replacing it and fail on a torn one. Matrices,
    which are nearly all of the bytes, are encoded without zarr.
    """
    start, stop = record.rows(part)
    names, store = record.files(part), storage_of(path)
    _check_plan(path, record)
    with store.workspace() as aside:
        for name, values in part_values(record, part, columns):
            (aside / name).mkdir(parents=True)
            (aside / name / "zarr.json").write_bytes(store.read(f"{name}/zarr.json"))
            array = zarr.open_array(aside / name, mode="r+").with_config(CONFIG)
            if name == "X":
                _check_x(array, path, record)
            if values.ndim == 2:
                _write_shard(aside / name / f"c/{part}/0", encode_shard(array, values, n_threads))
            else:
                array[start:stop] = values
        facts = file_facts(aside, names)
        _check_plan(path, record)
        store.adopt(aside, names)
    return facts


def _write_shard(place: Path, pieces: Iterable[bytes]) -> None:
    place.parent.mkdir(parents=True)
    with place.open("wb") as file:
        file.writelines(pieces)


def _check_plan(path: Where, record: AtlasRecord) -> None:
    """Cells of the plan that a worker began with must not replace those of a later one."""
    if (found := read_record(path).plan_hash) != record.plan_hash:
        raise AtlasError(
            f"{path} has grown while its parts were written: its plan is {found}, this worker "
            f"began with {record.plan_hash}; run generate again"
        )


def n_counts(counts: UInt16[ndarray, "cell gene"]) -> int:
    """Sum of all counts."""
    return int(counts.sum(axis=1, dtype=np.uint32).sum(dtype=np.int64))


def _n_saturated(counts: UInt16[ndarray, "cell gene"]) -> int:
    if counts.max() < MAX_COUNT:  # nearly always; comparing every count would take far longer
        return 0
    return int(np.count_nonzero(counts == MAX_COUNT))


def _check_x(array: Any, path: Where, record: AtlasRecord) -> None:
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
