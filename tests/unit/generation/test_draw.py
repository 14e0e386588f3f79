import itertools

import numpy as np
import pytest
from scipy import stats

from save_dist.core.seeding import cell_keys
from save_dist.generation.draw import _fill_zero_probability, draw_counts

N_DRAWS = 60_000
MEANS = [0.01, 0.3, 1.0, 3.0, 20.0, 29.9, 30.1, 300.0, 5000.0]
DISPERSIONS = [0.01, 0.1, 1.0, 10.0, 1e3, 1e6]


def keys(n, seed=0):
    return cell_keys(seed, "draw", 0, np.arange(n, dtype=np.int64))


def draws(mean, dispersion, n=N_DRAWS, seed=0):
    """`n` independent cells with one gene."""
    means = np.full((n, 1), mean, np.float32)
    return draw_counts(means, np.array([[dispersion]], np.float32), keys(n, seed))[:, 0]


def law(mean, dispersion):
    theta = float(np.float32(dispersion))
    return stats.nbinom(theta, theta / (theta + float(np.float32(mean))))


def chi_square_p(counts, expected):
    """p-value over about 30 equally likely bins, the last of them open."""
    edges = np.unique(expected.ppf(np.linspace(0, 1, 32)[1:-1]))
    probabilities = np.diff(np.concatenate([[0], expected.cdf(edges), [1]]))
    found = np.bincount(np.searchsorted(edges, counts), minlength=probabilities.size)
    keep = probabilities * counts.size >= 5
    found = np.append(found[keep], found[~keep].sum())
    wanted = np.append(probabilities[keep], probabilities[~keep].sum()) * counts.size
    if wanted[-1] < 1:
        found, wanted = found[:-1], wanted[:-1]
    if found.size < 2:
        return 1.0
    return stats.chi2.sf(((found - wanted) ** 2 / wanted).sum(), found.size - 1)


@pytest.mark.parametrize("mean", MEANS)
@pytest.mark.parametrize("dispersion", DISPERSIONS)
def test_counts_follow_the_law(mean, dispersion):
    p = chi_square_p(draws(mean, dispersion).astype(int), law(mean, dispersion))
    assert p > 1e-4, f"chi-square p = {p}"


def test_p_values_are_uniform_over_the_grid():
    p = [
        chi_square_p(draws(mean, theta, 20_000, seed=7).astype(int), law(mean, theta))
        for mean in MEANS[2:]
        for theta in DISPERSIONS[1:]
    ]
    assert stats.kstest(p, "uniform").pvalue > 1e-3


@pytest.mark.parametrize(("mean", "theta"), [(0.5, 2.0), (25.0, 0.5), (80.0, 4.0)])
def test_moments(mean, theta):
    counts = draws(mean, theta, 200_000).astype(float)
    variance = mean + mean**2 / theta
    assert counts.mean() == pytest.approx(mean, abs=5 * np.sqrt(variance / counts.size))
    assert counts.var() == pytest.approx(variance, rel=0.05)


def test_genes_of_a_cell_are_independent():
    n_cells = 20_000
    for mean in (1.0, 100.0):
        means = np.full((n_cells, 4), mean, np.float32)
        counts = draw_counts(means, np.full((1, 4), 1.0, np.float32), keys(n_cells))
        correlation = np.corrcoef(counts.T.astype(float)) - np.eye(4)
        assert np.abs(correlation).max() < 5 / np.sqrt(n_cells)


def test_a_cell_depends_on_its_key_and_law_alone():
    rng = np.random.default_rng(0)
    mean = rng.gamma(0.3, 20, (50, 30)).astype(np.float32)
    theta = rng.gamma(1, 2, (1, 30)).astype(np.float32)
    whole = draw_counts(mean, theta, keys(50))
    order = rng.permutation(50)
    np.testing.assert_array_equal(draw_counts(mean[order], theta, keys(50)[order]), whole[order])
    np.testing.assert_array_equal(draw_counts(mean[3:4], theta, keys(50)[3:4]), whole[3:4])
    assert not np.array_equal(draw_counts(mean, theta, keys(50, seed=1)), whole)


def test_a_gene_does_not_depend_on_the_others():
    mean = np.full((10, 5), 100, np.float32)
    theta = np.full((1, 5), 0.5, np.float32)
    changed = mean.copy()
    changed[:, :4] = 40
    np.testing.assert_array_equal(
        draw_counts(changed, theta, keys(10))[:, 4], draw_counts(mean, theta, keys(10))[:, 4]
    )


def test_more_expected_counts_never_give_fewer():
    """Small means are inverted from one number, so the draw grows with the mean."""
    counts = [draws(mean, 2.0, 500) for mean in (0.1, 1.0, 5.0, 29.0)]
    assert all((low <= high).all() for low, high in itertools.pairwise(counts))


@pytest.mark.parametrize(
    ("mean", "theta", "expected"),
    [
        pytest.param(0.0, 1.0, 0, id="no expression"),
        pytest.param(1e-30, 1.0, 0, id="hardly any"),
        pytest.param(1e7, 1e6, 65_535, id="beyond uint16"),
        pytest.param(3e38, 1e6, 65_535, id="largest float"),
        pytest.param(5.0, 0.0, 0, id="dispersion of zero is taken as tiny"),
    ],
)
def test_extremes(mean, theta, expected):
    assert set(draws(mean, theta, 200).tolist()) == {expected}


def test_counts_saturate_instead_of_wrapping():
    counts = draws(65_000.0, 1e3, 2000)
    assert counts.max() == 65_535
    assert counts.min() > 40_000
    assert 0.3 < (counts == 65_535).mean() < 0.6


def test_each_cell_may_have_a_dispersion_of_its_own():
    mean = np.full((2, 3000), 6.0, np.float32)
    theta = np.repeat(np.array([[0.3], [50.0]], np.float32), 3000, axis=1)
    counts = draw_counts(mean, theta, keys(2))
    for row in range(2):
        alone = draw_counts(mean[row : row + 1], theta[row : row + 1], keys(2)[row : row + 1])
        np.testing.assert_array_equal(counts[row], alone[0])
    assert counts[0].var() > 5 * counts[1].var()


def test_an_infinite_inverse_dispersion_is_poisson():
    poisson = stats.poisson(4.0)
    assert chi_square_p(draws(4.0, np.inf).astype(int), poisson) > 1e-4


def test_the_series_for_no_count_at_all():
    mean, theta = np.meshgrid(np.linspace(0, 30, 301), np.logspace(-8, 6, 57))
    mean, theta = mean.ravel(), theta.ravel()
    found = np.empty(mean.size)
    _fill_zero_probability(mean, theta, found)
    expected = np.exp(-theta * np.log(1.0 + mean / theta))
    np.testing.assert_allclose(found, expected, rtol=2e-14)


def test_the_draws_are_pinned():
    """The same plan must give the same cells for ever; a change here needs a new plan format."""
    mean = np.array([[0.2, 1.0, 5.0, 50.0, 500.0]], np.float32).repeat(2, axis=0)
    counts = draw_counts(mean, np.array([[1, 2, 0.5, 3, 10]], np.float32), keys(2))
    assert counts.tolist() == [[0, 1, 18, 26, 427], [0, 0, 7, 32, 723]]
