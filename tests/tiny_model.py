"""A model small enough to sample in milliseconds, with weights that make conditions differ."""

import numpy as np
import torch

from save_dist.config.schema import FlowConfig, TransportConfig, VaeConfig
from save_dist.models.vae import Vae, VaeShape
from save_dist.models.velocity import make_flow_velocity
from save_dist.stores.bundle import LatentScale, load_bundle, save_bundle
from save_dist.stores.profiles import Profiles
from save_dist.stores.transports import Transport, make_transport_velocity
from save_dist.vocab.blocks import GeneBlocks
from save_dist.vocab.conditions import ConditionVocabulary
from save_dist.vocab.genes import GeneVocabulary

CONDITIONS = ConditionVocabulary(
    columns=("cell_type", "condition"),
    categories=(("B", "NK", "T"), ("ctrl", "stim")),
    reference={"condition": "ctrl"},
    held_out=({"cell_type": "T", "condition": "stim"},),
)
SUPPORT = {(0, 0): 40, (0, 1): 30, (1, 0): 20, (1, 1): 10, (2, 0): 5}
"""Every combination but the held-out one."""


def save_tiny_model(
    folder,
    *,
    n_genes=12,
    seed=0,
    likelihood="nb",
    transport=False,
    centre="none",
    effects=None,
    reflow_config=None,
    latent_means=None,
):
    """Publish a model of random weights; returns its hash."""
    vae_config = VaeConfig(
        backbone="mlp",
        width=16,
        latent_dim=4,
        latent_token_width=2,
        condition_width=8,
        likelihood=likelihood,
    )
    flow_config = FlowConfig(width=16, depth=1, condition_width=8, centre=centre)
    genes = GeneVocabulary(tuple(f"gene{i}" for i in range(n_genes)))
    blocks = _blocks(n_genes)
    shape = VaeShape(
        torch.from_numpy(blocks.members), n_genes, CONDITIONS.sizes, CONDITIONS.columns
    )
    fraction = torch.arange(1, n_genes + 1).float()
    vae = Vae(
        shape, vae_config, scale=torch.full((n_genes,), 8.0), fraction=fraction / fraction.sum()
    )
    velocity = make_flow_velocity(vae_config.latent_dim, CONDITIONS.sizes, flow_config)
    _shake(vae, seed)
    _shake(velocity, seed + 1)
    if velocity.centre is not None:
        velocity.centre.set_effects(tiny_effects() if effects is None else effects)
    y_dim = vae_config.latent_dim + 1
    mean, sd = np.zeros(y_dim, np.float32), np.ones(y_dim, np.float32)
    mean[-1], sd[-1] = np.log(200), 0.3
    return save_bundle(
        folder,
        vae=vae,
        velocity=velocity,
        latent_scale=LatentScale(mean, sd),
        genes=genes,
        conditions=CONDITIONS,
        blocks=blocks,
        support=SUPPORT,
        vae_config=vae_config,
        flow_config=flow_config,
        about={"config_hash": "c0ffee", "git_commit": "abc"},
        reflow_config=reflow_config,
        transport=tiny_transport(n_genes, seed) if transport else None,
        latent_means=latent_means,
    )


def tiny_effects():
    """Additive effects of every category on standardised y; those of MASK are zero."""
    effects = torch.randn(7, 5, generator=torch.Generator().manual_seed(3))
    effects[[3, 6]] = 0
    return effects


def tiny_transport(n_genes, seed=0):
    """Random velocities along `condition`; profiles in which stim doubles the later genes."""
    config = TransportConfig(columns=["condition"], width=16, depth=1, condition_width=8)
    velocity = make_transport_velocity(4, CONDITIONS, config)
    _shake(velocity, seed + 2)
    codes = tuple(sorted(SUPPORT))
    rng = np.random.default_rng(0)
    base = rng.uniform(2, 20, n_genes)
    types = rng.uniform(0.5, 2, (3, n_genes))
    effect = np.where(np.arange(n_genes) < n_genes // 2, 1.0, 2.0)
    means = np.array([base * types[kind] * effect**stim for kind, stim in codes])
    return Transport(
        config=config,
        velocity=velocity,
        profiles=Profiles(
            codes,
            np.array([SUPPORT[c] for c in codes], np.int64),
            np.log1p(means / means.sum(1, keepdims=True) * 1e4).astype(np.float32),
            means.astype(np.float32),
            np.log(means.sum(1)).astype(np.float32),
        ),
        temperatures={"condition": 0.4},
        conditions=CONDITIONS,
    )


def load_tiny_model(folder, **options):
    """Save, then load."""
    save_tiny_model(folder, **options)
    return load_bundle(folder)


def _blocks(n_genes):
    n_blocks = -(-n_genes // 5)
    members = np.full((n_blocks, 5), -1, np.int64)
    members.ravel()[:n_genes] = np.arange(n_genes)
    return GeneBlocks(members, np.zeros((n_blocks, 3), np.float32), (1.0,))


def _shake(module, seed):
    """Random weights: fresh networks start as zero, which would hide every difference."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.copy_(0.3 * torch.randn(parameter.shape, generator=generator))
