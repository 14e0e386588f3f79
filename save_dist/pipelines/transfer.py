"""Transfer: model and real cells -> the same cells under other conditions, in a complete store."""

import numpy as np

from save_dist.cluster import generate as cluster_generate
from save_dist.config.schema import TransferConfig, TransferJob
from save_dist.core.errors import DataError
from save_dist.core.paths import RunPaths
from save_dist.pipelines.context import Context, Summary, record
from save_dist.pipelines.parts import check_space, log_outcomes, require_all
from save_dist.pipelines.provenance import versions
from save_dist.stores import atlas
from save_dist.stores.bundle import ModelBundle, load_bundle
from save_dist.stores.receipts import missing_parts
from save_dist.stores.vocabulary import RunVocabulary, load_vocabulary
from save_dist.transfer.plan import TransferPlan, aims_of, chosen_cells, plan_transfer
from save_dist.transfer.recast import recaster_of
from save_dist.transfer.worker import TransferWorker


def transfer(config: TransferJob, context: Context) -> Summary:
    """Write the parts that have no receipt yet; complete means every part of the plan has one."""
    plan, path = plan_for(config, context.paths), context.paths.root / config.transfer.output
    layout = plan.layout()
    atlas.create_template(path, layout, versions=versions())
    if missing := missing_parts(path):
        check_space(path, layout, plan.n_cells_in(missing))
        outcomes = cluster_generate.generate(
            missing,
            plan.n_cells_in(missing),
            context.paths.model,
            path,
            config.cluster,
            context.progress,
            kind=TransferWorker,
        )
        log_outcomes(outcomes, context, "transfer")
        require_all(plan.n_parts, outcomes, missing_parts(path))
    summary = {
        "n_cells": plan.n_cells,
        "n_parts": plan.n_parts,
        "output": str(path),
        "method": plan.config.method,
        "model_hash": plan.model.hash,
        "plan_hash": plan.hash,
        "digest": atlas.finish(path),
    }
    return record(context, "transfer", plan.hash, summary)


def preview(config: TransferJob) -> Summary:
    """What the request amounts to; needs the run's model and vocabulary."""
    plan = plan_for(config, RunPaths(config.run.dir))
    return {
        "n_cells": plan.n_cells,
        "n_targets": len(plan.aims),
        "n_parts": plan.n_parts,
        "method": plan.config.method,
    }


def plan_for(config: TransferJob, paths: RunPaths) -> TransferPlan:
    """The plan of the configured request, its method settled, checked against the run's model.

    Raises:
        DataError: if the blocks job has not run.
        ConfigError: if no cell matches, or the model cannot do what is asked.
    """
    if not paths.vocab.is_dir():
        raise DataError(
            f"{paths.vocab} does not exist: a transfer needs a run folder with a vocabulary and a "
            "model; run `save-dist ingest`, `blocks` and `train` with this run.dir first"
        )
    vocabulary, bundle = load_vocabulary(paths.vocab), load_bundle(paths.model)
    wanted = _settled(config.transfer, vocabulary, bundle)
    return plan_transfer(wanted, vocabulary.index, bundle.facts, vocabulary.hash, config.run.seed)


def _settled(
    config: TransferConfig, vocabulary: RunVocabulary, bundle: ModelBundle
) -> TransferConfig:
    """The request with one method for all cells and targets; `auto` carries all or none."""
    chosen = chosen_cells(vocabulary.index, vocabulary.conditions, config)
    codes = np.unique(vocabulary.index.codes[chosen], axis=0).astype(np.int64)
    made = [
        recaster_of(bundle, aim, config.method, codes, config.compose, config.solver).method
        for aim in aims_of(config)
    ]
    method = made[0] if len(set(made)) == 1 else "reencode"
    return config.model_copy(update={"method": method})
