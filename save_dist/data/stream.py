"""Shuffled minibatches from the store or its cache, the same for any number of ranks.

1. The plan says which cells each lane takes in each step of a pool.
2. One thread reads the pool of all the rank's lanes in ONE sorted read and packs it, while the
   pool before is used.
3. Each step's cells become matrices in one kernel.
"""

import contextlib
import logging
from collections.abc import Generator, Iterator
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import NamedTuple

import numba
import numpy as np
from jaxtyping import Float32, Int64
from numpy import ndarray

from save_dist.data.cache import cache_key, open_cache
from save_dist.data.packed import PackedCells, PackedReader
from save_dist.data.partition import StepPlace, StreamPlan
from save_dist.data.prefetch import Prefetcher
from save_dist.data.scan import scan
from save_dist.data.source import SomaSource, StoreLocator
from save_dist.data.splits import CellIndex
from save_dist.data.transforms import DenseBuffers, densify

logger = logging.getLogger(__name__)

_ENTRIES_PER_PAGE = 1024


class CellBatch(NamedTuple):
    """One minibatch; cells stand lane by lane, the same number from each."""

    step: int
    """Global optimiser step, from the start of training."""
    lanes: tuple[int, ...]
    positions: Int64[ndarray, " cell"]
    """Positions in the index."""
    joinids: Int64[ndarray, " cell"]
    codes: Int64[ndarray, "cell field"]
    """Condition codes by column."""
    counts: Float32[ndarray, "cell gene"]
    """Raw counts of the vocabulary genes."""
    log_x: Float32[ndarray, "cell gene"]
    """log1p of counts scaled to 1e4 per cell; 0 for a cell without counts."""
    library: Float32[ndarray, " cell"]
    """Counts of the cell over the vocabulary genes."""


class _Stretch(NamedTuple):
    """Steps step..step+n_steps, all of one pool."""

    step: int
    place: StepPlace
    n_steps: int


class _Pool(NamedTuple):
    cells: PackedCells
    rows: Int64[ndarray, "step cell"]
    positions: Int64[ndarray, "step cell"]


