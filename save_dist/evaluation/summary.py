"""Combinations -> averages, intervals and normalised scores."""

from collections.abc import Iterable, Mapping, Sequence

import numpy as np
from jaxtyping import Float64
from numpy import ndarray

from save_dist.core import seeding
from save_dist.evaluation import catalogue
from save_dist.evaluation.scores import Average, CombinationScores, GroupScores, Table, Values

_INTERVAL = (2.5, 97.5)
_CELLS_AT_ONCE = 4_000_000
CLEAR = 2.0
"""Spreads of the floor by which the marginal must stand above it for a normalised score."""


def normalised(
    means: Table, floor_spread: Values, distances: Iterable[str] = catalogue.DISTANCES
) -> dict[str, dict[str, float]]:
    """Score (d - floor) / (d_marginal - floor) of every candidate but these two.

    Left out where the marginal does not stand clear of the floor: such a combination looks like
    the rest of the cells, or has too few of them, and the ratio would be noise.

    Args:
        means: candidate -> distance -> mean over seeds.
        floor_spread: distance -> standard deviation of the floor over seeds.
        distances: the metrics to score.
    """
    out: dict[str, dict[str, float]] = {}
    floor, marginal = (means.get(c, {}) for c in (catalogue.FLOOR, catalogue.MARGINAL))
    for distance in distances:
        if distance not in floor or distance not in marginal:
            continue
        gap = marginal[distance] - floor[distance]
        if gap <= CLEAR * floor_spread.get(distance, 0.0):
            continue
        for candidate, values in means.items():
            is_yardstick = candidate in (catalogue.FLOOR, catalogue.MARGINAL)
            if distance in values and not is_yardstick:
                score = (values[distance] - floor[distance]) / gap
                out.setdefault(candidate, {})[distance] = score
    return out


def summarise(
    combinations: Sequence[CombinationScores], n_bootstrap: int, seed: int
) -> GroupScores | None:
    """Averages over the combinations that are large enough; None if there is no combination."""
    if not combinations:
        return None
    large = [c for c in combinations if c.is_averaged]
    metrics = average_tables([c.metrics for c in large], large, n_bootstrap, seed)
    return GroupScores(
        n_combinations=len(combinations),
        n_averaged=len(large),
        metrics=metrics,
        normalised=average_tables([c.normalised for c in large], large, n_bootstrap, seed),
        pooled=normalised(
            {name: {m: a.mean for m, a in row.items()} for name, row in metrics.items()}, {}
        ),
    )


def average_tables(
    tables: Sequence[Table], combinations: Sequence[CombinationScores], n_bootstrap: int, seed: int
) -> dict[str, dict[str, Average]]:
    """Average every entry of the tables over the combinations in which it was measured."""
    keys = sorted({(c, m) for table in tables for c, row in table.items() for m in row})
    if not keys:
        return {}
    nan = float("nan")
    values = np.array([[table.get(c, {}).get(m, nan) for c, m in keys] for table in tables])
    weights = np.array([float(c.n_test) for c in combinations])
    averages = average(values, weights, n_bootstrap, seed)
    out: dict[str, dict[str, Average]] = {}
    for (candidate, metric), found in zip(keys, averages, strict=True):
        out.setdefault(candidate, {})[metric] = found
    return out


def average(
    values: Float64[ndarray, "combination metric"],
    weights: Float64[ndarray, " combination"],
    n_bootstrap: int,
    seed: int,
) -> list[Average]:
    """Mean, bootstrap interval over combinations and weighted mean of every column.

    Args:
        values: NaN where a metric was not measured in a combination.
        weights: weight of each combination in the weighted mean.
        n_bootstrap: resamples of the combinations.
        seed: of the resamples.
    """
    is_known = ~np.isnan(values)
    filled = np.where(is_known, values, 0.0)
    n_known = is_known.sum(axis=0)
    means = filled.sum(axis=0) / n_known
    weighted = (weights @ filled) / (weights @ is_known)
    low, high = _intervals(filled, is_known.astype(np.float64), n_bootstrap, seed)
    return [
        Average(
            mean=float(means[i]),
            low=float(low[i]) if n_known[i] > 1 else None,
            high=float(high[i]) if n_known[i] > 1 else None,
            weighted=float(weighted[i]),
            n_combinations=int(n_known[i]),
        )
        for i in range(values.shape[1])
    ]


def _intervals(
    filled: Float64[ndarray, "combination metric"],
    is_known: Float64[ndarray, "combination metric"],
    n_bootstrap: int,
    seed: int,
) -> tuple[Float64[ndarray, " metric"], Float64[ndarray, " metric"]]:
    """Percentiles of the mean over resampled combinations, some resamples at a time."""
    rng = seeding.generator(seed, "bootstrap_combinations")
    n = len(filled)
    at_once = max(1, _CELLS_AT_ONCE // n)
    means = []
    for start in range(0, n_bootstrap, at_once):
        size = min(at_once, n_bootstrap - start)
        times = rng.multinomial(n, np.full(n, 1.0 / n), size=size).astype(np.float64)
        n_known = times @ is_known
        overall = filled.sum(axis=0) / is_known.sum(axis=0)
        means.append(np.where(n_known > 0, times @ filled / np.maximum(n_known, 1.0), overall))
    low, high = np.percentile(np.concatenate(means), _INTERVAL, axis=0)
    return low, high


def mean_and_spread(
    values: Mapping[str, Mapping[str, tuple[float, ...]]],
) -> tuple[dict[str, dict[str, float]], dict[str, dict[str, float]]]:
    """Mean and standard deviation over sampling seeds; the latter only from two seeds on."""
    means: dict[str, dict[str, float]] = {}
    spreads: dict[str, dict[str, float]] = {}
    for candidate, row in values.items():
        means[candidate] = {m: float(np.mean(v)) for m, v in row.items()}
        spreads[candidate] = {m: float(np.std(v, ddof=1)) for m, v in row.items() if len(v) > 1}
    return means, spreads
