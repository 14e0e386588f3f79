"""Negative-binomial counts, each a pure function of its cell's key, its gene and its law.

Small means are inverted: one uniform number walks down the probabilities from zero. Large ones
are a Poisson draw around a gamma draw. Every (cell, gene) has a stream of its own, so a rejected
proposal of one gene never shifts the numbers of another.
"""

import math
from typing import no_type_check

import numba
import numpy as np
from jaxtyping import Float32, UInt16, UInt64
from numpy import ndarray

from save_dist.core.seeding import counter_uniform

MAX_COUNT = 65_535
"""Larger draws saturate: the atlas holds uint16."""
_LARGE_MEAN = 30.0  # the walk takes about `mean` steps, and its first probability is > 1e-13
_LARGE_RATE = 10.0  # from here on the rejection method is valid and faster than the walk
_SURE_RATE = 1e6  # a Poisson draw around it exceeds MAX_COUNT
_DISPERSION_RANGE = (1e-8, 1e6)  # beyond: all zeros but for freak cells; Poisson


def draw_counts(
    mean: Float32[ndarray, "cell gene"],
    inverse_dispersion: Float32[ndarray, "#cell gene"],
    keys: UInt64[ndarray, " cell"],
) -> UInt16[ndarray, "cell gene"]:
    """Draw every count of every cell.

    Args:
        mean: expected counts, finite.
        inverse_dispersion: theta, of every cell or one row for all; variance is
            mean + mean^2 / theta. Taken within [1e-8, 1e6].
        keys: one stream per cell; equal keys and laws give equal counts.

    Returns:
        counts; those above 65,535 are 65,535.
    """
    theta = np.clip(inverse_dispersion, *_DISPERSION_RANGE)
    counts = np.empty(mean.shape, dtype=np.uint16)
    _fill_counts(mean, theta, keys, counts)
    return counts


# error_model: Python's checks for a division by zero would keep loops from being vectorised.
# no_type_check: numba cannot compile the wrapper that the shape checks of the tests put around
# annotated functions (jaxtyping 0.3).
_kernel = numba.njit(cache=True, nogil=True, error_model="numpy")


@_kernel
@no_type_check
def _fill_counts(mean: np.ndarray, theta: np.ndarray, keys: np.ndarray, counts: np.ndarray) -> None:
    """Cell by cell in three passes, the first two without branches that depend on chance.

    P(0) >= exp(-mean) >= a cubic in the mean, which settles most draws of rare genes without a
    logarithm; then P(0) itself for the others; then the walks, and the draws of large means, which
    the cubic (below zero from 1.6 on) never settles.
    """
    n_cells, n_genes = mean.shape
    uniform, gene = np.empty(n_genes), np.empty(n_genes + 1, np.int64)
    m, t, p = np.empty(n_genes + 1), np.empty(n_genes + 1), np.empty(n_genes + 1)
    for i in range(n_cells):
        key, row = keys[i], i if len(theta) > 1 else 0
        for g in range(n_genes):
            uniform[g] = counter_uniform(key, np.uint64(g))
        n_open = 0
        for g in range(n_genes):
            x = np.float64(mean[i, g])
            counts[i, g] = 0
            gene[n_open] = g
            m[n_open] = x
            t[n_open] = theta[row, g]
            n_open += uniform[g] >= 1.0 - x * (1.0 - x * (0.5 - x * (1.0 / 6.0)))
        _fill_zero_probability(m[:n_open], t[:n_open], p)
        for j in range(n_open):
            g = gene[j]
            if m[j] > _LARGE_MEAN:
                counts[i, g] = _gamma_poisson(m[j], t[j], _gene_key(key, g))
            else:
                counts[i, g] = _walk(m[j], t[j], p[j], uniform[g])


@_kernel
@no_type_check
def _walk(mean: float, theta: float, p: float, uniform: float) -> int:
    """Smallest k whose cumulative probability exceeds `uniform`, from p = P(0).

    Ends where a step no longer changes the sum.
    """
    ratio = mean / (theta + mean)
    rest = uniform - p
    k = 0
    while rest >= 0.0 and k < MAX_COUNT and (p > 1e-18 or k < mean):
        p *= (theta + k) * ratio / (k + 1.0)
        rest -= p
        k += 1
    return k


