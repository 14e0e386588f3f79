import numpy as np
import pytest
from helpers_soma import CENSUS, OURS, add_entries
from tiledbsoma import Experiment

from save_dist.core.errors import DataError
from save_dist.data.packed import PackedReader, gather_map
from save_dist.data.source import SomaSource


def dense(cells, n_genes):
    """Packed cells as a matrix [cell gene]."""
    out = np.zeros((cells.n_cells, n_genes), dtype=np.int64)
    rows = np.repeat(np.arange(cells.n_cells), np.diff(cells.indptr))
    out[rows, cells.entries[:, 0]] = cells.entries[:, 1]
    return out


def read(cells, joinids):
    with SomaSource(cells.locator) as source:
        return PackedReader(source, cells.gene_positions).read(joinids)


def test_gather_map():
    assert gather_map(np.array([4, 0, 2]), 6).tolist() == [1, -1, 2, -1, 0, -1]


@pytest.mark.parametrize(
    "chosen",
    [
        pytest.param(slice(None), id="all"),
        pytest.param(slice(0, 0), id="none"),
        pytest.param(slice(300, 301), id="one cell"),
        pytest.param(slice(5, None, 7), id="every seventh"),
        pytest.param(slice(100, 260), id="neighbours"),
    ],
)
def test_counts_land_in_their_cell_and_gene(cells, chosen):
    joinids = cells.index.joinids[chosen]
    packed = read(cells, joinids)
    assert packed.entries.dtype == np.uint16
    assert packed.n_cells == joinids.size
    assert np.array_equal(dense(packed, 40), cells.counts_of(joinids))


def test_cells_without_entries_are_empty_rows(cells):
    empty = cells.index.joinids[cells.index.joinids % 11 == 0]
    assert empty.size > 10
    packed = read(cells, empty)
    assert packed.indptr.tolist() == [0] * (empty.size + 1)


def test_a_reader_is_good_for_reads_of_any_size(cells):
    with SomaSource(cells.locator) as source:
        reader = PackedReader(source, cells.gene_positions)
        for chosen in (slice(0, 10), slice(0, 700), slice(700, 720), slice(0, 700)):
            joinids = cells.index.joinids[chosen]
            assert np.array_equal(dense(reader.read(joinids), 40), cells.counts_of(joinids))


def test_cells_split_over_arrow_tables(cells, monkeypatch):
    monkeypatch.setattr("save_dist.data.opening._LOCAL_BUFFER_BYTES", 8 * 1000)
    packed = read(cells, cells.index.joinids)
    assert np.array_equal(dense(packed, 40), cells.counts_of(cells.index.joinids))


def test_cells_split_over_reads(cells, monkeypatch):
    monkeypatch.setattr("save_dist.data.source._ENTRIES_PER_READ", 700)
    packed = read(cells, cells.index.joinids)
    assert np.array_equal(dense(packed, 40), cells.counts_of(cells.index.joinids))


@pytest.mark.parametrize(
    ("kind", "value", "dtype"),
    [
        pytest.param("uint16", 65535, np.uint16, id="largest of 16 bits"),
        pytest.param("float32", 65535, np.uint16, id="largest of 16 bits as float"),
        pytest.param("float32", 65536, np.uint32, id="17 bits as float"),
        pytest.param("uint32", 4294967295, np.uint32, id="largest of 32 bits"),
        pytest.param("int64", 65536, np.uint32, id="17 bits as int64"),
    ],
)
def test_large_counts_widen_the_entries(make_cells, kind, value, dtype):
    counts = np.tile(np.array([[1, 2, 0]]), (50, 1))
    counts[30, 1] = value
    cells = make_cells(counts, OURS._replace(type=kind))
    packed = read(cells, cells.index.joinids)
    assert packed.entries.dtype == dtype
    assert np.array_equal(dense(packed, 3), counts)


@pytest.mark.parametrize(
    ("kind", "value", "shown"),
    [
        pytest.param("float32", 1.5, r"1\.5", id="fraction"),
        pytest.param("float32", -1.0, r"-1\.0", id="negative"),
        pytest.param("float32", np.nan, "nan", id="NaN"),
        pytest.param("float32", np.inf, "inf", id="infinite"),
        pytest.param("float64", 2.0**32, r"4294967296\.0", id="above 32 bits"),
        pytest.param("int32", -7, "-7", id="negative integer"),
    ],
)
def test_what_is_no_count_is_refused(make_cells, kind, value, shown):
    counts = np.ones((40, 3))
    counts[25, 2] = value
    cells = make_cells(counts, OURS._replace(type=kind))
    with pytest.raises(
        DataError,
        match=rf"cell 50, gene column 2 of .*store.soma holds {shown}, which is no count; .*raw",
    ):
        read(cells, cells.index.joinids)


def test_two_entries_for_one_gene_are_refused(make_cells):
    cells = make_cells(np.ones((40, 3), dtype=int), CENSUS)
    with Experiment.open(cells.locator.uri, "w") as experiment:
        x = experiment.ms["RNA"].X["raw"]
        add_entries(x, np.array([24]), np.array([1]), np.array([5], dtype=np.float32))
    with pytest.raises(DataError, match=r"cell 24 of .* has two entries for one gene"):
        read(cells, cells.index.joinids)


def test_more_genes_than_16_bits(make_cells):
    counts = np.zeros((6, 70_000), dtype=int)
    counts[2, 69_999] = 7
    cells = make_cells(counts)
    packed = read(cells, cells.index.joinids)
    assert packed.entries.dtype == np.uint32
    assert packed.entries.tolist() == [[69_999, 7]]
