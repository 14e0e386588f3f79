import numpy as np
import pytest
import torch
from tiny_model import load_tiny_model, tiny_effects

from save_dist.config.schema import GuidanceConfig, SolverConfig
from save_dist.core.errors import ConfigError
from save_dist.core.seeding import normals
from save_dist.generation.latents import stream
from save_dist.generation.sampler import cell_seeds, sample_cells, sample_conditions

PLAIN = {"guidance": GuidanceConfig(), "solver": SolverConfig()}
T_STIM = np.array([[2, 1]])


@pytest.fixture(scope="module")
def bundle(tmp_path_factory):
    return load_tiny_model(tmp_path_factory.mktemp("sampler") / "model")


def sample(bundle, codes, n_cells=16, size=8, seed=0, **options):
    return sample_conditions(
        bundle,
        np.array(codes),
        n_cells,
        seed=seed,
        cells_per_minibatch=size,
        **{**PLAIN, **options},
    )


def equal(a, b):
    return np.array_equal(a.counts, b.counts) and np.array_equal(a.latent, b.latent)


def test_shapes_and_types(bundle):
    cells = sample(bundle, [[0, 0], [1, 1]], n_cells=5)
    assert cells.counts.shape == (10, 12)
    assert cells.counts.dtype == np.uint16
    assert cells.latent.shape == (10, 4)
    assert cells.library.shape == (10,)
    assert cells.latent.dtype == cells.library.dtype == np.float32
    assert cells.n_evaluations == 2 * 10


def test_equal_requests_give_equal_cells(bundle):
    assert equal(sample(bundle, T_STIM), sample(bundle, T_STIM))
    assert not equal(sample(bundle, T_STIM), sample(bundle, T_STIM, seed=1))
    assert not equal(sample(bundle, T_STIM), sample(bundle, [[2, 0]]))


def test_a_cell_is_the_same_beside_other_conditions(bundle):
    """Minibatches of 8 stay the same cells, wherever they stand."""
    alone = sample(bundle, T_STIM)
    among = sample(bundle, [[0, 0], [2, 1], [1, 0]])
    np.testing.assert_array_equal(among.counts[16:32], alone.counts)
    np.testing.assert_array_equal(among.latent[16:32], alone.latent)


def test_threads_that_draw_change_nothing(bundle, monkeypatch):
    found = []
    for n_threads in (1, 3, 20):  # of minibatches of 8, the last of 3 cells
        monkeypatch.setattr(torch, "get_num_threads", lambda n=n_threads: n)
        found.append(sample(bundle, T_STIM, n_cells=19))
    assert all(equal(found[0], other) for other in found[1:])


def test_more_cells_leave_the_first_ones_as_they_are(bundle):
    few, many = sample(bundle, T_STIM, n_cells=8), sample(bundle, T_STIM, n_cells=24)
    np.testing.assert_array_equal(many.counts[:8], few.counts)


def test_minibatches_of_other_size_change_rounding_alone(bundle):
    a, b = sample(bundle, T_STIM, size=8), sample(bundle, T_STIM, size=5)
    np.testing.assert_allclose(a.latent, b.latent, rtol=1e-4, atol=1e-4)
    assert (a.counts == b.counts).mean() > 0.99


def test_a_cell_seed_holds_all_that_is_random(bundle):
    index = np.arange(8, dtype=np.int64)
    seeds = cell_seeds(bundle, (2, 1), index, 0)
    again = sample_cells(bundle, T_STIM.repeat(8, axis=0), seeds, cells_per_minibatch=8, **PLAIN)
    assert equal(again, sample(bundle, T_STIM, n_cells=8))
    other = sample_cells(bundle, np.array([[0, 0]] * 8), seeds, cells_per_minibatch=8, **PLAIN)
    assert not np.array_equal(other.latent, again.latent)


def test_seeds_are_distinct_over_cells_and_conditions(bundle):
    index = np.arange(1000, dtype=np.int64)
    seeds = [cell_seeds(bundle, codes, index, s) for codes in [(0, 0), (2, 1)] for s in (0, 1)]
    assert len(set(np.concatenate(seeds).tolist())) == 4000


