import numpy as np
import pytest
from scipy.stats import rankdata, wasserstein_distance
from sklearn.metrics import r2_score

from save_dist.evaluation.biology import (
    GeneProfile,
    agreement,
    compare_correlations,
    compare_libraries,
    compare_nearness,
    compare_profiles,
    gene_profile,
    pearson,
    r2,
    ranks,
    wasserstein_1d,
)


def expression(n=80, genes=20, seed=0):
    rng = np.random.default_rng(seed)
    return np.maximum(rng.normal(0.5, 1, (n, genes)), 0).astype(np.float32)


def test_profile_of_known_values():
    found = gene_profile(np.array([[0, 2], [4, 2]], dtype=np.float32))
    np.testing.assert_allclose(found.mean, [2, 2])
    np.testing.assert_allclose(found.variance, [4, 0])
    np.testing.assert_allclose(found.zeros, [0.5, 0])


def test_r2_is_that_of_sklearn():
    rng = np.random.default_rng(0)
    truth, found = rng.normal(size=(2, 30))
    assert r2(truth, found) == pytest.approx(r2_score(truth, found))


def test_r2_above_the_squared_correlation_is_a_mistake(monkeypatch):
    monkeypatch.setattr("save_dist.evaluation.biology.r2", lambda truth, predicted: 0.5)
    with pytest.raises(AssertionError, match=r"R2 > PCC\^2.*r2=0.5"):
        agreement(np.array([0.0, 1, 2]), np.array([1.0, 0, 1]))


@pytest.mark.parametrize("values", [[3, 1, 2], [1, 1, 2, 2, 2, 0], [5, 5, 5]], ids=str)
def test_ranks_are_those_of_scipy(values):
    x = np.array(values, dtype=float)
    np.testing.assert_array_equal(ranks(x), rankdata(x))


@pytest.mark.parametrize("measure", [pearson, r2], ids=["pearson", "r2"])
def test_constant_truth_has_no_value(measure):
    assert np.isnan(measure(np.ones(4), np.arange(4.0)))


def test_equal_profiles_are_perfect():
    profile = gene_profile(expression())
    found = compare_profiles(profile, profile)
    for part in GeneProfile._fields:
        assert found[f"{part}_pcc"] == pytest.approx(1)
        assert found[f"{part}_r2"] == pytest.approx(1)
        assert found[f"{part}_mse"] == 0
    assert found["zero_difference"] == 0
    assert found["variance_ratio"] == 1


def test_variance_ratio_and_zeros_see_a_generator_of_means():
    real = expression(400)
    mean_only = np.tile(real.mean(axis=0), (400, 1))
    found = compare_profiles(gene_profile(real), gene_profile(mean_only))
    assert found["mean_r2"] == pytest.approx(1, abs=1e-4)  # blind
    assert found["variance_ratio"] < 0.01
    assert found["zero_difference"] < -0.2


def test_correlation_error_sees_lost_correlations():
    rng = np.random.default_rng(0)
    module = rng.normal(size=(300, 1))
    real = (module + 0.5 * rng.normal(size=(300, 10))).astype(np.float32)
    again = real[rng.permutation(300)]
    shuffled = rng.permuted(real, axis=0)
    assert compare_correlations(real, again)["correlation_error"] < 1e-6
    assert compare_correlations(real, shuffled)["correlation_error"] > 0.6


def test_constant_gene_counts_as_uncorrelated():
    real = np.array([[0, 1, 2], [0, 2, 4], [0, 3, 6]], dtype=np.float32)
    assert compare_correlations(real, real)["correlation_error"] == 0
    assert compare_correlations(real[:, :2], real[:, 1:])["correlation_error"] == pytest.approx(1)


def test_library_ratios():
    real = np.exp(np.random.default_rng(0).normal(8, 0.5, 4000)).astype(np.float32)
    found = compare_libraries(real, 2 * np.sqrt(real) * np.sqrt(np.exp(8)).astype(np.float32))
    assert found["library_ratio"] == pytest.approx(2, rel=0.02)
    assert found["library_spread_ratio"] == pytest.approx(0.5, rel=0.01)


def test_library_distance_is_in_units_of_the_log():
    real = np.exp(np.random.default_rng(0).normal(8, 0.5, 300)).astype(np.float32)
    assert compare_libraries(real, 1.2 * real)["library_w1"] == pytest.approx(np.log(1.2), rel=1e-4)


def test_w1_of_numbers_is_that_of_scipy():
    x, y = np.random.default_rng(0).normal(size=40), np.random.default_rng(1).normal(1, 2, size=70)
    assert wasserstein_1d(x, y) == pytest.approx(wasserstein_distance(x, y))
    assert wasserstein_1d(x, x) == 0


@pytest.mark.parametrize(
    ("make", "ratio", "share"),
    [
        pytest.param(lambda train, fresh: fresh, (0.9, 1.1), (0, 0.12), id="new cells"),
        pytest.param(lambda train, fresh: train[:200], (0, 1e-3), (1, 1), id="copies"),
        pytest.param(lambda train, fresh: train[:200] + 0.05, (0.01, 0.3), (1, 1),
                     id="copies with a little noise"),
    ],
)  # fmt: skip
def test_nearness_sees_memorised_cells(make, ratio, share):
    rng = np.random.default_rng(0)
    train, real, fresh = (rng.normal(size=(n, 6)).astype(np.float32) for n in (600, 300, 300))
    found = compare_nearness(real, make(train, fresh), train)
    assert ratio[0] <= found.ratio <= ratio[1]
    assert share[0] <= found.nearer_share <= share[1]
