"""The jobs by name: what each does, how it runs, what `--dry-run` says of it."""

import dataclasses
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from save_dist.config import schema
from save_dist.core.errors import ConfigError, PartialError
from save_dist.core.paths import RunPaths
from save_dist.data.attach import attach
from save_dist.data.ingest import check_inputs
from save_dist.generation.audit import check_conditions, check_totals, choose_parts, resample
from save_dist.generation.worker import PartWorker
from save_dist.pipelines.blocks import blocks
from save_dist.pipelines.context import Context, Summary
from save_dist.pipelines.estimate import estimate
from save_dist.pipelines.evaluate import evaluate
from save_dist.pipelines.gene_vectors import check_embedding
from save_dist.pipelines.generate import generate, plan_for
from save_dist.pipelines.ingest import ingest
from save_dist.pipelines.sweep import plan_trials, sweep
from save_dist.pipelines.train import train
from save_dist.pipelines.transfer import plan_for as plan_for_transfer
from save_dist.pipelines.transfer import transfer
from save_dist.pipelines.whole import pipeline
from save_dist.stores.atlas import discard_parts
from save_dist.stores.atlas import verify as verify_atlas
from save_dist.stores.catalogue import entries, newest_complete
from save_dist.stores.receipts import read_record
from save_dist.stores.storage import Where
from save_dist.transfer.plan import KIND as TRANSFER
from save_dist.transfer.worker import TransferWorker

RUN: dict[str, Callable[[Any, Context], Summary]] = {
    "ingest": ingest,
    "blocks": blocks,
    "train": train,
    "generate": generate,
    "transfer": transfer,
    "evaluate": evaluate,
    "pipeline": pipeline,
    "sweep": sweep,
}

HELP = {
    "ingest": "Files of cells -> one TileDB-SOMA store of raw counts; or pin a store of others.",
    "blocks": "Store -> vocabulary: conditions, split, genes, gene blocks.",
    "train": "Store and vocabulary -> VAE, latents, flow, exported model (Ray Train).",
    "generate": "Model and declared grid -> Zarr atlas of virtual cells (Ray Data).",
    "transfer": "Model and real cells -> the same cells under another condition.",
    "evaluate": "Atlas and held-back real cells -> scores, floors, baselines, report.",
    "pipeline": "All of the above that make and judge an atlas, in order.",
    "sweep": "Trials of a training job under other settings, side by side -> which is best.",
}


