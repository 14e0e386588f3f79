"""One condition combination, compared in every way: the unit of work of a process.

Everything a process needs travels as arrays, so it may run in any of them; the numbers depend on
the combination and the seeds alone.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from jaxtyping import Float32
from numpy import ndarray

from save_dist.evaluation import biology, catalogue, classify
from save_dist.evaluation import metrics as distances
from save_dist.evaluation.biology import GeneProfile
from save_dist.evaluation.candidates import Candidate, Candidates, draw
from save_dist.evaluation.case import Case, Reference
from save_dist.evaluation.change import Sides, compare_change, compare_significant
from save_dist.evaluation.classify import LabelClassifier
from save_dist.evaluation.space import Sample, Space
from save_dist.evaluation.tables import Codes

N_CORRELATED = 200
"""Most variable genes whose correlations are compared."""
N_TREE_GENES = 300
"""Most variable genes that boosted trees see in gene space; their cost grows with the number."""
MIN_CELLS = 4
"""Cells per side below which nothing is compared: either half needs two."""


@dataclass(frozen=True)
class Shared:
    """What all combinations use.

    Args:
        space: where cells are compared.
        marginal: training cells of any condition.
        train_pca: training cells, against memorisation.
        labels: classifier per condition column.
        n_max: cells per side at most.
        seeds: sampling seeds.
    """

    space: Space
    marginal: Sample
    train_pca: Float32[ndarray, "cell component"]
    labels: tuple[LabelClassifier | None, ...]
    n_max: int
    seeds: tuple[int, ...]


@dataclass(frozen=True)
class CombinationResult:
    """Measured values of one combination.

    Args:
        codes: the combination.
        n_used: cells per side.
        metrics: candidate -> metric -> one value per sampling seed; classifiers and the
            memorisation check have the first seed only.
        means: mean log profile of every candidate, first seed, and of the half of the real cells
            that the floor, the other half, is compared with (`REAL`). Empty without a reference,
            which alone has a use for them.
        real: gene profile of real cells.
        generated: gene profile of generated cells.
    """

    codes: Codes
    n_used: int
    metrics: Mapping[str, Mapping[str, tuple[float, ...]]]
    means: Mapping[str, Float32[ndarray, " gene"]]
    real: GeneProfile
    generated: GeneProfile


@dataclass(frozen=True)
class CombinationTask:
    """Score one combination; the form in which a process runs it."""

    case: Case

    def run(self, shared: Shared) -> CombinationResult:
        """Compare the cells."""
        return score_case(self.case, shared)


def score_case(case: Case, shared: Shared) -> CombinationResult:
    """Compare real cells with each candidate, once per sampling seed."""
    test, candidates = shared.space.read(case.test), Candidates(case, shared.space, shared.marginal)
    n = min(shared.n_max, test.n_cells, candidates.generated.n_cells)
    found = _Found()
    for seed in shared.seeds if n >= MIN_CELLS else ():
        real = draw(test, n, seed, "real", case)
        for candidate in candidates.drawn(real, seed):
            found.add(candidate.name, _compare(case, shared, candidate, n // 2))
            if seed == shared.seeds[0]:
                found.add(candidate.name, _compare_once(candidate, shared, seed))
                if case.references:
                    found.add_means(candidate)
    return CombinationResult(
        codes=case.codes,
        n_used=n,
        metrics={name: {m: tuple(v) for m, v in row.items()} for name, row in found.values.items()},
        means=found.means,
        real=biology.gene_profile(_log(test)[: shared.n_max]),
        generated=biology.gene_profile(_log(candidates.generated)[: shared.n_max]),
    )


@dataclass
class _Found:
    """Values of every candidate and metric as they come, in order of seeds."""

    values: dict[str, dict[str, list[float]]] = field(default_factory=dict)
    means: dict[str, Float32[ndarray, " gene"]] = field(default_factory=dict)

    def add(self, candidate: str, values: Mapping[str, float]) -> None:
        """Note what could be measured."""
        row = self.values.setdefault(candidate, {})
        for metric, value in values.items():
            if np.isfinite(value):
                row.setdefault(metric, []).append(value)

    def add_means(self, candidate: Candidate) -> None:
        """Note mean profiles; the real one is that which the floor is compared with."""
        if candidate.name == catalogue.FLOOR:
            self.means[catalogue.REAL] = candidate.real.profile.mean.astype(np.float32)
        if candidate.cells.log is not None:
            self.means[candidate.name] = candidate.cells.profile.mean.astype(np.float32)


def _compare(case: Case, shared: Shared, candidate: Candidate, half: int) -> dict[str, float]:
    """Everything that is measured once per sampling seed.

    Args:
        case: the combination.
        shared: what all combinations use.
        candidate: cells and the real ones they are compared with; fewer than `half` leave out
            what needs equal numbers.
        half: cells per side for whatever depends on their number.
    """
    real, cells = candidate.real, candidate.cells
    if cells.n_cells < 2:
        return {}
    out = _distances(real, cells, half, shared.space)
    for column, code, classifier in zip(case.condition, case.codes, shared.labels, strict=True):
        if classifier is not None:
            hits = classifier.predict(cells.pca) == code
            out[f"label_accuracy:{column}"] = float(hits.mean())
    if real.library is not None and cells.library is not None:
        out |= biology.compare_libraries(real.library, cells.library)
    if cells.log is not None:
        out |= _genes(case, real, cells, half, shared.space)
    return out


def _distances(real: Sample, candidate: Sample, half: int, space: Space) -> dict[str, float]:
    between = distances.squared_distances(real.pca, candidate.pca)
    pairs = distances.Pairs(real.cloud, candidate.cloud, between)
    out = {
        "energy": distances.energy_distance(pairs),
        "mmd2": distances.mmd2(pairs, space.median_squared),
    }
    if candidate.n_cells >= half:
        pairs = pairs.first(half)
        out["w1"] = distances.wasserstein(pairs, 1)
        out["w2"] = distances.wasserstein(pairs, 2)
        if half > distances.N_NEIGHBOURS:
            out |= distances.neighbourhood(pairs)._asdict()
    return out


def _genes(case: Case, real: Sample, cells: Sample, half: int, space: Space) -> dict[str, float]:
    out = biology.compare_profiles(real.profile, cells.profile)
    if cells.n_cells >= half:
        top = space.by_variance[:N_CORRELATED]
        sides = (_log(sample)[:half, top] for sample in (real, cells))
        out |= biology.compare_correlations(*sides)
    if case.references and real.n_cells >= MIN_CELLS:
        out |= _changes(case.references, real, cells)
    return out


def _changes(references: Sequence[Reference], real: Sample, cells: Sample) -> dict[str, float]:
    """Change from the reference, for every column that has one."""
    out: dict[str, float] = {}
    for reference in references:
        real_sides = Sides(real.moments, reference.test)
        found_sides = Sides(cells.moments, reference.train)
        first, second = map(Sides, real.halves, reference.test_halves)
        values = compare_change(real_sides, found_sides)._asdict()
        values |= compare_significant(real_sides, (first, second), found_sides)._asdict()
        out |= {f"change_{name}:{reference.column}": value for name, value in values.items()}
    return out


def _compare_once(candidate: Candidate, shared: Shared, seed: int) -> dict[str, float]:
    """What is measured for the first sampling seed alone."""
    out = _tell_apart(candidate.real, candidate.cells, shared.space, seed)
    if candidate.name == catalogue.GENERATED:
        out |= _memorised(candidate.real, candidate.cells, shared)
    return out


def _tell_apart(real: Sample, candidate: Sample, space: Space, seed: int) -> dict[str, float]:
    """Two-sample classifiers in gene space and in PCA space."""
    if min(real.n_cells, candidate.n_cells) < classify.MIN_CELLS:
        return {}
    out = {
        "c2st_logistic_pca": classify.two_sample_auc(real.pca, candidate.pca, "logistic", seed),
        "c2st_trees_pca": classify.two_sample_auc(real.pca, candidate.pca, "trees", seed),
    }
    if real.log is not None and candidate.log is not None:
        top = space.by_variance[:N_TREE_GENES]
        out["c2st_logistic_gene"] = classify.two_sample_auc(
            real.log, candidate.log, "logistic", seed
        )
        out["c2st_trees_gene"] = classify.two_sample_auc(
            real.log[:, top], candidate.log[:, top], "trees", seed
        )
    return out


def _memorised(real: Sample, generated: Sample, shared: Shared) -> dict[str, float]:
    nearness = biology.compare_nearness(real.pca, generated.pca, shared.train_pca)
    return {
        "nearest_train_ratio": nearness.ratio,
        "nearer_train_share": nearness.nearer_share,
    }


def _log(sample: Sample) -> Float32[ndarray, "cell gene"]:
    assert sample.log is not None, "real and generated cells are made as counts"
    return sample.log
