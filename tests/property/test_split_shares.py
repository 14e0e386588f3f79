import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from save_dist.config.schema import SplitConfig
from save_dist.data.splits import HELD_OUT, TEST, TRAIN, VALIDATION, assign_splits
from save_dist.vocab.conditions import ConditionVocabulary

VOCABULARY = ConditionVocabulary(
    columns=("condition", "kind"),
    categories=(("a", "b"), ("x", "y")),
    held_out=({"condition": "b", "kind": "y"},),
)
CODES = st.lists(st.tuples(st.integers(0, 1), st.integers(0, 1)), min_size=1, max_size=200)
SHARES = st.tuples(st.floats(0, 0.6), st.floats(0, 0.39))


@given(CODES, SHARES, st.integers(0, 2**63))
def test_shares_are_to_the_nearest_cell_and_held_out_is_whole(codes, shares, seed):
    codes = np.array(codes, dtype=np.int16)
    config = SplitConfig(test=shares[0], validation=shares[1])
    split = assign_splits([str(i) for i in range(len(codes))], codes, VOCABULARY, config, seed)
    for pair in np.unique(codes, axis=0):
        own = split[np.all(codes == pair, axis=1)]
        if pair.tolist() == [1, 1]:
            assert np.all(own == HELD_OUT)
            continue
        assert abs(np.sum(own == TEST) - shares[0] * own.size) <= 0.5
        assert abs(np.sum(own == VALIDATION) - shares[1] * own.size) <= 1.0
        assert np.sum(own == TRAIN) + np.sum(own == TEST) + np.sum(own == VALIDATION) == own.size


@given(CODES, st.integers(0, 2**32), st.randoms(use_true_random=False))
def test_the_split_of_a_cell_does_not_depend_on_where_it_stands(codes, seed, random):
    codes = np.array(codes, dtype=np.int16)
    ids = [f"c{i}" for i in range(len(codes))]
    order = list(range(len(ids)))
    random.shuffle(order)
    config = SplitConfig(test=0.3, validation=0.1)
    straight = assign_splits(ids, codes, VOCABULARY, config, seed)
    moved = assign_splits([ids[i] for i in order], codes[order], VOCABULARY, config, seed)
    np.testing.assert_array_equal(moved, straight[order])
