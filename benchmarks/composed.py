"""Is a combination that was never trained on better composed than sampled by its labels?

Simulated cells whose truth is known, one combination held out; two models of one budget: decoder
and flow see all columns (`direct`), or the VAE sees the condition alone and cells are carried from
their control (`compose`). One process, no Ray. Run from the project root:

    OMP_NUM_THREADS=1 python benchmarks/composed.py [INTERACTION ...]

Every row compares with fresh cells of the true distribution: R2 of the mean log profile, PCC and
slope of its change from control, zeros, and the unbiased energy distance as a share of what random
cells of the other combinations have (0 is as good as real).
"""

import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

from save_dist.api import Model
from save_dist.config.schema import ComposeConfig, PipelineJob
from save_dist.core.paths import RunPaths
from save_dist.data.simulate import SimulationConfig, sample_truth, simulate
from save_dist.data.transforms import log_normalise
from save_dist.pipelines.blocks import blocks
from save_dist.pipelines.context import Context
from save_dist.pipelines.ingest import ingest
from save_dist.pipelines.train import export, make_plan, open_vocabulary
from save_dist.stores.bundle import load_bundle
from save_dist.stores.profiles import evidence, similarity_shift
from save_dist.tracking.progress import LineProgress
from save_dist.tracking.tracker import open_journal
from save_dist.training.ranks import Ranks
from save_dist.training.run import run_stages

HELD_OUT = {"condition": "stim-1", "cell_type": "type-0"}
CONTROL = {"condition": "ctrl", "cell_type": "type-0"}
N_CELLS = 800
SETTINGS: dict[str, dict[str, Any]] = {
    "all columns": {"decoder_columns": None, "mask": {"p": 0.1}},
    "condition only": {
        "encoder_columns": ["condition"],
        "decoder_columns": ["condition"],
        "mask": {"p": 0},
    },
}

WAYS: dict[str, dict[str, Any]] = {
    "direct": {"unseen": "direct"},
    "carried": {"compose": ComposeConfig(anchor=False, blend=0)},
    "+ anchor": {"compose": ComposeConfig(blend=0)},
    "+ anchor + mean matching": {},
}


class Silent:
    """Nobody watches."""

    def metrics(self, stage: str, values: Any, step: int) -> None:
        """Ignored."""


def job(folder: Path, vae: dict[str, Any]) -> PipelineJob:
    """A small model of all three stages."""
    return PipelineJob.model_validate(
        {
            "run": {"dir": folder},
            "tracking": {"backend": "none"},
            "cluster": {"n_workers": 1},
            "conditions": {
                "columns": ["condition", "cell_type"],
                "reference": {"condition": "ctrl"},
                "held_out": [HELD_OUT],
            },
            "ingest": {"inputs": [{"path": str(folder / "cells.h5ad")}]},
            "genes": {"n_top": 300},
            "blocks": {"genes_per_block": 50},
            "training": {"stages": ["vae", "flow", "transport"], "stream": {"rows_per_chunk": 16}},
            "vae": {
                "backbone": "mlp",
                "latent_dim": 16,
                **vae,
                "optim": {
                    "n_steps": 1500,
                    "cells_per_step": 128,
                    "lr": 2e-3,
                    "ema_decay": 0.99,
                },
            },
            "flow": {"optim": {"n_steps": 1200, "lr": 2e-3}},
            "transport": {
                "columns": ["condition"],
                "optim": {"n_steps": 800, "lr": 2e-3},
            },
            "grid": {"unseen": "compose"},
        }
    )


def train(config: PipelineJob) -> Model:
    """Store, vocabulary, networks and bundle, in this process."""
    paths = RunPaths(config.run.dir)
    context = Context(paths, open_journal(paths.metrics), LineProgress(lambda line: None))
    ingest(config, context)
    blocks(config, context)
    vocabulary = open_vocabulary(context)
    plan = make_plan(config, context, vocabulary)
    run_stages(plan, Ranks(), Silent(), torch.device("cpu"))
    export(plan, vocabulary, config, context)
    return Model(load_bundle(paths.model))


def logs(counts: Any) -> np.ndarray:
    """Log-normalised expression of counts, sparse or not."""
    dense = counts.toarray() if hasattr(counts, "toarray") else np.asarray(counts)
    return log_normalise(dense.astype(np.float32)).astype(np.float64)


