"""What is compared: settings of a fit, and ways of making cells from a fitted model."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from fits import Cells, Fit, Settings
from problems import GENE_TEXT
from scvi_peer import ScviPeer

from save_dist.config.load import merge
from save_dist.config.schema import ComposeConfig
from save_dist.core.seeding import cell_keys
from save_dist.data.splits import TRAIN
from save_dist.data.transforms import log_normalise
from save_dist.evaluation.tables import Codes
from save_dist.generation.compose import match_mean
from save_dist.generation.draw import draw_counts
from save_dist.stores.profiles import best_temperature, evidence, similarity_shift
from save_dist.training.profiles import combination_profiles
from save_dist.vocab.transports import control_pairs, reference_codes, with_code

Way = Callable[[Any, Cells, Sequence[Codes], int, int], Any]
"""Fitted model, real cells, conditions, cells of each, seed -> counts, condition by condition."""


@dataclass(frozen=True)
class Method:
    """Networks, their budget, and what is made with them.

    Args:
        settings: sections of the configuration.
        held_out: ways of making combinations that were never trained on, by name.
        seen: ways of making those that were.
        peer: fits a model that is not ours to cells, seed and CPU seconds.
    """

    settings: Settings
    held_out: dict[str, Way]
    seen: dict[str, Way]
    peer: Callable[[Cells, int, float], Any] | None = None


def direct(fit: Fit, cells: Cells, codes: Sequence[Codes], n: int, seed: int) -> Any:
    """By their labels, from noise."""
    return fit.model.generate(_named(cells, codes), n, seed=seed, unseen="direct").X


def composed(**options: Any) -> Way:
    """From noise through the control, along the transport."""
    config = ComposeConfig(**options)

    def make(fit: Fit, cells: Cells, codes: Sequence[Codes], n: int, seed: int) -> Any:
        return fit.model.generate(_named(cells, codes), n, seed=seed, compose=config).X

    return make


def prior(fit: Fit, cells: Cells, codes: Sequence[Codes], n: int, seed: int) -> Any:
    """From the VAE's normal prior, with library sizes of training cells of the same condition.

    An unseen combination takes those of its control.
    """
    rows = cells.train.rows_by_combination()
    found = []
    for code in codes:
        own = rows.get(code)
        own = rows[_control(cells, code)] if own is None else own
        rng = np.random.default_rng([seed, *code])
        library = cells.train.counts[rng.choice(own, size=n)].sum(axis=1, dtype=np.float32)
        z = rng.standard_normal((n, fit.model.bundle.vae_config.latent_dim)).astype(np.float32)
        found.append(_decoded(fit, z, library, code, None, seed))
    return np.concatenate(found)


def fit_scvi(cells: Cells, seed: int, cpu_seconds: float) -> ScviPeer:
    """A scVI model of the same genes, cells and conditions."""
    conditions = cells.vocabulary.conditions
    table = cells.train
    return ScviPeer.fit(
        table.counts, table.codes, conditions.sizes, conditions.columns, seed, cpu_seconds
    )


def scvi_prior(peer: ScviPeer, cells: Cells, codes: Sequence[Codes], n: int, seed: int) -> Any:
    """From scVI's prior."""
    return peer.sample(np.repeat(np.array(codes, dtype=np.int64), n, axis=0), seed)


def redecoded(*, matched: bool) -> Way:
    """Real control cells of training, encoded and decoded under the labels wanted.

    Args:
        matched: anchored to the real controls and matched half-way to the similarity-weighted
            shift, as composed cells are.
    """

    def make(fit: Fit, cells: Cells, codes: Sequence[Codes], n: int, seed: int) -> Any:
        found = []
        for code in codes:
            control = _control(cells, code)
            rows = cells.train.rows_by_combination()[control]
            rows = np.random.default_rng([seed, *code]).choice(rows, size=n)
            counts = cells.train.counts[rows].astype(np.float32)
            z, library = _encoded(fit, counts, control), counts.sum(axis=1)
            offset = _offset(fit, cells, z, library, control, code) if matched else None
            found.append(_decoded(fit, z, library, code, offset, seed))
        return np.concatenate(found)

    return make


def _control(cells: Cells, codes: Codes) -> Codes:
    """The same combination with the first column that has a reference at it."""
    conditions = cells.vocabulary.conditions
    column, code = next(iter(reference_codes(conditions, list(conditions.reference)).items()))
    return with_code(codes, column, code)


