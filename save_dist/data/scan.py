"""A sequential pass over the cells of an index, for statistics, encoding and the cache."""

import contextlib
from collections.abc import Generator
from functools import partial
from typing import NamedTuple

import numpy as np
from jaxtyping import Int64
from numpy import ndarray

from save_dist.data.packed import PackedCells, PackedReader
from save_dist.data.prefetch import Prefetcher
from save_dist.data.source import SomaSource
from save_dist.data.splits import CellIndex

ROWS_PER_READ = 16_384
"""Cells of one read: about 100 MB of Arrow at 300 entries a cell."""


class ScannedCells(NamedTuple):
    """Neighbouring cells of an index."""

    start: int
    """Position of the first in the index."""
    cells: PackedCells


def scan(
    source: SomaSource,
    index: CellIndex,
    gene_positions: Int64[ndarray, " gene"],
    *,
    rows_per_read: int = ROWS_PER_READ,
) -> Generator[ScannedCells, None, None]:
    """All cells of `index` in its order, packed; the next read runs while one is used.

    Args:
        source: open store; nobody else may read from it before the pass ends.
        index: cells to read.
        gene_positions: store columns of the vocabulary genes.
        rows_per_read: cells of one read and of one result (the last is shorter).
    """
    reader = PackedReader(source, gene_positions)
    starts = range(0, index.n_cells, rows_per_read)
    prefetcher = Prefetcher("scan")

    def load(start: int) -> ScannedCells:
        joinids = np.asarray(index.joinids[start : start + rows_per_read])
        return ScannedCells(start, reader.read(joinids))

    try:
        with contextlib.closing(prefetcher.run(partial(load, start) for start in starts)) as blocks:
            yield from blocks
    finally:
        prefetcher.close()
