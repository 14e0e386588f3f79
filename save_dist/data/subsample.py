"""Fewer cells than there are, chosen by seed alone: for what need not see every cell."""

import numpy as np
from jaxtyping import Int, Int64
from numpy import ndarray

from save_dist.core import seeding
from save_dist.data.splits import CellIndex


def at_most(index: CellIndex, n_cells: int, seed: int) -> CellIndex:
    """The whole index, or `n_cells` of its cells drawn evenly."""
    if index.n_cells <= n_cells:
        return index
    order = seeding.generator(seed, "subsample").permutation(index.n_cells)
    return index.take(np.sort(order[:n_cells]))


def at_most_per_combination(index: CellIndex, n_cells: int, seed: int) -> CellIndex:
    """For every combination of condition codes all its cells, or `n_cells` drawn evenly."""
    return index.take(rows_per_combination(index.codes, n_cells, seed))


def rows_per_combination(
    codes: Int[ndarray, "cell field"], n_cells: int, seed: int
) -> Int64[ndarray, " chosen"]:
    """Ascending rows with at most `n_cells` of each combination."""
    if not len(codes):
        return np.empty(0, dtype=np.int64)
    combination = np.unique(codes, axis=0, return_inverse=True)[1].ravel()
    order = seeding.generator(seed, "subsample").permutation(len(codes))
    order = order[np.argsort(combination[order], kind="stable")]
    ordered = combination[order]
    starts = np.flatnonzero(np.r_[True, ordered[1:] != ordered[:-1]])
    place = np.arange(len(codes)) - np.repeat(starts, np.diff(np.r_[starts, len(codes)]))
    rows: ndarray = np.sort(order[place < n_cells])
    return rows
