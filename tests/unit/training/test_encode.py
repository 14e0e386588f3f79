"""Latents are a function of encoder and cells, not of how many ranks encode them."""

import numpy as np
import torch
from helpers_soma import encoded_counts, gapped_joinids, index_of, make_store

from save_dist.config.schema import VaeConfig
from save_dist.models.vae import Vae, VaeShape
from save_dist.stores.latents import LatentStore
from save_dist.training.latents import encode_cells
from save_dist.training.ranks import Ranks

N_CELLS, N_GENES = 2500, 24


def make_vae():
    config = VaeConfig(
        width=16, depth=1, n_heads=2, latent_dim=8, latent_token_width=4, condition_width=8
    )
    shape = VaeShape(torch.arange(N_GENES).view(3, -1), N_GENES, (7, 7), ("type", "stimulus"))
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return Vae(shape, config, torch.full((N_GENES,), 4.0), torch.full((N_GENES,), 1 / 24))


def test_one_rank_and_three_write_the_same_bits(tmp_path):
    joinids = gapped_joinids(N_CELLS)
    locator = make_store(tmp_path / "store", joinids, encoded_counts(joinids, N_GENES))
    vae, index, found = make_vae().eval(), index_of(joinids), []
    for world_size in (1, 3):
        store = LatentStore.create(tmp_path / str(world_size), N_CELLS, 8, {"vae": "v"})
        for rank in range(world_size):
            ranks = Ranks(rank, world_size)
            encode_cells(vae, locator, index, np.arange(N_GENES), store, ranks)
        found.append(LatentStore.open(store.folder, expect=store.hash))
    one, three = found
    assert one.mean.std() > 0
    for name in ("mean", "var", "log_library"):
        assert getattr(one, name).tobytes() == getattr(three, name).tobytes()
