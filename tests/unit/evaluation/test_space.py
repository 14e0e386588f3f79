import numpy as np
import pytest

from save_dist.core.errors import DataError, VocabMismatchError
from save_dist.data.transforms import log_normalise
from save_dist.evaluation import space as space_module
from save_dist.evaluation.metrics import energy_distance, pairs_of, wasserstein
from save_dist.evaluation.space import fit_space
from save_dist.evaluation.tables import CellTable, check_tables


@pytest.fixture(scope="module")
def fitted(real):
    return fit_space(real["train"], 8, seed=0)


def test_components_are_orthonormal_and_ordered(fitted):
    space, known = fitted
    np.testing.assert_allclose(space.components.T @ space.components, np.eye(8), atol=1e-5)
    assert np.all(np.diff(known.sample.pca.var(axis=0)) <= 1e-3)
    assert 0.2 < space.explained < 1


def test_explained_share_is_that_of_the_coordinates(fitted):
    space, known = fitted
    share = known.sample.pca.var(axis=0).sum() / known.sample.log.var(axis=0).sum()
    assert space.explained == pytest.approx(share, rel=1e-4)


def test_training_cells_read_again_stand_where_they_stood(fitted, real):
    space, known = fitted
    again = space.read(real["train"].counts)
    np.testing.assert_array_equal(again.log, known.sample.log)
    np.testing.assert_allclose(again.pca, known.sample.pca, atol=1e-4)
    np.testing.assert_array_equal(again.library, real["train"].counts.sum(axis=1))


def test_normalisation_is_that_of_training(fitted, real):
    space, _ = fitted
    counts = real["test"].counts.astype(np.float32)
    np.testing.assert_array_equal(space.read(counts).log, log_normalise(counts)[:, space.genes])


def test_counts_of_either_type_are_read_alike(fitted, real):
    space, _ = fitted
    counts = real["test"].counts
    np.testing.assert_array_equal(space.read(counts).pca, space.read(counts.astype("f4")).pca)


def test_offset_on_one_side_raises_distances_in_the_space(fitted, world):
    space, _ = fitted
    one, other = (space.read(world.table([(0, 0)], 60, seed=s).counts) for s in (11, 12))
    moved = [space.place(other.log + offset, None).pca for offset in (0.0, 0.3, 0.9)]
    for distance in (energy_distance, lambda p: wasserstein(p, 1), lambda p: wasserstein(p, 2)):
        found = [distance(pairs_of(one.pca, pca)) for pca in moved]
        assert np.all(np.diff(found) > 0)


def test_only_the_most_variable_genes_are_kept(real, monkeypatch):
    monkeypatch.setattr(space_module, "MAX_GENES", 10)
    space, known = fit_space(real["train"], 4, seed=0)
    variance = log_normalise(real["train"].counts.astype(np.float32)).var(axis=0)
    assert set(space.genes) == set(np.argsort(-variance)[:10])
    assert np.all(np.diff(known.sample.log[:, space.by_variance].var(axis=0)) <= 1e-6)


def test_library_counts_genes_that_are_not_compared(real, monkeypatch):
    monkeypatch.setattr(space_module, "MAX_GENES", 10)
    space, _ = fit_space(real["train"], 4, seed=0)
    sample = space.read(real["test"].counts)
    np.testing.assert_array_equal(sample.library, real["test"].counts.sum(axis=1))


def test_mean_profiles_per_combination(fitted, real):
    _, known = fitted
    rows = np.all(real["train"].codes == (1, 0), axis=1)
    np.testing.assert_allclose(known.means[1, 0], known.sample.log[rows].mean(axis=0), rtol=1e-5)


def test_variances_and_rates_per_combination(fitted, real):
    _, known = fitted
    rows = np.all(real["train"].codes == (1, 0), axis=1)
    moments = known.moments((1, 0))
    assert moments.n_cells == rows.sum()
    np.testing.assert_allclose(
        moments.variance, known.sample.log[rows].var(axis=0, ddof=1), rtol=1e-4
    )
    total = real["train"].counts[rows].sum(axis=0)
    np.testing.assert_allclose(known.rates[1, 0], total / total.sum(), rtol=1e-6)


def test_moments_of_a_sample_and_of_its_halves(fitted, real):
    space, _ = fitted
    sample = space.read(real["test"].counts[:9])
    for moments, log in zip(
        (sample.moments, *sample.halves), (sample.log, sample.log[:4], sample.log[4:]), strict=True
    ):
        assert moments.n_cells == len(log)
        np.testing.assert_allclose(moments.mean, log.mean(axis=0), atol=1e-6)
        np.testing.assert_allclose(moments.variance, log.var(axis=0, ddof=1), atol=1e-5)
        np.testing.assert_allclose(moments.noise, moments.variance / len(log))


def test_rows_by_combination_hold_every_row_once():
    codes = np.array([[1, 0], [0, 2], [1, 0], [0, 1]], dtype=np.int16)
    table = CellTable(np.zeros((4, 2), dtype=np.uint16), codes)
    rows = table.rows_by_combination()
    assert list(rows) == [(0, 1), (0, 2), (1, 0)]
    assert {k: v.tolist() for k, v in rows.items()} == {(0, 1): [3], (0, 2): [1], (1, 0): [0, 2]}


def table(counts, n_columns=2):
    counts = np.asarray(counts)
    return CellTable(counts, np.zeros((len(counts), n_columns), dtype=np.int16))


@pytest.mark.parametrize(
    ("tables", "error", "says"),
    [
        pytest.param(
            {"test": table(np.zeros((2, 3), "u2")), "generated": table(np.zeros((2, 4), "u2"))},
            VocabMismatchError, r"different numbers of genes: .*'test': 3, 'generated': 4",
            id="genes",
        ),
        pytest.param(
            {"test": table(np.zeros((2, 3), "u2"), 1)},
            VocabMismatchError, "test cells have 1 condition columns, the vocabulary has 2",
            id="columns",
        ),
        pytest.param(
            {"generated": table(np.array([[1, -1]], "f4"))},
            DataError, "generated cells hold counts from -1.0 to 1.0; expected finite",
            id="negative",
        ),
        pytest.param(
            {"generated": table(np.array([[1, np.nan]], "f4"))},
            DataError, "generated cells hold counts from nan", id="nan",
        ),
    ],
)  # fmt: skip
def test_tables_that_do_not_fit_are_refused(tables, error, says):
    with pytest.raises(error, match=says):
        check_tables(tables, n_columns=2)


def test_equal_cells_still_have_a_scale():
    space, _ = fit_space(table(np.ones((60, 4), "u2")), 2, seed=0)
    assert space.median_squared > 0
    assert space.explained == 0
