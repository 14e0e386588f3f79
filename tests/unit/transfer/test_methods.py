"""Every method where its outcome is known in closed form."""

import dataclasses

import numpy as np
import pytest
import torch
from tiny_model import SUPPORT, load_tiny_model, tiny_effects

from save_dist.config.schema import ComposeConfig, SolverConfig
from save_dist.core.errors import ConfigError
from save_dist.core.seeding import cell_keys, normals
from save_dist.data.transforms import log_normalise
from save_dist.generation.latents import (
    DecoderInput,
    carry,
    standardise,
    stream,
    unstandardise,
)
from save_dist.stores.latent_means import LatentMeans
from save_dist.transfer.methods import METHODS, Cells, MoveSettings, method_of

N = 6
COUNTS = np.random.default_rng(0).poisson(3, (N, 12)).astype(np.float32)
FEW = ComposeConfig(n_cells=32, anchor=False, blend=0.0)
SOLVER = SolverConfig(n_steps=20)
MEANS = LatentMeans(
    tuple(sorted(SUPPORT)),
    np.arange(len(SUPPORT), dtype=np.float32)[:, None] ** 2 * np.array([1, 0, -1, 2], np.float32),
)


@pytest.fixture(scope="module")
def bundle(tmp_path_factory):
    folder = tmp_path_factory.mktemp("methods") / "model"
    return load_tiny_model(folder, transport=True, centre="additive", latent_means=MEANS)


def cells(start, target):
    tile = [np.tile(np.array(codes, np.int64), (N, 1)) for codes in (start, target)]
    keys = cell_keys(0, "transfer", 0, np.arange(N))
    return Cells(log_normalise(COUNTS), COUNTS.sum(1), *tile, keys)


def moved(bundle, name, start, target, solver=SOLVER):
    with torch.inference_mode():
        return METHODS[name](bundle, MoveSettings(FEW, solver))(cells(start, target))


def own(bundle, start):
    return moved(bundle, "reencode", start, start).cells


def drawn(bundle, start):
    """A draw of each cell's posterior, whose noise is the cell's: what a transport carries."""
    given = cells(start, start)
    with torch.inference_mode():
        law = bundle.vae.encode(torch.from_numpy(given.log_x), torch.from_numpy(given.codes))
    noise = torch.from_numpy(normals(stream(given.keys, "latent"), law.mean.shape[1]))
    return DecoderInput(law.mean + law.var.sqrt() * noise, torch.from_numpy(given.library))


def zeroed(bundle, name):
    """A model whose network of this name gives 0 everywhere; a centre stays."""
    again = load_tiny_model(bundle, transport=True, centre="additive", latent_means=MEANS)
    network = again.velocity if name == "flow" else again.transport.velocity
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.zero_()
    return again


def test_reencoding_keeps_latent_and_library(bundle):
    found = moved(bundle, "reencode", (0, 0), (0, 1))
    codes = torch.tensor([[0, 0]]).expand(N, -1)
    posterior = bundle.vae.encode(torch.from_numpy(log_normalise(COUNTS)), codes)
    torch.testing.assert_close(found.cells.latent, posterior.mean)
    np.testing.assert_array_equal(found.cells.library.numpy(), COUNTS.sum(1))
    assert found.offset is None and found.n_evaluations == 0


def test_latent_shift_adds_the_mean_change_of_all_pairs(bundle):
    # rows 0..4 are (B, ctrl), (B, stim), (NK, ctrl), (NK, stim), (T, ctrl): changes 1 and 9 - 4
    found = moved(bundle, "latent_shift", (2, 0), (2, 1))
    expected = own(bundle, (2, 0)).latent + (1 + 5) / 2 * torch.tensor([1.0, 0, -1, 2])
    torch.testing.assert_close(found.cells.latent, expected)
    back = moved(bundle, "latent_shift", (2, 1), (2, 0))
    expected = own(bundle, (2, 1)).latent - 3 * torch.tensor([1.0, 0, -1, 2])
    torch.testing.assert_close(back.cells.latent, expected)


def test_latent_shift_of_two_columns_needs_a_pair_that_shows_both(bundle):
    found = moved(bundle, "latent_shift", (0, 0), (1, 1))
    expected = own(bundle, (0, 0)).latent + 9 * torch.tensor([1.0, 0, -1, 2])
    torch.testing.assert_close(found.cells.latent, expected)
    with pytest.raises(ConfigError, match=r"no two seen combinations show .*'T', .*'stim'"):
        moved(bundle, "latent_shift", (0, 0), (2, 1))


def test_latent_shift_needs_mean_latents(bundle):
    without = dataclasses.replace(bundle, latent_means=None)
    with pytest.raises(ConfigError, match=r"holds no mean latents.*save-dist train"):
        moved(without, "latent_shift", (0, 0), (0, 1))


def test_inversion_under_an_additive_field_shifts_by_the_difference_of_means(tmp_path):
    bundle = zeroed(tmp_path / "model", "flow")
    found = moved(bundle, "inversion", (0, 0), (1, 1))
    effects = tiny_effects()  # rows: 3 cell types and MASK, 2 conditions and MASK
    change = effects[1] - effects[0] + effects[5] - effects[4]
    expected = unstandardise(bundle, standardise(bundle, own(bundle, (0, 0))) + change)
    torch.testing.assert_close(found.cells.latent, expected.latent)
    torch.testing.assert_close(found.cells.library, expected.library)


def test_inversion_to_the_own_condition_comes_back(bundle):
    exact = SolverConfig(method="rk4", n_steps=20)
    found = moved(bundle, "inversion", (1, 0), (1, 0), exact)
    torch.testing.assert_close(found.cells.latent, own(bundle, (1, 0)).latent, atol=1e-3, rtol=0)
    elsewhere = moved(bundle, "inversion", (1, 0), (1, 1), exact)
    assert not torch.allclose(elsewhere.cells.latent, found.cells.latent, atol=0.1)


def test_a_transport_that_stands_still_leaves_the_latent(tmp_path):
    bundle = zeroed(tmp_path / "model", "transport")
    found = moved(bundle, "transport", (2, 0), (2, 1))
    torch.testing.assert_close(found.cells.latent, drawn(bundle, (2, 0)).latent)
    # stim doubles half of the genes of either type: their libraries grow, cells here follow
    assert (found.cells.library > own(bundle, (2, 0)).library).all()


def test_the_transport_is_that_of_generation(bundle):
    found = moved(bundle, "transport", (0, 0), (0, 1))
    before = drawn(bundle, (0, 0))
    told = torch.tensor([bundle.transport.told(1, 1)]).expand(N, -1)
    x = standardise(bundle, DecoderInput(before.latent, before.library))
    with torch.inference_mode():
        expected = carry(bundle, x, told, torch.zeros(N), SOLVER).x_1
    torch.testing.assert_close(found.cells.latent, unstandardise(bundle, expected).latent)
    assert found.n_evaluations == 40


@pytest.mark.parametrize(
    ("name", "ends", "settled"),
    [
        pytest.param("auto", [((0, 0), (0, 1)), ((2, 0), (2, 1))], "transport", id="carried"),
        pytest.param("auto", [((0, 0), (0, 1)), ((0, 1), (0, 1))], "reencode", id="there already"),
        pytest.param("auto", [((0, 0), (1, 0))], "reencode", id="no transport"),
        pytest.param("inversion", [((0, 0), (1, 0))], "inversion", id="as asked"),
    ],
)
def test_auto_is_settled_for_all_cells_alike(bundle, name, ends, settled):
    assert method_of(name, bundle, ends) == settled
