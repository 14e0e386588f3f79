import numpy as np
import pytest

from save_dist.evaluation import baselines
from save_dist.evaluation.space import Sample, TrainCells, fit_space
from save_dist.vocab.conditions import ConditionVocabulary


def known(means, n_cells=20, rates=None):
    """Training cells of which only profiles and numbers are known."""
    empty = np.empty((0, 1), dtype=np.float32)
    sizes = n_cells if isinstance(n_cells, dict) else dict.fromkeys(means, n_cells)
    return TrainCells(
        pca=empty,
        rows={codes: np.arange(n) for codes, n in sizes.items()},
        means={codes: np.array(mean, dtype=np.float32) for codes, mean in means.items()},
        variances={codes: np.ones(len(mean), dtype=np.float32) for codes, mean in means.items()},
        rates={codes: np.array(r, dtype=np.float32) for codes, r in (rates or {}).items()},
    )


# (condition, type): effect (1, 2) in type 0, (3, 4) in type 1; type 2 stim is not known
MEANS = {(0, 0): [0, 0], (1, 0): [1, 2], (0, 1): [10, 10], (1, 1): [13, 14], (0, 2): [9, 9]}


def test_reference_codes(conditions):
    assert baselines.reference_codes(conditions) == {0: 0}


def test_reference_is_found_by_value_not_place():
    vocabulary = ConditionVocabulary(
        ("a", "b"), (("x", "y"), ("k", "l", "m")), reference={"b": "m", "a": "y"}
    )
    assert baselines.reference_codes(vocabulary) == {0: 1, 1: 2}


@pytest.mark.parametrize(
    ("codes", "expected"),
    [
        pytest.param((1, 2), (0, 2), id="perturbed"),
        pytest.param((0, 2), None, id="is the reference"),
    ],
)
def test_control(codes, expected):
    assert baselines.control_of(codes, {0: 0}) == expected


def test_contexts_show_the_change_in_other_types():
    pairs = baselines.contexts((1, 2), (0, 2), known(MEANS))
    assert pairs == [((1, 0), (0, 0)), ((1, 1), (0, 1))]


def test_contexts_with_few_cells_are_left_out():
    sizes = {**dict.fromkeys(MEANS, 20), (0, 0): 3}
    pairs = baselines.contexts((1, 2), (0, 2), known(MEANS, sizes))
    assert pairs == [((1, 1), (0, 1))]


def test_additive_shift_is_the_mean_change():
    train = known(MEANS)
    pairs = baselines.contexts((1, 2), (0, 2), train)
    np.testing.assert_allclose(baselines.additive_shift(pairs, train), [2, 3])


def test_similarity_shift_follows_the_nearer_type():
    # three types near (0, 0) change by (1, 0), three near (10, 10) by (0, 1)
    means = {}
    for i in range(6):
        base, effect = ([0, 0], [1, 0]) if i < 3 else ([10, 10], [0, 1])
        control = np.array(base) + 0.1 * i
        means |= {(0, i): control, (1, i): control + effect}
    means[0, 6] = np.array([9.8, 9.8])
    train = known(means)
    pairs = baselines.contexts((1, 6), (0, 6), train)
    shift = baselines.similarity_shift((0, 6), pairs, train)
    np.testing.assert_allclose(shift, [0, 1], atol=0.02)
    np.testing.assert_allclose(baselines.additive_shift(pairs, train), [0.5, 0.5], atol=1e-6)


def test_similarity_shift_of_equal_changes_is_that_change():
    means = {(0, i): [i, 2 * i] for i in range(5)}
    means |= {(1, i): [i + 1, 2 * i + 3] for i in range(4)}
    train = known(means)
    pairs = baselines.contexts((1, 4), (0, 4), train)
    np.testing.assert_allclose(baselines.similarity_shift((0, 4), pairs, train), [1, 3], atol=1e-5)


