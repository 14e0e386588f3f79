"""A CPU kernel for the negative binomial: log-probability and slopes in one pass over the counts.

Most counts are 0 and most others small, so a few products replace three gamma functions and a
digamma per matrix entry. Legend: N cells, G genes.
"""

import math
from typing import no_type_check

import numba
import numpy as np

_FEW = 16  # counts up to here are multiplied out
_LARGE = 1e15  # (theta + 16)^16 still fits a double


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
    log_theta: np.ndarray,
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
        theta: inverse dispersions, [N, G], or [1, G] if all cells share them.
        log_theta: their logarithms.
        log_prob: filled, [N].
        of_log_mean: filled, [N, G]; in place of `total` if it is the same array.
        of_log_theta: filled, [N, G]; in place of `log_total` if it is the same array.
    """
    is_shared = theta.shape[0] == 1
    for n in range(counts.shape[0]):
        row = 0 if is_shared else n
        sum_ = 0.0
        for g in range(counts.shape[1]):
            x, t = counts[n, g], theta[row, g]
            log_share = log_theta[row, g] - log_total[n, g]
            excess = (x - (total[n, g] - t)) / total[n, g]
            sum_ += t * log_share
            slope = log_share - excess
            of_log_mean[n, g] = t * excess
            if x != 0:
                value, rise = _log_rising(np.float64(x), np.float64(t))
                sum_ += value + x * (log_mean[n, g] - log_total[n, g])
                slope += rise
            of_log_theta[n, g] = slope * t
        log_prob[n] = sum_


@numba.njit(cache=True, nogil=True, error_model="numpy")
@no_type_check
def _log_rising(x: float, theta: float) -> tuple[float, float]:
    """log(gamma(x + theta) / gamma(theta) / gamma(x + 1)) and its derivative by theta."""
    if x > _FEW or theta > _LARGE or x != math.floor(x):
        value = math.lgamma(x + theta) - math.lgamma(theta) - math.lgamma(x + 1)
        return value, _digamma(x + theta) - _digamma(theta)
    product, derivative, factorial = 1.0, 0.0, 1.0
    for i in range(int(x)):
        derivative = derivative * (theta + i) + product
        product *= theta + i
        factorial *= i + 1
    return math.log(product / factorial), derivative / product


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