def test_noise_is_standard_normal_and_standardisation_is_undone(bundle, monkeypatch):
    """A velocity of zero leaves the noise: y = mean + sd * noise, library = exp(last)."""
    still = load_still(bundle, monkeypatch)
    cells = sample(still, [[0, 0]], n_cells=4000, size=4000)
    assert np.abs(cells.latent.mean(0)).max() < 0.1
    assert np.abs(cells.latent.std(0) - 1).max() < 0.05
    log_library = np.log(cells.library)
    assert log_library.mean() == pytest.approx(np.log(200), abs=0.03)
    assert log_library.std() == pytest.approx(0.3, rel=0.05)


def test_counts_add_up_to_the_library(bundle):
    cells = sample(bundle, [[0, 0]], n_cells=500, size=250)
    assert cells.counts.sum() == pytest.approx(cells.library.sum(), rel=0.1)


def load_still(bundle, monkeypatch):
    monkeypatch.setattr(bundle.velocity, "forward", lambda x, t, codes: torch.zeros_like(x))
    return bundle


@pytest.mark.parametrize(
    ("guidance", "same"),
    [
        pytest.param({"scale": 1.0}, True, id="scale 1 is plain"),
        pytest.param({"scale": 2.0}, False, id="scale 2"),
        pytest.param({"scale": 2.0, "interval": (2.0 / 3, 0.67)}, True, id="guidance at no step"),
        pytest.param({"columns": {"condition": 2.0}}, False, id="weights per column"),
    ],
)
def test_guidance(bundle, guidance, same):
    plain = sample(bundle, T_STIM)
    assert equal(plain, sample(bundle, T_STIM, guidance=GuidanceConfig(**guidance))) == same


def test_a_column_without_weight_keeps_weight_one(bundle):
    one = sample(bundle, T_STIM, guidance=GuidanceConfig(columns={"condition": 2.0}))
    named = GuidanceConfig(columns={"condition": 2.0, "cell_type": 1.0})
    assert equal(one, sample(bundle, T_STIM, guidance=named))


@pytest.mark.parametrize(
    ("solver", "n_evaluations"),
    [({"method": "euler", "n_steps": 7}, 7), ({"method": "midpoint"}, 10), ({"method": "rk4"}, 20)],
)
def test_solver_settings_are_used(bundle, solver, n_evaluations):
    cells = sample(bundle, T_STIM, n_cells=4, solver=SolverConfig(**solver))
    assert cells.n_evaluations == n_evaluations


@pytest.mark.parametrize(
    ("guidance", "n_networks"),
    [
        pytest.param({"scale": 2.0}, 2, id="null and condition"),
        pytest.param({"scale": 0.0}, 1, id="null alone"),
        pytest.param({"columns": {"condition": 2.0}}, 3, id="null and both columns"),
        pytest.param({"columns": {"condition": 0.0}}, 1, id="one column alone"),
    ],
)
def test_every_network_of_a_guided_field_counts(bundle, guidance, n_networks):
    options = {
        "guidance": GuidanceConfig(**guidance),
        "solver": SolverConfig(method="euler", n_steps=2),
    }
    assert sample(bundle, T_STIM, n_cells=4, **options).n_evaluations == 2 * n_networks


def test_masked_conditions_can_be_sampled(bundle):
    mask = bundle.conditions.mask_codes
    assert not equal(sample(bundle, [mask]), sample(bundle, T_STIM))


def test_numbers_out_of_range_are_refused_with_the_condition(bundle, monkeypatch):
    monkeypatch.setattr(bundle.velocity, "forward", lambda x, t, codes: x * 1e30)
    with pytest.raises(
        ConfigError, match=r"8 of 8 cells, e\.g\. of .*'T'.*'stim'.*lower grid\.gui"
    ):
        sample(bundle, T_STIM)


