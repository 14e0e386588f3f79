import numpy as np
import pytest

from save_dist.evaluation.classify import fit_labels, two_sample_auc

KINDS = ["logistic", "trees"]


def cells(n=120, seed=0, width=1.0):
    return (width * np.random.default_rng(seed).normal(size=(n, 6))).astype(np.float32)


@pytest.mark.parametrize("kind", KINDS)
def test_equal_distributions_are_not_told_apart(kind):
    aucs = [two_sample_auc(cells(seed=i), cells(seed=i + 50), kind, 0) for i in range(4)]
    assert abs(np.mean(aucs) - 0.5) < 0.08


@pytest.mark.parametrize("kind", KINDS)
def test_offset_is_told_apart(kind):
    aucs = [two_sample_auc(cells(), cells(seed=1) + offset, kind, 0) for offset in (0.2, 0.6, 2)]
    assert np.all(np.diff(aucs) > 0)
    assert aucs[-1] > 0.97


def test_only_trees_see_a_wider_distribution():
    real, generated = cells(200), cells(200, seed=1, width=2.0)
    assert two_sample_auc(real, generated, "trees", 0) > 0.8
    assert two_sample_auc(real, generated, "logistic", 0) < 0.65


def test_same_seed_same_auc():
    found = {two_sample_auc(cells(), cells(seed=1), "trees", 3) for _ in range(2)}
    assert len(found) == 1


def labelled(n_labels, n=90):
    codes = np.arange(n) % n_labels
    pca = cells(n) + 6 * np.eye(6, dtype=np.float32)[codes]
    return pca, codes.astype(np.int16)[:, None]


@pytest.mark.parametrize("n_labels", [2, 3, 6])
def test_labels_are_read(n_labels):
    pca, codes = labelled(n_labels)
    (classifier,) = fit_labels(pca, codes, seed=0)
    assert np.mean(classifier.predict(pca) == codes[:, 0]) > 0.95


def test_labels_keep_their_codes_when_some_are_absent():
    pca, codes = labelled(2)
    (classifier,) = fit_labels(pca, codes * 4 + 1, seed=0)
    assert set(classifier.predict(pca)) == {1, 5}


def test_a_column_with_one_value_has_no_classifier():
    pca, codes = labelled(3)
    both = np.concatenate([np.zeros_like(codes), codes], axis=1)
    constant, varied = fit_labels(pca, both, seed=0)
    assert constant is None
    assert varied is not None
