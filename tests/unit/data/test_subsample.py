import numpy as np
import pytest

from save_dist.data.splits import HELD_OUT, TEST, TRAIN, CellIndex
from save_dist.data.subsample import (
    NO_GROUP,
    combination_codes,
    combination_numbers,
    sample_combinations,
    sample_rows,
    sample_split,
)
from save_dist.vocab.conditions import ConditionVocabulary

GROUPS = np.random.default_rng(0).integers(-1, 4, 500)


def sample(n_cells, seed=0, rows_at_once=64):
    return sample_rows(500, lambda stretch: GROUPS[stretch], n_cells, seed, rows_at_once)


def test_every_group_has_as_many_as_asked_for_or_all():
    rows, groups = sample(110)
    sizes = np.bincount(GROUPS[GROUPS != NO_GROUP])
    assert np.bincount(groups).tolist() == np.minimum(sizes, 110).tolist()
    np.testing.assert_array_equal(GROUPS[rows], groups)
    for group in range(4):
        assert np.all(np.diff(rows[groups == group]) > 0)
    assert np.all(np.diff(groups) >= 0)


@pytest.mark.parametrize("rows_at_once", [1, 7, 500, 10_000])
def test_the_length_of_stretches_changes_nothing(rows_at_once):
    np.testing.assert_array_equal(sample(20).rows, sample(20, rows_at_once=rows_at_once).rows)


def test_more_cells_contain_the_fewer_and_seeds_differ():
    assert set(sample(10).rows) < set(sample(30).rows)
    assert set(sample(10).rows) != set(sample(10, seed=1).rows)


def test_choice_is_even():
    hits = np.zeros(40)
    for seed in range(400):
        hits[sample_rows(40, lambda s: np.zeros(s.stop - s.start, int), 10, seed).rows] += 1
    assert hits.min() > 60
    assert hits.max() < 140  # 100 expected, sd 8.7


def test_nothing_to_choose_from():
    rows, groups = sample_rows(9, lambda s: np.full(s.stop - s.start, NO_GROUP), 3, 0)
    assert rows.size == groups.size == 0


def test_combinations_have_numbers_in_their_order():
    codes = np.array([[1, 2], [0, 3], [1, 0]], dtype=np.int16)
    numbers = combination_numbers(codes, [2, 4])
    assert numbers.tolist() == [6, 3, 4]
    np.testing.assert_array_equal(combination_codes(numbers, [2, 4]), codes)


@pytest.fixture
def index():
    codes = np.stack([np.arange(300) % 2, np.arange(300) % 3], axis=1).astype(np.int16)
    split = np.array([TRAIN, TRAIN, TEST, TEST, HELD_OUT], dtype=np.uint8)[np.arange(300) // 60]
    return CellIndex(np.arange(300) * 2, codes, split)


def test_cells_of_a_split(index):
    found = sample_split(index, TRAIN, 50, 0)
    assert found.n_cells == 50
    assert set(found.split) == {TRAIN}
    assert sample_split(index, TRAIN, 1000, 0).n_cells == 120


def test_cells_of_every_combination_of_a_split(index):
    conditions = ConditionVocabulary(("a", "b"), (("x", "y"), ("k", "l", "m")))
    found = sample_combinations(index, TEST, conditions, 7, 0)
    assert set(found.split) == {TEST}
    _, sizes = np.unique(found.codes, axis=0, return_counts=True)
    assert sizes.tolist() == [7] * 6
