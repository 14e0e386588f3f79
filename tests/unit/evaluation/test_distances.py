import numpy as np
import pytest

from save_dist.evaluation.metrics import (
    energy_distance,
    median_squared_distance,
    mmd2,
    neighbourhood,
    pairs_of,
    squared_distances,
    wasserstein,
)

DISTANCES = {
    "w1": lambda pairs: wasserstein(pairs, 1),
    "w2": lambda pairs: wasserstein(pairs, 2),
    "energy": energy_distance,
    "mmd2": lambda pairs: mmd2(pairs, 8.0),
}


def cells(n, d=4, seed=0):
    return np.random.default_rng(seed).normal(size=(n, d))


def test_squared_distances_are_those_of_the_definition():
    x, y = cells(5), cells(7, seed=1)
    expected = ((x[:, None] - y[None]) ** 2).sum(-1)
    np.testing.assert_allclose(squared_distances(x, y), expected, atol=1e-12)
    assert np.all(np.diag(squared_distances(x, x)) == 0)


@pytest.mark.parametrize("name", DISTANCES)
def test_constant_offset_on_one_side_raises_every_distance(name):
    real, generated = cells(60), cells(60, seed=1)
    offsets = [0.0, 0.5, 1.0, 2.0]
    found = [DISTANCES[name](pairs_of(real, generated + offset)) for offset in offsets]
    assert np.all(np.diff(found) > 0)


@pytest.mark.parametrize("order", [1, 2])
def test_wasserstein_of_a_translation_is_its_length(order):
    x, shift = cells(40), np.array([3.0, 0.0, 4.0, 0.0])
    assert wasserstein(pairs_of(x, x + shift), order) == pytest.approx(5.0, rel=1e-9)


def test_w2_of_scaled_cells_matches_the_closed_form_in_one_dimension():
    x = cells(50, d=1)
    y = 2.0 * cells(50, d=1, seed=1) + 1.0
    sorted_cost = np.square(np.sort(x[:, 0]) - np.sort(y[:, 0])).mean()
    assert wasserstein(pairs_of(x, y), 2) == pytest.approx(np.sqrt(sorted_cost), rel=1e-9)


def test_w2_of_two_normals_approaches_the_closed_form():
    rng = np.random.default_rng(0)
    x, y = rng.normal(0, 1, (1500, 1)), rng.normal(2, 3, (1500, 1))
    assert wasserstein(pairs_of(x, y), 2) == pytest.approx(np.sqrt(2**2 + (3 - 1) ** 2), rel=0.05)


@pytest.mark.parametrize("name", ["energy", "mmd2"])
def test_unbiased_on_equal_distributions(name):
    rng = np.random.default_rng(0)
    draws = [
        DISTANCES[name](pairs_of(rng.normal(size=(8, 3)), rng.normal(size=(6, 3))))
        for _ in range(600)
    ]
    error = np.std(draws) / np.sqrt(len(draws))
    assert abs(np.mean(draws)) < 4 * error
    assert min(draws) < 0  # what a biased estimate can never be


def test_w2_is_not_unbiased():
    rng = np.random.default_rng(0)
    draws = [wasserstein(pairs_of(*rng.normal(size=(2, 8, 3))), 2) for _ in range(20)]
    assert min(draws) > 0.3


def test_w2_rewards_a_generator_of_means_and_energy_does_not():
    real, other = cells(80, d=40), cells(80, d=40, seed=1)
    means = np.tile(real.mean(axis=0), (80, 1))
    assert DISTANCES["w2"](pairs_of(real, means)) < DISTANCES["w2"](pairs_of(real, other))
    assert energy_distance(pairs_of(real, means)) > 5 * abs(energy_distance(pairs_of(real, other)))


def test_energy_matches_its_definition():
    x, y = cells(6), cells(5, seed=1) + 1
    cross = np.mean([np.linalg.norm(a - b) for a in x for b in y])

    def within(z):
        n = len(z)
        apart = [np.linalg.norm(z[i] - z[j]) for i in range(n) for j in range(n) if i != j]
        return np.mean(apart)

    assert energy_distance(pairs_of(x, y)) == pytest.approx(2 * cross - within(x) - within(y))


def test_mmd_matches_its_definition():
    x, y, median = cells(6), cells(5, seed=1) + 1, 3.0

    def kernel(a, b):
        squared = float(((a - b) ** 2).sum())
        return np.mean([np.exp(-squared / (2 * f * median)) for f in (0.25, 0.5, 1, 2, 4)])

    def within(z):
        n = len(z)
        return np.mean([kernel(z[i], z[j]) for i in range(n) for j in range(n) if i != j])

    cross = np.mean([kernel(a, b) for a in x for b in y])
    assert mmd2(pairs_of(x, y), median) == pytest.approx(within(x) + within(y) - 2 * cross)


def test_median_leaves_out_the_distance_of_a_cell_to_itself():
    x = np.array([[0.0], [1.0], [3.0]])
    assert median_squared_distance(x) == 4.0


def test_neighbourhood_of_equal_distributions():
    found = neighbourhood(pairs_of(cells(300), cells(300, seed=1)))
    assert found.precision > 0.9
    assert found.recall > 0.9
    assert found.density == pytest.approx(1, abs=0.15)
    assert found.coverage == pytest.approx(1 - 0.5**5, abs=0.06)  # balls of k=5 at equal n


@pytest.mark.parametrize(
    ("make", "low", "high"),
    [
        pytest.param(lambda x: x + 100, {"precision", "recall", "density", "coverage"}, set(),
                     id="far away"),
        pytest.param(lambda x: 0.01 * x, {"recall", "coverage"}, {"precision", "density"},
                     id="collapsed to the mean"),
        pytest.param(lambda x: 4 * x, {"precision", "density"}, {"recall"}, id="too wide"),
    ],
)  # fmt: skip
def test_neighbourhood_sees(make, low, high):
    found = neighbourhood(pairs_of(cells(200), make(cells(200, seed=1))))._asdict()
    assert all(found[name] < 0.35 for name in low)
    assert all(found[name] > 0.8 for name in high)


def test_first_cells_of_pairs():
    pairs = pairs_of(cells(6), cells(5, seed=1))
    some = pairs.first(4)
    assert np.array_equal(some.between, pairs.between[:4, :4])
    assert np.array_equal(some.generated.squares, pairs.generated.squares[:4, :4])
    assert some.real.mean_distance == pairs_of(cells(6)[:4], cells(4)).real.mean_distance


def test_what_is_kept_of_a_cloud_belongs_to_its_arguments():
    real = pairs_of(cells(9), cells(9)).real
    assert real.mean_kernel(1.0) != real.mean_kernel(2.0)
    assert real.mean_kernel(1.0) == real.mean_kernel(1.0)
    assert len(real.first(7).radius) == 7
    assert len(real.first(8).radius) == 8