def _offset(
    fit: Fit, cells: Cells, z: Any, library: Any, control: Codes, target: Codes
) -> np.ndarray:
    """Anchor and mean matching of `redecoded` cells; the profiles are those of training."""
    vocabulary = cells.vocabulary
    index = vocabulary.index.where(TRAIN)
    profiles = combination_profiles(vocabulary.store, index, vocabulary.gene_positions)
    references = reference_codes(vocabulary.conditions, list(vocabulary.conditions.reference))
    pairs = control_pairs(vocabulary.index.support(), references)
    column = next(i for i, (a, b) in enumerate(zip(control, target, strict=True)) if a != b)
    shown = evidence(profiles, pairs, column, target[column])
    shift = similarity_shift(profiles, shown, control, best_temperature(profiles, shown))
    mean, _ = _law(fit, z, library, control, None)
    total = profiles.total_counts(control)
    real, found = total / total.sum(), mean.sum(0) / mean.sum()
    trust = total / (total + 10)
    anchor = trust * np.log(np.maximum(real, 1e-12) / np.maximum(found, 1e-12))

    def profile(offset: np.ndarray) -> np.ndarray:
        drawn = _decoded(fit, z, library, target, offset, 0)
        return log_normalise(drawn.astype(np.float32)).mean(axis=0, dtype=np.float64)

    goal = 0.5 * profile(anchor) + 0.5 * (profiles.log_of(control) + shift.log_profile)
    return match_mean(profile, anchor, np.maximum(goal, 0), 5)


def _encoded(fit: Fit, counts: Any, codes: Codes) -> Any:
    with torch.inference_mode():
        condition = torch.tensor([codes]).expand(len(counts), -1)
        posterior = fit.model.bundle.vae.encode(torch.from_numpy(log_normalise(counts)), condition)
    return posterior.mean.numpy()


def _law(fit: Fit, z: Any, library: Any, codes: Codes, offset: Any) -> tuple[Any, Any]:
    with torch.inference_mode():
        condition = torch.tensor([codes]).expand(len(z), -1)
        logits = None if offset is None else torch.from_numpy(offset.astype(np.float32))
        px = fit.model.bundle.vae.decode(
            torch.from_numpy(z), condition, torch.from_numpy(library), logit_offset=logits
        )
    return px.mean.numpy(), px.inverse_dispersion.numpy()


def _decoded(fit: Fit, z: Any, library: Any, codes: Codes, offset: Any, seed: int) -> Any:
    keys = cell_keys(seed, "quality_counts", 0, np.arange(len(z), dtype=np.int64))
    return draw_counts(*_law(fit, z, library, codes, offset), keys)


def _named(cells: Cells, codes: Sequence[Codes]) -> list[dict[str, str]]:
    return [cells.vocabulary.conditions.decode_one(code) for code in codes]


LABELS = {"from labels": direct}
COMPOSED = {
    "composed": composed(),
    "composed, mean not matched": composed(blend=0.0),
    "shift on composed cells": composed(blend=1.0),
    "from labels": direct,
}
CVAE = {
    "prior": prior,
    "control re-decoded": redecoded(matched=False),
    "control re-decoded, matched": redecoded(matched=True),
}


def _steps(n_steps: int, cells_per_step: int, lr: float, ema_decay: float = 0.99) -> Settings:
    return {
        "n_steps": n_steps,
        "cells_per_step": cells_per_step,
        "lr": lr,
        "ema_decay": ema_decay,
    }


_QUIET = {"validate_every_steps": 10**6, "checkpoint": {"every_steps": 10**6}}
_STREAM = {"rows_per_chunk": 64, "chunks_per_pool": 64}
_FLOW = {"mask": {"p": 0.1}, "optim": _steps(1500, 512, 2e-3, 0.995)}

DEFAULT: Settings = {
    "training": {**_QUIET, "stream": _STREAM},
    "vae": {
        "kl_weight": 0.1,
        "mask": {"p": 0.1},
        "optim": _steps(3000, 128, 3e-3),
    },
    "flow": _FLOW,
}
"""SAVE as published but for what measurements chose: counts, small mask, small KL weight."""
COMPOSE: Settings = {
    "training": {**_QUIET, "stream": _STREAM, "stages": ["vae", "flow", "transport"]},
    "vae": {
        "backbone": "mlp",
        "latent_dim": 16,
        "encoder_columns": ["condition"],
        "decoder_columns": ["condition"],
        "mask": {"p": 0.0},
        "optim": _steps(6000, 128, 2e-3),
    },
    "flow": _FLOW,
    "transport": {"columns": ["condition"], "optim": _steps(1200, 256, 2e-3)},
    "grid": {"unseen": "compose"},
}
"""The networks of configs/demo."""


