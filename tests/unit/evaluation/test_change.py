import numpy as np
import pytest
from scipy.stats import false_discovery_control, ttest_ind

from save_dist.evaluation.change import (
    Sides,
    compare_change,
    compare_significant,
    p_values,
    significant,
    slope_on_significant,
)
from save_dist.evaluation.moments import Moments


def moments(x):
    return Moments(len(x), x.mean(axis=0), x.var(axis=0, ddof=1, dtype=np.float64))


def exact(mean):
    """Moments without sampling noise."""
    return Moments(1000, mean, np.zeros(mean.size))


def sides(condition, reference):
    return Sides(exact(condition), exact(reference))


def cells(n, effect, seed):
    """Cells of genes with noise of sd 1 around `effect`."""
    return np.random.default_rng(seed).normal(effect, 1, (n, effect.size))


def drawn(n, effect, seed):
    """Sides of `n` cells each."""
    return Sides(moments(cells(n, effect, seed)), moments(cells(n, 0 * effect, seed + 1000)))


def test_change_of_half_the_strength():
    control, effect = np.random.default_rng(0).normal(size=(2, 200))
    found = compare_change(sides(control + effect, control), sides(control + 0.5 * effect, control))
    assert found.slope == pytest.approx(0.5)
    assert found.pcc == pytest.approx(1)
    assert found.spearman == pytest.approx(1)
    assert found.overlap == 1
    assert found.r2 < 1
    assert found.r2_top < 1


def test_unchanged_control_has_no_slope():
    control, effect = np.random.default_rng(0).normal(size=(2, 200))
    found = compare_change(sides(control + effect, control), sides(control, control))
    assert found.slope == 0
    assert np.isnan(found.pcc)


def test_change_in_the_wrong_direction():
    control, effect = np.random.default_rng(0).normal(size=(2, 200))
    found = compare_change(sides(control + effect, control), sides(control - effect, control))
    assert found.slope == pytest.approx(-1)
    assert found.pcc == pytest.approx(-1)


def test_slope_is_not_diluted_by_sampling_noise():
    effect = 0.2 * np.random.default_rng(0).normal(size=3000)
    found = compare_change(drawn(50, effect, 0), drawn(50, effect, 1))
    assert found.slope == pytest.approx(1, abs=0.12)
    diluted = compare_change(sides(drawn(50, effect, 0).change, 0 * effect), drawn(50, effect, 1))
    assert diluted.slope == pytest.approx(0.2**2 / (0.2**2 + 2 / 50), abs=0.08)


def test_no_slope_where_the_change_is_noise():
    effect = np.zeros(500)
    assert np.isnan(compare_change(drawn(50, effect, 0), drawn(50, effect, 1)).slope)


def test_p_values_are_those_of_scipy():
    x, y = cells(30, np.linspace(0, 1, 12), 0), 2 * cells(17, np.zeros(12), 1)
    expected = ttest_ind(x, y, equal_var=False).pvalue
    np.testing.assert_allclose(p_values(Sides(moments(x), moments(y))), expected, rtol=1e-4)


def test_constant_gene_is_not_significant():
    x = np.zeros((8, 2))
    assert p_values(Sides(moments(x), moments(x))).tolist() == [1, 1]


def test_significant_genes_are_those_of_scipy():
    p = np.random.default_rng(0).uniform(size=200) ** 4
    np.testing.assert_array_equal(significant(p), false_discovery_control(p) <= 0.05)
    assert not significant(np.full(5, 0.9)).any()


def halves_of(effect, n, seed):
    return drawn(n // 2, effect, seed), drawn(n // 2, effect, seed + 1)


def significant_change(effect, found, n=120, seed=0):
    """Real cells with `effect`, exact prediction `found`."""
    halves = halves_of(effect, n, seed)
    return compare_significant(drawn(n, effect, seed + 2), halves, sides(found, 0 * found))


@pytest.mark.parametrize("strength", [0.5, 1.0, 1.5])
def test_slope_on_significant_genes_is_the_strength(strength):
    effect = np.where(np.arange(2000) % 10 == 0, 0.6, 0.0)
    found = significant_change(effect, strength * effect)
    assert 50 < found.n_significant < 250
    assert found.slope_significant == pytest.approx(strength, rel=0.03)


def test_choosing_genes_does_not_press_the_slope():
    # weak effects: whatever passes the test passed by luck, and shows too much
    effect = np.random.default_rng(0).normal(0, 0.35, 4000)
    slopes, naive = [], []
    for seed in range(0, 40, 4):
        halves = halves_of(effect, 120, seed)
        slopes.append(slope_on_significant(halves, effect))
        chosen = significant(p_values(halves[0]))
        change = halves[0].change[chosen]
        naive.append(change @ effect[chosen] / (change @ change))
    assert np.mean(slopes) == pytest.approx(1, abs=0.02)
    assert np.mean(naive) < 0.9


def test_few_significant_genes_have_no_slope():
    effect = np.where(np.arange(500) < 3, 3.0, 0.0)
    found = significant_change(effect, effect)
    assert found.n_significant >= 3
    assert np.isnan(found.slope_significant)


def test_overlap_counts_shared_significant_genes():
    effect = np.where(np.arange(400) < 40, 2.0, 0.0)
    halves, real = halves_of(effect, 200, 0), drawn(200, effect, 2)
    same = compare_significant(real, halves, drawn(200, effect, 3))
    other = compare_significant(real, halves, drawn(200, effect[::-1].copy(), 3))
    assert same.overlap_significant > 0.9
    assert other.overlap_significant < 0.1


def test_no_significant_gene_no_overlap():
    nothing = np.zeros(50)
    found = significant_change(nothing, nothing)
    assert found.n_significant == 0
    assert np.isnan(found.overlap_significant)
