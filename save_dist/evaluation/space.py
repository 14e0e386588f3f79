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
MIN_CELLS = 10
"""Training cells that a combination needs for its profile to be used."""
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
    """Training cells in the space, and profiles of each combination with `MIN_CELLS` or more.

    Args:
        pca: coordinates of the cells.
        rows: rows of every combination.
        means: mean log-normalised expression of the compared genes.
        variances: its variance, of the cells as a sample.
        rates: share of every vocabulary gene in all counts of the combination.
    """

    pca: Float32[ndarray, "cell component"]
    rows: dict[Codes, Int64[ndarray, " row"]]
    means: dict[Codes, Float32[ndarray, " gene"]]
    variances: dict[Codes, Float32[ndarray, " gene"]]
    rates: dict[Codes, Float32[ndarray, " vocabulary_gene"]]

    def moments(self, codes: Codes) -> Moments:
        """Mean and variance of a combination that has a profile."""
        mean, variance = (kind[codes].astype(np.float64) for kind in (self.means, self.variances))
        return Moments(len(self.rows[codes]), mean, variance)


def fit_space(train: CellTable, n_components: int, seed: int) -> tuple[Space, TrainCells]:
    """Choose the genes, fit the components and bandwidth, and place the training cells.

    Three passes over the cells, a portion at a time: memory holds a portion, the covariance of
    the genes, and the coordinates of all cells.

    Args:
        train: training cells.
        n_components: principal components; fewer if cells or genes are fewer.
        seed: of the cells behind the bandwidth.
    """
    mean, variance = _log_moments(train)
    genes = np.sort(np.argsort(-variance, kind="stable")[:MAX_GENES])
    mean = mean[genes].astype(np.float32)
    covariance = _covariance(train, genes, mean)
    components, explained = _components(covariance, min(n_components, train.n_cells - 1))
    known = _place(train, genes, mean, components)
    order = seeding.generator(seed, "bandwidth_cells").permutation(train.n_cells)
    some = known.pca[order[:N_BANDWIDTH_CELLS]]
    space = Space(
        genes=genes,
        by_variance=np.argsort(-variance[genes], kind="stable"),
        mean=mean,
        components=components,
        explained=explained,
        median_squared=max(median_squared_distance(some), _MIN_SQUARED),
    )
    return space, known


def log_normalised(counts: Counts) -> Float32[ndarray, "cell gene"]:
    """The log-normalisation of training, for counts of either type."""
    return log_normalise(counts.astype(np.float32, copy=False))


def _log_moments(train: CellTable) -> tuple[Float64[ndarray, " gene"], Float64[ndarray, " gene"]]:
    """Mean and variance of log-normalised expression per vocabulary gene."""
    total = np.zeros(train.counts.shape[1])
    squares = np.zeros(train.counts.shape[1])
    for rows in train.portions():
        log = log_normalised(train.read(rows))
        total += log.sum(axis=0, dtype=np.float64)
        squares += np.square(log).sum(axis=0, dtype=np.float64)
    mean = total / train.n_cells
    return mean, np.maximum(squares / train.n_cells - mean**2, 0.0)


def _covariance(
    train: CellTable, genes: Int64[ndarray, " gene"], mean: Float32[ndarray, " gene"]
) -> Float64[ndarray, "gene gene"]:
    covariance = np.zeros((len(genes), len(genes)))
    for rows in train.portions():
        centred = log_normalised(train.read(rows))[:, genes] - mean
        covariance += centred.T @ centred
    return covariance / train.n_cells


def _components(
    covariance: Float64[ndarray, "gene gene"], n: int
) -> tuple[Float32[ndarray, "gene component"], float]:
    """Leading eigenvectors of the covariance and the share of variance they hold."""
    values, vectors = np.linalg.eigh(covariance)
    n = min(n, len(values))
    leading = vectors[:, ::-1][:, :n]
    strongest = np.abs(leading).argmax(axis=0)
    leading = leading * np.sign(leading[strongest, np.arange(n)])  # a sign that repeats
    total = float(np.maximum(values, 0.0).sum())
    explained = float(np.maximum(values[::-1][:n], 0.0).sum()) / total if total > 0 else 0.0
    return np.ascontiguousarray(leading, dtype=np.float32), explained


def _place(
    train: CellTable,
    genes: Int64[ndarray, " gene"],
    mean: Float32[ndarray, " gene"],
    components: Float32[ndarray, "gene component"],
) -> TrainCells:
    """Coordinates of all cells, and profiles of their combinations."""
    pca = np.empty((train.n_cells, components.shape[1]), dtype=np.float32)
    rows_of = train.rows_by_combination()
    sums = {
        c: _Sums.zero(len(genes), train.counts.shape[1])
        for c in rows_of
        if len(rows_of[c]) >= MIN_CELLS
    }
    for rows in train.portions():
        counts = train.read(rows)
        centred = log_normalised(counts)[:, genes] - mean
        pca[rows] = centred @ components
        for codes, places in CellTable(counts, train.codes[rows]).rows_by_combination().items():
            if codes in sums:
                sums[codes].add(centred[places], counts[places])
    known = TrainCells(pca, rows_of, {}, {}, {})
    for codes, found in sums.items():
        n = len(rows_of[codes])
        known.means[codes] = (found.log / n + mean).astype(np.float32)
        squares = np.maximum(found.squares - np.square(found.log) / n, 0.0)
        known.variances[codes] = (squares / (n - 1)).astype(np.float32)
        known.rates[codes] = (found.counts / max(found.counts.sum(), 1.0)).astype(np.float32)
    return known


@dataclass(frozen=True)
class _Sums:
    """Sums over the cells of a combination: log expression off the mean, its square, counts."""

    log: Float64[ndarray, " gene"]
    squares: Float64[ndarray, " gene"]
    counts: Float64[ndarray, " vocabulary_gene"]

    @classmethod
    def zero(cls, n_genes: int, n_vocabulary_genes: int) -> "_Sums":
        return cls(np.zeros(n_genes), np.zeros(n_genes), np.zeros(n_vocabulary_genes))

    def add(self, centred: Float32[ndarray, "cell gene"], counts: Counts) -> None:
        self.log[:] += centred.sum(axis=0, dtype=np.float64)
        self.squares[:] += np.square(centred).sum(axis=0, dtype=np.float64)
        self.counts[:] += counts.sum(axis=0, dtype=np.float64)
