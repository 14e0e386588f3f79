"""How few network evaluations sample as well as dopri5 does, before and after a reflow round?

One simulated set, one VAE, one flow and its reflow. Run from the project root:

    OMP_NUM_THREADS=1 python benchmarks/quality/few_steps.py [SEED ...]

Generated cells are compared with training cells, combination by combination and with as many of
each, once in the space the flow lives in (standardised latents and library size, real ones drawn
from q) and once as counts (30 principal components of log-normalised expression). Every row has the
same noise. Columns: evaluations of the network (NFE); then, for both spaces, the energy distance as
it stands (`raw`: a V-statistic, so that equal laws give the floor of this many cells, about raw -
unbiased), the same relative to dopri5, and the unbiased one, which equal laws take to 0. The
question is answered by `relative`: at most 1.05 at a tenth of dopri5's evaluations.
"""

import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from fits import Cells, job, prepare
from problems import Problem

from save_dist.config.schema import GuidanceConfig, SolverConfig
from save_dist.core import seeding
from save_dist.core.paths import RunPaths
from save_dist.data.simulate import SimulationConfig, simulate
from save_dist.evaluation.metrics import energy_distance, pairs_of
from save_dist.evaluation.space import log_normalised
from save_dist.generation.sampler import sample_conditions
from save_dist.pipelines.context import Context
from save_dist.pipelines.train import export, make_plan, open_vocabulary
from save_dist.stores.bundle import ModelBundle, load_bundle
from save_dist.stores.latents import LatentStore
from save_dist.tracking.progress import LineProgress
from save_dist.tracking.tracker import open_journal
from save_dist.training import run as training
from save_dist.training.ranks import Ranks
from save_dist.training.steps import standardised

SIMULATION = SimulationConfig(n_cells=5000, n_genes=300, n_types=5, n_conditions=2, interaction=0.4)
PROBLEM = Problem(
    "few-steps",
    ("condition", "cell_type"),
    {"condition": "ctrl"},
    {},
    lambda: simulate(SIMULATION),
    n_genes=300,
    simulation=SIMULATION,
)
SETTINGS: dict[str, Any] = {
    "training": {"stages": ["vae", "flow", "reflow"], "stream": {"rows_per_chunk": 16}},
    "vae": {
        "backbone": "mlp",
        "latent_dim": 16,
        "optim": {"n_steps": 800, "cells_per_step": 128, "lr": 2e-3, "ema_decay": 0.99},
    },
    "flow": {"optim": {"n_steps": 1500, "cells_per_step": 256, "lr": 2e-3}},
    "reflow": {"optim": {"n_steps": 600, "cells_per_step": 128, "lr": 1e-3}},
}
N_CELLS = 400
N_COMPONENTS = 30
FLOW = [
    SolverConfig(method="dopri5", tolerance=1e-5),
    SolverConfig(method="midpoint", n_steps=5),
    *(SolverConfig(method="euler", n_steps=n) for n in (8, 4, 2, 1)),
]
REFLOWED = [
    SolverConfig(method="midpoint", n_steps=5),
    *(SolverConfig(method="euler", n_steps=n) for n in (4, 2, 1)),
]


class Silent:
    """Nobody watches."""

    def metrics(self, stage: str, values: Any, step: int) -> None:
        """Ignored."""


class Fit(NamedTuple):
    """The models before and after the reflow, their training cells, and CPU seconds per stage."""

    flow: ModelBundle
    reflowed: ModelBundle
    cells: Cells
    latents: LatentStore
    seconds: Mapping[str, float]


def fit(seed: int, root: Path) -> Fit:
    """Train all stages in this process."""
    folder, cells = prepare(PROBLEM, "", SETTINGS, root)
    config = job(PROBLEM, "", root / f"{PROBLEM.name}.h5ad", folder, SETTINGS)
    config = config.model_copy(update={"run": config.run.model_copy(update={"seed": seed})})
    paths = RunPaths(folder)
    context = Context(paths, open_journal(paths.metrics), LineProgress(lambda line: None))
    vocabulary = open_vocabulary(context)
    plan = make_plan(config, context, vocabulary)
    ranks, reporter, cpu = Ranks(), Silent(), torch.device("cpu")
    times = [time.process_time()]
    training.train_vae(plan, vocabulary, ranks, reporter, cpu)
    latents = training.encode(plan, vocabulary, ranks, cpu)
    times.append(time.process_time())
    training.train_flow(plan, vocabulary, latents, ranks, reporter, cpu)
    times.append(time.process_time())
    training.train_reflow(plan, vocabulary, latents, ranks, reporter, cpu)
    times.append(time.process_time())
    export(plan, vocabulary, config, context)
    reflowed = load_bundle(paths.model)
    flow = replace(reflowed, velocity=training.load_velocity(plan, vocabulary, "flow"))
    seconds = dict(zip(("vae", "flow", "reflow"), np.diff(times).tolist(), strict=True))
    return Fit(flow, reflowed, cells, latents, seconds)


