"""Names of everything that is measured, with what a reader needs to judge a number."""

from dataclasses import dataclass

PROTOCOL = 1
"""Version of the evaluation protocol; numbers of other versions are not comparable."""

REAL = "real"
GENERATED = "generated"
FLOOR = "floor"
MARGINAL = "marginal"
SHUFFLE = "gene_shuffle"
INDEPENDENT = "independent_nb"
GAUSSIAN = "gaussian"
CONTROL = "control"
ADDITIVE = "additive_shift"
SIMILARITY = "similarity_shift"
NEAREST = "nearest_seen"

SEEN = "seen"
HELD_OUT = "held_out"

CANDIDATES: dict[str, tuple[str, str]] = {
    GENERATED: ("Generated", "cells of the model"),
    FLOOR: ("Real, other half", "half of the test cells against the other half: the best possible"),
    SHUFFLE: ("Gene shuffle", "right marginals of the combination, no correlation between genes"),
    INDEPENDENT: (
        "Independent genes",
        "negative binomial counts of every gene apart, fitted on training cells of the "
        "combination; of a held-out one on control cells, with means moved by the additive change",
    ),
    GAUSSIAN: ("Gaussian in PCA", "normal distribution in PCA space (mean and covariance)"),
    CONTROL: ("Control cells", "real cells of the reference condition, unchanged"),
    ADDITIVE: ("Additive shift", "control cells plus the mean change seen in other cells"),
    SIMILARITY: ("Similarity-weighted shift", "the same, similar cells weighing more"),
    NEAREST: ("Nearest seen", "real cells of the most similar combination seen in training"),
    MARGINAL: ("Random real cells", "training cells of any condition: ignores the condition"),
}
"""Key -> (title, what it is), in the order of every table."""

DISTANCES = ("energy", "mmd2", "w1", "w2")
"""Distances that get a normalised score."""


@dataclass(frozen=True)
class Metric:
    """One measured quantity.

    Args:
        key: its name in metrics.json; per-column ones carry `:column` behind it.
        title: its name for people.
        ideal: the value of a perfect generator; None for what only tells about the real cells.
        group: heading it stands under.
        hint: one line on what it shows.
    """

    key: str
    title: str
    ideal: float | None
    group: str
    hint: str


_DISTANCE, _CLASSIFIER, _NEIGHBOURS = "Distances", "Can a classifier tell", "Neighbourhoods"
_GENES, _CELLS, _CHANGE = "Genes", "Cells", "Change from the reference"

