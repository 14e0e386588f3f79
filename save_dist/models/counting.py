"""A CPU kernel for the negative binomial: log-probability and slopes in one pass over the counts.

Most counts are 0 and most others small, so a few products replace three gamma functions and a
digamma per matrix entry. Legend: N cells, G genes.
"""

import math
from typing import no_type_check

import numba
import numpy as np

_FEW = 16  # counts up to here are multiplied out
_LARGE = 1e15  # (theta + 16)^16 still fits a double,
_TINY, _HUGE = 1e-60, 1e60  # times this
_INVERSE_FACTORIALS = 1 / np.cumprod(np.maximum(np.arange(_FEW + 1.0), 1))


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
        log_prob[n] = _fill_smooth(
            counts[n],
            log_mean[n],
            total[n],
            log_total[n],
            theta[row],
            log_theta[row],
            of_log_mean[n],
            of_log_theta[n],
        ) + _add_rising(counts[n], theta[row], of_log_theta[n])


# fastmath: the terms of a sum may be added in any order, eight at a time
@numba.njit(cache=True, nogil=True, error_model="numpy", fastmath={"reassoc", "contract"})
@no_type_check
def _fill_smooth(
    x: np.ndarray,
    log_mean: np.ndarray,
    total: np.ndarray,
    log_total: np.ndarray,
    theta: np.ndarray,
    log_theta: np.ndarray,
    of_log_mean: np.ndarray,
    of_log_theta: np.ndarray,
) -> float:
    """What needs no gamma function; returns its share of the log-probability of the cell."""
    sum_ = 0.0
    for g in range(x.shape[0]):
        t = theta[g]
        log_share = log_theta[g] - log_total[g]
        excess = (x[g] - (total[g] - t)) / total[g]
        sum_ += np.float64(t * log_share + x[g] * (log_mean[g] - log_total[g]))
        of_log_mean[g] = t * excess
        of_log_theta[g] = t * (log_share - excess)
    return sum_


@numba.njit(cache=True, nogil=True, error_model="numpy")
@no_type_check
def _add_rising(x: np.ndarray, theta: np.ndarray, of_log_theta: np.ndarray) -> float:
    """Sum of log(gamma(x + theta) / gamma(theta) / gamma(x + 1)), slopes by theta added.

    Factors are multiplied before a logarithm is taken, so there is one for dozens of counts.
    """
    sum_, factors = 0.0, 1.0
    for g in range(x.shape[0]):
        if x[g] == 0:
            continue
        count, t = np.float64(x[g]), np.float64(theta[g])
        if count > _FEW or t > _LARGE or count != math.floor(count):
            sum_ += math.lgamma(count + t) - math.lgamma(t) - math.lgamma(count + 1)
            of_log_theta[g] += theta[g] * (_digamma(count + t) - _digamma(t))
            continue
        if count == 1:
            of_log_theta[g] += 1
            factors *= t
        else:
            product, derivative = t, 1.0
            for i in range(1, int(count)):
                derivative = derivative * (t + i) + product
                product *= t + i
            of_log_theta[g] += t * (derivative / product)
            factors *= product * _INVERSE_FACTORIALS[int(count)]
        if factors < _TINY or factors > _HUGE:
            sum_ += math.log(factors)
            factors = 1.0
    return sum_ + math.log(factors)


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