class CellStream:
    """Minibatches of one rank. One consumer; a context manager that joins its thread.

    Args:
        locator: store to read.
        index: cells to train on.
        gene_positions: store columns of the vocabulary genes.
        plan: order of the cells.
        rank: this reader.
        world_size: readers that share the lanes.
        cache: folder from `cache.ensure_cache`; None, or one that is gone, reads the store.

    Raises:
        ConfigError: if the lanes do not divide over the ranks.
        DataError: if the store cannot be opened.
    """

    def __init__(
        self,
        locator: StoreLocator,
        index: CellIndex,
        gene_positions: Int64[ndarray, " gene"],
        plan: StreamPlan,
        *,
        rank: int = 0,
        world_size: int = 1,
        cache: Path | None = None,
    ) -> None:
        assert plan.n_cells == index.n_cells, "the plan was made for another index"
        self.plan = plan
        self.lanes = plan.lanes_of(rank, world_size)
        self._index = index
        self._n_genes = gene_positions.size
        self._buffers = DenseBuffers()
        self._prefetcher = Prefetcher("cell-stream")
        key = cache_key(locator, index, gene_positions)
        cached = None if cache is None else open_cache(cache, key)
        self.is_cached = cached is not None
        """Whether cells come from the cache."""
        self._reader: _FromCache | _FromStore
        if cached is not None:
            self._reader = _FromCache(cached)
        else:
            self._reader = _FromStore(locator, index, gene_positions)

    def __enter__(self) -> "CellStream":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Join the reading thread and release the store; harmless when repeated."""
        self._prefetcher.close()
        self._reader.close()

    @property
    def wait_s(self) -> float:
        """Time the consumer has waited for data."""
        return self._prefetcher.wait_s

    def batches(
        self, start_step: int = 0, stop_step: int | None = None
    ) -> Generator[CellBatch, None, None]:
        """Minibatches of global steps start_step, start_step + 1, ..., across epochs.

        Any start gives the very batches an uninterrupted run would give. The arrays belong to the
        consumer and may be kept; memory is reused once nobody holds them.

        Args:
            start_step: first global step.
            stop_step: step to stop before; None goes on for ever.

        Raises:
            DataError: if the store holds something that is no count.
            InfrastructureError: if the store cannot be read.
        """
        stretches = _stretches(self.plan, start_step, stop_step)
        loads = (partial(self._load, stretch) for stretch in stretches)
        step = start_step
        with contextlib.closing(self._prefetcher.run(loads)) as pools:
            for pool in pools:
                for rows, positions in zip(pool.rows, pool.positions, strict=True):
                    yield self._batch(step, pool.cells, rows, positions)
                    step += 1

    def _load(self, stretch: _Stretch) -> _Pool:
        epoch, pool, first = stretch.place
        taken = slice(first, first + stretch.n_steps)
        by_lane = [self.plan.pool_rows(epoch, pool, lane)[taken] for lane in self.lanes]
        positions = np.concatenate(by_lane, axis=1)
        try:
            return _Pool(*self._reader.read(positions), positions)
        except Exception as e:
            last = stretch.step + stretch.n_steps - 1
            e.add_note(f"while reading the cells of steps {stretch.step} to {last}")
            raise

    def _batch(
        self, step: int, cells: PackedCells, rows: np.ndarray, positions: np.ndarray
    ) -> CellBatch:
        dense = densify(cells, rows, self._n_genes, self._buffers)
        joinids = np.asarray(self._index.joinids[positions])
        codes = self._index.codes[positions].astype(np.int64)
        return CellBatch(step, self.lanes, positions, joinids, codes, *dense)


class _FromStore:
    """Reads what a pool needs, each cell once."""

    def __init__(self, locator: StoreLocator, index: CellIndex, gene_positions: ndarray) -> None:
        self._source = SomaSource(locator)
        self._joinids = index.joinids
        self._reader = PackedReader(self._source, gene_positions)

    def read(self, positions: ndarray) -> tuple[PackedCells, ndarray]:
        """Packed cells, and their row for each of `positions`."""
        wanted, rows = np.unique(positions, return_inverse=True)
        cells = self._reader.read(np.asarray(self._joinids[wanted]))
        return cells, rows.reshape(positions.shape)

    def close(self) -> None:
        self._source.close()


class _FromCache:
    """Points into the mapped files; reading ahead brings their pages into memory."""

    def __init__(self, cells: PackedCells) -> None:
        self._cells = cells

    def read(self, positions: ndarray) -> tuple[PackedCells, ndarray]:
        """All cells of the cache, and the row of each of `positions`."""
        _touch(*self._cells, np.sort(positions, axis=None))
        return self._cells, positions

    def close(self) -> None:
        """Nothing to release: consumers may still use the mapped pages."""


def _stretches(plan: StreamPlan, start_step: int, stop_step: int | None) -> Iterator[_Stretch]:
    """Cut start_step..stop_step where pools end."""
    step = start_step
    while stop_step is None or step < stop_step:
        place = plan.place_of(step)
        n_steps = plan.n_steps_in(place.pool) - place.step
        if stop_step is not None:
            n_steps = min(n_steps, stop_step - step)
        yield _Stretch(step, place, n_steps)
        step += n_steps


@numba.njit(cache=True, nogil=True)
def _touch(indptr: ndarray, entries: ndarray, rows: ndarray) -> int:
    """Read one number from every page the rows stand on; what it returns means nothing."""
    total = 0
    for row in rows:
        for i in range(indptr[row], indptr[row + 1], _ENTRIES_PER_PAGE):
            total += entries[i, 0]
    return total


def scan_batches(
    source: SomaSource,
    index: CellIndex,
    gene_positions: Int64[ndarray, " gene"],
    *,
    cells_per_batch: int = 1024,
) -> Generator[CellBatch, None, None]:
    """All cells of `index` once, in its order, as minibatches without lanes; the last is shorter.

    Args:
        source: open store; nobody else may read from it before the pass ends.
        index: cells to read.
        gene_positions: store columns of the vocabulary genes.
        cells_per_batch: cells of one minibatch.
    """
    buffers, step = DenseBuffers(), 0
    for block in scan(source, index, gene_positions, rows_per_read=16 * cells_per_batch):
        for first in range(0, block.cells.n_cells, cells_per_batch):
            rows = np.arange(first, min(first + cells_per_batch, block.cells.n_cells))
            at = block.start + rows
            dense = densify(block.cells, rows, gene_positions.size, buffers)
            codes = index.codes[at].astype(np.int64)
            yield CellBatch(step, (), at, np.asarray(index.joinids[at]), codes, *dense)
            step += 1
