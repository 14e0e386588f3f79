import pickle
from functools import partial

import numpy as np
import pytest
from helpers_soma import CENSUS, OURS, encoded_counts

from save_dist.config.schema import GenesConfig
from save_dist.core.errors import DataError
from save_dist.core.spread import in_order
from save_dist.data import statistics
from save_dist.data.scan import scan
from save_dist.data.statistics import (
    GeneStatistics,
    gene_statistics,
    select_genes,
    vocabulary_statistics,
)
from save_dist.data.transforms import log_normalise

EXACT = {"rtol": 1e-6, "atol": 1e-9}


@pytest.fixture(
    params=[
        pytest.param((300, 10**6), id="three reads"),
        pytest.param((10**6, 10**6), id="one read"),
        pytest.param((10**6, 400), id="two portions"),
        pytest.param((200, 300), id="three portions"),
    ]
)
def portions(request, monkeypatch):
    """Cells of one read and of one portion of a pass over 799 cells."""
    rows_per_read, cells_per_portion = request.param
    monkeypatch.setattr(statistics, "scan", partial(scan, rows_per_read=rows_per_read))
    monkeypatch.setattr(statistics, "CELLS_PER_PORTION", cells_per_portion)


def by_post(work, items):
    """Portions as other processes have and return them: pickled, and read-only."""
    posted = pickle.loads(pickle.dumps(work))
    for item in items:
        result = posted(pickle.loads(pickle.dumps(item)))
        for array in result:
            array.flags.writeable = False
        yield result


def in_memory(cells):
    """All counts of the cells of the index, [cell store_gene]."""
    return encoded_counts(cells.index.joinids, 90)


def log_of(counts):
    library = counts.sum(1, keepdims=True)
    return np.log1p(counts * 1e4 / np.where(library == 0, 1, library))


@pytest.mark.usefixtures("portions")
def test_gene_statistics_equal_numpy(cells):
    found = gene_statistics(cells.locator, cells.index)
    counts = in_memory(cells)
    assert found.n_cells == len(counts)
    assert np.array_equal(found.n_cells_expressing, (counts > 0).sum(0))
    assert np.array_equal(found.max_count, counts.max(0))
    np.testing.assert_allclose(found.mean_count, counts.mean(0), **EXACT)
    np.testing.assert_allclose(found.mean_log, log_of(counts).mean(0), **EXACT)
    np.testing.assert_allclose(found.var_log, log_of(counts).var(0), **EXACT)


@pytest.mark.usefixtures("portions")
def test_vocabulary_statistics_equal_numpy(cells):
    found = vocabulary_statistics(cells.locator, cells.index, cells.gene_positions)
    counts = in_memory(cells)[:, cells.gene_positions]
    log_x = log_of(counts)
    assert found.n_cells == len(counts)
    np.testing.assert_allclose(found.mean_log, log_x.mean(0), **EXACT)
    np.testing.assert_allclose(found.mean_count, counts.mean(0), **EXACT)
    np.testing.assert_allclose(found.covariance, np.cov(log_x.T, bias=True), **EXACT)
    assert np.array_equal(found.max_log, log_normalise(counts.astype(float)).max(0))


def test_processes_change_no_bit(cells, monkeypatch):
    monkeypatch.setattr(statistics, "CELLS_PER_PORTION", 300)
    genes = [gene_statistics(cells.locator, cells.index, spread=s) for s in (in_order, by_post)]
    chosen = [
        vocabulary_statistics(cells.locator, cells.index, cells.gene_positions, spread=s)
        for s in (in_order, by_post)
    ]
    for here, there in (genes, chosen):
        for name, value in vars(here).items():
            assert np.array_equal(value, getattr(there, name)), name


@pytest.mark.parametrize(
    ("sum_bytes", "sizes"),
    [
        pytest.param(10**9, [267, 267, 265], id="as many as wanted"),
        pytest.param(2 * 8 * 40**2, [400, 399], id="two covariances"),
        pytest.param(1, [799], id="less than one"),
    ],
)
def test_sums_that_travel_are_bounded(cells, monkeypatch, sum_bytes, sizes):
    monkeypatch.setattr(statistics, "CELLS_PER_PORTION", 300)
    monkeypatch.setattr(statistics, "SUM_BYTES", sum_bytes)
    found = []

    def noting(work, items):
        found.extend(item.n_cells for item in items)
        return in_order(work, items)

    vocabulary_statistics(cells.locator, cells.index, cells.gene_positions, spread=noting)
    assert found == sizes


