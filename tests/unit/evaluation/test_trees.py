import numpy as np
import pytest
from sklearn.ensemble import HistGradientBoostingClassifier

from save_dist.evaluation import trees
from save_dist.evaluation.trees import bin_features, boosted_scores


def normal(rng, n):
    return rng.normal(size=(n, 5))


def sparse(rng, n):
    return np.log1p(rng.poisson(rng.gamma(0.5, 2, (n, 20))) / rng.uniform(0.5, 2, (n, 1)))


def few_values(rng, n):
    return rng.poisson(1.0, (n, 12)).astype(float)


def with_a_constant(rng, n):
    return np.concatenate([np.ones((n, 2)), rng.normal(size=(n, 2))], axis=1)


@pytest.mark.parametrize("make", [normal, sparse, few_values, with_a_constant])
@pytest.mark.parametrize("n_fit", [30, 90, 400])
def test_scores_are_those_of_sklearn(make, n_fit):
    x = make(np.random.default_rng(n_fit), n_fit + 50).astype(np.float32)
    y = np.tile([0.0, 1.0], len(x) // 2)
    x[y == 1] *= 1.3
    model = HistGradientBoostingClassifier(
        max_iter=trees.N_TREES, max_leaf_nodes=trees.MAX_LEAVES, max_bins=trees.N_BINS,
        learning_rate=trees.LEARNING_RATE, min_samples_leaf=trees.MIN_CELLS_PER_LEAF,
        early_stopping=False, random_state=0,
    ).fit(x[:n_fit], y[:n_fit])  # fmt: skip
    found = boosted_scores(bin_features(x[:n_fit], x[n_fit:]), y[:n_fit])
    np.testing.assert_allclose(found, model.decision_function(x[n_fit:]), atol=1e-9)


def test_too_few_cells_to_split_score_by_their_share():
    x = np.random.default_rng(0).normal(size=(24, 3))
    y = np.repeat([0.0, 1.0], [6, 18])
    found = boosted_scores(bin_features(x, x[:4]), y)
    np.testing.assert_allclose(found, np.log(3))


def test_bins_hold_equal_numbers_of_many_values():
    x = np.random.default_rng(0).permutation(320).astype(float)[:, None]
    binned = bin_features(x, np.array([[-5.0], [1000.0]]))
    assert np.bincount(binned.fit[0]).tolist() == [20] * trees.N_BINS
    assert binned.rest[0].tolist() == [0, trees.N_BINS - 1]


def test_few_values_have_a_bin_each():
    x = np.array([[3.0], [0.0], [3.0], [7.0]])
    binned = bin_features(x, np.array([[1.4], [1.6], [5.1]]))
    assert binned.fit[0].tolist() == [1, 0, 1, 2]
    assert binned.rest[0].tolist() == [0, 1, 2]