METRICS: tuple[Metric, ...] = (
    Metric("energy", "Energy distance", 0.0, _DISTANCE, "unbiased, PCA space"),
    Metric("mmd2", "MMD squared", 0.0, _DISTANCE, "unbiased, five RBF bandwidths, PCA space"),
    Metric("w1", "Wasserstein 1", 0.0, _DISTANCE, "exact, PCA space, n/2 cells"),
    Metric("w2", "Wasserstein 2", 0.0, _DISTANCE, "the same; blind to too little variance"),
    Metric("c2st_logistic_gene", "AUC logistic, genes", 0.5, _CLASSIFIER, "0.5: no difference"),
    Metric(
        "c2st_trees_gene", "AUC trees, genes", 0.5, _CLASSIFIER, "sees spreads and interactions"
    ),
    Metric("c2st_logistic_pca", "AUC logistic, PCA", 0.5, _CLASSIFIER, "0.5: no difference"),
    Metric("c2st_trees_pca", "AUC trees, PCA", 0.5, _CLASSIFIER, "sees lost gene correlations"),
    Metric("precision", "Precision", 1.0, _NEIGHBOURS, "generated cells among real ones"),
    Metric("recall", "Recall", 1.0, _NEIGHBOURS, "real cells among generated ones"),
    Metric("density", "Density", 1.0, _NEIGHBOURS, "real neighbourhoods per generated cell"),
    Metric("coverage", "Coverage", 1.0, _NEIGHBOURS, "real cells with a generated neighbour"),
    Metric("mean_pcc", "Mean expression, PCC", 1.0, _GENES, "over genes"),
    Metric("mean_r2", "Mean expression, R2", 1.0, _GENES, "over genes"),
    Metric("mean_mse", "Mean expression, MSE", 0.0, _GENES, "over genes"),
    Metric("variance_pcc", "Variance, PCC", 1.0, _GENES, "over genes"),
    Metric("variance_r2", "Variance, R2", 1.0, _GENES, "over genes"),
    Metric("variance_mse", "Variance, MSE", 0.0, _GENES, "over genes"),
    Metric("variance_ratio", "Variance, median ratio", 1.0, _GENES, "below 1: too uniform"),
    Metric("zeros_pcc", "Zero fraction, PCC", 1.0, _GENES, "over genes"),
    Metric("zeros_r2", "Zero fraction, R2", 1.0, _GENES, "over genes"),
    Metric("zeros_mse", "Zero fraction, MSE", 0.0, _GENES, "over genes"),
    Metric("zero_difference", "Zero fraction, difference", 0.0, _GENES, "generated minus real"),
    Metric("correlation_error", "Correlations, mean error", 0.0, _GENES, "200 most variable genes"),
    Metric("correlation_pcc", "Correlations, PCC", 1.0, _GENES, "200 most variable genes"),
    Metric("library_ratio", "Library, ratio of medians", 1.0, _CELLS, "counts per cell"),
    Metric("library_spread_ratio", "Library, ratio of spreads", 1.0, _CELLS, "sd of the log"),
    Metric("library_w1", "Library, Wasserstein 1", 0.0, _CELLS, "of the log of counts per cell"),
    Metric(
        "label_accuracy", "Label recognised", 1.0, _CELLS, "by a classifier; compare with the floor"
    ),
    Metric(
        "nearest_train_ratio", "Distance to training", 1.0, _CELLS, "0: copies of training cells"
    ),
    Metric("nearer_train_share", "Share near training", 0.05, _CELLS, "0.05 for new real cells"),
    Metric("change_slope", "Change, slope", 1.0, _CHANGE, "below 1: effect too weak"),
    Metric(
        "change_slope_significant",
        "Change, slope, significant",
        1.0,
        _CHANGE,
        "the same over genes with significant real change (Welch, FDR 5%), cross-fitted",
    ),
    Metric(
        "change_n_significant",
        "Genes of significant real change",
        None,
        _CHANGE,
        "Welch t-test, Benjamini-Hochberg 5%",
    ),
    Metric(
        "change_overlap_significant",
        "Change, significant shared",
        1.0,
        _CHANGE,
        "among as many most significant genes of the generated change",
    ),
    Metric(
        "change_discrimination",
        "Change, own among all",
        1.0,
        _CHANGE,
        "is the real change of the own target the nearest; 0.5: chance",
    ),
    Metric("change_pcc", "Change, PCC", 1.0, _CHANGE, "over genes"),
    Metric("change_spearman", "Change, Spearman", 1.0, _CHANGE, "over genes"),
    Metric("change_r2", "Change, R2", 1.0, _CHANGE, "over genes"),
    Metric("change_overlap", "Change, top 50 shared", 1.0, _CHANGE, "genes of largest change"),
    Metric(
        "change_r2_top", "Change, R2 of means, top 100", 1.0, _CHANGE, "genes of largest change"
    ),
)
_BY_KEY = {metric.key: metric for metric in METRICS}


def metric_of(name: str) -> tuple[Metric, str | None]:
    """The metric behind a name such as `change_slope:condition`, and its column."""
    key, _, column = name.partition(":")
    return _BY_KEY[key], column or None


def title_of(name: str) -> str:
    """Title of a metric, with its column if it has one."""
    metric, column = metric_of(name)
    return f"{metric.title} ({column})" if column else metric.title


def rank_of(name: str) -> tuple[int, str]:
    """Sort key that puts names in the order of `METRICS`."""
    metric, column = metric_of(name)
    return METRICS.index(metric), column or ""
