"""Exact answers about simulated cells, without a sample standing in for the distribution.

Counts of a gene, given the place of a cell along its programs, are negative binomial with a
log-normal library on top; both are integrated in closed form. What is left is the mean over
programs (at most a few dimensions), taken over scrambled Sobol points, and over labels that are
not given, taken as their weighted sum. The mean of log-normalised expression has no such form,
since its library is the sum of all counts of the cell; it is the mean of a large sample.
"""

from collections.abc import Iterator, Mapping
from itertools import product
from typing import NamedTuple

import numpy as np
import scipy.special
import scipy.stats
from jaxtyping import Float64, Int64
from numpy import ndarray

from save_dist.core.errors import ConfigError
from save_dist.core.seeding import generator
from save_dist.data.simulate import CELLS_AT_ONCE, draw_counts, draw_labels
from save_dist.data.simulation import SimulationConfig
from save_dist.data.transforms import LIBRARY_SCALE
from save_dist.data.truth import (
    Labels,
    Truth,
    Weights,
    build_truth,
    label_weights,
)

N_SETS = 16  # independent scramblings; their spread is the error
_HALF_STEP = 2.0**-31  # Sobol points are multiples of 2**-30, 0 among them


class Estimate(NamedTuple):
    """A number per gene, and how far it may be off."""

    value: Float64[ndarray, " gene"]
    error: Float64[ndarray, " gene"]
    """Standard error of the integration; 0 where nothing had to be integrated numerically."""


class CountMoments(NamedTuple):
    """Mean and variance of raw counts."""

    mean: Estimate
    variance: Estimate


def true_moments(
    config: SimulationConfig,
    condition: Mapping[str, str],
    *,
    points_per_set: int = 256,
    seed: int = 0,
) -> CountMoments:
    """Mean and variance of the counts of one condition, over cells.

    With p the share of a gene and L the library, E[x] = E[L] E[p] and
    Var[x] = E[x] + (1 + 1 / inverse_dispersion) E[L^2] E[p^2] - E[x]^2.

    Args:
        config: the simulated data set.
        condition: as for `sample_truth`; labels that are not given vary as in the data set.
        points_per_set: program scores in each of 16 sets, a power of two. The error falls
            faster than its square root.
        seed: of the sets.

    Raises:
        ConfigError: as `sample_truth`, or if the number of points is no power of two.
    """
    if points_per_set < 1 or points_per_set & (points_per_set - 1):
        raise ConfigError(f"points_per_set={points_per_set}, expected a power of two, e.g. 256")
    truth, weights = build_truth(config), label_weights(config, condition)
    sets = [
        _moments(config, truth, weights, scores)
        for scores in _score_sets(config.n_programs, points_per_set, seed)
    ]
    return CountMoments(*(_over_sets(np.stack(of_sets)) for of_sets in zip(*sets, strict=True)))


def true_mean_log(
    config: SimulationConfig,
    condition: Mapping[str, str],
    *,
    genes: Int64[ndarray, " gene"] | None = None,
    n_cells: int = 20_000,
    seed: int = 0,
) -> Estimate:
    """Mean of log1p(count / library * 1e4) over a sample of fresh cells of one condition.

    Args:
        config: the simulated data set.
        condition: as for `sample_truth`.
        genes: positions of the genes of a model, over which the library is summed; None: all.
        n_cells: size of the sample, at least two; the error is its standard error.
        seed: of the sample, which is not that of `sample_truth` with the same seed.

    Raises:
        ConfigError: as `sample_truth`.
    """
    if n_cells < 2:
        raise ConfigError(f"n_cells={n_cells} simulated cells asked for, expected at least 2")
    truth, rng = build_truth(config), generator(seed, "true_mean_log")
    labels = draw_labels(config, condition, n_cells, rng)
    total = np.zeros((2, config.n_genes if genes is None else len(genes)))
    for start in range(0, n_cells, CELLS_AT_ONCE):
        part = Labels(*(x[start : start + CELLS_AT_ONCE] for x in labels))
        counts = draw_counts(config, truth, part, rng)
        log_x = _log_normalised(counts if genes is None else counts[:, genes])
        total += log_x.sum(axis=0), np.square(log_x).sum(axis=0)
    mean, square = total / n_cells
    return Estimate(mean, np.sqrt(np.maximum(square - mean**2, 0) / (n_cells - 1)))


def _moments(
    config: SimulationConfig,
    truth: Truth,
    weights: Weights,
    scores: Float64[ndarray, "point program"],
) -> tuple[Float64[ndarray, " gene"], Float64[ndarray, " gene"]]:
    """Mean and variance with the programs at the given points."""
    mean, square = np.zeros((2, config.n_genes))
    for place in product(*(np.flatnonzero(w) for w in weights)):
        weight = np.prod([w[i] for w, i in zip(weights, place, strict=True)])
        rates = truth.rates(Labels(*(np.full(len(scores), i) for i in place)), scores)
        share = rates / rates.sum(axis=1, keepdims=True)
        log_library, variance = truth.log_library[place[0]], config.library_sd**2
        mean += weight * np.exp(log_library + variance / 2) * share.mean(axis=0)
        square += weight * np.exp(2 * (log_library + variance)) * np.square(share).mean(axis=0)
    return mean, mean + (1 + 1 / truth.inverse_dispersion) * square - mean**2


def _score_sets(
    n_programs: int, n_points: int, seed: int
) -> Iterator[Float64[ndarray, "point program"]]:
    """Standard normal points that fill space evenly, in independent sets."""
    if n_programs == 0:
        yield np.zeros((1, 0))
        return
    for i in range(N_SETS):
        rng = generator(seed, "true_moments", i)
        points = scipy.stats.qmc.Sobol(n_programs, scramble=True, rng=rng).random(n_points)
        yield scipy.special.ndtri(points + _HALF_STEP)


def _over_sets(values: Float64[ndarray, "set gene"]) -> Estimate:
    if len(values) == 1:
        return Estimate(values[0], np.zeros_like(values[0]))
    return Estimate(values.mean(axis=0), values.std(axis=0, ddof=1) / np.sqrt(len(values)))


def _log_normalised(counts: ndarray) -> Float64[ndarray, "cell gene"]:
    library = counts.sum(axis=1, keepdims=True)
    log_x: np.ndarray = np.log1p(counts / np.maximum(library, 1) * LIBRARY_SCALE)
    return log_x
