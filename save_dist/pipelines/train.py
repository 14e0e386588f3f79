"""Train: SOMA store and vocabulary -> VAE, latents, flow, reflow, transport -> exported model."""

from save_dist.cluster import train as cluster_train
from save_dist.config.load import config_hash
from save_dist.config.schema import PipelineJob, StoppingConfig, TrainJob
from save_dist.core.durable import MANIFEST, digest, read_json
from save_dist.core.errors import ConfigError, DataError
from save_dist.data.splits import TRAIN, VALIDATION
from save_dist.pipelines.context import Context, Summary, finished, record
from save_dist.pipelines.provenance import provenance
from save_dist.stores.bundle import save_bundle
from save_dist.stores.profiles import best_temperature
from save_dist.stores.transports import Transport
from save_dist.stores.vocabulary import RunVocabulary, load_vocabulary
from save_dist.training import run as training
from save_dist.training.plan import TrainPlan, make_stream_plan
from save_dist.training.profiles import combination_profiles


def train(config: TrainJob | PipelineJob, context: Context) -> Summary:
    """Train what is not trained yet, then export the model."""
    vocabulary = open_vocabulary(context)
    plan = make_plan(config, context, vocabulary)
    key = digest({stage: plan.hash_of(stage) for stage in plan.training.stages})
    if _exported_stages(context) == plan.training.stages:
        summary = finished(context, "train", key)
        if summary is not None:
            return summary

    n_steps = cluster_train.remaining(plan)
    for stage in plan.training.stages:
        _announce(stage, plan, vocabulary, context)
    cluster_train.fit(plan, config.cluster, context.journal, context.progress)
    for stage in plan.training.stages:
        _name_checkpoints(stage, context)
        context.journal.child(stage).end("FINISHED")

    summary = {"steps": n_steps, "stages": plan.training.stages}
    if training.steps_left(plan, plan.flow_stage):
        return summary
    summary["model_hash"] = export(plan, vocabulary, config, context)
    return record(context, "train", key, summary)


def preview(config: TrainJob | PipelineJob) -> Summary:
    """Steps and minibatches of every stage."""
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


def _announce(stage: str, plan: TrainPlan, vocabulary: RunVocabulary, context: Context) -> None:
    """Tell the trackers what a stage is about to do, and with which cells."""
    journal, store = context.journal.child(stage), vocabulary.store
    journal.start(plan.hash_of(stage))
    journal.params({stage: plan.section(stage).model_dump(mode="json")})
    time = "" if store.timestamp is None else f"?timestamp={store.timestamp}"
    facts = {"n_cells": vocabulary.index.where(TRAIN).n_cells, "n_genes": len(vocabulary.genes)}
    journal.dataset(
        context.paths.root.name, f"{store.uri}{time}", vocabulary.hash, "training", facts
    )


def _name_checkpoints(stage: str, context: Context) -> None:
    """Tell the trackers which checkpoints a stage has left."""
    for place in sorted(context.paths.checkpoints(stage).glob("step-*")):
        if (place / MANIFEST).is_file():
            found = read_json(place / MANIFEST)
            context.journal.child(stage).checkpoint(place, found["step"], digest(found["files"]))


def make_plan(
    config: TrainJob | PipelineJob, context: Context, vocabulary: RunVocabulary
) -> TrainPlan:
    """What the ranks need, checked against the size of the training set."""
    plan = TrainPlan(
        root=context.paths.root,
        seed=config.run.seed,
        training=config.training,
        vae=config.vae,
        flow=config.flow,
        reflow=config.reflow,
        transport=config.transport,
        vocabulary_hash=vocabulary.hash,
    )
    n_cells = vocabulary.index.where(TRAIN).n_cells
    for stage in {"vae", "flow", *config.training.stages}:
        make_stream_plan(plan, plan.section(stage).optim, n_cells)
    if "transport" in config.training.stages:
        training.transport_pairs(plan, vocabulary)
    stopping = config.training.stopping
    if stopping != StoppingConfig() and not vocabulary.index.where(VALIDATION).n_cells:
        raise ConfigError(
            "training.stopping compares losses on validation cells, and split.validation left "
            "none; make it larger in a new run.dir, or remove training.stopping"
        )
    return plan


def export(
    plan: TrainPlan,
    vocabulary: RunVocabulary,
    config: TrainJob | PipelineJob,
    context: Context,
) -> str:
    """Averaged weights, vocabulary and provenance -> the model folder; returns its hash."""
    stages = ", ".join(plan.training.stages)
    model_hash = save_bundle(
        context.paths.model,
        vae=training.load_vae(plan, vocabulary),
        velocity=training.load_velocity(plan, vocabulary, plan.flow_stage),
        latent_scale=training.finished_scale(plan),
        genes=vocabulary.genes,
        conditions=vocabulary.conditions,
        blocks=vocabulary.blocks,
        support=vocabulary.index.support(),
        vae_config=config.vae,
        flow_config=config.flow,
        reflow_config=config.reflow if plan.flow_stage == "reflow" else None,
        about=provenance(context.paths) | {"config_hash": config_hash(config), "stages": stages},
        transport=_transport(plan, vocabulary) if "transport" in plan.training.stages else None,
        latent_means=training.latent_means(plan, vocabulary),
    )
    context.journal.model(
        context.paths.model, model_hash, {"config_hash": config_hash(config), "stages": stages}
    )
    return model_hash


def _transport(plan: TrainPlan, vocabulary: RunVocabulary) -> Transport:
    """The trained transport, and the averages of the training cells that decoding needs."""
    index, pairs = vocabulary.index.where(TRAIN), training.transport_pairs(plan, vocabulary)
    profiles = combination_profiles(vocabulary.store, index, vocabulary.gene_positions)
    columns = vocabulary.conditions.columns
    return Transport(
        config=plan.transport,
        velocity=training.load_transport(plan, vocabulary),
        profiles=profiles,
        temperatures={
            name: best_temperature(profiles, [p for p in pairs if columns[p.column] == name])
            for name in plan.transport.columns
        },
        conditions=vocabulary.conditions,
    )


def _exported_stages(context: Context) -> list[str]:
    """Stages that the exported model came from; a stage more or less is no conflict.

    Checkpoints know their settings, so stages of other settings are still refused.
    """
    path = context.paths.stages / "train.json"
    return list(read_json(path)["summary"]["stages"]) if path.is_file() else []


def open_vocabulary(context: Context) -> RunVocabulary:
    """The run's vocabulary.

    Raises:
        DataError: if the blocks job has not run.
    """
    if not context.paths.vocab.is_dir():
        raise DataError(
            f"{context.paths.vocab} does not exist: run `save-dist ingest` and `save-dist blocks` "
            "with this run.dir first"
        )
    return load_vocabulary(context.paths.vocab)