def test_similarity_shift_of_indistinguishable_profiles():
    means = {(c, t): [5 * c, 1] for c in range(2) for t in range(3)}
    train = known(means)
    pairs = baselines.contexts((1, 2), (0, 2), train)
    np.testing.assert_allclose(baselines.similarity_shift((0, 2), pairs, train), [5, 0])


def test_nearest_seen_by_control_profile():
    train = known(MEANS)
    pairs = baselines.contexts((1, 2), (0, 2), train)
    assert baselines.nearest_seen((1, 2), (0, 2), pairs, train) == (1, 1)


def test_nearest_seen_without_control_shares_most_columns():
    sizes = {(0, 0): 50, (1, 0): 20, (0, 1): 90}
    train = known({codes: [0, 0] for codes in sizes}, sizes)
    assert baselines.nearest_seen((1, 1), None, [], train) == (0, 1)
    assert baselines.nearest_seen((5, 5), None, [], train) == (0, 1)


def test_nearest_seen_of_nothing():
    assert baselines.nearest_seen((1, 1), None, [], known({(0, 0): [0, 0]}, 3)) is None


def test_shuffled_genes_keep_marginals_and_lose_correlation():
    rng = np.random.default_rng(0)
    gene = rng.poisson(5, 400)
    counts = np.stack([gene, gene + 1, 2 * gene], axis=1).astype(np.uint16)
    drawn = baselines.shuffled_genes(counts, 3000, rng)
    assert drawn.shape == (3000, 3)
    assert drawn.dtype == np.uint16
    np.testing.assert_allclose(drawn.mean(axis=0), counts.mean(axis=0), rtol=0.05)
    np.testing.assert_allclose(drawn.var(axis=0), counts.var(axis=0), rtol=0.15)
    correlations = np.corrcoef(drawn.T.astype(float))[np.triu_indices(3, 1)]
    assert np.all(np.abs(correlations) < 0.08)


def test_gaussian_has_the_moments_of_its_pool():
    rng = np.random.default_rng(0)
    pool = (rng.normal(size=(500, 3)) @ np.array([[2, 1, 0], [0, 1, 0], [0, 0, 0.1]])).astype("f4")
    shift = np.array([5, 0, 0], dtype=np.float32)
    made = baselines.Gaussian.fit(Sample(pool, None, None), shift).draw(20_000, rng)
    assert made.log is None
    assert made.library is None
    np.testing.assert_allclose(made.pca.mean(axis=0), pool.mean(axis=0) + shift, atol=0.06)
    np.testing.assert_allclose(np.cov(made.pca.T), np.cov(pool.T), atol=0.15)


def negative_binomial(n, rate, dispersion, rng):
    """Cells whose libraries vary, and which therefore correlate."""
    mean = np.outer(rng.lognormal(7, 0.5, n), rate)
    return rng.poisson(rng.gamma(1 / dispersion, dispersion * mean)).astype(np.float32)


RATE = np.r_[0.03, 0.01, 0.002, np.full(100, 0.00958)]
DISPERSION = np.r_[0.2, 1.0, 0.5, np.full(100, 0.1)]


def test_independent_genes_are_fitted_whatever_the_libraries():
    counts = negative_binomial(6000, RATE, DISPERSION, np.random.default_rng(0))
    fitted = baselines.IndependentGenes.fit(counts)
    np.testing.assert_allclose(fitted.rate, RATE, rtol=0.06)
    np.testing.assert_allclose(fitted.library, counts.sum(axis=1))
    np.testing.assert_allclose(fitted.dispersion[:3], DISPERSION[:3], rtol=0.15)
    assert fitted.dispersion[3:].mean() == pytest.approx(0.1, rel=0.05)


