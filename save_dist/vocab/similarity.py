"""A change that is not known, guessed from known ones by how alike their starting points are.

The simplest method that is hard to beat on unseen combinations, hence both a baseline of the
evaluation and what composed generation is matched to.
"""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float, Float64
from numpy import ndarray

TEMPERATURES = (0.05, 0.1, 0.2, 0.4, 0.8, 1.6)
"""Tried temperatures, in units of the mean distance."""


def weights(
    here: Float[ndarray, " gene"], starts: Float[ndarray, "change gene"], temperature: float
) -> Float64[ndarray, " change"]:
    """Softmax of the negative distances over the temperature times their mean.

    Args:
        here: profile whose change is wanted.
        starts: profiles that the known changes start from.
        temperature: small trusts the nearest alone, large trusts all alike.
    """
    distance = np.sqrt(np.square(starts - here).sum(axis=1, dtype=np.float64))
    scale = float(distance.mean())
    if scale == 0:
        return np.full(len(starts), 1.0 / len(starts))
    raw = np.exp(-(distance - distance.min()) / (temperature * scale))
    out: ndarray = raw / raw.sum()
    return out


def best_temperature(
    groups: Sequence[tuple[Float[ndarray, "change gene"], Float[ndarray, "change gene"]]],
) -> float:
    """The temperature under which each change is predicted best from the others of its group.

    Args:
        groups: starts and changes; a group of fewer than three says nothing, since a single other
            change has weight 1 at any temperature. Without a telling group the largest is taken.
    """
    telling = [group for group in groups if len(group[0]) >= 3]
    if not telling:
        return max(TEMPERATURES)
    return min(TEMPERATURES, key=lambda t: sum(_error_left_out(*group, t) for group in telling))


def _error_left_out(
    starts: Float[ndarray, "change gene"],
    changes: Float[ndarray, "change gene"],
    temperature: float,
) -> float:
    total = 0.0
    for i in range(len(starts)):
        rest = np.arange(len(starts)) != i
        guess = weights(starts[i], starts[rest], temperature) @ changes[rest]
        total += float(np.square(guess - changes[i]).sum())
    return total