def _plan_ingest(config: schema.IngestJob | schema.PipelineJob) -> Summary:
    if config.source is not None:
        found = attach(config.source, config.conditions.columns, time.time_ns() // 1_000_000)
        return {"n_cells": found.n_cells, "n_genes": found.n_genes, "uri": found.locator.uri}
    assert config.ingest is not None  # checked by the schema
    plan = check_inputs(config.ingest, config.conditions)
    return {
        "n_inputs": len(plan.inputs),
        "n_cells": plan.layout.n_cells,
        "n_genes": len(plan.layout.gene_ids),
        "bytes": plan.n_bytes,
    }


def _plan_blocks(config: schema.BlocksJob | schema.PipelineJob) -> Summary:
    return {
        "genes_per_block": config.blocks.genes_per_block,
        "gene_vectors": check_embedding(config.blocks.embedding),
    }


def _plan_train(config: schema.TrainJob | schema.PipelineJob) -> Summary:
    return {
        stage: {
            "n_steps": section.optim.n_steps,
            "cells_per_step": section.optim.cells_per_step,
            "cells_per_rank": section.optim.cells_per_step // config.cluster.n_workers,
        }
        for stage, section in (
            ("vae", config.vae),
            ("flow", config.flow),
            ("reflow", config.reflow),
            ("transport", config.transport),
        )
        if stage in config.training.stages
    }


def _plan_generate(config: schema.GenerateJob) -> Summary:
    """What the grid amounts to and how long it will take; needs the run's model."""
    paths = RunPaths(config.run.dir, config.run.atlas)
    plan = plan_for(config, paths)
    measured = estimate(plan, paths, config.cluster)
    return {**dataclasses.asdict(plan.summary()), "estimate": dataclasses.asdict(measured)}


def _plan_transfer(config: schema.TransferJob) -> Summary:
    """What the request amounts to; needs the run's model and vocabulary."""
    plan = plan_for_transfer(config, RunPaths(config.run.dir))
    return {
        "n_cells": plan.n_cells,
        "n_targets": len(plan.aims),
        "n_parts": plan.n_parts,
        "method": plan.config.method,
    }


def _plan_pipeline(config: schema.PipelineJob) -> Summary:
    return {
        "ingest": _plan_ingest(config),
        "blocks": _plan_blocks(config),
        "train": _plan_train(config),
    }


def _plan_sweep(config: schema.SweepJob) -> Summary:
    trials = plan_trials(config)
    return {
        "n_trials": len(trials),
        "n_finished": sum(trial.is_finished for trial in trials),
        "trials": {trial.name: trial.parameters for trial in trials},
        "each": _plan_train(config),
    }


def _no_plan(config: schema.JobConfig) -> Summary:
    """Nothing to say beyond that the configuration is valid."""
    return {"run_dir": str(config.run.dir)}


PLANS: dict[str, Callable[[Any], Summary]] = {
    "ingest": _plan_ingest,
    "blocks": _plan_blocks,
    "train": _plan_train,
    "generate": _plan_generate,
    "transfer": _plan_transfer,
    "evaluate": _no_plan,
    "pipeline": _plan_pipeline,
    "sweep": _plan_sweep,
}


def atlases(run: Path) -> Summary:
    """What the catalogue of a run lists; the newest complete atlas is checked to be there."""
    place = RunPaths(run).catalogue
    newest = newest_complete(place)
    return {
        "atlases": [dataclasses.asdict(entry) for entry in entries(place)],
        "newest_complete": None if newest is None else str(newest),
    }


@dataclasses.dataclass(frozen=True)
class Resampling:
    """Which parts of an atlas to sample again, and by what."""

    n_parts: int
    model: Path | None
    """Model folder; None: the one beside the atlas."""
    seed: int
    """Chooses the parts."""


def verify(path: Where, *, mend: bool, resampling: Resampling) -> Summary:
    """Every byte of an atlas, conditions, sums of counts, and some parts sampled again.

    With `mend`, bad parts become missing for the next `generate`.

    Raises:
        PartialError: naming what is missing or altered.
        CheckpointError: if parts are to be sampled again and the model cannot be read.
        ConfigError: if no model is named for an atlas in an object store.
    """
    report = verify_atlas(path)
    sound = [part for part in range(report.n_parts) if part not in set(report.bad_parts)]
    is_transfer = read_record(path).plan.get("kind") == TRANSFER
    problems = [*report.problems, *check_totals(path, sound)]
    if not is_transfer:
        problems += check_conditions(path, sound)
    chosen = choose_parts(path, resampling.n_parts, resampling.seed)
    again = [part for part in chosen if part in set(sound)]
    if again:
        model = resampling.model or _model_beside(path)
        worker = (TransferWorker if is_transfer else PartWorker)(model, path)
        problems += resample(path, worker, again)
    if not problems:
        return {"atlas": str(path), "n_parts": report.n_parts, "resampled": again}
    bad = sorted({problem.part for problem in problems if problem.part is not None})
    if mend:
        discard_parts(path, bad)
    shown = "; ".join(problem.text for problem in problems[:5])
    what_now = "run generate to write them anew" if mend else "add --mend, then run generate"
    raise PartialError(
        f"{path} does not verify: {len(problems)} problems, parts {bad[:20]}: {shown}; {what_now}"
    )


def _model_beside(atlas: Where) -> Path:
    if isinstance(atlas, str):
        raise ConfigError(f"--resample: no model stands beside {atlas}; add --model RUN/model")
    return RunPaths(atlas.parent).model
