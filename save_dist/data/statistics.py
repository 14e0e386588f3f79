"""Two streaming passes over the training cells: which genes to model, then what they look like.

The first pass sees every gene of the store and normalises by the cell's whole library. The second
sees the chosen genes only, normalised as the networks see them. Memory does not grow with the
number of cells; sums are kept in float64.
"""

from collections.abc import Callable
from typing import NamedTuple

import numba
import numpy as np
from jaxtyping import Float64, Int64
from numpy import ndarray

from save_dist.config.schema import GenesConfig
from save_dist.core.errors import DataError
from save_dist.data.packed import PackedCells
from save_dist.data.scan import scan
from save_dist.data.source import SomaSource, StoreLocator
from save_dist.data.splits import CellIndex
from save_dist.data.transforms import LIBRARY_SCALE, densify, log_of

Progress = Callable[[int], None]
CELLS_AT_ONCE = 1024
"""Rows made dense together for the covariance."""


class GeneStatistics(NamedTuple):
    """All genes of a store over some cells."""

    n_cells: int
    n_cells_expressing: Int64[ndarray, " gene"]
    mean_log: Float64[ndarray, " gene"]
    """Mean of log1p of counts scaled to 1e4 of the whole library."""
    var_log: Float64[ndarray, " gene"]
    """Variance of the same (population, not sample)."""
    mean_count: Float64[ndarray, " gene"]


class VocabularyStatistics(NamedTuple):
    """The chosen genes over some cells; log_x as the networks see it."""

    n_cells: int
    mean_log: Float64[ndarray, " gene"]
    max_log: Float64[ndarray, " gene"]
    """Largest log_x, the max-abs scale; 1 for a gene without counts."""
    covariance: Float64[ndarray, "gene gene"]
    """Covariance of log_x (population)."""
    mean_count: Float64[ndarray, " gene"]


def gene_statistics(
    locator: StoreLocator, index: CellIndex, *, progress: Progress | None = None
) -> GeneStatistics:
    """Mean and variance of every gene of the store over the cells of `index`.

    Raises:
        DataError: if there are fewer than two cells.
    """
    _require_cells(index)
    with SomaSource(locator) as source:
        n_genes = source.n_genes
        sums = np.zeros((3, n_genes))
        n_expressing = np.zeros(n_genes, dtype=np.int64)
        for start, cells in scan(source, index, np.arange(n_genes, dtype=np.int64)):
            _add_genes(cells.indptr, cells.entries, sums, n_expressing)
            _tell(progress, start + cells.n_cells)
    mean_log, mean_square, mean_count = sums / index.n_cells
    var_log = np.maximum(mean_square - mean_log**2, 0.0)
    return GeneStatistics(index.n_cells, n_expressing, mean_log, var_log, mean_count)


def select_genes(statistics: GeneStatistics, config: GenesConfig) -> Int64[ndarray, " chosen"]:
    """Store positions of the genes to model, ascending.

    The genes of largest variance of log-normalised expression, among those that enough cells
    express; ties go to the earlier gene.

    Raises:
        DataError: if no gene is left.
    """
    known = np.flatnonzero(statistics.n_cells_expressing >= max(1, config.min_cells))
    if known.size == 0:
        raise DataError(
            f"no gene is counted in {config.min_cells} of {statistics.n_cells} training cells; "
            "lower genes.min_cells or check the input"
        )
    order = np.argsort(-statistics.var_log[known], kind="stable")
    chosen: ndarray = np.sort(known[order[: config.n_top]])
    return chosen


def vocabulary_statistics(
    locator: StoreLocator,
    index: CellIndex,
    gene_positions: Int64[ndarray, " gene"],
    *,
    progress: Progress | None = None,
) -> VocabularyStatistics:
    """Scale factors and covariance of the chosen genes over the cells of `index`.

    Raises:
        DataError: if there are fewer than two cells.
    """
    _require_cells(index)
    n_genes = gene_positions.size
    total, n_counts, largest = np.zeros(n_genes), np.zeros(n_genes), np.zeros(n_genes)
    products = np.zeros((n_genes, n_genes))
    with SomaSource(locator) as source:
        for start, cells in scan(source, index, gene_positions):
            for rows in _slices(cells):
                dense = densify(cells, rows, n_genes)
                products += dense.log_x.T @ dense.log_x
                total += dense.log_x.sum(0, dtype=np.float64)
                n_counts += dense.counts.sum(0, dtype=np.float64)
                np.maximum(largest, dense.log_x.max(0), out=largest)
            _tell(progress, start + cells.n_cells)
    mean = total / index.n_cells
    return VocabularyStatistics(
        n_cells=index.n_cells,
        mean_log=mean,
        max_log=np.where(largest > 0, largest, 1.0),
        covariance=products / index.n_cells - np.outer(mean, mean),
        mean_count=n_counts / index.n_cells,
    )


def _require_cells(index: CellIndex) -> None:
    if index.n_cells < 2:
        raise DataError(
            f"{index.n_cells} training cells; statistics need at least 2. Check "
            "conditions.held_out, conditions.exclude and the split"
        )


def _slices(cells: PackedCells) -> list[Int64[ndarray, " cell"]]:
    rows = np.arange(cells.n_cells, dtype=np.int64)
    return np.array_split(rows, max(1, -(-cells.n_cells // CELLS_AT_ONCE)))


def _tell(progress: Progress | None, n_done: int) -> None:
    if progress is not None:
        progress(n_done)


@numba.njit(cache=True, nogil=True)
def _add_genes(
    indptr: np.ndarray, entries: np.ndarray, sums: np.ndarray, n_expressing: np.ndarray
) -> None:
    """Add every cell's log expression, its square and its counts to the genes' sums."""
    for cell in range(indptr.size - 1):
        library = 0
        for i in range(indptr[cell], indptr[cell + 1]):
            library += entries[i, 1]
        if library == 0:
            continue
        factor = LIBRARY_SCALE / library
        for i in range(indptr[cell], indptr[cell + 1]):
            gene, count = entries[i, 0], entries[i, 1]
            value = log_of(count, factor)
            sums[0, gene] += value
            sums[1, gene] += value * value
            sums[2, gene] += count
            n_expressing[gene] += 1
