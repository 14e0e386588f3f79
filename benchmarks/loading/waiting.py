"""The share of a training step that waits for its cells, for the VAE of a preset."""

import time
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from model_step import (
    CONFIGS,
    Cells,
    Mode,
    Preset,
    elbo,
    make_codes,
    make_vae,
    read_preset,
    step_of,
)

from save_dist.config.load import load
from save_dist.config.schema import TrainJob
from save_dist.data.partition import StreamPlan
from save_dist.data.stream import CellBatch, CellStream

from . import atlas

PLAIN = Mode(torch.float32, compiled=False)


class Waiting(NamedTuple):
    """Of some steps."""

    n_steps: int
    wait_s: float
    step_s: float

    @property
    def share(self) -> float:
        """Wall time until minibatches were there, by all wall time."""
        return self.wait_s / (self.wait_s + self.step_s)


def cells_of(preset: str) -> atlas.Shape:
    """An atlas of the preset's genes that lasts several pools."""
    found = read_preset(preset)
    return atlas.Shape(40_000 if found.n_genes < 5000 else 34_000, found.n_genes, 8)


def waiting(name: str, store: Path, n_steps: int) -> Waiting:
    """Train `n_steps` steps on the stream, after one that compiles and fills the first pool."""
    torch.set_num_threads(1)
    preset, shape = read_preset(name), cells_of(name)
    config = load(TrainJob, CONFIGS / name / "train.yaml").training.stream
    plan = StreamPlan(
        shape.n_cells,
        preset.vae.optim.cells_per_step,
        config.rows_per_chunk,
        config.chunks_per_pool,
        config.n_lanes,
        seed=0,
    )
    genes = np.arange(shape.n_genes)
    vae = make_vae(preset)
    wait_s = step_s = 0.0
    with CellStream(atlas.locator_of(store), atlas.index_of(shape), genes, plan) as stream:
        batches = stream.batches()
        for step in range(n_steps + 1):
            began = time.perf_counter()
            batch = next(batches)
            loaded = time.perf_counter()
            train(vae, preset, batch)
            if step > 0:
                wait_s += loaded - began
                step_s += time.perf_counter() - loaded
    return Waiting(n_steps, wait_s, step_s)


def train(vae: torch.nn.Module, preset: Preset, batch: CellBatch) -> None:
    """One optimiser step on a minibatch, in parts as the loop takes it on a CPU."""
    n_cells, n_parts = preset.part_of(preset.vae.optim)
    parts = iter([slice(i * n_cells, (i + 1) * n_cells) for i in range(n_parts)])

    def loss(network: torch.nn.Module) -> torch.Tensor:
        rows = next(parts)
        log_x, counts = (torch.from_numpy(m[rows]) for m in (batch.log_x, batch.counts))
        noise = torch.randn(n_cells, preset.vae.latent_dim)
        hidden = None
        if preset.vae.latent_mask is not None:
            n_tokens = preset.vae.latent_dim // preset.vae.latent_token_width
            hidden = torch.rand(n_cells, n_tokens) < 0.3
        return elbo(network, Cells(log_x, counts, make_codes(n_cells), noise, hidden))

    step_of(vae, PLAIN, preset.vae.optim, n_parts, loss)()
