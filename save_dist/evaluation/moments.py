"""Mean and variance of log-normalised expression, per gene: what tests and changes are made of."""

from typing import NamedTuple

import numpy as np
from jaxtyping import Float32, Float64
from numpy import ndarray


class Moments(NamedTuple):
    """Log-normalised expression of two or more cells."""

    n_cells: int
    mean: Float64[ndarray, " gene"]
    variance: Float64[ndarray, " gene"]
    """Of the cells as a sample (n - 1)."""

    @property
    def noise(self) -> Float64[ndarray, " gene"]:
        """Sampling variance of the mean."""
        out: ndarray = self.variance / self.n_cells
        return out


def moments(log: Float32[ndarray, "cell gene"]) -> Moments:
    """Moments of two cells or more; float64 sums."""
    mean = log.mean(axis=0, dtype=np.float64)
    variance = np.square(log - mean.astype(np.float32)).sum(axis=0, dtype=np.float64)
    return Moments(len(log), mean, variance / (len(log) - 1))
