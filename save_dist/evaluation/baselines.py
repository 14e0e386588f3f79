"""What a model has to beat: cells and shifts that anyone can make from training cells.

Everything here is fitted on training cells only. A held-out combination has none, so its
baselines are carried over from its neighbours: the same cells under the reference condition, and
the change that other cells show between reference and target.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np
from jaxtyping import Float32, Float64
from numpy import ndarray

from save_dist.data.transforms import LIBRARY_SCALE
from save_dist.evaluation.space import MIN_CELLS, Sample, Space, TrainCells
from save_dist.evaluation.tables import Codes, Counts
from save_dist.vocab import similarity
from save_dist.vocab.conditions import ConditionVocabulary

Context = tuple[Codes, Codes]
"""A seen combination and the same one at the reference."""


def reference_codes(conditions: ConditionVocabulary) -> dict[int, int]:
    """Column position -> code of its reference, for columns that have one."""
    named = enumerate(zip(conditions.columns, conditions.categories, strict=True))
    return {
        i: categories.index(conditions.reference[column])
        for i, (column, categories) in named
        if column in conditions.reference
    }


def control_of(codes: Codes, reference: Mapping[int, int]) -> Codes | None:
    """The combination with every reference column at its reference; None if it is `codes`."""
    control = tuple(reference.get(i, code) for i, code in enumerate(codes))
    return None if control == codes else control


def contexts(codes: Codes, control: Codes, train: TrainCells) -> list[Context]:
    """Seen combinations that show the change from `control` to `codes` in other cells."""
    changed = [i for i, (a, b) in enumerate(zip(codes, control, strict=True)) if a != b]
    found = []
    for seen in train.means:
        at_reference = tuple(control[i] if i in changed else c for i, c in enumerate(seen))
        shows_target = all(seen[i] == codes[i] for i in changed)
        if shows_target and is_known(seen, train) and is_known(at_reference, train):
            found.append((seen, at_reference))
    return found


def additive_shift(pairs: list[Context], train: TrainCells) -> Float32[ndarray, " gene"]:
    """Mean change of the mean log profile over contexts, each with the same weight."""
    shift: ndarray = _changes(pairs, train).mean(axis=0)
    return shift


def similarity_shift(
    control: Codes, pairs: list[Context], train: TrainCells
) -> Float32[ndarray, " gene"]:
    """Change of the contexts, weighted by how near their reference profile is to `control`.

    The temperature of the weights is the one that best predicts each context from the others.
    """
    changes = _changes(pairs, train)
    profiles = np.stack([train.means[at_reference] for _, at_reference in pairs])
    temperature = similarity.best_temperature([(profiles, changes)])
    weights = similarity.weights(train.means[control], profiles, temperature)
    shift: ndarray = (weights @ changes).astype(np.float32)
    return shift


def moved_rate(
    control: Codes, pairs: list[Context], train: TrainCells
) -> Float32[ndarray, " vocabulary_gene"]:
    """Share of every gene in the counts of a cell: that of `control`, moved by the mean change.

    The change of a context is that of log1p(1e4 * rate), so that it is additive where genes are
    well expressed and vanishes with their counts, as the additive shift does.
    """
    level = {
        codes: np.log1p(LIBRARY_SCALE * train.rates[codes]) for pair in pairs for codes in pair
    }
    change = np.mean([level[seen] - level[reference] for seen, reference in pairs], axis=0)
    moved = np.expm1(np.log1p(LIBRARY_SCALE * train.rates[control]) + change)
    rate = np.maximum(moved, 0.0)
    out: ndarray = (rate / max(float(rate.sum(dtype=np.float64)), 1e-12)).astype(np.float32)
    return out


def nearest_seen(
    codes: Codes, control: Codes | None, pairs: list[Context], train: TrainCells
) -> Codes | None:
    """The seen combination that one would show instead of an unseen one.

    With a control and contexts: the context whose reference profile is nearest to the control's.
    Otherwise the combination that shares most columns, and of these the one with most cells.
    """
    if pairs and control is not None and is_known(control, train):
        here = train.means[control]
        distance = [float(np.square(train.means[r] - here).sum()) for _, r in pairs]
        return pairs[int(np.argmin(distance))][0]
    known = [seen for seen in train.means if is_known(seen, train) and seen != codes]
    if not known:
        return None
    shared = [sum(a == b for a, b in zip(seen, codes, strict=True)) for seen in known]
    sizes = [len(train.rows[seen]) for seen in known]
    return known[max(range(len(known)), key=lambda i: (shared[i], sizes[i]))]


def shuffled_genes(counts: Counts, n: int, rng: np.random.Generator) -> Counts:
    """`n` cells whose genes are drawn apart from one another: right marginals, no correlation."""
    rows = rng.integers(len(counts), size=(n, counts.shape[1]))
    out: ndarray = np.take_along_axis(counts, rows, axis=0)
    return out


@dataclass(frozen=True)
class Gaussian:
    """Normal distribution in PCA space.

    Args:
        mean: its mean.
        loadings: matrix that turns standard normal numbers into deviations from it.
    """

    mean: Float64[ndarray, " component"]
    loadings: Float64[ndarray, "component component"]

    @classmethod
    def fit(cls, pool: Sample, shift: Float32[ndarray, " component"] | None) -> "Gaussian":
        """With the mean and covariance of two cells or more; `shift` is added to the mean."""
        mean = pool.pca.mean(axis=0, dtype=np.float64)
        if shift is not None:
            mean = mean + shift
        covariance = np.atleast_2d(np.cov(pool.pca.astype(np.float64), rowvar=False))
        values, vectors = np.linalg.eigh(covariance)
        return cls(mean, np.sqrt(np.maximum(values, 0.0))[:, None] * vectors.T)

    def draw(self, n: int, rng: np.random.Generator) -> Sample:
        """`n` cells."""
        draws = self.mean + rng.standard_normal((n, len(self.mean))) @ self.loadings
        return Sample(draws.astype(np.float32), None, None)


@dataclass(frozen=True)
class IndependentGenes:
    """Negative binomial counts of genes that know nothing of one another.

    A count has mean library * rate and variance mean + dispersion * mean^2.

    Args:
        library: counts per cell of the cells it was fitted on.
        rate: share of every gene in the counts of a cell; sums to 1.
        dispersion: 1 / inverse dispersion of every gene; 0 is the Poisson distribution.
    """

    library: Float64[ndarray, " cell"]
    rate: Float64[ndarray, " gene"]
    dispersion: Float64[ndarray, " gene"]

    @classmethod
    def fit(cls, counts: Counts) -> "IndependentGenes":
        """By moments, given the library of every cell; two cells or more."""
        n = len(counts)
        library = counts.sum(axis=1, dtype=np.float64)
        total = counts.sum(axis=0, dtype=np.float64)
        rate = total / max(total.sum(), 1.0)
        squares = np.square(counts - np.outer(library, rate)).sum(axis=0)
        excess = squares * (n / (n - 1)) - library.sum() * rate
        power = np.square(rate) * np.square(library).sum()
        dispersion = np.divide(excess, power, out=np.zeros_like(rate), where=power > 0)
        return cls(library, rate, np.maximum(dispersion, 0.0))

    def at_rate(self, rate: Float32[ndarray, " gene"]) -> "IndependentGenes":
        """The same libraries and dispersions around other means."""
        return replace(self, rate=rate.astype(np.float64))

    def draw(self, n: int, rng: np.random.Generator) -> Float32[ndarray, "cell gene"]:
        """Counts of `n` cells, whose libraries are drawn from those of the fit."""
        library = self.library[rng.integers(len(self.library), size=n)]
        mean = np.outer(library, self.rate)
        spread = self.dispersion > 0
        scatter = rng.standard_gamma(1.0 / self.dispersion[spread], (n, int(spread.sum())))
        mean[:, spread] *= scatter * self.dispersion[spread]
        return rng.poisson(mean).astype(np.float32)


def shifted(control: Sample, shift: Float32[ndarray, " gene"], space: Space) -> Sample:
    """Control cells with a change added in log space; what falls below 0 becomes 0."""
    assert control.log is not None, "control cells are real cells"
    return space.place(np.maximum(control.log + shift, 0.0), None)


def is_known(codes: Codes, train: TrainCells) -> bool:
    """Whether the combination has enough training cells."""
    return len(train.rows.get(codes, ())) >= MIN_CELLS


def _changes(pairs: list[Context], train: TrainCells) -> Float32[ndarray, "context gene"]:
    return np.stack([train.means[seen] - train.means[ref] for seen, ref in pairs])
