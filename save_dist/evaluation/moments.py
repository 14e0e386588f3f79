"""Mean and variance of log-normalised expression, per gene: what tests and changes are made of."""

from typing import NamedTuple

from jaxtyping import Float64
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
