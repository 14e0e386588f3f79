import numpy as np
import torch

from save_dist.config.schema import VaeConfig
from save_dist.evaluation import attention
from save_dist.evaluation.attention import attention_map
from save_dist.models.attention import block_attention
from save_dist.models.vae import Vae, VaeShape

N_GENES = 60


def make_vae(backbone="attention"):
    config = VaeConfig(
        backbone=backbone, width=8, depth=1, n_heads=2, latent_dim=8, latent_token_width=4,
        condition_width=6,
    )  # fmt: skip
    shape = VaeShape(torch.arange(N_GENES).view(6, 10), N_GENES, (2, 3), ("condition", "cell_type"))
    with torch.random.fork_rng():
        torch.manual_seed(0)
        vae = Vae(shape, config, torch.ones(N_GENES), torch.full((N_GENES,), 1 / N_GENES)).eval()
        for parameter in vae.parameters():
            parameter.data.add_(0.3 * torch.randn_like(parameter))
    return vae


def test_every_value_has_the_mean_of_its_combinations(real, conditions):
    vae, cells = make_vae(), real["test"]
    found = attention_map(vae, cells, conditions, seed=0)
    assert found.rows == (
        ("condition", "ctrl"), ("condition", "stim"), *(("cell_type", t) for t in ("B", "NK", "T")),
    )  # fmt: skip
    assert found.n_cells.tolist() == [240, 160, 160, 160, 80]
    np.testing.assert_allclose(found.decoder.sum(axis=1), 1, atol=1e-5)
    rows = cells.rows_by_combination()[0, 2]  # T cells have no other combination
    log_x = torch.from_numpy(attention.log_normalised(cells.read(rows)))
    alone = block_attention(vae, log_x, torch.tensor([[0, 2]]).expand(len(rows), -1))
    np.testing.assert_allclose(found.encoder[-1], alone.encoder.mean(0).numpy(), atol=1e-6)


def test_many_cells_are_thinned_evenly(real, conditions, monkeypatch):
    monkeypatch.setattr(attention, "MAX_CELLS", 50)
    found = attention_map(make_vae(), real["test"], conditions, seed=0)
    assert found.n_cells.tolist() == [30, 20, 20, 20, 10]


def test_dense_layers_give_no_map(real, conditions):
    assert attention_map(make_vae("mlp"), real["test"], conditions, seed=0) is None