class Yardstick:
    """Real cells of every combination in both spaces, and the distances of others to them."""

    def __init__(self, fitted: Fit, seed: int) -> None:
        cells, store, scale = fitted.cells.train, fitted.latents, fitted.flow.latent_scale
        rng = seeding.generator(seed, "few_steps_real")
        noise = rng.standard_normal(store.mean.shape, dtype=np.float32)
        z = torch.from_numpy(store.mean + np.sqrt(store.var) * noise)
        y = standardised(z, torch.from_numpy(np.array(store.log_library)), scale).numpy()
        logs = log_normalised(cells.counts)
        self._centre = logs.mean(0)
        axes = np.linalg.svd(logs - self._centre, full_matrices=False)[2]
        self._axes, self._scale = axes[:N_COMPONENTS].T, scale
        known, inverse = np.unique(cells.codes, axis=0, return_inverse=True)
        rows = [
            rng.permutation(np.flatnonzero(inverse.ravel() == i))[:N_CELLS]
            for i in range(len(known))
        ]
        self.codes = known.astype(np.int64)
        self._real = [(y[row], self._components(logs[row])) for row in rows]

    def _components(self, logs: Any) -> Any:
        return (logs - self._centre) @ self._axes

    def row(self, bundle: ModelBundle, solver: SolverConfig, seed: int) -> "Row":
        """Distances of the cells that a solver makes, averaged over combinations."""
        made = sample_conditions(
            bundle,
            self.codes,
            N_CELLS,
            seed=seed,
            guidance=GuidanceConfig(),
            solver=solver,
            cells_per_minibatch=N_CELLS,
        )
        y = np.column_stack([made.latent, np.log(made.library)])
        spaces = (
            (y - self._scale.mean) / self._scale.sd,
            self._components(log_normalised(made.counts)),
        )
        found = np.array(
            [
                [distances(real[s], spaces[s][i * N_CELLS : (i + 1) * N_CELLS]) for s in (0, 1)]
                for i, real in enumerate(self._real)
            ]
        ).mean(0)
        return Row(made.n_evaluations / len(self.codes), found)


class Row(NamedTuple):
    """NFE, and [space, (raw, unbiased)]."""

    nfe: float
    distances: np.ndarray

    def line(self, name: str, base: "Row") -> str:
        """One line of the table."""
        numbers = [
            f"{raw:9.4f} {raw / reference:8.3f} {unbiased:9.4f}"
            for (raw, unbiased), (reference, _) in zip(self.distances, base.distances, strict=True)
        ]
        return f"{name:22s} {self.nfe:5.0f} " + "  ".join(numbers) + "\n"


def distances(real: np.ndarray, generated: np.ndarray) -> tuple[float, float]:
    """Energy distance between equally many cells, as it stands and unbiased."""
    n = min(len(real), len(generated))
    pairs = pairs_of(real[:n], generated[:n])
    within = [np.sqrt(side).sum() for side in (pairs.real, pairs.generated)]
    raw = 2 * np.sqrt(pairs.between).mean() - sum(within) / n**2
    return float(raw), energy_distance(pairs)


def rows(fitted: Fit, yardstick: Yardstick, seed: int) -> Iterator[tuple[str, Row]]:
    """Every solver on both models."""
    for model, bundle, solvers in (
        ("flow", fitted.flow, FLOW),
        ("reflowed", fitted.reflowed, REFLOWED),
    ):
        for solver in solvers:
            steps = solver.tolerance if solver.method == "dopri5" else solver.n_steps
            yield f"{model} {solver.method} {steps}", yardstick.row(bundle, solver, seed)


def compare(seed: int) -> None:
    """Print the table of one fit."""
    with tempfile.TemporaryDirectory() as folder:
        fitted = fit(seed, Path(folder))
        yardstick = Yardstick(fitted, seed)
        spent = ", ".join(f"{name} {s:.0f} s" for name, s in fitted.seconds.items())
        sys.stdout.write(f"\nseed {seed} ({spent} of CPU); latents, then counts: ")
        sys.stdout.write("raw, relative to dopri5, unbiased\n")
        base = None
        for name, row in rows(fitted, yardstick, seed):
            base = base or row
            sys.stdout.write(row.line(name, base))
            sys.stdout.flush()


if __name__ == "__main__":
    torch.set_num_threads(1)
    for argument in sys.argv[1:] or ["0"]:
        compare(int(argument))
