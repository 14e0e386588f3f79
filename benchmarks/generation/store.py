"""The store alone: how fast parts are written, how large they are, what reading one touches."""

import time
from collections.abc import Iterator
from pathlib import Path
from statistics import median
from typing import Any

import numcodecs
import numpy as np
import scipy.sparse as sp
import zarr
from generation.figures import Arguments, Line, cost, gene_names, share, vocabulary
from numpy import ndarray

from save_dist.config.schema import GridConfig, OutputConfig
from save_dist.generation.atlas_view import Atlas
from save_dist.generation.grid import GridPlan, plan_grid
from save_dist.stores import atlas
from save_dist.stores.facts import ModelFacts
from save_dist.stores.part import PartColumns, write_part
from save_dist.stores.receipts import AtlasRecord

N_GENES, N_NONZERO = 4000, 300


def writer(args: Arguments) -> Iterator[Line]:
    """Sparse counts into parts, and the same counts as compressed sparse rows."""
    counts = sparse_counts(args.cells(16_384, 128))
    n_cells = len(counts)
    facts = ModelFacts("model", vocabulary(("kind",), (1,)), {}, gene_names(N_GENES))
    plan = plan_grid(
        GridConfig(cells_per_condition=n_cells), OutputConfig(cells_per_part=n_cells), facts
    )
    rates, shares, x_bytes, all_bytes = [], [], 0, 0
    for repeat in range(1 + args.repeats):
        path = args.folder / str(repeat) / "atlas.zarr"
        record = atlas.create_template(path, plan.layout(), {})
        bare = cost(lambda r=record: compress(counts, r.cells_per_chunk)).cpu
        whole = cost(lambda p=path, r=record: write(p, r, plan, 0, counts)).cpu
        rates.append(n_cells / whole)
        shares.append(bare / whole)
        sizes = {name: (path / name).stat().st_size for name in record.files(0)}
        x_bytes, all_bytes = sizes["X/c/0/0"], sum(sizes.values())
    del rates[0], shares[0]  # loads
    per_cell, of_csr = x_bytes / n_cells, x_bytes / csr_bytes(counts, record.cells_per_chunk)
    n_nonzero = np.count_nonzero(counts) / n_cells
    shown = f"{N_GENES} genes, {n_nonzero:.0f} non-zeros"
    yield Line(f"writer, {shown}: cells/CPU-s", f"{median(rates):,.0f}", ">= 45,000")
    yield Line("writer: cells/CPU-s of what bare compression reaches", share(shares), "")
    yield Line("writer: bytes/cell of X", f"{per_cell:.0f}", "<= 400")
    yield Line("writer: bytes/cell of all arrays", f"{all_bytes / n_cells:.0f}", "")
    yield Line("writer: bytes of X against zstd of compressed rows", f"{of_csr:.3f}", "<= 1.05")


def reading(args: Arguments) -> Iterator[Line]:
    """Bytes that are read for one condition out of 1,000; tried on those of the first two parts."""
    facts = ModelFacts("model", vocabulary(("kind", "drug"), (10, 100)), {}, gene_names(N_GENES))
    some = sparse_counts(args.cells(2048, 128))
    for n_cells in (64, 100, 1000):
        plan = plan_grid(GridConfig(cells_per_condition=n_cells), OutputConfig(), facts)
        path = args.folder / str(n_cells) / "atlas.zarr"
        record = atlas.create_template(path, plan.layout(), {})
        for part in range(2):
            write(path, record, plan, part, np.resize(some, (record.cells_per_part, N_GENES)))
        files = [path / name for part in range(2) for name in record.files(part)]
        holds = n_cells * sum(f.stat().st_size for f in files) / record.rows(1)[1]
        n_there = record.rows(1)[1] // n_cells
        tried = np.random.default_rng(0).integers(n_there, size=24).tolist()
        touched = [bytes_read(path, *divmod(number, 100)) / holds for number in tried]
        what = f"one condition of 1,000 ({n_cells} cells each): bytes touched by held"
        yield Line(f"{what}, median", f"{median(touched):.2f} x", "<= 2 x")
        yield Line(f"{what}, worst", f"{max(touched):.2f} x", "<= 2 x")


def write(path: Path, record: AtlasRecord, plan: GridPlan, part: int, counts: ndarray) -> None:
    """One part with these counts."""
    n_cells = len(counts)
    segments = plan.part(part).segments
    codes = np.repeat([s.codes for s in segments], [s.n_cells for s in segments], axis=0)
    columns = PartColumns(
        counts=counts,
        codes=codes.astype(np.int16),
        n_train_cells=np.full(n_cells, 100, np.int64),
        route=np.zeros(n_cells, np.int16),
        n_route_cells=np.full(n_cells, 100, np.int64),
        cell_seed=np.random.default_rng(part).integers(0, 2**63, n_cells).astype(np.uint64),
    )
    write_part(path, record, part, columns, n_evaluations=1, start_s=time.perf_counter())


def sparse_counts(n_cells: int) -> ndarray:
    """Poisson counts of uneven genes, 300 of them above zero in a mean cell."""
    rng = np.random.default_rng(0)
    means = rng.lognormal(sigma=1.5, size=N_GENES)
    low, high = 0.0, 1.0
    for _ in range(40):
        middle = (low + high) / 2
        is_more = (1 - np.exp(-middle * means)).sum() > N_NONZERO
        low, high = (low, middle) if is_more else (middle, high)
    return rng.poisson(low * means, (n_cells, N_GENES)).astype(np.uint16)


def compress(counts: ndarray, cells_per_chunk: int) -> None:
    """The counts as the atlas compresses them, and nothing else."""
    codec = numcodecs.Blosc("zstd", clevel=1, shuffle=numcodecs.Blosc.BITSHUFFLE)
    for start in range(0, len(counts), cells_per_chunk):
        codec.encode(counts[start : start + cells_per_chunk])


def csr_bytes(counts: ndarray, cells_per_chunk: int) -> int:
    """The counts as compressed rows, chunk by chunk: zstd, its level 3 the smaller here."""
    codec = numcodecs.Blosc("zstd", clevel=3, shuffle=numcodecs.Blosc.SHUFFLE)
    n_bytes = 0
    for start in range(0, len(counts), cells_per_chunk):
        rows = sp.csr_matrix(counts[start : start + cells_per_chunk])
        parts = rows.data, rows.indices.astype(np.uint16), rows.indptr.astype(np.uint32)
        n_bytes += sum(len(codec.encode(np.ascontiguousarray(part))) for part in parts)
    return n_bytes


class Counting(zarr.storage.LocalStore):
    """Counts the bytes of chunks that are read."""

    n_bytes = 0

    async def get(self, key: str, prototype: Any, byte_range: Any = None) -> Any:
        """As the store's own."""
        found = await super().get(key, prototype, byte_range)
        if found is not None and "/c/" in key and not key.startswith(("uns", "var")):
            self.n_bytes += len(found)
        return found


def bytes_read(path: Path, i: int, j: int) -> int:
    """Bytes of chunks that one condition's cells are read from, obs included."""
    store = Counting(path, read_only=True)
    Atlas(store, incomplete=True).select(kind=f"kind-{i}", drug=f"drug-{j}").to_memory()
    return store.n_bytes
