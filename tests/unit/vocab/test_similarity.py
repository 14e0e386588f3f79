import numpy as np
import pytest

from save_dist.vocab.similarity import TEMPERATURES, best_temperature, weights

STARTS = np.array([[0.0, 0.0], [1.0, 0.0], [10.0, 0.0]])


@pytest.mark.parametrize(
    ("temperature", "expected"),
    [
        pytest.param(0.01, [1.0, 0.0, 0.0], id="cold-trusts-the-nearest"),
        pytest.param(1e6, [1 / 3, 1 / 3, 1 / 3], id="hot-trusts-all-alike"),
    ],
)
def test_weights(temperature, expected):
    assert weights(np.zeros(2), STARTS, temperature) == pytest.approx(expected, abs=1e-4)


def test_equal_starts_weigh_the_same():
    assert weights(np.ones(2), np.ones((4, 2)), 0.1).tolist() == [0.25] * 4


def test_softmax_in_units_of_the_mean_distance():
    found = weights(np.zeros(2), STARTS[1:], 0.5)
    assert found[0] / found[1] == pytest.approx(np.exp((10 - 1) / (0.5 * 5.5)))


def test_temperature_is_chosen_by_what_predicts_best():
    starts = np.arange(6.0)[:, None] * [1.0, 0.0]
    same_for_all = np.ones((6, 2)) + np.random.default_rng(0).normal(0, 0.1, (6, 2))
    assert best_temperature([(starts, starts**2)]) == min(TEMPERATURES)
    assert best_temperature([(starts, same_for_all)]) > min(TEMPERATURES)


def test_too_few_changes_say_nothing():
    assert best_temperature([(STARTS[:2], STARTS[:2])]) == max(TEMPERATURES)
    assert best_temperature([]) == max(TEMPERATURES)
