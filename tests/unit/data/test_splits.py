import numpy as np
import pytest

from save_dist.config.schema import SplitConfig
from save_dist.core.errors import CheckpointError
from save_dist.data.splits import HELD_OUT, TEST, TRAIN, VALIDATION, CellIndex, assign_splits
from save_dist.vocab.conditions import ConditionVocabulary

VOCABULARY = ConditionVocabulary(
    columns=("condition", "cell_type"),
    categories=(("ctrl", "stim"), ("B", "NK", "T")),
    held_out=({"condition": "stim", "cell_type": "B"},),
)
COMBINATIONS = [(0, 0), (0, 1), (0, 2), (1, 0), (1, 1), (1, 2)]
SIZES = [100, 50, 7, 40, 1, 250]


def cells():
    codes = np.repeat(np.array(COMBINATIONS, dtype=np.int16), SIZES, axis=0)
    return [f"x:{i}" for i in range(len(codes))], codes


def split_of(ids, codes, seed=3, **shares):
    return assign_splits(ids, codes, VOCABULARY, SplitConfig(**shares), seed)


def counts_of(split, codes, combination):
    chosen = split[np.all(codes == combination, axis=1)]
    return [int(np.sum(chosen == kind)) for kind in (TRAIN, VALIDATION, TEST, HELD_OUT)]


@pytest.mark.parametrize(
    ("combination", "expected"),
    [
        pytest.param((0, 0), [70, 10, 20, 0], id="hundred"),
        pytest.param((0, 1), [35, 5, 10, 0], id="fifty"),
        pytest.param((0, 2), [5, 1, 1, 0], id="seven: shares to the nearest cell"),
        pytest.param((1, 1), [1, 0, 0, 0], id="a single cell trains"),
        pytest.param((1, 2), [175, 25, 50, 0], id="many"),
        pytest.param((1, 0), [0, 0, 0, 40], id="held out entirely"),
    ],
)
def test_shares_are_exact_in_every_combination(combination, expected):
    ids, codes = cells()
    split = split_of(ids, codes, test=0.2, validation=0.1)
    assert split.dtype == np.uint8
    assert counts_of(split, codes, combination) == expected


def test_the_split_does_not_depend_on_the_order_of_cells():
    ids, codes = cells()
    order = np.random.default_rng(0).permutation(len(ids))
    shuffled = split_of([ids[i] for i in order], codes[order])
    np.testing.assert_array_equal(shuffled, split_of(ids, codes)[order])


def test_the_split_depends_on_the_seed_and_is_pinned():
    ids, codes = cells()
    first, other = split_of(ids, codes, seed=3), split_of(ids, codes, seed=4)
    assert np.mean(first != other) > 0.2
    assert np.flatnonzero(first[:100] == TEST)[:8].tolist() == [8, 10, 13, 15, 17, 22, 27, 33]


def test_neighbours_land_in_different_splits():
    ids, codes = cells()
    is_test = split_of(ids, codes, test=0.5, validation=0.0)[:100] == TEST
    assert 35 < np.sum(is_test[1:] != is_test[:-1]) < 65


@pytest.fixture
def index():
    ids, codes = cells()
    joinids = np.arange(len(ids), dtype=np.int64) * 3 + 5
    return CellIndex(joinids, codes, split_of(ids, codes))


def test_where_takes_one_split_in_order(index):
    test = index.where(TEST)
    assert set(test.split.tolist()) == {TEST}
    np.testing.assert_array_equal(test.joinids, index.joinids[index.split == TEST])
    np.testing.assert_array_equal(test.codes, index.codes[index.split == TEST])
    parts = [index.where(kind).n_cells for kind in (TRAIN, VALIDATION, TEST, HELD_OUT)]
    assert sum(parts) == index.n_cells


def test_take_asks_for_ascending_positions(index):
    assert index.take(np.array([2, 9])).joinids.tolist() == [11, 32]
    with pytest.raises(AssertionError, match="ascend strictly"):
        index.take(np.array([9, 2]))


def test_support_counts_training_cells_of_seen_combinations(index):
    support = index.support()
    assert set(support) == set(COMBINATIONS) - {(1, 0)}
    assert support[(0, 0)] == 78
    assert sum(support.values()) == index.where(TRAIN).n_cells


def test_support_of_no_cells_is_empty(index):
    assert index.where(HELD_OUT).support() == {}


@pytest.mark.parametrize("mmap", [True, False])
def test_a_saved_index_loads_back(index, tmp_path, mmap):
    index.save(tmp_path / "cells")
    loaded = CellIndex.load(tmp_path / "cells", mmap=mmap)
    assert isinstance(loaded.codes, np.memmap) == mmap
    for name in ("joinids", "codes", "split"):
        np.testing.assert_array_equal(getattr(loaded, name), getattr(index, name))
        assert getattr(loaded, name).dtype == getattr(index, name).dtype


def test_an_empty_index_saves_and_loads(index, tmp_path):
    empty = index.take(np.array([], dtype=np.int64))
    empty.save(tmp_path / "cells")
    assert CellIndex.load(tmp_path / "cells", mmap=False).n_cells == 0


def test_an_index_never_completed_is_refused(tmp_path):
    (tmp_path / "cells").mkdir()
    with pytest.raises(CheckpointError, match=r"not a complete cell index; run the blocks job"):
        CellIndex.load(tmp_path / "cells")


def test_arrays_of_another_length_are_refused(index, tmp_path):
    index.save(tmp_path / "cells")
    np.save(tmp_path / "cells" / "split.npy", index.split[:-1])
    with pytest.raises(CheckpointError, match=r"\[448, 448, 447\] cells, expected 448"):
        CellIndex.load(tmp_path / "cells")
