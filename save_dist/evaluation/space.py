"""The space in which cells are compared, fitted on training cells alone.

Real and generated cells enter it through one function, `Space.read`: whatever one side undergoes
the other undergoes too.
"""

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from jaxtyping import Float32, Float64, Int64
from numpy import ndarray

from save_dist.core import seeding
from save_dist.data.transforms import log_normalise
from save_dist.evaluation.biology import GeneProfile, gene_profile
from save_dist.evaluation.metrics import Cloud, median_squared_distance, squared_distances
from save_dist.evaluation.moments import Moments
from save_dist.evaluation.tables import CellTable, Codes, Counts

MAX_GENES = 2000
"""Genes compared at most, those of largest training variance."""
N_BANDWIDTH_CELLS = 1000
_CELLS_AT_ONCE = 2048
_MIN_SQUARED = 1e-12  # more than half of the cells are equal: any scale will do


@dataclass(frozen=True)
class Sample:
    """Cells in the space.

    Args:
        pca: coordinates, the only part that every baseline has.
        log: log-normalised expression of the compared genes; None for cells made in PCA space.
        library: counts per cell; None for cells that were not made as counts.
    """

    pca: Float32[ndarray, "cell component"]
    log: Float32[ndarray, "cell gene"] | None
    library: Float32[ndarray, " cell"] | None

    @property
    def n_cells(self) -> int:
        """Number of cells."""
        return len(self.pca)

    @cached_property
    def cloud(self) -> Cloud:
        """Distances of the cells to one another."""
        return Cloud(squared_distances(self.pca, self.pca))

    @cached_property
    def profile(self) -> GeneProfile:
        """Gene profile of cells that were made as counts."""
        assert self.log is not None, "made in PCA space"
        return gene_profile(self.log)

    @cached_property
    def moments(self) -> Moments:
        """Mean and variance per gene of two or more cells that were made as counts."""
        n = self.n_cells
        return Moments(n, self.profile.mean, self.profile.variance * (n / (n - 1)))

    @cached_property
    def halves(self) -> tuple[Moments, Moments]:
        """Moments of the first and the second half of four or more such cells."""
        middle = self.n_cells // 2
        return self.take(slice(middle)).moments, self.take(slice(middle, None)).moments

    def take(self, rows: Int64[ndarray, " row"] | slice) -> "Sample":
        """The cells at `rows`."""
        log = None if self.log is None else self.log[rows]
        library = None if self.library is None else self.library[rows]
        return Sample(self.pca[rows], log, library)


@dataclass(frozen=True)
class Space:
    """Genes, principal components and scale.

    Args:
        genes: compared genes as positions in the vocabulary, ascending.
        by_variance: positions in `genes`, largest training variance first.
        mean: training mean of log-normalised expression.
        components: orthonormal loadings, largest variance first.
        explained: share of the training variance that the components hold.
        median_squared: median squared distance of training cells in PCA space.
    """

    genes: Int64[ndarray, " gene"]
    by_variance: Int64[ndarray, " gene"]
    mean: Float32[ndarray, " gene"]
    components: Float32[ndarray, "gene component"]
    explained: float
    median_squared: float

    def read(self, counts: Counts) -> Sample:
        """Counts over the vocabulary genes -> cells in the space."""
        library = counts.sum(axis=1, dtype=np.float64).astype(np.float32)
        log = np.ascontiguousarray(log_normalised(counts)[:, self.genes])
        return self.place(log, library)

    def place(
        self, log: Float32[ndarray, "cell gene"], library: Float32[ndarray, " cell"] | None
    ) -> Sample:
        """Log-normalised expression of the compared genes -> cells in the space."""
        return Sample((log - self.mean) @ self.components, log, library)


@dataclass(frozen=True)
class TrainCells:
    """Training cells in the space, and profiles of each of their combinations.

    Args:
        sample: the cells.
        rows: rows of every combination.
        means: mean log-normalised expression of the compared genes.
        variances: its variance, of the cells as a sample; 0 for a single cell.
        rates: share of every vocabulary gene in all counts of the combination.
    """

    sample: Sample
    rows: dict[Codes, Int64[ndarray, " row"]]
    means: dict[Codes, Float32[ndarray, " gene"]]
    variances: dict[Codes, Float32[ndarray, " gene"]]
    rates: dict[Codes, Float32[ndarray, " vocabulary_gene"]]

    def moments(self, codes: Codes) -> Moments:
        """Mean and variance of a combination of two or more cells."""
        mean, variance = (kind[codes].astype(np.float64) for kind in (self.means, self.variances))
        return Moments(len(self.rows[codes]), mean, variance)


