"""Shuffled minibatches from the store or its cache, the same for any number of ranks.

1. The plan says which cells each lane takes in each step of a pool.
2. One thread reads the cells of all the rank's lanes for a pool, sorted, and packs them, while
   the pool before is used.
3. Each step's cells become matrices in one kernel.
"""

import contextlib
from collections.abc import Generator
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import NamedTuple, no_type_check

import numba
import numpy as np
from jaxtyping import Float32, Int64
from numpy import ndarray

from save_dist.data.balance import Balance
from save_dist.data.cache import cache_key, open_cache
from save_dist.data.packed import PackedCells, PackedReader
from save_dist.data.partition import StreamPlan, Stretch
from save_dist.data.prefetch import Prefetcher
from save_dist.data.source import SomaSource, StoreLocator
from save_dist.data.splits import CellIndex
from save_dist.data.transforms import DenseBuffers, densify

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
        balance: which cell is drawn at each place of an epoch; None: every cell once.

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
        balance: Balance | None = None,
    ) -> None:
        assert plan.n_cells == index.n_cells, "the plan was made for another index"
        assert balance is None or balance.n_cells == index.n_cells, "a balance of another index"
        self.plan = plan
        self.lanes = plan.lanes_of(rank, world_size)
        self._index = index
        self._balance = balance
        self._n_genes = gene_positions.size
        self._buffers = DenseBuffers()
        self._prefetcher = Prefetcher("cell-stream")
        cached = None
        if cache is not None:
            cached = open_cache(cache, cache_key(locator, index, gene_positions))
        self.is_cached = cached is not None
        """Whether cells come from the cache."""
        self._reader: _FromCache | _FromStore
        if cached is None:
            self._reader = _FromStore(locator, index, gene_positions)
        else:
            self._reader = _FromCache(cached)

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
        stretches = self.plan.stretches(start_step, stop_step)
        loads = (partial(self._load, stretch) for stretch in stretches)
        step = start_step
        with contextlib.closing(self._prefetcher.run(loads)) as pools:
            for pool in pools:
                for rows, positions in zip(pool.rows, pool.positions, strict=True):
                    yield self._batch(step, pool.cells, rows, positions)
                    step += 1

    def _load(self, stretch: Stretch) -> _Pool:
        positions = self.plan.rows_of(stretch, self.lanes)
        if self._balance is not None:
            positions = self._balance.cells(stretch.epoch)[positions]
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


@numba.njit(cache=True, nogil=True)
@no_type_check
def _touch(indptr: ndarray, entries: ndarray, rows: ndarray) -> int:
    """Read one number from every page the rows stand on; what it returns means nothing."""
    total = 0
    for row in rows:
        for i in range(indptr[row], indptr[row + 1], _ENTRIES_PER_PAGE):
            total += entries[i, 0]
    return total
