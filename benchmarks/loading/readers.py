"""Every way to read the atlas in shuffled order, as iterators over numbers of cells handed out.

All give minibatches as float32 matrices [cell gene] of counts and of log-normalised expression,
unless their name says otherwise.
"""

import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import h5py
import numba
import numpy as np
import tiledbsoma

from save_dist.data.packed import PackedCells, PackedReader
from save_dist.data.partition import StreamPlan
from save_dist.data.source import SomaSource, StoreLocator
from save_dist.data.splits import CellIndex
from save_dist.data.stream import CellStream
from save_dist.data.transforms import DenseBuffers, densify, log_normalise, log_of

Reader = Callable[[int], Iterator[int]]
"""Epoch -> cells handed out at a time."""

LIBRARY_SCALE = 1e4


class Cells(NamedTuple):
    """What all readers read."""

    store: StoreLocator
    index: CellIndex
    gene_positions: np.ndarray
    plan: StreamPlan


def stream(cells: Cells, cache: Path | None = None) -> Reader:
    """Ours."""

    def read(epoch: int) -> Iterator[int]:
        with CellStream(*cells, cache=cache) as opened:
            for batch in opened.batches(epoch * cells.plan.n_steps_per_epoch):
                yield batch.positions.size

    return read


def decode(cells: Cells) -> Reader:
    """One sorted read per pool with tiledbsoma as it comes, the Arrow tables thrown away."""

    def read(epoch: int) -> Iterator[int]:
        with tiledbsoma.Experiment.open(cells.store.uri) as experiment:
            x = experiment.ms["RNA"].X["raw"]
            for positions in pools(cells.plan, epoch):
                wanted = np.unique(positions)
                for _ in x.read(coords=(cells.index.joinids[wanted],)).tables():
                    pass
                yield positions.size

    return read


def decode_ours(cells: Cells) -> Reader:
    """The same with the buffer sizes and memory settings of `SomaSource`."""

    def read(epoch: int) -> Iterator[int]:
        with SomaSource(cells.store) as source:
            for positions in pools(cells.plan, epoch):
                for _ in source.read_entries(cells.index.joinids[np.unique(positions)]):
                    pass
                yield positions.size

    return read


def ceiling(cells: Cells, n_pools: int) -> Reader:
    """Only the last stage: packed rows that are in memory -> matrices."""
    with SomaSource(cells.store) as source:
        reader = PackedReader(source, cells.gene_positions)
        packed: list[tuple[PackedCells, np.ndarray]] = []
        for positions, _ in zip(pools(cells.plan, 0), range(n_pools), strict=False):
            wanted, rows = np.unique(positions, return_inverse=True)
            packed.append((reader.read(cells.index.joinids[wanted]), rows.reshape(positions.shape)))

    def read(epoch: int) -> Iterator[int]:
        buffers = DenseBuffers()
        while True:
            for pool, steps in packed:
                for rows in steps:
                    densify(pool, rows, cells.gene_positions.size, buffers)
                    yield rows.size

    return read


def pools(plan: StreamPlan, epoch: int) -> Iterator[np.ndarray]:
    """Cells of each pool of an epoch over all lanes, [step cell]."""
    n_steps = plan.n_steps_per_epoch
    for stretch in plan.stretches(epoch * n_steps, (epoch + 1) * n_steps):
        yield plan.rows_of(stretch, range(plan.n_lanes))


class TiledbsomaMl:
    """tiledbsoma-ml with blocks and buffers of the same size as ours.

    Args:
        cells: what to read.
        store: which of the stores.
    """

    def __init__(self, cells: Cells, store: StoreLocator) -> None:
        self._cells, self._store = cells, store
        self.log_s = 0.0
        """CPU seconds of taking logarithms, which it leaves to others."""

    def __call__(self, epoch: int) -> Iterator[int]:
        """One epoch."""
        import tiledbsoma_ml

        plan = self._cells.plan
        with tiledbsoma.Experiment.open(self._store.uri) as experiment:
            query = experiment.axis_query("RNA")
            loader = tiledbsoma_ml.ExperimentDataset(
                query,
                layer_name="raw",
                obs_column_names=["soma_joinid"],
                batch_size=plan.cells_per_step,
                io_batch_size=plan.steps_per_pool * plan.cells_per_step,
                shuffle=True,
                shuffle_chunk_size=plan.rows_per_chunk,
                seed=epoch,
            )
            for counts, _ in loader:
                began = time.thread_time()
                log_normalise(counts)
                self.log_s += time.thread_time() - began
                yield len(counts)


def annbatch(collection: Path, n_genes: int, rows_per_chunk: int, n_chunks: int) -> Reader:
    """Annbatch over its own preshuffled copy, its sparse minibatches filled in by our kernel."""
    import zarr
    from annbatch import DatasetCollection, Loader

    def read(epoch: int) -> Iterator[int]:
        with zarr.config.set({"codec_pipeline.path": "zarrs.ZarrsCodecPipeline"}):
            loader = Loader(
                batch_size=1024,
                chunk_size=rows_per_chunk,
                preload_nchunks=n_chunks,
                shuffle=True,
                rng=np.random.default_rng(epoch),
            ).use_collection(DatasetCollection(collection))
            counts, log_x = np.empty((2, 1024, n_genes), dtype=np.float32)
            for batch in loader:
                x: Any = batch["X"]
                n = x.shape[0]
                _fill(x.indptr, x.indices, x.data, counts[:n], log_x[:n])
                yield n

    return read


def shuffle_for_annbatch(path: Path, collection: Path) -> None:
    """Its one-time copy in random order, with its own defaults."""
    import zarr
    from annbatch import DatasetCollection
    from anndata import AnnData
    from anndata.experimental import read_elem_lazy
    from anndata.io import read_elem

    with (
        h5py.File(path) as file,
        zarr.config.set({"codec_pipeline.path": "zarrs.ZarrsCodecPipeline"}),
    ):
        DatasetCollection(collection, mode="a").add_adatas(
            [path],
            load_adata=lambda _: AnnData(
                X=read_elem_lazy(file["X"]), obs=read_elem(file["obs"]), var=read_elem(file["var"])
            ),
            dataset_size=2**18,  # rows in memory at once
            rng=np.random.default_rng(0),
        )


@numba.njit(cache=True, nogil=True)
def _fill(
    indptr: np.ndarray,
    genes: np.ndarray,
    values: np.ndarray,
    counts: np.ndarray,
    log_x: np.ndarray,
) -> None:
    """The kernel of `densify`, for compressed rows."""
    table = np.empty(64, dtype=np.float32)
    for cell in range(counts.shape[0]):
        row = slice(indptr[cell], indptr[cell + 1])
        counts[cell] = 0
        total = 0.0
        for gene, value in zip(genes[row], values[row]):  # noqa: B905  numba knows no strict
            counts[cell, gene] = value
            total += value
        log_x[cell] = 0
        table[:] = 0
        factor = LIBRARY_SCALE / max(total, 1.0)
        for gene, value in zip(genes[row], values[row]):  # noqa: B905
            if value >= table.size:
                log_x[cell, gene] = np.float32(log_of(value, factor))
                continue
            if table[int(value)] == 0:
                table[int(value)] = np.float32(log_of(value, factor))
            log_x[cell, gene] = table[int(value)]
