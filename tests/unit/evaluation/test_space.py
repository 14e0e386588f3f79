import numpy as np
import pytest

from save_dist.data.transforms import log_normalise
from save_dist.evaluation import space as space_module
from save_dist.evaluation import tables
from save_dist.evaluation.metrics import energy_distance, pairs_of, wasserstein
from save_dist.evaluation.space import fit_space
from save_dist.evaluation.tables import CellTable


@pytest.fixture(scope="module")
def fitted(real):
    return fit_space(real["train"], 8, seed=0)


def test_components_are_orthonormal_and_ordered(fitted):
    space, known = fitted
    np.testing.assert_allclose(space.components.T @ space.components, np.eye(8), atol=1e-5)
    assert np.all(np.diff(known.pca.var(axis=0)) <= 1e-3)
    assert 0.2 < space.explained < 1


def test_explained_share_is_that_of_the_coordinates(fitted, real):
    space, known = fitted
    log = space.read(real["train"].counts).log
    share = known.pca.var(axis=0).sum() / log.var(axis=0).sum()
    assert space.explained == pytest.approx(share, rel=1e-4)


def test_training_cells_read_again_stand_where_they_stood(fitted, real):
    space, known = fitted
    again = space.read(real["train"].counts)
    np.testing.assert_allclose(again.pca, known.pca, atol=1e-4)
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
    space, _ = fit_space(real["train"], 4, seed=0)
    variance = log_normalise(real["train"].counts.astype(np.float32)).var(axis=0)
    assert set(space.genes) == set(np.argsort(-variance)[:10])
    assert np.all(np.diff(variance[space.genes][space.by_variance]) <= 1e-6)


def test_library_counts_genes_that_are_not_compared(real, monkeypatch):
    monkeypatch.setattr(space_module, "MAX_GENES", 10)
    space, _ = fit_space(real["train"], 4, seed=0)
    sample = space.read(real["test"].counts)
    np.testing.assert_array_equal(sample.library, real["test"].counts.sum(axis=1))


def test_mean_profiles_per_combination(fitted, real):
    space, known = fitted
    rows = np.all(real["train"].codes == (1, 0), axis=1)
    log = space.read(real["train"].counts[rows]).log
    np.testing.assert_allclose(known.means[1, 0], log.mean(axis=0), rtol=1e-4, atol=1e-6)


def test_variances_and_rates_per_combination(fitted, real):
    space, known = fitted
    rows = np.all(real["train"].codes == (1, 0), axis=1)
    moments = known.moments((1, 0))
    assert moments.n_cells == rows.sum()
    log = space.read(real["train"].counts[rows]).log
    np.testing.assert_allclose(moments.variance, log.var(axis=0, ddof=1), rtol=1e-3, atol=1e-6)
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


def test_small_combinations_have_no_profile(real):
    few = real["train"].take(np.r_[0:9, 160:400])
    _, known = fit_space(few, 3, seed=0)
    assert len(known.rows[0, 0]) == 9
    assert (0, 0) not in known.means
    assert (0, 1) in known.means


def test_portions_of_reading_change_nothing(real, monkeypatch):
    one, known = fit_space(real["train"], 5, seed=0)
    monkeypatch.setattr(tables, "ROWS_PER_READ", 90)
    other, other_known = fit_space(real["train"], 5, seed=0)
    np.testing.assert_array_equal(one.genes, other.genes)
    np.testing.assert_allclose(one.components, other.components, atol=1e-5)
    np.testing.assert_allclose(known.pca, other_known.pca, atol=1e-4)


def test_equal_cells_still_have_a_scale():
    table = CellTable(np.ones((60, 4), dtype=np.uint16), np.zeros((60, 1), dtype=np.int16))
    space, _ = fit_space(table, 2, seed=0)
    assert space.median_squared > 0
    assert space.explained == 0
