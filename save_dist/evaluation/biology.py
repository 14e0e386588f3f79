"""What a biologist would check: genes, libraries, correlations, memorised cells.

Pure functions of arrays. What cannot be measured (a constant gene profile has no correlation) is
NaN here and left out by the caller, never replaced by a number.
"""

from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Float32, Float64
from numpy import ndarray

from save_dist.evaluation.metrics import squared_distances

TRAIN_PERCENTILE = 5.0
"""Percentile of real test cells' distance to training below which a cell counts as nearer."""
_CELLS_AT_ONCE = 256
_ROUNDING = 1e-6


class GeneProfile(NamedTuple):
    """Per gene: mean and variance of log-normalised expression, share of zeros."""

    mean: Float64[ndarray, " gene"]
    variance: Float64[ndarray, " gene"]
    zeros: Float64[ndarray, " gene"]


class Nearness(NamedTuple):
    """Distance of cells to their nearest training cell, beside that of real test cells.

    Ratio of medians: 1 is as far as new real cells, 0 is a copy. Nearer share: cells nearer to
    training than the nearest 5% of real test cells; 0.05 is expected.
    """

    ratio: float
    nearer_share: float


class Agreement(NamedTuple):
    """Correlation and coefficient of determination; NaN where the truth is constant."""

    pcc: float
    r2: float


def gene_profile(log: Float32[ndarray, "cell gene"]) -> GeneProfile:
    """Profile of a set of cells; float64 sums."""
    mean = log.mean(axis=0, dtype=np.float64)
    variance = np.square(log - mean.astype(np.float32)).mean(axis=0, dtype=np.float64)
    return GeneProfile(mean, variance, (log <= 0).mean(axis=0))


def pearson(x: Float64[ndarray, " gene"], y: Float64[ndarray, " gene"]) -> float:
    """Correlation; NaN if either side is constant."""
    a, b = x - x.mean(), y - y.mean()
    scale = float(np.sqrt((a @ a) * (b @ b)))
    return float(a @ b) / scale if scale > 0 else float("nan")


def ranks(x: Float64[ndarray, " gene"]) -> Float64[ndarray, " gene"]:
    """Rank of every value from 1 on; equal values share the mean of their ranks."""
    _, place, n_equal = np.unique(x, return_inverse=True, return_counts=True)
    mean_rank = np.cumsum(n_equal) - (n_equal - 1) / 2.0
    out: ndarray = mean_rank[place]
    return out


def r2(truth: Float64[ndarray, " gene"], predicted: Float64[ndarray, " gene"]) -> float:
    """Coefficient of determination, 1 - residual / total; NaN if the truth is constant."""
    total = float(np.square(truth - truth.mean()).sum())
    if total == 0:
        return float("nan")
    return 1.0 - float(np.square(truth - predicted).sum()) / total


def agreement(truth: Float64[ndarray, " gene"], predicted: Float64[ndarray, " gene"]) -> Agreement:
    """Both measures at once, and the check that R2 <= PCC^2.

    The best line through the points explains PCC^2 of the variance and the diagonal no more, so
    an R2 above it is a mistake in one of the two.
    """
    found = Agreement(pearson(truth, predicted), r2(truth, predicted))
    explained = 0.0 if np.isnan(found.pcc) else found.pcc**2  # a constant explains nothing
    spread = float(np.square(truth - truth.mean()).sum())
    lost = float(truth @ truth + predicted @ predicted) * len(truth) * np.finfo(np.float64).eps
    allowed = _ROUNDING + (lost / spread if spread > 0 else 0.0)
    assert np.isnan(found.r2) or found.r2 <= explained + allowed, f"R2 > PCC^2: {found}"
    return found


def compare_profiles(real: GeneProfile, generated: GeneProfile) -> dict[str, float]:
    """Correlation, R2 and squared error of each part, signed zero difference, variance ratio."""
    out: dict[str, float] = {}
    for name, truth, found in zip(GeneProfile._fields, real, generated, strict=True):
        out[f"{name}_pcc"], out[f"{name}_r2"] = agreement(truth, found)
        out[f"{name}_mse"] = float(np.square(truth - found).mean())
    out["zero_difference"] = float((generated.zeros - real.zeros).mean())
    varies = real.variance > 0
    ratio = generated.variance[varies] / real.variance[varies]
    out["variance_ratio"] = float(np.median(ratio)) if ratio.size else float("nan")
    return out


def compare_correlations(
    real: Float32[ndarray, "real gene"], generated: Float32[ndarray, "generated gene"]
) -> dict[str, float]:
    """Mean absolute error and correlation of the gene-gene correlations, pairs of genes once.

    A gene that is constant on one side counts as uncorrelated there.
    """
    upper = np.triu_indices(real.shape[1], k=1)
    truth, found = (_correlations(x)[upper] for x in (real, generated))
    return {
        "correlation_error": float(np.abs(truth - found).mean()) if truth.size else float("nan"),
        "correlation_pcc": pearson(truth, found) if truth.size else float("nan"),
    }


def compare_libraries(
    real: Float32[ndarray, " real"], generated: Float32[ndarray, " generated"]
) -> dict[str, float]:
    """Counts per cell: ratio of medians; of their logarithm, ratio of spreads and distance.

    The spread is the standard deviation; the distance is Wasserstein 1, in natural log units: 0.1
    is a shift by about 10%.
    """
    medians = [float(np.median(library)) for library in (generated, real)]
    logs = [np.log(np.maximum(library, 1.0)) for library in (generated, real)]
    return {
        "library_ratio": _ratio(*medians),
        "library_spread_ratio": _ratio(*(float(log.std()) for log in logs)),
        "library_w1": wasserstein_1d(*logs),
    }


def wasserstein_1d(x: Float[ndarray, " x"], y: Float[ndarray, " y"]) -> float:
    """Wasserstein 1 distance of two sets of numbers: the area between their distributions."""
    edges = np.sort(np.concatenate([x, y]).astype(np.float64))
    shares = [np.searchsorted(np.sort(side), edges[:-1], "right") / side.size for side in (x, y)]
    return float(np.abs(shares[0] - shares[1]) @ np.diff(edges))


def compare_nearness(
    real: Float32[ndarray, "real component"],
    generated: Float32[ndarray, "generated component"],
    train: Float32[ndarray, "train component"],
) -> Nearness:
    """Are generated cells nearer to training cells than new real cells are."""
    expected, found = _nearest(real, train), _nearest(generated, train)
    near = np.percentile(expected, TRAIN_PERCENTILE)
    return Nearness(
        ratio=_ratio(float(np.median(found)), float(np.median(expected))),
        nearer_share=float((found < near).mean()),
    )


def _nearest(
    cells: Float32[ndarray, "cell component"], train: Float32[ndarray, "train component"]
) -> Float64[ndarray, " cell"]:
    """Distance of each cell to its nearest training cell, a few cells at a time."""
    nearest = [
        squared_distances(cells[i : i + _CELLS_AT_ONCE], train).min(axis=1)
        for i in range(0, len(cells), _CELLS_AT_ONCE)
    ]
    out: ndarray = np.sqrt(np.concatenate(nearest))
    return out


def _correlations(log: Float[ndarray, "cell gene"]) -> Float64[ndarray, "gene gene"]:
    centred = log.astype(np.float64) - log.mean(axis=0, dtype=np.float64)
    norm = np.sqrt(np.square(centred).sum(axis=0))
    norm[norm == 0] = np.inf
    scaled = centred / norm
    out: ndarray = scaled.T @ scaled
    return out


def _ratio(found: float, expected: float) -> float:
    return found / expected if expected > 0 else float("nan")
