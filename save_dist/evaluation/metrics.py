"""Distances between real and generated cells, all made from pairwise squared distances.

Pure functions of arrays: nothing here knows conditions, files or seeds. Two of the distances
(energy, MMD) are unbiased, so they may be read at any number of cells; the others shrink or grow
with it and may only be compared at equal numbers.
"""

from dataclasses import dataclass, field
from functools import cached_property
from typing import Literal, NamedTuple

import numpy as np
from jaxtyping import Float, Float64
from numpy import ndarray

BANDWIDTHS = (0.25, 0.5, 1.0, 2.0, 4.0)
"""RBF bandwidths as multiples of the median squared distance of training cells; each doubles."""
N_NEIGHBOURS = 5
_MAX_SOLVER_STEPS = 1_000_000


@dataclass(frozen=True, eq=False)
class Cloud:
    """Squared Euclidean distances within one set of cells, and what is made from them.

    The latter is kept, since the same real cells are compared with many others.
    """

    squares: Float64[ndarray, "cell cell"]
    _kernels: dict[float, float] = field(default_factory=dict, repr=False)
    _first: dict[int, "Cloud"] = field(default_factory=dict, repr=False)

    @cached_property
    def mean_distance(self) -> float:
        """Mean distance between different cells."""
        return _mean_of_others(np.sqrt(self.squares))

    @cached_property
    def radius(self) -> Float64[ndarray, " cell"]:
        """Squared distance of every cell to its `N_NEIGHBOURS`-th nearest other cell."""
        out: ndarray = np.partition(self.squares, N_NEIGHBOURS, axis=1)[:, N_NEIGHBOURS]
        return out

    def mean_kernel(self, median_squared: float) -> float:
        """Mean kernel of different cells, see `mmd2`."""
        if median_squared not in self._kernels:
            kernel = _kernel(self.squares, median_squared)
            self._kernels[median_squared] = _mean_of_others(kernel)
        return self._kernels[median_squared]

    def first(self, n: int) -> "Cloud":
        """The first `n` cells."""
        if n not in self._first:
            self._first[n] = Cloud(self.squares[:n, :n])
        return self._first[n]


class Pairs(NamedTuple):
    """Squared Euclidean distances within and between two sets of cells."""

    real: Cloud
    generated: Cloud
    between: Float64[ndarray, "real generated"]

    def first(self, n: int) -> "Pairs":
        """The distances among the first `n` cells of either set."""
        return Pairs(self.real.first(n), self.generated.first(n), self.between[:n, :n])


class Neighbourhood(NamedTuple):
    """Do the two sets lie in each other's k-nearest-neighbour balls.

    Precision: share of generated cells in the ball of some real cell. Recall: the reverse.
    Density: mean number of real balls around a generated cell, over k; about 1 for equal
    distributions. Coverage: share of real cells with a generated cell in their own ball.
    """

    precision: float
    recall: float
    density: float
    coverage: float


def squared_distances(
    x: Float[ndarray, "cell_x component"], y: Float[ndarray, "cell_y component"]
) -> Float64[ndarray, "cell_x cell_y"]:
    """Squared Euclidean distances in float64; exact zeros on the diagonal if `y is x`."""
    a = x.astype(np.float64)
    b = a if y is x else y.astype(np.float64)
    squares = (a * a).sum(1)[:, None] + (b * b).sum(1)[None, :] - 2.0 * (a @ b.T)
    np.maximum(squares, 0.0, out=squares)  # rounding can leave tiny negative numbers
    if y is x:
        np.fill_diagonal(squares, 0.0)
    out: ndarray = squares
    return out


def pairs_of(
    real: Float[ndarray, "real component"], generated: Float[ndarray, "generated component"]
) -> Pairs:
    """All squared distances that the metrics below need."""
    return Pairs(
        Cloud(squared_distances(real, real)),
        Cloud(squared_distances(generated, generated)),
        squared_distances(real, generated),
    )


def wasserstein(pairs: Pairs, order: Literal[1, 2]) -> float:
    """Exact Wasserstein distance of the two empirical distributions.

    Args:
        pairs: distances; both sets weigh their cells equally.
        order: 1 for the mean Euclidean cost of the best transport, 2 for the root of the mean
            squared cost.
    """
    import ot

    cost = np.sqrt(pairs.between) if order == 1 else np.ascontiguousarray(pairs.between)
    value = float(ot.emd2([], [], cost, numItermax=_MAX_SOLVER_STEPS))
    return value if order == 1 else float(np.sqrt(max(value, 0.0)))


def energy_distance(pairs: Pairs) -> float:
    """Unbiased energy distance 2 E|x-y| - E|x-x'| - E|y-y'|; can be a little below 0."""
    between = float(np.sqrt(pairs.between).mean())
    return 2.0 * between - pairs.real.mean_distance - pairs.generated.mean_distance


def mmd2(pairs: Pairs, median_squared: float) -> float:
    """Unbiased squared maximum mean discrepancy, mean over five RBF bandwidths.

    Args:
        pairs: distances.
        median_squared: median squared distance of training cells, the middle bandwidth; the
            kernel of bandwidth b is exp(-d^2 / (2 b median_squared)).
    """
    within = (cloud.mean_kernel(median_squared) for cloud in (pairs.real, pairs.generated))
    return sum(within) - 2.0 * float(_kernel(pairs.between, median_squared).mean())


def neighbourhood(pairs: Pairs) -> Neighbourhood:
    """Precision, recall, density and coverage; each set needs more than `N_NEIGHBOURS` cells."""
    in_real_ball = pairs.between < pairs.real.radius[:, None]
    in_generated_ball = pairs.between < pairs.generated.radius[None, :]
    return Neighbourhood(
        precision=float(in_real_ball.any(axis=0).mean()),
        recall=float(in_generated_ball.any(axis=1).mean()),
        density=float(in_real_ball.sum(axis=0).mean() / N_NEIGHBOURS),
        coverage=float((pairs.between.min(axis=1) < pairs.real.radius).mean()),
    )


def median_squared_distance(x: Float[ndarray, "cell component"]) -> float:
    """Median squared distance between different cells of one set."""
    upper = np.triu_indices(len(x), k=1)
    return float(np.median(squared_distances(x, x)[upper]))


def _kernel(
    squares: Float64[ndarray, "cell_x cell_y"], median_squared: float
) -> Float64[ndarray, "cell_x cell_y"]:
    """Mean RBF kernel: each bandwidth is half the one before, so its kernel is the square."""
    kernel = np.exp(squares * (-0.5 / (max(BANDWIDTHS) * median_squared)))
    total = kernel.copy()
    for _ in BANDWIDTHS[1:]:
        kernel *= kernel
        total += kernel
    return total / len(BANDWIDTHS)


def _mean_of_others(matrix: Float64[ndarray, "cell cell"]) -> float:
    """Mean over pairs of different cells."""
    n = len(matrix)
    return float((matrix.sum() - np.trace(matrix)) / (n * (n - 1)))