def test_independent_genes_keep_marginals_and_lose_correlation():
    rng = np.random.default_rng(1)
    rate = np.r_[np.full(20, 0.002), 0.96]
    mean = np.outer(rng.lognormal(8, 0.3, 3000), rate)
    mean[:, :20] *= rng.lognormal(0, 0.6, (3000, 1))
    counts = rng.poisson(mean).astype(np.float32)
    made = baselines.IndependentGenes.fit(counts).draw(3000, rng)
    assert made.dtype == np.float32
    np.testing.assert_allclose(made.mean(axis=0), counts.mean(axis=0), rtol=0.08)
    np.testing.assert_allclose(made.var(axis=0)[:20], counts.var(axis=0)[:20], rtol=0.35)
    real, found = (
        np.corrcoef((x[:, :20] / x.sum(axis=1, keepdims=True)).T)[np.triu_indices(20, 1)]
        for x in (counts, made)
    )
    assert real.mean() > 0.3
    assert abs(found.mean()) < 0.03


def test_independent_genes_of_poisson_counts_do_not_spread():
    counts = np.random.default_rng(0).poisson(np.full((400, 60), 3.0)).astype(np.uint16)
    fitted = baselines.IndependentGenes.fit(counts)
    assert np.all(fitted.dispersion < 0.1)
    made = fitted.draw(2000, np.random.default_rng(1))
    assert np.mean(made.var(axis=0) / made.mean(axis=0)) == pytest.approx(1, abs=0.06)


def test_independent_genes_at_another_rate_keep_library_and_dispersion():
    rng = np.random.default_rng(0)
    fitted = baselines.IndependentGenes.fit(negative_binomial(4000, RATE, DISPERSION, rng))
    moved = fitted.at_rate(np.full(103, 1 / 103, dtype=np.float32)).draw(2000, rng)
    np.testing.assert_allclose(moved.mean(axis=0), fitted.library.mean() / 103, rtol=0.15)


def test_a_gene_without_counts_stays_without():
    counts = np.random.default_rng(0).poisson([[4.0, 0.0]] * 50).astype(np.uint16)
    assert (
        baselines.IndependentGenes.fit(counts).draw(60, np.random.default_rng(1))[:, 1].sum() == 0
    )


def test_moved_rate_doubles_a_gene_that_doubles_elsewhere():
    rates = {
        (0, 0): [0.1, 0.5, 0.4], (1, 0): [0.2, 0.4, 0.4],
        (0, 1): [0.2, 0.4, 0.4], (1, 1): [0.4, 0.2, 0.4],
        (0, 2): [0.05, 0.45, 0.5],
    }  # fmt: skip
    train = known(MEANS, rates=rates)
    pairs = baselines.contexts((1, 2), (0, 2), train)
    found = baselines.moved_rate((0, 2), pairs, train)
    assert found.sum() == pytest.approx(1)
    assert found[0] / found[2] == pytest.approx(2 * 0.05 / 0.5, rel=0.01)
    expected = np.sqrt(0.8 * 0.5) * 0.45 / 0.5  # the mean change is geometric
    assert found[1] / found[2] == pytest.approx(expected, rel=0.01)


def test_shifted_control_moves_by_the_shift_and_stays_non_negative(real):
    space, _ = fit_space(real["train"], 5, seed=0)
    control = space.read(real["test"].counts[:30])
    up = np.full(len(space.genes), 0.5, dtype=np.float32)
    moved = baselines.shifted(control, up, space)
    np.testing.assert_allclose(moved.log, control.log + 0.5, rtol=1e-6)
    np.testing.assert_allclose(moved.pca, space.place(moved.log, None).pca)
    assert baselines.shifted(control, -100 * up, space).log.max() == 0


def test_gaussian_of_one_component():
    rng = np.random.default_rng(0)
    pool = Sample(rng.normal(3, 2, (400, 1)).astype(np.float32), None, None)
    made = baselines.Gaussian.fit(pool, None).draw(5000, rng).pca
    assert made.mean() == pytest.approx(3, abs=0.3)
    assert made.std() == pytest.approx(2, rel=0.1)
