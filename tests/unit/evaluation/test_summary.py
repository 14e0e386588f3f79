import numpy as np
import pytest

from save_dist.evaluation.scores import CombinationScores
from save_dist.evaluation.summary import average, mean_and_spread, normalised, summarise


def combination(metrics, n_test=100, is_averaged=True, scores=None):
    return CombinationScores(
        condition={"a": "x"}, codes=(0,), group="seen", n_train=9, n_test=n_test,
        n_generated=100, n_used=100, is_averaged=is_averaged, metrics=metrics, spread={},
        normalised=scores or {},
    )  # fmt: skip


def test_score_is_0_at_the_floor_and_1_at_the_marginal():
    means = {
        "floor": {"w2": 4.0},
        "marginal": {"w2": 8.0},
        "generated": {"w2": 5.0},
        "nearest_seen": {"w2": 4.0},
        "control": {"w2": 10.0},
    }
    found = normalised(means, {"w2": 0.1}, ["w2"])
    assert found == {
        "generated": {"w2": 0.25}, "nearest_seen": {"w2": 0.0}, "control": {"w2": 1.5},
    }  # fmt: skip


@pytest.mark.parametrize(
    ("floor", "marginal", "spread"),
    [
        pytest.param(4.0, 4.0, 0.0, id="equal"),
        pytest.param(4.0, 3.0, 0.0, id="marginal nearer"),
        pytest.param(4.0, 4.3, 0.2, id="within the noise of the floor"),
    ],
)
def test_no_score_where_the_marginal_is_not_clear_of_the_floor(floor, marginal, spread):
    means = {"floor": {"w2": floor}, "marginal": {"w2": marginal}, "generated": {"w2": 9.0}}
    assert normalised(means, {"w2": spread}, ["w2"]) == {}


def test_no_score_without_a_floor():
    assert normalised({"marginal": {"w2": 1.0}, "generated": {"w2": 1.0}}, {}, ["w2"]) == {}


def test_averages_of_known_values():
    values = np.array([[1.0, np.nan], [3.0, 5.0]])
    first, second = average(values, np.array([1.0, 3.0]), n_bootstrap=200, seed=0)
    assert (first.mean, first.weighted, first.n_combinations) == (2.0, 2.5, 2)
    assert (first.low, first.high) == (1.0, 3.0)
    assert (second.mean, second.weighted, second.n_combinations) == (5.0, 5.0, 1)
    assert second.low is None
    assert second.high is None


def test_interval_has_the_width_of_the_standard_error():
    values = np.random.default_rng(0).normal(size=(200, 1))
    (found,) = average(values, np.ones(200), n_bootstrap=2000, seed=0)
    assert found.low < found.mean < found.high
    assert found.high - found.low == pytest.approx(2 * 1.96 / np.sqrt(200), rel=0.15)


def test_interval_of_the_same_seed_is_the_same():
    values = np.random.default_rng(0).normal(size=(20, 1))
    found = {average(values, np.ones(20), 100, seed=4)[0] for _ in range(2)}
    assert len(found) == 1


def test_small_combinations_are_counted_not_averaged():
    large = combination({"generated": {"w2": 1.0}})
    small = combination({"generated": {"w2": 9.0}}, n_test=5, is_averaged=False)
    group = summarise([large, small], 10, 0)
    assert (group.n_combinations, group.n_averaged) == (2, 1)
    assert group.metrics["generated"]["w2"].mean == 1.0


def test_only_small_combinations():
    group = summarise([combination({"generated": {"w2": 9.0}}, is_averaged=False)], 10, 0)
    assert group.n_averaged == 0
    assert group.metrics == {}
    assert group.normalised == {}


def test_no_combination_no_summary():
    assert summarise([], 10, 0) is None


def test_pooled_score_is_the_ratio_of_means():
    tables = [
        {"floor": {"energy": 0.0}, "marginal": {"energy": 1.0}, "generated": {"energy": 1.0}},
        {"floor": {"energy": 0.0}, "marginal": {"energy": 9.0}, "generated": {"energy": 0.0}},
    ]
    group = summarise([combination(table) for table in tables], 10, 0)
    assert group.pooled["generated"]["energy"] == pytest.approx(0.1)


def test_mean_and_spread_over_seeds():
    means, spreads = mean_and_spread({"generated": {"w2": (1.0, 3.0), "auc": (0.5,)}})
    assert means == {"generated": {"w2": 2.0, "auc": 0.5}}
    assert spreads["generated"] == {"w2": pytest.approx(np.sqrt(2))}
