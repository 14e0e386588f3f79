"""Cells -> store and vocabulary -> trained model, in this process, without Ray.

The stages are the product's own. CPU seconds are those of this process, one thread.
"""

import contextlib
import os
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from problems import Problem

from save_dist.api import Model
from save_dist.config.load import merge
from save_dist.config.schema import PipelineJob
from save_dist.core.durable import digest, read_json, write_json
from save_dist.core.paths import RunPaths
from save_dist.data.splits import HELD_OUT, TEST, TRAIN, CellIndex
from save_dist.evaluation.tables import CellTable
from save_dist.pipelines.blocks import blocks
from save_dist.pipelines.context import Context
from save_dist.pipelines.ingest import ingest
from save_dist.pipelines.train import export, make_plan, open_vocabulary
from save_dist.stores.bundle import load_bundle
from save_dist.stores.vocabulary import RunVocabulary
from save_dist.tracking.progress import LineProgress
from save_dist.tracking.tracker import open_journal
from save_dist.training import run as training
from save_dist.training.latents import dense_cells
from save_dist.training.plan import TrainPlan
from save_dist.training.ranks import Ranks

Settings = Mapping[str, Any]
"""Sections of a PipelineJob, as far as they differ from the defaults."""


@dataclass(frozen=True)
class Cells:
    """Real cells of a prepared problem over its genes."""

    train: CellTable
    test: CellTable
    held_out: CellTable
    vocabulary: RunVocabulary


class _Silent:
    def metrics(self, stage: str, values: Any, step: int) -> None:
        """Nobody watches."""


def prepare(problem: Problem, variant: str, settings: Settings, root: Path) -> tuple[Path, Cells]:
    """Store, vocabulary and tables of a problem; what is there already is kept.

    Args:
        problem: the cells.
        variant: which of its held-out sets; "" for none.
        settings: only `genes`, `blocks` and `split` count here.
        root: folder for all problems.
    """
    chosen = {k: v for k, v in settings.items() if k in ("genes", "blocks", "split")}
    name = digest([problem.name, variant, chosen])[:10]
    folder = root / f"{problem.name}-{variant or 'seen'}-{name}"
    file = root / f"{problem.name}.h5ad"
    if not file.is_file():
        root.mkdir(parents=True, exist_ok=True)
        aside = root / f".{problem.name}-{os.getpid()}.h5ad"  # another process may need it too
        problem.read().write_h5ad(aside)
        aside.replace(file)
    config = job(problem, variant, file, folder, chosen)
    context = _context(folder)
    ingest(config, context)
    blocks(config, context)
    return folder, read_cells(open_vocabulary(context))


def read_cells(vocabulary: RunVocabulary) -> Cells:
    """All cells of the run, by split."""
    parts = [_table(vocabulary, vocabulary.index.where(s)) for s in (TRAIN, TEST, HELD_OUT)]
    return Cells(*parts, vocabulary)


def _table(vocabulary: RunVocabulary, index: CellIndex) -> CellTable:
    counts = np.zeros((index.n_cells, len(vocabulary.genes)), dtype=np.float32)
    for first, cells in dense_cells(vocabulary.store, index, vocabulary.gene_positions):
        counts[first : first + cells.library.size] = cells.counts
    return CellTable(counts, np.asarray(index.codes))


