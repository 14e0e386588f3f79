"""Change of gene expression against a reference condition, real and predicted.

The log-fold change of a gene is the difference of its mean log1p(counts per 10,000), natural
logarithm. Real changes are taken against real test cells of the reference, predicted ones against
its *training* cells: sharing the reference would share its noise and flatter every figure.
"""

from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float64, Int64
from numpy import ndarray
from scipy.special import stdtr

from save_dist.evaluation.biology import agreement, pearson, ranks
from save_dist.evaluation.moments import Moments

N_TOP = 50
"""Genes of largest change whose overlap is counted."""
N_TOP_R2 = 100
"""Genes of largest change whose means are compared apart."""
FALSE_DISCOVERY_RATE = 0.05
"""Expected share of unchanged genes among those called significant."""
MIN_SIGNIFICANT = 10
"""Significant genes below which their slope says nothing."""


class Sides(NamedTuple):
    """Cells of a condition and of its reference."""

    condition: Moments
    reference: Moments

    @property
    def change(self) -> Float64[ndarray, " gene"]:
        """Log-fold change of every gene."""
        out: ndarray = self.condition.mean - self.reference.mean
        return out


class Change(NamedTuple):
    """How well a predicted change of gene means against the reference matches the real one.

    Slope: regression of the predicted on the real change through 0, the sampling noise of the
    real change taken off; below 1 is too weak. It is NaN where most of the real change is noise.
    The others keep the noise of both sides: read them beside the floor.
    """

    slope: float
    pcc: float
    spearman: float
    r2: float
    overlap: float
    r2_top: float


class SignificantChange(NamedTuple):
    """The same over genes whose real change is significant.

    `n_significant`: how many there are. `overlap_significant`: share of them among as many most
    significant genes of the prediction, NaN if there are none. `slope_significant`: see
    `slope_on_significant`.
    """

    n_significant: float
    overlap_significant: float
    slope_significant: float


def compare_change(real: Sides, found: Sides) -> Change:
    """Predicted beside real change over all genes."""
    truth, predicted = real.change, found.change
    noise = float(real.condition.noise.sum() + real.reference.noise.sum())
    power = float(truth @ truth) - noise
    top = np.argsort(-np.abs(truth), kind="stable")
    found_top = np.argsort(-np.abs(predicted), kind="stable")[:N_TOP]
    pcc, r2 = agreement(truth, predicted)
    most_changed = top[:N_TOP_R2]
    return Change(
        slope=float(truth @ predicted) / power if power > noise else float("nan"),
        pcc=pcc,
        spearman=pearson(ranks(truth), ranks(predicted)),
        r2=r2,
        overlap=len(np.intersect1d(top[:N_TOP], found_top)) / min(N_TOP, len(truth)),
        r2_top=agreement(real.condition.mean[most_changed], found.condition.mean[most_changed]).r2,
    )


def compare_significant(
    real: Sides, halves: tuple[Sides, Sides], found: Sides
) -> SignificantChange:
    """Predicted beside real change over the genes of significant real change.

    Args:
        real: real cells of condition and reference.
        halves: the same cells, each cell in one of two halves.
        found: predicted cells, and other reference cells.
    """
    chosen = significant(p_values(real))
    n = int(chosen.sum())
    shared = np.intersect1d(np.flatnonzero(chosen), most_significant(found, n)).size
    return SignificantChange(
        n_significant=float(n),
        overlap_significant=shared / n if n else float("nan"),
        slope_significant=slope_on_significant(halves, found.change),
    )


def slope_on_significant(
    halves: tuple[Sides, Sides], predicted: Float64[ndarray, " gene"]
) -> float:
    """Slope of the predicted on the real change over genes of significant real change.

    Genes that are found significant by the very cells that then measure their change show too
    much of it, which would press the slope below 1. So one half of the real cells finds the genes
    and the other measures them, and the reverse. With a and b the real change in the two halves,
    p the predicted one and S the significant genes of the half of a, the slope is

        sum over both orders, sum over S of a p / sum over both orders, sum over S of a b

    an instrumental-variable estimate: neither the choice nor the noise of the real change biases
    it. NaN below `MIN_SIGNIFICANT` genes over both orders.
    """
    products, power, n = 0.0, 0.0, 0
    for finder, measured in (halves, halves[::-1]):
        chosen = significant(p_values(finder))
        weight = finder.change[chosen]
        products += float(weight @ predicted[chosen])
        power += float(weight @ measured.change[chosen])
        n += int(chosen.sum())
    return products / power if n >= MIN_SIGNIFICANT and power > 0 else float("nan")


def p_values(sides: Sides) -> Float64[ndarray, " gene"]:
    """Two-sided Welch t-test of every gene; 1 for a gene that is constant on both sides."""
    noise = [side.noise for side in sides]
    total = noise[0] + noise[1]
    with np.errstate(divide="ignore", invalid="ignore"):
        freedom = np.square(total) / sum(
            np.square(part) / (side.n_cells - 1) for part, side in zip(noise, sides, strict=True)
        )
    varies = total > 0
    out = np.ones(total.size)
    out[varies] = 2.0 * stdtr(freedom[varies], -np.abs(_statistic(sides)[varies]))
    return out


def significant(p: Float64[ndarray, " gene"]) -> Bool[ndarray, " gene"]:
    """Genes below the threshold of Benjamini and Hochberg (1995) at `FALSE_DISCOVERY_RATE`."""
    ordered = np.sort(p)
    allowed = FALSE_DISCOVERY_RATE * np.arange(1, p.size + 1) / p.size
    below = np.flatnonzero(ordered <= allowed)
    threshold = ordered[below[-1]] if below.size else -1.0
    out: ndarray = p <= threshold
    return out


def most_significant(sides: Sides, n: int) -> Int64[ndarray, " gene"]:
    """The `n` genes of largest |t|: unlike p values, these never tie at 0."""
    return np.argsort(-np.abs(_statistic(sides)), kind="stable")[:n]


def _statistic(sides: Sides) -> Float64[ndarray, " gene"]:
    """Welch's t, 0 for a gene that is constant on both sides."""
    scale = np.sqrt(sides.condition.noise + sides.reference.noise)
    out: ndarray = np.divide(sides.change, scale, out=np.zeros(scale.size), where=scale > 0)
    return out