@_kernel
@no_type_check
def _fill_zero_probability(mean: np.ndarray, theta: np.ndarray, out: np.ndarray) -> None:
    """(1 + mean / theta)^-theta to about 1e-14 for means of at most 30; beyond, anything.

    Logarithm and exponential are series here because calls of a library's would keep the loop
    from being vectorised: log y = e log 2 + 2 artanh s with s = (f - 1) / (f + 1), where
    y = f 2^e and f is within sqrt(2) of 1; exp z = 2^n exp r with |r| <= log(2) / 2.
    """
    for j in range(mean.shape[0]):
        bits = np.float64(1.0 + mean[j] / theta[j]).view(np.int64)
        e = (bits - np.int64(0x3FE6A09E667F3BCD)) >> np.int64(52)  # bits of sqrt(1/2)
        f = np.int64(bits - (e << np.int64(52))).view(np.float64)
        s = (f - 1.0) / (f + 1.0)
        q = s * s
        series = 1 / 9 + q * (1 / 11 + q * (1 / 13 + q * (1 / 15 + q * (1 / 17))))
        series = 1.0 + q * (1 / 3 + q * (1 / 5 + q * (1 / 7 + q * series)))
        z = -theta[j] * (2.0 * s * series + e * 0.6931471805599453)
        n = np.floor(z * 1.4426950408889634 + 0.5)
        r = z - n * 0.6931471803691238 - n * 1.9082149292705877e-10
        series = 1 / 3628800 + r * (1 / 39916800 + r * (1 / 479001600))
        series = 1 / 5040 + r * (1 / 40320 + r * (1 / 362880 + r * series))
        series = 1 / 6 + r * (1 / 24 + r * (1 / 120 + r * (1 / 720 + r * series)))
        series = 1.0 + r * (1.0 + r * (0.5 + r * series))
        scale = np.int64((np.int64(n) + np.int64(1023)) << np.int64(52))
        out[j] = series * scale.view(np.float64)


@_kernel
@no_type_check
def _gene_key(key: np.uint64, gene: int) -> np.uint64:
    """Key of a gene's own stream within a cell (SplitMix64, other constants than counters use)."""
    x = (key ^ np.uint64(0x5851F42D4C957F2D)) + np.uint64(gene + 1) * np.uint64(0xD1342543DE82EF95)
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


@_kernel
@no_type_check
def _gamma_poisson(mean: float, theta: float, key: np.uint64) -> int:
    rate, used = _gamma(theta, key)
    rate *= mean / theta
    if rate > _SURE_RATE:
        return MAX_COUNT
    k = _poisson(rate, key, used) if rate > _LARGE_RATE else _walk_poisson(rate, key, used)
    return int(min(k, MAX_COUNT))


@_kernel
@no_type_check
def _gamma(shape: float, key: np.uint64) -> tuple[float, int]:
    """Standard gamma draw and the uniforms it used (Marsaglia and Tsang 2000)."""
    boost, used = 1.0, 0
    if shape < 1.0:  # gamma(a) = gamma(a + 1) * U^(1/a)
        boost = (1.0 - counter_uniform(key, np.uint64(0))) ** (1.0 / shape)
        shape += 1.0
        used = 1
    d = shape - 1.0 / 3.0
    c = 1.0 / math.sqrt(9.0 * d)
    while True:
        x = _normal(key, used)
        u = 1.0 - counter_uniform(key, np.uint64(used + 2))
        used += 3
        v = (1.0 + c * x) ** 3
        if v > 0.0 and math.log(u) < 0.5 * x * x + d - d * v + d * math.log(v):
            return d * v * boost, used


@_kernel
@no_type_check
def _normal(key: np.uint64, used: int) -> float:
    radius = math.sqrt(-2.0 * math.log(1.0 - counter_uniform(key, np.uint64(used))))
    return radius * math.cos(2.0 * math.pi * counter_uniform(key, np.uint64(used + 1)))


@_kernel
@no_type_check
def _walk_poisson(rate: float, key: np.uint64, used: int) -> int:
    p = math.exp(-rate)
    rest = counter_uniform(key, np.uint64(used)) - p
    k = 0
    while rest >= 0.0 and (p > 1e-18 or k < rate):
        k += 1
        p *= rate / k
        rest -= p
    return k


@_kernel
@no_type_check
def _poisson(rate: float, key: np.uint64, used: int) -> int:
    """Transformed rejection with squeeze (Hoermann 1993, PTRS), for rates of 10 and more."""
    root = math.sqrt(rate)
    b = 0.931 + 2.53 * root
    a = -0.059 + 0.02483 * b
    inverse_alpha = 1.1239 + 1.1328 / (b - 3.4)
    v_sure = 0.9277 - 3.6224 / (b - 2.0)
    while True:
        u = counter_uniform(key, np.uint64(used)) - 0.5
        v = 1.0 - counter_uniform(key, np.uint64(used + 1))
        used += 2
        us = 0.5 - abs(u)
        if us < 1e-12:
            continue
        k = math.floor((2.0 * a / us + b) * u + rate + 0.43)
        if us >= 0.07 and v <= v_sure:
            return int(k)
        if k < 0 or (us < 0.013 and v > us):
            continue
        log_accepted = math.log(v * inverse_alpha / (a / (us * us) + b))
        if log_accepted <= k * math.log(rate) - rate - math.lgamma(k + 1.0):
            return int(k)
