import pytest
from tiny_model import CONDITIONS, SUPPORT

from save_dist.core.errors import ConfigError, DataError
from save_dist.vocab.conditions import ConditionVocabulary
from save_dist.vocab.transports import Pair, check_pairs, control_pairs, reference_codes, with_code

TWO = ConditionVocabulary(
    ("drug", "time", "donor"),
    (("a", "b", "none"), ("0h", "6h"), ("x", "y")),
    reference={"drug": "none", "time": "0h"},
)


def test_references_by_position():
    assert reference_codes(CONDITIONS, ["condition"]) == {1: 0}
    assert reference_codes(TWO, ["time", "drug"]) == {1: 0, 0: 2}


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        (["tissue"], r"unknown condition column 'tissue'; known: cell_type, condition"),
        (["cell_type"], r"'cell_type' has no reference value.*conditions\.reference.*B, NK, T"),
    ],
)
def test_columns_that_carry_nothing_are_refused(columns, message):
    with pytest.raises(ConfigError, match=message):
        reference_codes(CONDITIONS, columns)


@pytest.mark.parametrize(
    ("support", "columns", "expected"),
    [
        pytest.param([(2, 0, 0), (0, 0, 0)], ["drug"], [Pair(0, (2, 0, 0), (0, 0, 0))], id="one"),
        pytest.param([(2, 0, 1), (0, 0, 0)], ["drug"], [], id="another donor"),
        pytest.param([(2, 0, 0), (0, 1, 0)], ["drug", "time"], [], id="two columns differ"),
        pytest.param([(0, 0, 0), (1, 0, 0)], ["drug"], [], id="no control"),
        pytest.param(
            [(2, 0, 0), (0, 0, 0), (0, 1, 0)],
            ["drug", "time"],
            [Pair(0, (2, 0, 0), (0, 0, 0)), Pair(1, (0, 0, 0), (0, 1, 0))],
            id="one pair per column",
        ),
        pytest.param(
            [(2, 1, 0), (0, 1, 0), (1, 1, 0)],
            ["drug"],
            [Pair(0, (2, 1, 0), (0, 1, 0)), Pair(0, (2, 1, 0), (1, 1, 0))],
            id="two values",
        ),
    ],
)
def test_pairs_agree_in_all_other_columns(support, columns, expected):
    found = control_pairs(dict.fromkeys(support, 5), reference_codes(TWO, columns))
    assert found == tuple(expected)


def test_a_held_out_combination_stands_in_no_pair():
    pairs = control_pairs(SUPPORT, {1: 0})
    assert {pair.target for pair in pairs} == {(0, 1), (1, 1)}
    assert [pair.value for pair in pairs] == [1, 1]


def test_a_column_without_pairs_is_named():
    references = reference_codes(TWO, ["drug", "time"])
    pairs = control_pairs({(2, 0, 0): 3, (0, 0, 0): 3}, references)
    with pytest.raises(DataError, match=r"along 'time' .*time=0h and at another value"):
        check_pairs(TWO, pairs, references)
    check_pairs(TWO, pairs, {0: 2})


def test_with_code():
    assert with_code((1, 2, 3), 1, 9) == (1, 9, 3)
