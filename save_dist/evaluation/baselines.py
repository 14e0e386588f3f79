"""What a model has to beat: cells and shifts that anyone can make from training cells.

Everything here is fitted on training cells only. A held-out combination has none, so its
baselines are carried over from its neighbours: the same cells under the reference condition, and
the change that other cells show between reference and target.
"""

from collections.abc import Mapping

import numpy as np
from jaxtyping import Float32
from numpy import ndarray

from save_dist.evaluation.space import Sample, Space, TrainCells
from save_dist.evaluation.tables import Codes, Counts
from save_dist.vocab import similarity
from save_dist.vocab.conditions import ConditionVocabulary

MIN_CELLS = 10
"""Training cells that a combination needs for its mean to be used."""

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


def gaussian(
    pool: Sample, shift: Float32[ndarray, " component"] | None, n: int, rng: np.random.Generator
) -> Sample:
    """`n` draws of the normal distribution in PCA space that has the pool's mean and covariance.

    Args:
        pool: at least two cells.
        shift: added to the mean; None for none.
        n: number of draws.
        rng: source of the draws.
    """
    mean = pool.pca.mean(axis=0, dtype=np.float64)
    if shift is not None:
        mean = mean + shift
    covariance = np.atleast_2d(np.cov(pool.pca.astype(np.float64), rowvar=False))
    values, vectors = np.linalg.eigh(covariance)
    scale = np.sqrt(np.maximum(values, 0.0))
    draws = mean + (rng.standard_normal((n, len(scale))) * scale) @ vectors.T
    return Sample(draws.astype(np.float32), None, None)


def shifted(control: Sample, shift: Float32[ndarray, " gene"], space: Space) -> Sample:
    """Control cells with a change added in log space; what falls below 0 becomes 0."""
    assert control.log is not None, "control cells are real cells"
    return space.place(np.maximum(control.log + shift, 0.0), None)


def is_known(codes: Codes, train: TrainCells) -> bool:
    """Whether the combination has enough training cells."""
    return codes in train.rows and len(train.rows[codes]) >= MIN_CELLS


def _changes(pairs: list[Context], train: TrainCells) -> Float32[ndarray, "context gene"]:
    return np.stack([train.means[seen] - train.means[ref] for seen, ref in pairs])