def fit_space(train: CellTable, n_components: int, seed: int) -> tuple[Space, TrainCells]:
    """Choose the genes, fit the components and bandwidth, and place the training cells.

    Args:
        train: training cells; all of them are held as log-normalised float32 at once.
        n_components: principal components; fewer if cells or genes are fewer.
        seed: of the cells behind the bandwidth.
    """
    variance = _log_variance(train.counts)
    genes = np.sort(np.argsort(-variance, kind="stable")[:MAX_GENES])
    log = np.concatenate([log_normalised(block)[:, genes] for block in _blocks(train.counts)])
    library = train.counts.sum(axis=1, dtype=np.float64).astype(np.float32)
    mean = log.mean(axis=0, dtype=np.float64).astype(np.float32)
    components, explained = _components(log - mean, min(n_components, len(log) - 1))
    pca = (log - mean) @ components
    some = seeding.generator(seed, "bandwidth_cells").permutation(len(pca))[:N_BANDWIDTH_CELLS]
    space = Space(
        genes=genes,
        by_variance=np.argsort(-variance[genes], kind="stable"),
        mean=mean,
        components=components,
        explained=explained,
        median_squared=max(median_squared_distance(pca[some]), _MIN_SQUARED),
    )
    return space, _train_cells(train, Sample(pca, log, library))


def _train_cells(train: CellTable, sample: Sample) -> TrainCells:
    """Profiles of every combination."""
    assert sample.log is not None, "training cells are made as counts"
    known = TrainCells(sample, train.rows_by_combination(), {}, {}, {})
    for codes, rows in known.rows.items():
        log = sample.log[rows]
        total = train.counts[rows].sum(axis=0, dtype=np.float64)
        known.means[codes] = log.mean(axis=0, dtype=np.float64).astype(np.float32)
        squares = np.square(log - known.means[codes]).sum(axis=0, dtype=np.float64)
        known.variances[codes] = (squares / max(len(rows) - 1, 1)).astype(np.float32)
        known.rates[codes] = (total / max(total.sum(), 1.0)).astype(np.float32)
    return known


def log_normalised(counts: Counts) -> Float32[ndarray, "cell gene"]:
    """The log-normalisation of training, for counts of either type."""
    return log_normalise(counts.astype(np.float32, copy=False))


def _blocks(counts: Counts) -> list[Counts]:
    return [counts[i : i + _CELLS_AT_ONCE] for i in range(0, len(counts), _CELLS_AT_ONCE)]


def _log_variance(counts: Counts) -> Float64[ndarray, " gene"]:
    """Variance of log-normalised expression per gene, a block of cells at a time."""
    total = np.zeros(counts.shape[1])
    squares = np.zeros(counts.shape[1])
    for block in _blocks(counts):
        log = log_normalised(block)
        total += log.sum(axis=0, dtype=np.float64)
        squares += np.square(log).sum(axis=0, dtype=np.float64)
    mean = total / len(counts)
    out: ndarray = np.maximum(squares / len(counts) - mean**2, 0.0)
    return out


def _components(
    centred: Float32[ndarray, "cell gene"], n: int
) -> tuple[Float32[ndarray, "gene component"], float]:
    """Leading eigenvectors of the covariance and the share of variance they hold."""
    covariance = (centred.T @ centred).astype(np.float64) / len(centred)
    values, vectors = np.linalg.eigh(covariance)
    n = min(n, len(values))
    leading = vectors[:, ::-1][:, :n]
    strongest = np.abs(leading).argmax(axis=0)
    leading = leading * np.sign(leading[strongest, np.arange(n)])  # a sign that repeats
    total = float(np.maximum(values, 0.0).sum())
    explained = float(np.maximum(values[::-1][:n], 0.0).sum()) / total if total > 0 else 0.0
    return np.ascontiguousarray(leading, dtype=np.float32), explained
