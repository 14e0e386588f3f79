import numpy as np
import pytest

from save_dist.stores.profiles import (
    Profiles,
    best_temperature,
    evidence,
    similarity_shift,
)
from save_dist.vocab.similarity import TEMPERATURES
from save_dist.vocab.transports import control_pairs

REFERENCES = {1: 0}


def profiles(controls, changes, n_cells=50):
    """One group per row: (group, 0) is its control, (group, 1) its target."""
    controls, changes = np.array(controls, float), np.array(changes, float)
    codes = tuple((group, value) for group in range(len(controls)) for value in (0, 1))
    means = np.stack([controls, controls + changes], axis=1).reshape(len(codes), -1)
    counts = np.broadcast_to(np.array(n_cells), len(codes)).astype(np.int64)
    return Profiles(
        codes,
        counts,
        means.astype(np.float32),
        (2 * means).astype(np.float32),
        means.sum(axis=1).astype(np.float32),
    )


def pairs_of(found):
    return control_pairs(found.rows, REFERENCES)


def test_everything_comes_back(tmp_path):
    before = profiles([[1, 2], [3, 4]], [[1, 0], [0, 1]])
    before.save(tmp_path / "profiles")
    after = Profiles.load(tmp_path / "profiles")
    assert after.codes == before.codes
    np.testing.assert_array_equal(after.log_of((1, 1)), [3, 5])
    np.testing.assert_array_equal(after.total_counts((0, 1)), [200, 200])
    np.testing.assert_array_equal(after.mean_log_library, [3, 4, 7, 8])
    assert after.n_cells.dtype == np.int64


def test_evidence_needs_cells_on_both_sides():
    found = profiles(np.zeros((3, 2)), np.ones((3, 2)), n_cells=[50, 50, 9, 50, 50, 9])
    assert [pair.control for pair in evidence(found, pairs_of(found), 1, 1)] == [(0, 0)]
    assert evidence(found, pairs_of(found), 1, 2) == []


@pytest.mark.parametrize(
    ("temperature", "expected"),
    [
        pytest.param(0.05, [1, 0], id="cold: the most similar alone"),
        pytest.param(1e6, [0.5, 0.5], id="hot: all alike"),
    ],
)
def test_shift_is_that_of_similar_groups(temperature, expected):
    found = profiles([[0, 0], [10, 0], [1, 0]], [[1, 0], [0, 1], [9, 9]])
    pairs = [pair for pair in pairs_of(found) if pair.control != (2, 0)]
    shift = similarity_shift(found, pairs, (2, 0), temperature)
    np.testing.assert_allclose(shift.log_profile, expected, atol=1e-4)
    assert shift.log_library == pytest.approx(1, abs=1e-4)


def test_equal_controls_weigh_the_same():
    found = profiles(np.ones((3, 2)), [[1, 0], [0, 1], [0, 0]])
    shift = similarity_shift(found, pairs_of(found), (2, 0), 0.1)
    np.testing.assert_allclose(shift.log_profile, 1 / 3)


def test_temperature_is_cold_where_similar_groups_change_alike():
    near, far = [[0, 0], [0.1, 0], [0, 0.1]], [[9, 0], [9.1, 0], [9, 0.1]]
    found = profiles(near + far, [[1, 0]] * 3 + [[0, 1]] * 3)
    assert best_temperature(found, pairs_of(found)) == min(TEMPERATURES)


def test_temperature_is_hot_where_similarity_says_nothing():
    rng = np.random.default_rng(0)
    found = profiles(rng.normal(size=(8, 3)), 5 + rng.normal(size=(8, 3)))
    assert best_temperature(found, pairs_of(found)) == max(TEMPERATURES)


def test_two_groups_cannot_choose_a_temperature():
    found = profiles(np.eye(2), np.eye(2))
    assert best_temperature(found, pairs_of(found)) == max(TEMPERATURES)