def energy(a: np.ndarray, b: np.ndarray) -> float:
    """Unbiased squared energy distance."""
    n, m = len(a), len(b)
    within_a = distances(a, a).sum() / (n * (n - 1))
    within_b = distances(b, b).sum() / (m * (m - 1))
    return float(2 * distances(a, b).mean() - within_a - within_b)


def distances(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Euclidean, all pairs."""
    squares = np.square(a).sum(1)[:, None] + np.square(b).sum(1) - 2 * a @ b.T
    return np.sqrt(np.maximum(squares, 0))


class Yardstick:
    """Fresh true cells of the held-out combination and of its control, and a PCA of the rest."""

    def __init__(self, simulation: SimulationConfig, genes: tuple[str, ...]) -> None:
        def true(condition: dict[str, str], seed: int) -> np.ndarray:
            return logs(sample_truth(simulation, condition, N_CELLS, seed)[:, list(genes)].X)

        self.real, self.control = true(HELD_OUT, 1), true(CONTROL, 2)
        self.marginal = true({}, 3)
        centred = self.marginal - self.marginal.mean(0)
        self.axes = np.linalg.svd(centred, full_matrices=False)[2][:30].T
        self.worst = self.energy_of(self.marginal)

    def energy_of(self, cells: np.ndarray) -> float:
        """Energy distance to the real cells in PCA space."""
        return energy(cells @ self.axes, self.real @ self.axes)

    def row(self, name: str, cells: np.ndarray) -> str:
        """One line of the table."""
        mean, real, control = cells.mean(0), self.real.mean(0), self.control.mean(0)
        change, true = mean - control, real - control
        r2 = 1 - np.square(mean - real).sum() / np.square(real - real.mean()).sum()
        pcc = np.corrcoef(change, true)[0, 1] if np.any(change) else float("nan")
        slope = (change @ true) / (true @ true)
        zeros = (cells == 0).mean() - (self.real == 0).mean()
        share = self.energy_of(cells) / self.worst
        return f"{name:44s} {share:7.3f} {r2:6.3f} {pcc:6.3f} {slope:6.2f} {zeros:+7.3f}\n"


def shifted(model: Model, control: np.ndarray) -> np.ndarray:
    """True control cells with the similarity-weighted shift added."""
    transport, encode = model.bundle.transport, model.bundle.conditions.encode_one
    column = model.bundle.conditions.columns.index("condition")
    target = encode(HELD_OUT)
    pairs = evidence(transport.profiles, transport.pairs, column, target[column])
    shift = similarity_shift(
        transport.profiles, pairs, encode(CONTROL), transport.temperatures["condition"]
    )
    return np.maximum(control + shift.log_profile, 0)


def compare(interaction: float) -> None:
    """Print the table of one simulated data set."""
    simulation = SimulationConfig(
        n_cells=5000, n_genes=400, n_types=8, n_conditions=2, interaction=interaction
    )
    sys.stdout.write(f"\ninteraction {interaction}: energy share, R2, change PCC, slope, zeros\n")
    for name, vae in SETTINGS.items():
        with tempfile.TemporaryDirectory() as folder:
            simulate(simulation).write_h5ad(Path(folder) / "cells.h5ad")
            started = time.process_time()
            model = train(job(Path(folder), vae))
        seconds = time.process_time() - started
        yardstick = Yardstick(simulation, model.bundle.genes.ids)
        if name == "all columns":
            sys.stdout.write(yardstick.row("control cells", yardstick.control))
            again = logs(
                sample_truth(simulation, HELD_OUT, N_CELLS, 9)[:, list(model.bundle.genes.ids)].X
            )
            sys.stdout.write(yardstick.row("real cells", again))
            cells = shifted(model, yardstick.control)
            sys.stdout.write(yardstick.row("similarity-weighted shift", cells))
        for label, options in WAYS.items():
            made = model.generate(HELD_OUT, N_CELLS, **options)
            sys.stdout.write(
                yardstick.row(f"VAE of {name} ({seconds:.0f} s): {label}", logs(made.X))
            )


if __name__ == "__main__":
    torch.set_num_threads(1)
    for argument in sys.argv[1:] or ["0", "0.5"]:
        compare(float(argument))
