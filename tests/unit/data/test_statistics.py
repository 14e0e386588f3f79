from functools import partial

import numpy as np
import pytest
from helpers_soma import CENSUS, OURS, encoded_counts

from save_dist.config.schema import GenesConfig
from save_dist.core.errors import DataError
from save_dist.data import statistics
from save_dist.data.scan import scan
from save_dist.data.source import SomaSource
from save_dist.data.statistics import (
    GeneStatistics,
    gene_statistics,
    select_genes,
    vocabulary_statistics,
)
from save_dist.data.transforms import log_normalise

EXACT = {"rtol": 1e-6, "atol": 1e-9}


@pytest.fixture(params=[pytest.param(300, id="three reads"), pytest.param(10**6, id="one read")])
def rows_per_read(request, monkeypatch):
    """Cells of one read of a pass."""
    monkeypatch.setattr(statistics, "scan", partial(scan, rows_per_read=request.param))


def in_memory(cells):
    """All counts of the cells of the index, [cell store_gene]."""
    return encoded_counts(cells.index.joinids, 90)


def log_of(counts):
    library = counts.sum(1, keepdims=True)
    return np.log1p(counts * 1e4 / np.where(library == 0, 1, library))


@pytest.mark.usefixtures("rows_per_read")
def test_gene_statistics_equal_numpy(cells):
    with SomaSource(cells.locator) as source:
        found = gene_statistics(source, cells.index)
    counts = in_memory(cells)
    assert found.n_cells == len(counts)
    assert np.array_equal(found.n_cells_expressing, (counts > 0).sum(0))
    assert np.array_equal(found.max_count, counts.max(0))
    np.testing.assert_allclose(found.mean_count, counts.mean(0), **EXACT)
    np.testing.assert_allclose(found.mean_log, log_of(counts).mean(0), **EXACT)
    np.testing.assert_allclose(found.var_log, log_of(counts).var(0), **EXACT)


@pytest.mark.usefixtures("rows_per_read")
def test_vocabulary_statistics_equal_numpy(cells):
    with SomaSource(cells.locator) as source:
        found = vocabulary_statistics(source, cells.index, cells.gene_positions)
    counts = in_memory(cells)[:, cells.gene_positions]
    log_x = log_of(counts)
    assert found.n_cells == len(counts)
    np.testing.assert_allclose(found.mean_log, log_x.mean(0), **EXACT)
    np.testing.assert_allclose(found.mean_count, counts.mean(0), **EXACT)
    np.testing.assert_allclose(found.covariance, np.cov(log_x.T, bias=True), **EXACT)
    assert np.array_equal(found.max_log, log_normalise(counts.astype(float)).max(0))


def test_the_vocabulary_has_a_library_of_its_own(cells):
    with SomaSource(cells.locator) as source:
        all_genes = gene_statistics(source, cells.index)
        chosen = vocabulary_statistics(source, cells.index, cells.gene_positions)
    assert (chosen.mean_log > all_genes.mean_log[cells.gene_positions]).all()


def test_without_covariance(cells):
    with SomaSource(cells.locator) as source:
        found = vocabulary_statistics(
            source, cells.index, cells.gene_positions, with_covariance=False
        )
        other = vocabulary_statistics(source, cells.index, cells.gene_positions)
    assert found.covariance is None
    assert np.array_equal(found.mean_log, other.mean_log)
    assert np.array_equal(found.max_log, other.max_log)


@pytest.mark.parametrize(
    "layout", [pytest.param(OURS, id="ours"), pytest.param(CENSUS, id="census")]
)
def test_genes_and_cells_without_counts(make_cells, layout):
    counts = np.array([[3, 0, 1], [0, 0, 0], [2, 0, 0], [1, 0, 9]])
    cells = make_cells(counts, layout)
    with SomaSource(cells.locator) as source:
        genes = gene_statistics(source, cells.index)
        chosen = vocabulary_statistics(source, cells.index, np.array([1, 2]))
    assert genes.n_cells_expressing.tolist() == [3, 0, 2]
    assert genes.var_log[1] == 0
    assert genes.max_count.tolist() == [3, 0, 9]
    assert chosen.max_log[0] == 1
    assert chosen.max_log[1] == pytest.approx(np.log1p(1e4))
    assert chosen.covariance.tolist()[0] == [0, 0]


def test_no_cells_are_refused(cells):
    nothing = cells.index.take(np.arange(0))
    with SomaSource(cells.locator) as source:
        for run in (
            lambda: gene_statistics(source, nothing),
            lambda: vocabulary_statistics(source, nothing, cells.gene_positions),
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