def job(
    problem: Problem, variant: str, file: Path, folder: Path, settings: Settings
) -> PipelineJob:
    """The whole configuration."""
    n_genes = problem.n_genes
    values: dict[str, Any] = {
        "run": {"dir": folder, "seed": 0},
        "tracking": {"backend": "none"},
        "cluster": {"n_workers": 1},
        "conditions": {
            "columns": list(problem.columns),
            "reference": problem.reference,
            "held_out": problem.held_out.get(variant, []),
        },
        "ingest": {"inputs": [{"path": str(file)}]},
        "genes": {"n_top": n_genes},
        "blocks": {"genes_per_block": -(-n_genes // 10)},
        "split": {"test": 0.2, "validation": 0.02},
    }
    return PipelineJob.model_validate(merge(values, dict(settings)))


@dataclass(frozen=True)
class Fit:
    """A trained model and what it took."""

    model: Model
    cpu_seconds: dict[str, float]
    n_steps: dict[str, int]


def fit(problem: Problem, variant: str, settings: Settings, seed: int, root: Path) -> Fit:
    """Train all stages; what is there already is used again, stage by stage.

    The seed is that of weights, minibatches and noise; split, genes and blocks are those of seed 0.
    """
    prepared, _ = prepare(problem, variant, settings, root)
    networks = {k: v for k, v in settings.items() if k in NETWORKS}
    folder = prepared / "models" / digest([networks, seed])[:12]
    folder.mkdir(parents=True, exist_ok=True)
    for name in ("store.soma", "vocab", "scratch"):
        _link(folder / name, prepared / name)
    config = job(problem, variant, root / f"{problem.name}.h5ad", folder, settings)
    config = config.model_copy(update={"run": config.run.model_copy(update={"seed": seed})})
    context = _context(folder)
    vocabulary = open_vocabulary(context)
    plan = make_plan(config, context, vocabulary)
    seconds = _train(plan, vocabulary, prepared / "trained")
    if not RunPaths(folder).model.is_dir():
        export(plan, vocabulary, config, context)
    n_steps = {s: plan.section(s).optim.n_steps for s in plan.training.stages}
    return Fit(Model(load_bundle(RunPaths(folder).model)), seconds, n_steps)


NETWORKS = ("training", "vae", "flow", "transport")


def _link(link: Path, target: Path) -> None:
    target.mkdir(parents=True, exist_ok=True)
    link.parent.mkdir(exist_ok=True)
    with contextlib.suppress(FileExistsError):
        link.symlink_to(target, target_is_directory=True)


def _train(plan: TrainPlan, vocabulary: RunVocabulary, shared: Path) -> dict[str, float]:
    """CPU seconds of every stage, also of those that another model has trained before.

    Stages lie in folders named by their identity, so models that differ in the flow alone share
    a VAE.
    """
    cpu, ranks, reporter = torch.device("cpu"), Ranks(), _Silent()
    paths, stages = plan.paths, {"vae": plan.hash_of("vae")}
    stages |= {stage: plan.hash_of(stage) for stage in plan.training.stages}
    for stage, identity in stages.items():
        _link(paths.checkpoints(stage), shared / f"{stage}-{identity[:16]}")
    latents = shared / f"latents-{stages['vae'][:16]}"
    seconds = {}
    with _timed(shared / f"vae-{stages['vae'][:16]}.json") as seconds["vae"]:
        training.train_vae(plan, vocabulary, ranks, reporter, cpu)
    if latents.is_dir():
        _link(paths.latents, latents)
    with _timed(shared / f"encode-{stages['vae'][:16]}.json") as seconds["encode"]:
        store = training.encode(plan, vocabulary, ranks, cpu)
    if not paths.latents.is_symlink():
        paths.latents.rename(latents)
        _link(paths.latents, latents)
    with _timed(shared / f"flow-{stages['flow'][:16]}.json") as seconds["flow"]:
        training.train_flow(plan, vocabulary, store, ranks, reporter, cpu)
    if "transport" in stages:
        record = shared / f"transport-{stages['transport'][:16]}.json"
        with _timed(record) as seconds["transport"]:
            training.train_transport(plan, vocabulary, store, ranks, reporter, cpu)
    return {stage: float(read_json(record)["cpu_s"]) for stage, record in seconds.items()}


@contextlib.contextmanager
def _timed(record: Path) -> Iterator[Path]:
    """Records the CPU seconds of the first time."""
    start = time.process_time()
    yield record
    if not record.is_file():
        write_json(record, {"cpu_s": time.process_time() - start})


def _context(folder: Path) -> Context:
    paths = RunPaths(folder)
    paths.root.mkdir(parents=True, exist_ok=True)
    return Context(paths, open_journal(paths.metrics), LineProgress(lambda line: None))