PAPER: Settings = {
    "training": {**_QUIET, "stream": _STREAM},
    "vae": {
        "width": 256,
        "depth": 3,
        "latent_dim": 128,
        "condition_width": 512,
        "block_projection": "shared",
        "likelihood": "unit_interval",
        "linear_skip": False,
        "mask": {"p": 0.6},
        "latent_mask": [0.2, 0.4],
        "optim": {**_steps(160, 128, 1e-4), "warmup_share": 0.25},
    },
    "flow": {
        "backbone": "attention",
        "width": 256,
        "condition_width": 512,
        "mask": {"p": 0.6},
        "optim": {**_steps(160, 128, 1e-4), "warmup_share": 0.25},
    },
}
"""The networks of configs/paper (Table 8) in minibatches of 128, as many as the budget allows."""
CFGEN: Settings = {
    "training": {**_QUIET, "stream": _STREAM},
    "vae": {
        "backbone": "mlp",
        "latent_dim": 48,
        "kl_weight": 0.0,
        "decoder_columns": [],
        "linear_skip": False,
        "optim": _steps(8000, 128, 2e-3),
    },
    "flow": {**_FLOW, "mask": {"p": 0.2}},
}
"""After CFGen: count autoencoder that knows no condition, conditional flow over its latents."""
SCDIFFUSION: Settings = {
    "training": {**_QUIET, "stream": _STREAM},
    "vae": {
        "backbone": "mlp",
        "latent_dim": 128,
        "likelihood": "unit_interval",
        "kl_weight": 0.0,
        "decoder_columns": [],
        "linear_skip": False,
        "optim": _steps(8000, 128, 2e-3),
    },
    "flow": {**_FLOW, "mask": {"p": 0.2}},
}
"""After scDiffusion: autoencoder of normalised expression, generative model of its latents."""


def methods() -> dict[str, Method]:
    """All of them, by name; "style" peers are configurations of our own trainer."""
    cvae = {"backbone": "mlp", "latent_dim": 16, "kl_weight": 1.0, "mask": {"p": 0.0}}
    found = {
        "compose": Method(COMPOSE, COMPOSED, LABELS),
        "MLP cVAE": Method(
            {
                "training": DEFAULT["training"],
                "vae": {**cvae, "optim": _steps(9500, 128, 2e-3)},
                "flow": {"optim": {"n_steps": 1}},  # not used
            },
            CVAE,
            {},
        ),
        "default": Method(DEFAULT, LABELS, LABELS),
        "paper": Method(PAPER, LABELS, LABELS),
        "CFGen-style": Method(CFGEN, LABELS, LABELS),
        "scDiffusion-style": Method(SCDIFFUSION, LABELS, LABELS),
        "scVI": Method({}, {}, {"prior": scvi_prior}, peer=fit_scvi),
    }
    changed = {f"ablation: {name}": merge(dict(SMALL), change) for name, change in CHANGES.items()}
    return found | {name: Method(settings, {}, LABELS) for name, settings in changed.items()}


SMALL: Settings = merge(
    dict(DEFAULT),
    {"vae": {"optim": {"n_steps": 1200}}, "flow": {"optim": {"n_steps": 700}}},
)
"""What ablations start from: the default at a small budget."""
CHANGES: dict[str, Settings] = {
    "none": {},
    "dense instead of attention, equal epochs": {"vae": {"backbone": "mlp"}},
    "dense instead of attention, equal CPU": {
        "vae": {"backbone": "mlp", "optim": {"n_steps": 3600}}
    },
    "2 blocks": {"blocks": {"genes_per_block": 500}},
    "5 blocks": {"blocks": {"genes_per_block": 200}},
    "25 blocks": {"blocks": {"genes_per_block": 40}},
    "random blocks": {"blocks": {"embedding": {"source": "random"}}},
    "text blocks": {"blocks": {"embedding": {"source": "file", "path": str(GENE_TEXT)}}},
    "one block": {"blocks": {"genes_per_block": 1000}},
    "mask 0": {"vae": {"mask": {"p": 0.0}}, "flow": {"mask": {"p": 0.0}}},
    "mask 0.6 (paper)": {"vae": {"mask": {"p": 0.6}}, "flow": {"mask": {"p": 0.6}}},
    "mask mixture": {
        "vae": {"mask": {"scheme": "mixture"}},
        "flow": {"mask": {"scheme": "mixture"}},
    },
    "unit-interval likelihood": {"vae": {"likelihood": "unit_interval"}},
    "KL weight 1": {"vae": {"kl_weight": 1.0}},
    "coupling within condition": {"flow": {"coupling": "within_condition"}},
    "coupling global": {"flow": {"coupling": "global"}},
    "latent mask": {"vae": {"latent_mask": [0.2, 0.4]}},
    "shared projection": {"vae": {"block_projection": "shared"}},
    "no linear skip": {"vae": {"linear_skip": False}},
    "logit-normal time": {"flow": {"time": "logit_normal"}},
    "additive centre": {"flow": {"centre": "additive"}},
    "attention flow": {"flow": {"backbone": "attention", "width": 64}},
}
"""One thing changed at a time; the rest is `SMALL`."""
