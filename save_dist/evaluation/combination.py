"""One condition combination, compared in every way: the unit of work of a process.

Everything a process needs travels as arrays, so it may run in any of them; the numbers depend on
the combination and the seeds alone.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float32, Float64
from numpy import ndarray

from save_dist.core import seeding
from save_dist.evaluation import baselines, biology, catalogue, classify
from save_dist.evaluation import metrics as distances
from save_dist.evaluation.biology import GeneProfile
from save_dist.evaluation.classify import LabelClassifier
from save_dist.evaluation.space import Sample, Space
from save_dist.evaluation.tables import Codes, Counts

N_CORRELATED = 200
"""Most variable genes whose correlations are compared."""
N_TREE_GENES = 300
"""Most variable genes that boosted trees see in gene space; their cost grows with the number."""
MIN_CELLS = 4
"""Cells per side below which nothing is compared: either half needs two."""


@dataclass(frozen=True)
class Reference:
    """The reference condition of one column for one combination.

    Args:
        column: name of the column.
        test_mean: mean log profile of real test cells at the reference.
        test_noise: sum over genes of the sampling variance of `test_mean`.
        train_mean: mean log profile of training cells at the reference.
    """

    column: str
    test_mean: Float64[ndarray, " gene"]
    test_noise: float
    train_mean: Float64[ndarray, " gene"]


@dataclass(frozen=True)
class CombinationTask:
    """Cells of one combination and what its baselines are made from.

    Args:
        condition: value per column.
        codes: the same as codes.
        identity: 64-bit identity of the condition, for its random streams.
        is_held_out: whether it was kept out of training.
        test: real cells it is compared with.
        generated: cells of the model.
        shuffle_pool: real cells whose genes are shuffled: training cells, or the held-out cells
            themselves, which have no other.
        pools: real training cells that serve as they are (control cells, nearest seen).
        shifts: log-space changes to add to the control cells, per baseline.
        references: one per column that has a reference and differs from it here.
        n_train: training cells of this combination.
    """

    condition: Mapping[str, str]
    codes: Codes
    identity: int
    is_held_out: bool
    test: Counts
    generated: Counts
    shuffle_pool: Counts | None
    pools: Mapping[str, Counts]
    shifts: Mapping[str, Float32[ndarray, " gene"]]
    references: tuple[Reference, ...]
    n_train: int

    def run(self, shared: "Shared") -> "CombinationResult":
        """Compare the cells; the form in which a process runs it."""
        return score_combination(self, shared)


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
        real: gene profile of the real cells, first seed.
        generated: gene profile of the generated cells, first seed.
    """

    codes: Codes
    n_used: int
    metrics: Mapping[str, Mapping[str, tuple[float, ...]]]
    real: GeneProfile
    generated: GeneProfile