def test_the_vocabulary_has_a_library_of_its_own(cells):
    all_genes = gene_statistics(cells.locator, cells.index)
    chosen = vocabulary_statistics(cells.locator, cells.index, cells.gene_positions)
    assert (chosen.mean_log > all_genes.mean_log[cells.gene_positions]).all()


def test_without_covariance(cells):
    arguments = (cells.locator, cells.index, cells.gene_positions)
    found = vocabulary_statistics(*arguments, with_covariance=False)
    other = vocabulary_statistics(*arguments)
    assert found.covariance is None
    assert np.array_equal(found.mean_log, other.mean_log)
    assert np.array_equal(found.max_log, other.max_log)


@pytest.mark.parametrize(
    "layout", [pytest.param(OURS, id="ours"), pytest.param(CENSUS, id="census")]
)
def test_genes_and_cells_without_counts(make_cells, layout):
    counts = np.array([[3, 0, 1], [0, 0, 0], [2, 0, 0], [1, 0, 9]])
    cells = make_cells(counts, layout)
    genes = gene_statistics(cells.locator, cells.index)
    chosen = vocabulary_statistics(cells.locator, cells.index, np.array([1, 2]))
    assert genes.n_cells_expressing.tolist() == [3, 0, 2]
    assert genes.var_log[1] == 0
    assert genes.max_count.tolist() == [3, 0, 9]
    assert chosen.max_log[0] == 1
    assert chosen.max_log[1] == pytest.approx(np.log1p(1e4))
    assert chosen.covariance.tolist()[0] == [0, 0]


def test_no_cells_are_refused(cells):
    nothing = cells.index.take(np.arange(0))
    for run in (
        lambda: gene_statistics(cells.locator, nothing),
        lambda: vocabulary_statistics(cells.locator, nothing, cells.gene_positions),
    ):
        with pytest.raises(DataError, match=r"there are no training cells.*hold out less"):
            run()


def statistics_of(n_expressing, var_log):
    zeros = np.zeros(len(var_log))
    return GeneStatistics(
        100, np.array(n_expressing), zeros, np.array(var_log), zeros.astype(int), zeros
    )


@pytest.mark.parametrize(
    ("n_top", "min_cells", "chosen"),
    [
        pytest.param(2, 10, [1, 4], id="largest variance, in store order"),
        pytest.param(3, 10, [0, 1, 4], id="equal variance: first by name"),
        pytest.param(2, 50, [0, 3], id="too rare genes are left out"),
        pytest.param(None, 10, [0, 1, 3, 4], id="all that are frequent enough"),
        pytest.param(None, 0, [0, 1, 2, 3, 4], id="all"),
        pytest.param(99, 10, [0, 1, 3, 4], id="fewer than asked for"),
    ],
)
def test_select_genes(n_top, min_cells, chosen):
    found = statistics_of([50, 20, 9, 60, 20], [1.0, 5.0, 9.0, 1.0, 2.0])
    config = GenesConfig(n_top=n_top, min_cells=min_cells)
    positions = select_genes(found, ["a", "e", "c", "d", "b"], config)
    assert positions.dtype == np.int64
    assert positions.tolist() == chosen


def test_selection_does_not_depend_on_the_order_of_genes():
    rng = np.random.default_rng(0)
    names = np.array([f"g{i}" for i in range(50)])
    var_log = rng.integers(0, 5, 50).astype(float)  # many ties
    config = GenesConfig(n_top=20, min_cells=0)
    expected = None
    for _ in range(5):
        order = rng.permutation(50)
        in_order = statistics_of(np.ones(50, dtype=int), var_log[order])
        found = set(names[order][select_genes(in_order, names[order].tolist(), config)])
        assert expected is None or found == expected
        expected = found


def test_no_gene_left_is_refused():
    with pytest.raises(DataError, match=r"min_cells=99 of the 100 .*at most in 50\); lower"):
        select_genes(statistics_of([5, 50], [1.0, 2.0]), ["a", "b"], GenesConfig(min_cells=99))
