"""Two passes over the training cells: all store genes to choose the vocabulary, then its moments.

Both work on the entries that are there; a zero costs nothing. Sums are in double precision, and
moments are those of the population (divided by the number of cells). A pass adds up portions of
the cells, possibly in several processes. Portions and the order of adding them depend on the cells
alone, so any number of processes gives the same bits.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple, no_type_check

import numba
import numpy as np
from jaxtyping import Float32, Float64, Int64
from numpy import ndarray

from save_dist.config.schema import GenesConfig
from save_dist.core.errors import DataError
from save_dist.core.spread import Spread, in_order
from save_dist.data.scan import scan
from save_dist.data.source import SomaSource, StoreLocator
from save_dist.data.splits import CellIndex
from save_dist.data.transforms import LIBRARY_SCALE, log_of

CELLS_PER_PORTION = 65_536
"""Cells that one process adds up at a time, if their sums are small: some seconds of work."""
SUM_BYTES = 8 * 2**30
"""Most that the sums of all portions may take together, since they travel to one process."""


@dataclass(frozen=True)
class GeneStatistics:
    """Every gene of the store over the given cells; logs are log1p of counts per 1e4."""

    n_cells: int
    n_cells_expressing: Int64[ndarray, " gene"]
    """Cells with at least one count."""
    mean_log: Float64[ndarray, " gene"]
    var_log: Float64[ndarray, " gene"]
    max_count: Int64[ndarray, " gene"]
    mean_count: Float64[ndarray, " gene"]


@dataclass(frozen=True)
class VocabularyStatistics:
    """The chosen genes over the given cells; log_x as in `transforms`, over these genes alone."""

    n_cells: int
    mean_log: Float64[ndarray, " gene"]
    max_log: Float32[ndarray, " gene"]
    """Largest log_x, the scale that maps expression into [0, 1]; 1 for a gene never counted."""
    mean_count: Float64[ndarray, " gene"]
    covariance: Float64[ndarray, "gene gene"] | None
    """Of log_x; None if it was not asked for."""


class _GeneSums(NamedTuple):
    """What some cells add to the statistics of every gene."""

    sums: ndarray
    """[gene 3]: log, log squared, count."""
    tallies: ndarray
    """[gene 2]: cells with a count, largest count."""


class _VocabularySums(NamedTuple):
    """What some cells add to the statistics of the chosen genes."""

    sums: ndarray
    """[gene 2]: log_x, count."""
    max_log: ndarray
    """[gene], float32."""
    products: ndarray
    """[gene gene] of log_x, each pair summed on either side; empty if not asked for."""


def gene_statistics(
    locator: StoreLocator, index: CellIndex, *, spread: Spread = in_order
) -> GeneStatistics:
    """One pass over the cells of `index` and all genes, normalised by the whole library.

    Args:
        locator: the store.
        index: cells to look at, those of the training split.
        spread: how portions of the cells are given to processes.

    Raises:
        DataError: if there are no cells, or the store holds something that is no count.
    """
    _refuse_empty(index)
    portions = spread(partial(_sum_genes, locator), _portions(index, 0))
    sums, tallies = map(np.copy, next(portions))  # what other processes send is read-only
    for more_sums, more_tallies in portions:
        sums += more_sums
        tallies[:, 0] += more_tallies[:, 0]
        np.maximum(tallies[:, 1], more_tallies[:, 1], out=tallies[:, 1])
    mean_log, mean_square, mean_count = sums.T / index.n_cells
    return GeneStatistics(
        n_cells=index.n_cells,
        n_cells_expressing=tallies[:, 0].copy(),
        mean_log=mean_log,
        var_log=np.maximum(mean_square - mean_log**2, 0),
        max_count=tallies[:, 1].copy(),
        mean_count=mean_count,
    )


def select_genes(
    statistics: GeneStatistics, ids: Sequence[str], config: GenesConfig
) -> Int64[ndarray, " chosen"]:
    """Store columns of the genes to model, ascending: those of largest variance of log expression.

    Args:
        statistics: of the training cells.
        ids: gene names by store column; they decide between genes of equal variance.
        config: how many genes, and in how many cells each must be counted.

    Raises:
        DataError: if no gene is counted in enough cells.
    """
    eligible = np.flatnonzero(statistics.n_cells_expressing >= config.min_cells)
    if eligible.size == 0:
        raise DataError(
            f"no gene is counted in genes.min_cells={config.min_cells} of the "
            f"{statistics.n_cells} training cells (at most in "
            f"{statistics.n_cells_expressing.max(initial=0)}); lower genes.min_cells"
        )
    names = np.asarray(ids)[eligible]
    by_variance = np.lexsort((names, -statistics.var_log[eligible]))
    return np.sort(eligible[by_variance[: config.n_top]])


def vocabulary_statistics(
    locator: StoreLocator,
    index: CellIndex,
    gene_positions: Int64[ndarray, " gene"],
    *,
    with_covariance: bool = True,
    spread: Spread = in_order,
) -> VocabularyStatistics:
    """One pass over the cells of `index` and the chosen genes.

    The covariance costs half the square of a cell's entries per cell, and 8 bytes per pair of
    genes of memory in every process, twice that in the one that adds up.

    Args:
        locator: the store.
        index: cells to look at, those of the training split.
        gene_positions: store columns of the vocabulary genes.
        with_covariance: whether the covariance is wanted.
        spread: how portions of the cells are given to processes.

    Raises:
        DataError: if there are no cells, or the store holds something that is no count.
    """
    _refuse_empty(index)
    work = partial(_sum_vocabulary, locator, gene_positions, with_covariance)
    bytes_per_portion = 8 * gene_positions.size**2 if with_covariance else 0
    portions = spread(work, _portions(index, bytes_per_portion))
    sums, max_log, products = map(np.copy, next(portions))  # as above
    for more_sums, more_max, more_products in portions:
        sums += more_sums
        np.maximum(max_log, more_max, out=max_log)
        products += more_products
    mean_log, mean_count = sums.T / index.n_cells
    max_log[max_log == 0] = 1
    covariance = _covariance(products, mean_log, index.n_cells) if with_covariance else None
    return VocabularyStatistics(index.n_cells, mean_log, max_log, mean_count, covariance)


def _portions(index: CellIndex, bytes_per_portion: int) -> list[CellIndex]:
    """The cells in order, for the processes that add them up."""
    wanted = -(-index.n_cells // CELLS_PER_PORTION)
    n_portions = max(1, min(wanted, SUM_BYTES // max(1, bytes_per_portion)))
    size = -(-index.n_cells // n_portions)
    bounds = range(0, index.n_cells, size)
    return [index.take(np.arange(b, min(b + size, index.n_cells))) for b in bounds]


def _sum_genes(locator: StoreLocator, cells: CellIndex) -> _GeneSums:
    with SomaSource(locator) as source:
        sums = np.zeros((source.n_genes, 3), dtype=np.float64)
        tallies = np.zeros((source.n_genes, 2), dtype=np.int64)
        for block in scan(source, cells, np.arange(source.n_genes)):
            _add_genes(*block.cells, sums, tallies)
    return _GeneSums(sums, tallies)


def _sum_vocabulary(
    locator: StoreLocator,
    gene_positions: Int64[ndarray, " gene"],
    with_covariance: bool,
    cells: CellIndex,
) -> _VocabularySums:
    n_genes = gene_positions.size
    sums = np.zeros((n_genes, 2), dtype=np.float64)
    max_log = np.zeros(n_genes, dtype=np.float32)
    products = np.zeros((n_genes, n_genes) if with_covariance else (0, 0), dtype=np.float64)
    with SomaSource(locator) as source:
        for block in scan(source, cells, gene_positions):
            _add_vocabulary(*block.cells, sums, max_log, products)
    return _VocabularySums(sums, max_log, products)


def _covariance(
    products: Float64[ndarray, "gene gene"], mean_log: Float64[ndarray, " gene"], n_cells: int
) -> Float64[ndarray, "gene gene"]:
    """Covariance from sums of products, each pair of genes summed on either side; in place."""
    diagonal = np.diag(products).copy()
    products += products.T.copy()
    np.fill_diagonal(products, diagonal)
    products /= n_cells
    for gene in range(mean_log.size):
        products[gene] -= mean_log[gene] * mean_log
    return products


def _refuse_empty(index: CellIndex) -> None:
    if index.n_cells == 0:
        raise DataError(
            "there are no training cells: every cell is excluded, held out or kept for testing; "
            "lower split.test and split.validation, or hold out less"
        )


@numba.njit(cache=True, nogil=True)
@no_type_check
def _add_genes(indptr: ndarray, entries: ndarray, sums: ndarray, tallies: ndarray) -> None:
    """Add cells to sums of log, log squared, count, and to tallies of cells, largest count."""
    for cell in range(indptr.size - 1):
        row = entries[indptr[cell] : indptr[cell + 1]]
        total = 0
        for i in range(row.shape[0]):
            total += row[i, 1]
        if total == 0:
            continue
        factor = LIBRARY_SCALE / total
        for i in range(row.shape[0]):
            gene, count = row[i, 0], row[i, 1]
            value = log_of(count, factor)
            sums[gene, 0] += value
            sums[gene, 1] += value * value
            sums[gene, 2] += count
            tallies[gene, 0] += count > 0
            tallies[gene, 1] = max(tallies[gene, 1], count)


@numba.njit(cache=True, nogil=True)
@no_type_check
def _add_vocabulary(
    indptr: ndarray, entries: ndarray, sums: ndarray, max_log: ndarray, products: ndarray
) -> None:
    """Add cells to sums of log and count, to maxima, and to products of gene pairs if wanted."""
    values = np.empty(max_log.size, dtype=np.float64)
    for cell in range(indptr.size - 1):
        row = entries[indptr[cell] : indptr[cell + 1]]
        total = 0
        for i in range(row.shape[0]):
            total += row[i, 1]
        if total == 0:
            continue
        factor = LIBRARY_SCALE / total
        for i in range(row.shape[0]):
            gene = row[i, 0]
            values[i] = log_of(row[i, 1], factor)
            sums[gene, 0] += values[i]
            sums[gene, 1] += row[i, 1]
            max_log[gene] = max(max_log[gene], np.float32(values[i]))
        if products.size > 0:
            for i in range(row.shape[0]):
                line = products[row[i, 0]]
                for j in range(i + 1):
                    line[row[j, 0]] += values[i] * values[j]