def score_combination(task: CombinationTask, shared: Shared) -> CombinationResult:
    """Compare real cells with each candidate, once per sampling seed."""
    test, pools = shared.space.read(task.test), _read_pools(task, shared)
    generated = pools[catalogue.GENERATED]
    n = min(shared.n_max, test.n_cells, generated.n_cells)
    found: dict[str, dict[str, list[float]]] = {}
    for seed in shared.seeds if n >= MIN_CELLS else ():
        real = _drawn(test, n, seed, "real", task)
        for name, target, candidate in _candidates(task, shared, real, pools, seed):
            values = _compare(task, shared, target, candidate, n // 2)
            if seed == shared.seeds[0]:
                values |= _tell_apart(target, candidate, shared.space, seed)
                if name == catalogue.GENERATED:
                    values |= _memorised(real, candidate, shared)
            for metric, value in values.items():
                if np.isfinite(value):
                    found.setdefault(name, {}).setdefault(metric, []).append(value)
    profiles = [biology.gene_profile(_log(s)[: shared.n_max]) for s in (test, generated)]
    frozen = {name: {m: tuple(v) for m, v in table.items()} for name, table in found.items()}
    return CombinationResult(task.codes, n, frozen, *profiles)


def _read_pools(task: CombinationTask, shared: Shared) -> dict[str, Sample]:
    read = {name: shared.space.read(counts) for name, counts in task.pools.items()}
    generated = shared.space.read(task.generated)
    return {catalogue.GENERATED: generated, catalogue.MARGINAL: shared.marginal, **read}


def _candidates(
    task: CombinationTask, shared: Shared, real: Sample, pools: Mapping[str, Sample], seed: int
) -> Iterator[tuple[str, Sample, Sample]]:
    """Name, the real cells it is compared with, and cells of every candidate."""
    n = real.n_cells
    half = n // 2
    yield catalogue.FLOOR, real.take(slice(half)), real.take(slice(half, 2 * half))
    for name, pool in pools.items():
        yield name, real, _drawn(pool, n, seed, name, task)
    if task.shuffle_pool is not None:
        rng = _rng(seed, catalogue.SHUFFLE, task)
        shuffled = baselines.shuffled_genes(task.shuffle_pool, n, rng)
        yield catalogue.SHUFFLE, real, shared.space.read(shuffled)
    if (pool_and_shift := _gaussian_source(task, shared, pools)) is not None:
        rng = _rng(seed, catalogue.GAUSSIAN, task)
        yield catalogue.GAUSSIAN, real, baselines.gaussian(*pool_and_shift, n, rng)
    for name, shift in task.shifts.items():
        control = _drawn(pools[catalogue.CONTROL], n, seed, name, task)
        yield name, real, baselines.shifted(control, shift, shared.space)


def _gaussian_source(
    task: CombinationTask, shared: Shared, pools: Mapping[str, Sample]
) -> tuple[Sample, Float32[ndarray, " component"] | None] | None:
    """Seen: its own training cells. Held-out: the control cells and the additive shift."""
    if not task.is_held_out:
        pool = task.shuffle_pool
        return None if pool is None else (shared.space.read(pool), None)
    if catalogue.ADDITIVE not in task.shifts:
        return None
    return pools[catalogue.CONTROL], task.shifts[catalogue.ADDITIVE] @ shared.space.components


def _drawn(pool: Sample, n: int, seed: int, name: str, task: CombinationTask) -> Sample:
    """At most `n` cells without replacement: a cell drawn twice would be its own neighbour."""
    return pool.take(_rng(seed, name, task).permutation(pool.n_cells)[:n])


def _rng(seed: int, name: str, task: CombinationTask) -> np.random.Generator:
    """Stream of one candidate in one combination; adding a candidate moves no other."""
    return seeding.generator(seed, f"evaluation_{name}", task.identity)


def _compare(
    task: CombinationTask, shared: Shared, real: Sample, candidate: Sample, half: int
) -> dict[str, float]:
    """Everything that is measured once per sampling seed.

    Args:
        task: the combination.
        shared: what all combinations use.
        real: real cells.
        candidate: cells compared with them; fewer than `half` leave out what needs equal numbers.
        half: cells per side for whatever depends on their number.
    """
    if candidate.n_cells < 2:
        return {}
    out = _distances(real, candidate, half, shared.space)
    for column, code, classifier in zip(task.condition, task.codes, shared.labels, strict=True):
        if classifier is not None:
            hits = classifier.predict(candidate.pca) == code
            out[f"label_accuracy:{column}"] = float(hits.mean())
    if real.library is not None and candidate.library is not None:
        out |= biology.compare_libraries(real.library, candidate.library)
    if candidate.log is not None:
        out |= _genes(task, real, candidate, half, shared.space)
    return out


def _distances(real: Sample, candidate: Sample, half: int, space: Space) -> dict[str, float]:
    pairs = distances.pairs_of(real.pca, candidate.pca)
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


def _genes(
    task: CombinationTask, real: Sample, candidate: Sample, half: int, space: Space
) -> dict[str, float]:
    truth, found = _log(real), _log(candidate)
    profiles = [biology.gene_profile(x) for x in (truth, found)]
    out = biology.compare_profiles(*profiles)
    if len(found) >= half:
        top = space.by_variance[:N_CORRELATED]
        out |= biology.compare_correlations(truth[:half, top], found[:half, top])
    for reference in task.references:
        noise = float(profiles[0].variance.sum()) / (len(truth) - 1) + reference.test_noise
        change = biology.compare_change(
            profiles[0].mean, profiles[1].mean, reference.test_mean, reference.train_mean, noise
        )
        for name, value in change._asdict().items():
            out[f"change_{name}:{reference.column}"] = value
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