@pytest.fixture
def centred(tmp_path, monkeypatch):
    """A model around an additive mean whose network has nothing to add."""
    bundle = load_tiny_model(tmp_path / "model", centre="additive")
    monkeypatch.setattr(bundle.velocity.backbone, "forward", lambda x, e: torch.zeros_like(x))
    return bundle


@pytest.mark.parametrize(
    "codes",
    [
        pytest.param((2, 1), id="unseen"),
        pytest.param((0, 0), id="seen"),
        pytest.param((3, 1), id="one column masked"),
        pytest.param((3, 2), id="all masked"),
    ],
)
@pytest.mark.parametrize("solver", [{}, {"method": "euler", "n_steps": 1}, {"method": "dopri5"}])
def test_without_residual_cells_lie_around_the_additive_mean(centred, codes, solver):
    """y = scale of (noise + effects of the columns given), exactly, for unseen combinations too."""
    cells = sample(centred, [codes], n_cells=64, size=64, solver=SolverConfig(**solver))
    effects = tiny_effects().numpy()
    m = effects[codes[0]] + effects[4 + codes[1]]
    seeds = cell_seeds(centred, codes, np.arange(64, dtype=np.int64), 0)
    y = m + normals(stream(seeds, "noise"), 5)
    np.testing.assert_allclose(cells.latent, y[:, :4], atol=1e-4)
    np.testing.assert_allclose(np.log(cells.library), np.log(200) + 0.3 * y[:, 4], atol=1e-4)


@pytest.mark.parametrize(
    ("guidance", "weights"),
    [
        ({"scale": 2.0}, (2.0, 2.0)),
        ({"columns": {"condition": 0.0}}, (1.0, 0.0)),
        ({"columns": {"condition": 1.5, "cell_type": 0.5}}, (0.5, 1.5)),
    ],
)
def test_guidance_weighs_the_additive_mean_as_the_rest_of_the_field(centred, guidance, weights):
    """The null condition has the mean 0, so a weight w gives w times the effect."""
    plain = sample(centred, [centred.conditions.mask_codes], n_cells=8)
    seeds = cell_seeds(centred, (2, 1), np.arange(8, dtype=np.int64), 0)
    cells = sample_cells(
        centred,
        T_STIM.repeat(8, axis=0),
        seeds,
        guidance=GuidanceConfig(**guidance),
        solver=SolverConfig(),
        cells_per_minibatch=8,
    )
    effects = tiny_effects().numpy()
    y = weights[0] * effects[2] + weights[1] * effects[5] + normals(stream(seeds, "noise"), 5)
    np.testing.assert_allclose(cells.latent, y[:, :4], atol=1e-4)
    assert not np.allclose(plain.latent, cells.latent)


@pytest.mark.parametrize(("codes", "n_cells"), [([[0, 0]], 0), (np.empty((0, 2), np.int64), 3)])
def test_no_cells_are_refused(bundle, codes, n_cells):
    with pytest.raises(ConfigError, match="expected at least one of each"):
        sample(bundle, codes, n_cells=n_cells)


def test_the_unit_interval_head_draws_counts_too(tmp_path):
    bundle = load_tiny_model(tmp_path / "model", likelihood="unit_interval")
    cells = sample(bundle, T_STIM, n_cells=64, size=64)
    assert cells.counts.any()
    assert equal(cells, sample(bundle, T_STIM, n_cells=64, size=64))


def test_one_call_or_many(bundle):
    codes = np.array([[0, 0], [1, 1]]).repeat(6, axis=0)
    seeds = np.concatenate(
        [cell_seeds(bundle, c, np.arange(6, dtype=np.int64), 3) for c in ((0, 0), (1, 1))]
    )
    whole = sample_cells(bundle, codes, seeds, cells_per_minibatch=4, **PLAIN)
    tail = sample_cells(bundle, codes[4:], seeds[4:], cells_per_minibatch=4, **PLAIN)
    np.testing.assert_array_equal(whole.counts[4:], tail.counts)
