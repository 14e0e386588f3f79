"""Classifiers as instruments: can one tell generated from real cells, or read their labels.

The two-sample test trains on four fifths and scores the rest, five times: an AUC of 0.5 means
that the classifier finds no difference, 1 that it is never wrong.
"""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal

import numpy as np
from jaxtyping import Float, Float32, Float64, Int16, Int64
from numpy import ndarray

from save_dist.core import seeding

N_FOLDS = 5
MIN_CELLS = 20
"""Cells per side below which five folds say nothing."""
N_LABEL_CELLS = 5000
"""Training cells at most behind a label classifier."""
_RIDGE = 0.01
"""Inverse penalty of the logistic models: strong, for there are as many genes as cells."""
_TREES = {"max_iter": 30, "max_leaf_nodes": 8, "max_bins": 16, "learning_rate": 0.1}


@dataclass(frozen=True)
class LabelClassifier:
    """Linear classifier of one condition column; the largest of `scores` wins."""

    labels: Int64[ndarray, " label"]
    weights: Float32[ndarray, "component label"]
    offsets: Float32[ndarray, " label"]

    def predict(self, pca: Float32[ndarray, "cell component"]) -> Int64[ndarray, " cell"]:
        """Code of the condition column for every cell."""
        found: ndarray = self.labels[np.argmax(pca @ self.weights + self.offsets, axis=1)]
        return found


def two_sample_auc(
    real: Float[ndarray, "real feature"],
    generated: Float[ndarray, "generated feature"],
    kind: Literal["logistic", "trees"],
    seed: int,
) -> float:
    """Mean AUC over five folds of a classifier that tells `generated` from `real`.

    Args:
        real: features of real cells, at least `MIN_CELLS`.
        generated: features of generated cells, at least `MIN_CELLS`.
        kind: a linear model, or boosted trees that also see spreads and interactions.
        seed: of the folds.
    """
    from sklearn.metrics import roc_auc_score
    from sklearn.model_selection import StratifiedKFold

    x = np.concatenate([real, generated])
    y = np.repeat([0.0, 1.0], [len(real), len(generated)])
    state = seeding.stream_seed(seed, "two_sample_folds") % 2**32
    score = _logistic_scores if kind == "logistic" else _tree_scores
    aucs = [
        roc_auc_score(y[rest], score(x[fit], y[fit], x[rest]))
        for fit, rest in StratifiedKFold(N_FOLDS, shuffle=True, random_state=state).split(x, y)
    ]
    return float(np.mean(aucs))


def _logistic_scores(
    x: Float[ndarray, "cell feature"],
    y: Float64[ndarray, " cell"],
    rest: Float[ndarray, "other feature"],
) -> Float[ndarray, " other"]:
    from sklearn.linear_model import LogisticRegression

    with _unconverged_is_fine():
        model = LogisticRegression(C=_RIDGE, max_iter=200, tol=1e-3).fit(x, y)
    scores: ndarray = model.decision_function(rest)
    return scores


def _tree_scores(
    x: Float[ndarray, "cell feature"],
    y: Float64[ndarray, " cell"],
    rest: Float[ndarray, "other feature"],
) -> Float64[ndarray, " other"]:
    from sklearn.ensemble import HistGradientBoostingClassifier

    model = HistGradientBoostingClassifier(**_TREES, early_stopping=False, random_state=0).fit(x, y)
    scores: ndarray = model.decision_function(rest)
    return scores


def fit_labels(
    pca: Float32[ndarray, "cell component"], codes: Int16[ndarray, "cell field"], seed: int
) -> tuple[LabelClassifier | None, ...]:
    """One classifier per condition column; None where training cells hold one value alone."""
    rng = seeding.generator(seed, "label_classifier")
    rows = np.sort(rng.permutation(len(pca))[:N_LABEL_CELLS])
    return tuple(_fit_label(pca[rows], codes[rows, i]) for i in range(codes.shape[1]))


def _fit_label(
    pca: Float32[ndarray, "cell component"], codes: Int16[ndarray, " cell"]
) -> LabelClassifier | None:
    from sklearn.linear_model import LogisticRegression

    labels = np.unique(codes).astype(np.int64)
    if labels.size < 2:
        return None
    with _unconverged_is_fine():
        model = LogisticRegression(C=_RIDGE, max_iter=200, tol=1e-3).fit(pca, codes)
    weights, offsets = model.coef_.T, model.intercept_
    if labels.size == 2:  # scikit-learn keeps one score for two classes: that of the second
        weights = np.concatenate([-weights, weights], axis=1)
        offsets = np.concatenate([-offsets, offsets])
    return LabelClassifier(labels, weights.astype(np.float32), offsets.astype(np.float32))


@contextmanager
def _unconverged_is_fine() -> Iterator[None]:
    """A model that stopped early is only a weaker instrument; it is no reason to warn."""
    from sklearn.exceptions import ConvergenceWarning

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        yield
