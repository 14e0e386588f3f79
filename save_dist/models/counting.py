"""A CPU kernel for the negative binomial: log-probability and slopes in one pass over the counts.

Most counts are 0 and most others small, so a table of each gene's first few replaces three gamma
functions and a digamma per matrix entry. Legend: N cells, G genes.
"""

import math
from typing import no_type_check

import numba
import numpy as np

_FEW = 16  # counts up to here are looked up


# no_type_check: numba cannot compile the wrapper that the shape checks of the tests put around
# annotated functions (jaxtyping 0.3).
@numba.njit(cache=True, nogil=True, error_model="numpy")
@no_type_check
def fill_terms(
    counts: np.ndarray,
    log_mean: np.ndarray,
    total: np.ndarray,
    log_total: np.ndarray,
    theta: np.ndarray,
    log_prob: np.ndarray,
    of_log_mean: np.ndarray,
    of_log_theta: np.ndarray,
) -> None:
    """Log-probability of each cell, and its derivatives by every entry of the law.

    Args:
        counts: x, [N, G].
        log_mean: [N, G].
        total: mean + theta, [N, G].
        log_total: its logarithm.
        theta: inverse dispersions, [G].
        log_prob: filled, [N].
        of_log_mean: filled, [N, G]; in place of `total` if it is the same array.
        of_log_theta: filled, [N, G]; in place of `log_total` if it is the same array.
    """
    n_cells, n_genes = counts.shape
    log_theta = np.log(theta)
    rises = np.zeros((n_genes, _FEW + 1, 2))
    n_known = np.zeros(n_genes, np.int64)
    for n in range(n_cells):
        sum_ = 0.0
        for g in range(n_genes):
            x, t = counts[n, g], theta[g]
            log_share = log_theta[g] - log_total[n, g]
            excess = (x - (total[n, g] - t)) / total[n, g]
            sum_ += t * log_share
            slope = log_share - excess
            of_log_mean[n, g] = t * excess
            if x != 0:
                if x > _FEW or x != math.floor(x):
                    value, by_theta = _log_rise(np.float64(x), np.float64(t))
                else:
                    k = int(x)
                    if k > n_known[g]:
                        _extend(rises[g], n_known[g], k, np.float64(t))
                        n_known[g] = k
                    value, by_theta = rises[g, k]
                sum_ += value + x * (log_mean[n, g] - log_total[n, g])
                slope += by_theta
            of_log_theta[n, g] = slope * t
        log_prob[n] = sum_


@numba.njit(cache=True, nogil=True, error_model="numpy")
@no_type_check
def _extend(rises: np.ndarray, n_known: int, n_wanted: int, theta: float) -> None:
    """Fill what `_log_rise` gives for the counts after `n_known`, up to `n_wanted`."""
    for k in range(n_known, n_wanted):
        rises[k + 1, 0] = rises[k, 0] + math.log((theta + k) / (k + 1))
        rises[k + 1, 1] = rises[k, 1] + 1 / (theta + k)


@numba.njit(cache=True, nogil=True, error_model="numpy")
@no_type_check
def _log_rise(x: float, theta: float) -> tuple[float, float]:
    """log(gamma(x + theta) / gamma(theta) / gamma(x + 1)) and its derivative by theta."""
    value = math.lgamma(x + theta) - math.lgamma(theta) - math.lgamma(x + 1)
    return value, _digamma(x + theta) - _digamma(theta)


@numba.njit(cache=True, nogil=True, error_model="numpy")
@no_type_check
def _digamma(x: float) -> float:
    """Derivative of lgamma at x > 0, to 1e-12: recurrence to 8, then the asymptotic series."""
    steps = 0.0
    while x < 8:
        steps += 1 / x
        x += 1
    s = 1 / (x * x)
    tail = s * (1 / 12 - s * (1 / 120 - s * (1 / 252 - s * (1 / 240 - s / 132))))
    return math.log(x) - 0.5 / x - tail - steps
