"""Generate: model and declared grid -> a complete, verified atlas."""

import dataclasses
import logging
from pathlib import Path

from save_dist.cluster import generate as cluster_generate
from save_dist.config.schema import GenerateJob, PipelineJob
from save_dist.core.errors import AtlasError
from save_dist.core.paths import RunPaths
from save_dist.generation.extension import continued
from save_dist.generation.grid import GridPlan, plan_grid
from save_dist.generation.tables import settle, settle_output
from save_dist.pipelines.context import Context, Summary, record
from save_dist.pipelines.estimate import estimate
from save_dist.pipelines.parts import check_space, log_outcomes, require_all
from save_dist.pipelines.provenance import versions
from save_dist.stores import atlas, catalogue
from save_dist.stores.bundle import load_bundle
from save_dist.stores.receipts import missing_parts, read_record
from save_dist.stores.storage import storage_of

logger = logging.getLogger(__name__)


def generate(config: GenerateJob | PipelineJob, context: Context) -> Summary:
    """Write the parts that have no receipt yet; complete means every part of the plan has one.

    A grid that only adds to that of the atlas in the run folder extends it.
    """
    plan, path = plan_for(config, context.paths), context.paths.atlas
    _log_plan(plan)
    layout = plan.layout()
    atlas.create_template(path, layout, versions=versions())

    missing = missing_parts(path)
    if missing:
        check_space(path, layout, plan.n_cells_in(missing))
        _note(plan, context.paths)
        outcomes = cluster_generate.generate(
            missing,
            plan.n_cells_in(missing),
            context.paths.model,
            path,
            config.cluster,
            context.progress,
        )
        log_outcomes(outcomes, context, "generate")
        require_all(plan.n_parts, outcomes, missing_parts(path))

    digest = atlas.finish(path)
    _note(plan, context.paths, digest)
    summary = {
        "n_cells": plan.n_cells,
        "n_conditions": plan.n_conditions,
        "n_parts": plan.n_parts,
        "model_hash": plan.model.hash,
        "plan_hash": plan.hash,
        "atlas_digest": digest,
    }
    return record(context, "generate", plan.hash, summary)


def preview(config: GenerateJob) -> Summary:
    """What the grid amounts to and how long it will take; needs the run's model."""
    paths = RunPaths(config.run.dir, config.run.atlas)
    plan = plan_for(config, paths)
    measured = estimate(plan, paths, config.cluster)
    return {**dataclasses.asdict(plan.summary()), "estimate": dataclasses.asdict(measured)}


def plan_for(config: GenerateJob | PipelineJob, paths: RunPaths) -> GridPlan:
    """The plan of the run's atlas: of the configured grid, or what that adds to one begun before.

    Raises:
        AtlasError: if the folder holds an atlas that the grid does not merely add to.
    """
    asked = fresh_plan(config, paths.model)
    if not storage_of(paths.atlas).exists():
        return asked
    record = read_record(paths.atlas)
    if record.plan_hash == asked.hash:
        return asked
    if record.model_hash != asked.model.hash:
        raise AtlasError(
            f"{paths.atlas} was made with model {record.model_hash} under plan "
            f"{record.plan_hash}; the present model is {asked.model.hash}, the plan {asked.hash}; "
            "generate into another run folder, or remove the atlas and its receipts"
        )
    return continued(GridPlan.from_json(record.plan, asked.model), asked)


def fresh_plan(config: GenerateJob | PipelineJob, folder: Path) -> GridPlan:
    """The plan of the configured grid alone, for the model in a folder."""
    model = load_bundle(folder).facts
    return plan_grid(settle(config.grid, model), settle_output(config.output, model), model)


def _note(plan: GridPlan, paths: RunPaths, digest: str = "") -> None:
    """Enter the atlas in the run's catalogue: begun, or with a digest finished."""
    catalogue.note(
        paths.catalogue,
        paths.atlas,
        model_hash=plan.model.hash,
        plan_hash=plan.hash,
        n_cells=plan.n_cells,
        digest=digest,
    )


def _log_plan(plan: GridPlan) -> None:
    found = plan.summary()
    logger.info("event=planned summary=%s", dataclasses.asdict(found))
    if found.n_poorly_supported:
        logger.warning(
            "event=controls_too_small conditions=%d min_support=%d they_go=direct",
            found.n_poorly_supported,
            plan.grid.compose.min_support,
        )
