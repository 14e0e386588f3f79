"""The jobs by name: what each does, how it runs, what `--dry-run` says of it."""

import dataclasses
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from save_dist.config import schema
from save_dist.core.errors import PartialError
from save_dist.core.paths import RunPaths
from save_dist.data.attach import attach
from save_dist.data.ingest import check_inputs
from save_dist.data.simulate import SimulationConfig
from save_dist.data.simulate import simulate as draw_simulation
from save_dist.pipelines.blocks import blocks
from save_dist.pipelines.context import Context, Summary
from save_dist.pipelines.evaluate import evaluate
from save_dist.pipelines.generate import generate, plan_for
from save_dist.pipelines.ingest import ingest
from save_dist.pipelines.train import train
from save_dist.pipelines.transfer import transfer
from save_dist.pipelines.whole import pipeline
from save_dist.stores.atlas import discard_parts
from save_dist.stores.atlas import verify as verify_atlas

RUN: dict[str, Callable[[Any, Context], Summary]] = {
    "ingest": ingest,
    "blocks": blocks,
    "train": train,
    "generate": generate,
    "transfer": transfer,
    "evaluate": evaluate,
    "pipeline": pipeline,
}

HELP = {
    "ingest": "Files of cells -> one TileDB-SOMA store of raw counts; or pin a store of others.",
    "blocks": "Store -> vocabulary: conditions, split, genes, gene blocks.",
    "train": "Store and vocabulary -> VAE, latents, flow, exported model (Ray Train).",
    "generate": "Model and declared grid -> Zarr atlas of virtual cells (Ray Data).",
    "transfer": "Model and real cells -> the same cells under another condition.",
    "evaluate": "Atlas and held-back real cells -> scores, floors, baselines, report.",
    "pipeline": "All of the above that make and judge an atlas, in order.",
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
            ("transport", config.transport),
        )
        if stage in config.training.stages
    }


def _plan_generate(config: schema.GenerateJob) -> Summary:
    """What the grid amounts to; needs the run's model."""
    return dataclasses.asdict(plan_for(config, RunPaths(config.run.dir)).summary())


def _plan_pipeline(config: schema.PipelineJob) -> Summary:
    return {"ingest": _plan_ingest(config), "train": _plan_train(config)}


def _no_plan(config: schema.JobConfig) -> Summary:
    """Nothing to say beyond that the configuration is valid."""
    return {"run_dir": str(config.run.dir)}


PLANS: dict[str, Callable[[Any], Summary]] = {
    "ingest": _plan_ingest,
    "blocks": _no_plan,
    "train": _plan_train,
    "generate": _plan_generate,
    "transfer": _no_plan,
    "evaluate": _no_plan,
    "pipeline": _plan_pipeline,
}


def simulate(output: Path, cells: int, genes: int, interaction: float, seed: int) -> Summary:
    """A simulated data set on disk."""
    config = SimulationConfig(
        n_cells=cells,
        n_genes=genes,
        n_types=3,
        n_conditions=2,
        n_donors=2,
        interaction=interaction,
        seed=seed,
    )
    adata = draw_simulation(config)
    output.parent.mkdir(parents=True, exist_ok=True)
    adata.write_h5ad(output)
    return {"output": str(output), "n_cells": adata.n_obs, "n_genes": adata.n_vars}


def verify(path: Path, *, mend: bool) -> Summary:
    """Every byte of an atlas; with `mend`, altered parts become missing for the next `generate`.

    Raises:
        PartialError: naming what is missing or altered.
    """
    report = verify_atlas(path)
    if report.is_sound:
        return {"atlas": str(path), "n_parts": report.n_parts}
    if mend:
        discard_parts(path, report.bad_parts)
    shown = "; ".join(problem.text for problem in report.problems[:5])
    what_now = "run generate to write them anew" if mend else "add --mend, then run generate"
    raise PartialError(
        f"{path} does not verify: {len(report.problems)} problems, parts "
        f"{report.bad_parts[:20]}: {shown}; {what_now}"
    )
