"""Networks alone, with all that makes an atlas around them, and under other solvers."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
from generation.figures import Arguments, Cost, Line, cost, gene_names, share, vocabulary
from model_step import COLUMNS, SIZES, gene_fractions, read_preset

from save_dist.config.schema import GridConfig, OutputConfig, SolverConfig
from save_dist.generation.grid import GridPlan, plan_grid
from save_dist.generation.latents import flow_from_noise, unstandardise
from save_dist.generation.sampler import cell_seeds, sample_cells
from save_dist.generation.worker import PARTS_IN_FLIGHT, PartWorker
from save_dist.models.vae import Vae, VaeShape
from save_dist.models.velocity import make_flow_velocity
from save_dist.stores import atlas
from save_dist.stores.bundle import LatentScale, ModelBundle, load_bundle, save_bundle
from save_dist.stores.facts import ModelFacts
from save_dist.vocab.blocks import GeneBlocks

MIDPOINT = SolverConfig(method="midpoint", n_steps=5)
SOLVERS = {
    "1000 steps": (SolverConfig(method="euler", n_steps=1000), 20),
    "dopri5 at 1e-5": (SolverConfig(method="dopri5", tolerance=1e-5), 5),
}
"""Solvers to compare with, and how many times as fast midpoint with 5 steps has to be."""


def network(args: Arguments) -> Iterator[Line]:
    """Committed cells against sampling and decoding without drawing, storing or receipts."""
    for preset, n_cells in (("demo", 2048), ("paper", 32)):
        model = make_model(args, preset)
        size = args.cells(n_cells, 16)
        plan = make_plan(model.facts, 4 * size // 16, MIDPOINT, size, min(size, 512))
        shares = []
        for repeat in range(1 + args.repeats):
            alone = cost(lambda model=model, plan=plan: run_networks(model, plan))
            worker = begin(args.folder / preset / str(repeat), args.folder / preset / "model", plan)
            whole = cost(lambda worker=worker, plan=plan: list(run_parts(worker, plan)))
            shares.append(Cost(alone.cpu / whole.cpu, alone.wall / whole.wall))
        del shares[0]  # compiles and loads
        what = f"{preset}: committed cells/s of what bare networks reach"
        yield Line(f"{what}, wall", share([s.wall for s in shares]), ">= 0.90, idle cores")
        yield Line(f"{what}, cpu", share([s.cpu for s in shares]), "(drawing, writing cost this)")


def samplers(args: Arguments) -> Iterator[Line]:
    """Cells per CPU-second by solver, decoding and drawing included."""
    model = make_model(args, "demo")
    n_cells = args.cells(512)
    columns = model.conditions.columns
    codes = np.zeros((n_cells, len(columns)), np.int64)
    seeds = cell_seeds(model, codes[0].tolist(), np.arange(n_cells, dtype=np.int64), 0)
    grid, evaluations = GridConfig(), {}

    def sample(name: str, solver: SolverConfig) -> None:
        evaluations[name] = sample_cells(
            model,
            codes,
            seeds,
            guidance=grid.guidance,
            solver=solver,
            cells_per_minibatch=n_cells,
        ).n_evaluations

    times: dict[str, list[float]] = {}
    sample("midpoint", MIDPOINT)  # compiles and loads
    for _ in range(args.repeats):
        times.setdefault("midpoint", []).append(cost(lambda: sample("midpoint", MIDPOINT)).cpu)
        for name, (solver, _) in SOLVERS.items():
            work = lambda name=name, solver=solver: sample(name, solver)  # noqa: E731
            times.setdefault(name, []).append(cost(work).cpu)
    for name, (_, goal) in SOLVERS.items():
        ratios = [a / b for a, b in zip(times[name], times["midpoint"], strict=True)]
        what = f"midpoint 5 against {name} ({evaluations[name]} evaluations), cells/CPU-s"
        yield Line(what, f"{median(ratios):.1f} x", f">= {goal} x")


def make_model(args: Arguments, preset: str) -> ModelBundle:
    """The preset's networks with random weights, or the trained model, as a bundle."""
    folder = args.folder / preset / "model"
    if args.model is not None:
        folder.parent.mkdir(parents=True)
        folder.symlink_to(args.model.resolve())
        return load_bundle(folder)
    torch.manual_seed(0)
    found = read_preset(preset)
    n_genes, width = found.n_genes, found.genes_per_block
    members = np.full(-(-n_genes // width) * width, -1, np.int64)
    members[:n_genes] = np.random.default_rng(0).permutation(n_genes)
    members = members.reshape(-1, width)
    shape = VaeShape(torch.from_numpy(members), n_genes, SIZES, COLUMNS)
    vae = Vae(shape, found.vae, torch.full((n_genes,), 4.0), gene_fractions(n_genes))
    velocity = make_flow_velocity(found.vae.latent_dim, SIZES, found.flow)
    with torch.no_grad():  # a fresh one is zero everywhere, which no adaptive solver works on
        for parameter in velocity.parameters():
            parameter += 0.05 * torch.randn_like(parameter)
    scale = np.zeros(found.vae.latent_dim + 1, np.float32), np.ones(found.vae.latent_dim + 1)
    scale[0][-1], scale[1][-1] = np.log(1500), 0.1
    save_bundle(
        folder,
        vae=vae,
        velocity=velocity,
        latent_scale=LatentScale(scale[0], scale[1].astype(np.float32)),
        genes=gene_names(n_genes),
        conditions=vocabulary(COLUMNS, SIZES),
        blocks=GeneBlocks(members, np.zeros((len(members), 3), np.float32), (1.0,)),
        support={(i, j): 100 for i in range(SIZES[0]) for j in range(SIZES[1])},
        vae_config=found.vae,
        flow_config=found.flow,
        about={"config_hash": "benchmark", "git_commit": "benchmark"},
    )
    return load_bundle(folder)


def make_plan(
    facts: ModelFacts, n: int, solver: SolverConfig, part: int, minibatch: int
) -> GridPlan:
    """All conditions, `n` cells of each."""
    output = OutputConfig(cells_per_part=part, cells_per_chunk=16, cells_per_minibatch=minibatch)
    return plan_grid(GridConfig(cells_per_condition=n, solver=solver), output, facts)


def run_networks(model: ModelBundle, plan: GridPlan, n_parts: int | None = None) -> None:
    """Sampling and decoding of a plan's cells, and nothing else."""
    size = plan.output.cells_per_minibatch
    for index in range(n_parts or plan.n_parts):
        segments = plan.part(index).segments
        codes = np.repeat([s.codes for s in segments], [s.n_cells for s in segments], axis=0)
        codes = codes.astype(np.int64)
        seeds = np.arange(len(codes), dtype=np.uint64)
        for start in range(0, len(codes), size):
            rows = slice(start, start + size)
            with torch.inference_mode():
                grid = plan.grid
                x = flow_from_noise(model, codes[rows], seeds[rows], grid.guidance, grid.solver)
                cells = unstandardise(model, x.x_1)
                told = torch.from_numpy(codes[rows])
                px = model.vae.decode(cells.latent, told, cells.library)
                px.mean.numpy(), px.inverse_dispersion.numpy()


def begin(folder: Path, model: Path, plan: GridPlan) -> PartWorker:
    """An empty atlas and a worker for it."""
    path = folder / "atlas.zarr"
    atlas.create_template(path, plan.layout(), {})
    return PartWorker(model, path)


def run_parts(worker: PartWorker, plan: GridPlan) -> Iterator[Any]:
    """Parts as they are finished, in the threads that an actor has."""
    with ThreadPoolExecutor(PARTS_IN_FLIGHT) as pool:
        yield from as_completed([pool.submit(worker.run, part) for part in range(plan.n_parts)])
