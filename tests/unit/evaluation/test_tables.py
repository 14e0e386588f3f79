import numpy as np
import pytest

from save_dist.core.errors import DataError, VocabMismatchError
from save_dist.evaluation import tables
from save_dist.evaluation.tables import CellTable, check_tables

CODES = np.array([[1, 0], [0, 2], [1, 0], [0, 1], [1, 0]], dtype=np.int16)


def table(counts, n_columns=2, name="given"):
    counts = np.asarray(counts)
    return CellTable(counts, np.zeros((len(counts), n_columns), dtype=np.int16), name)


def numbered(n, n_genes=3):
    """Counts that say their row and gene."""
    return (10 * np.arange(n)[:, None] + np.arange(n_genes)).astype(np.float32)


def lazy(codes=CODES, log=None):
    """A lazy table over a store with rows 100, 101, ...; `log` notes what is read at once."""

    def read(rows):
        if log is not None:
            log.append(rows.tolist())
        return numbered(len(codes))[rows - 100]

    return CellTable.lazy(read, 100 + np.arange(len(codes)), codes, 3, np.float32)


def test_rows_by_combination_hold_every_row_once():
    rows = CellTable(np.zeros((5, 2), dtype=np.uint16), CODES).rows_by_combination()
    assert list(rows) == [(0, 1), (0, 2), (1, 0)]
    found = {k: v.tolist() for k, v in rows.items()}
    assert found == {(0, 1): [3], (0, 2): [1], (1, 0): [0, 2, 4]}


def test_lazy_cells_stand_combination_by_combination():
    found = lazy()
    assert found.codes.tolist() == [[0, 1], [0, 2], [1, 0], [1, 0], [1, 0]]
    np.testing.assert_array_equal(found.read(np.arange(5)), numbered(5)[[3, 1, 0, 2, 4]])


@pytest.mark.parametrize("rows", [[], [2], [4, 0, 2], [1, 1, 3]], ids=str)
def test_lazy_and_eager_cells_are_read_alike(rows):
    rows = np.array(rows, dtype=np.int64)
    one = lazy()
    eager = CellTable(numbered(5)[[3, 1, 0, 2, 4]], one.codes)
    np.testing.assert_array_equal(one.read(rows), eager.read(rows))
    np.testing.assert_array_equal(one.take(rows).codes, eager.take(rows).codes)


def test_a_combination_is_one_read(monkeypatch):
    monkeypatch.setattr(tables, "ROWS_PER_READ", 3)
    log = []
    found = lazy(log=log)
    found.read(np.array([2, 4]))
    assert log == [[100, 102, 104]]


@pytest.mark.parametrize(
    ("sizes", "expected"),
    [
        pytest.param([2, 2], [4], id="fit together"),
        pytest.param([2, 3], [2, 3], id="cut between"),
        pytest.param([1, 9], [1, 4, 4, 1], id="one that is too large"),
        pytest.param([9, 3], [4, 4, 4], id="its rest goes with the next"),
        pytest.param([9, 4], [4, 4, 1, 4], id="unless it does not fit"),
        pytest.param([], [], id="none"),
    ],
)
def test_portions_end_where_combinations_end(sizes, expected, monkeypatch):
    monkeypatch.setattr(tables, "ROWS_PER_READ", 4)
    codes = np.repeat(np.arange(len(sizes), dtype=np.int16), sizes)[:, None]
    portions = list(CellTable(np.zeros((len(codes), 1), dtype=np.float32), codes).portions())
    assert [len(p) for p in portions] == expected
    assert np.concatenate([*portions, np.empty(0)]).tolist() == list(range(len(codes)))


@pytest.mark.parametrize(
    ("given", "says"),
    [
        pytest.param(
            [table(np.zeros((2, 3), "u2"), name="test"), table(np.zeros((2, 4), "u2"))],
            r"different numbers of genes: .*'test': 3, 'given': 4", id="genes",
        ),
        pytest.param(
            [table(np.zeros((2, 3), "u2"), 1, "test")],
            "test cells have 1 condition columns, the vocabulary has 2", id="columns",
        ),
    ],
)  # fmt: skip
def test_tables_that_do_not_fit_are_refused(given, says):
    with pytest.raises(VocabMismatchError, match=says):
        check_tables(given, n_columns=2)


@pytest.mark.parametrize(
    ("counts", "says"),
    [
        pytest.param([[1, -1]], "given cells hold counts from -1.0 to 1.0; expected finite",
                     id="negative"),
        pytest.param([[1, np.nan]], "given cells hold counts from nan", id="nan"),
        pytest.param([[1, np.inf]], "to inf; expected finite", id="inf"),
    ],
)  # fmt: skip
def test_counts_that_are_none_are_refused_when_read(counts, says):
    with pytest.raises(DataError, match=says):
        table(np.array(counts, dtype=np.float32)).read(np.array([0]))
