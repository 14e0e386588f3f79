"""Train: SOMA store and vocabulary -> VAE, latents, flow -> exported model."""

from save_dist.cluster import train as cluster_train
from save_dist.config.load import config_hash
from save_dist.config.schema import PipelineJob, TrainJob
from save_dist.core.durable import digest
from save_dist.core.errors import DataError
from save_dist.data.splits import TRAIN
from save_dist.pipelines.context import Context, Summary, finished, record
from save_dist.pipelines.provenance import provenance
from save_dist.stores.bundle import save_bundle
from save_dist.stores.vocabulary import RunVocabulary, load_vocabulary
from save_dist.training import run as training


def train(config: TrainJob | PipelineJob, context: Context) -> Summary:
    """Train what is not trained yet, then export the model."""
    vocabulary = open_vocabulary(context)
    plan = make_plan(config, context, vocabulary)
    key = digest({stage: plan.hash_of(stage) for stage in plan.training.stages})
    if (summary := finished(context, "train", key)) is not None:
        return summary

    n_steps = cluster_train.remaining(plan)
    for stage in plan.training.stages:
        section = config.vae if stage == "vae" else config.flow
        context.journal.child(stage).start(plan.hash_of(stage))
        context.journal.child(stage).params({stage: section.model_dump(mode="json")})
    cluster_train.fit(plan, config.cluster, context.journal, context.progress)
    for stage in plan.training.stages:
        context.journal.child(stage).end("FINISHED")

    if "flow" not in plan.training.stages:
        return {"steps": n_steps}
    model_hash = export(plan, vocabulary, config, context)
    return record(context, "train", key, {"steps": n_steps, "model_hash": model_hash})


def make_plan(
    config: TrainJob | PipelineJob, context: Context, vocabulary: RunVocabulary
) -> training.TrainPlan:
    """What the ranks need, checked against the size of the training set."""
    plan = training.TrainPlan(
        root=context.paths.root,
        seed=config.run.seed,
        training=config.training,
        vae=config.vae,
        flow=config.flow,
        vocabulary_hash=vocabulary.hash,
    )
    n_cells = vocabulary.index.where(TRAIN).n_cells
    for optim in (config.vae.optim, config.flow.optim):
        training.make_stream_plan(plan, optim, n_cells)
    return plan


def export(
    plan: training.TrainPlan,
    vocabulary: RunVocabulary,
    config: TrainJob | PipelineJob,
    context: Context,
) -> str:
    """Averaged weights, vocabulary and provenance -> the model folder; returns its hash."""
    model_hash = save_bundle(
        context.paths.model,
        vae=training.load_vae(plan, vocabulary),
        velocity=training.load_velocity(plan, vocabulary),
        latent_scale=training.finished_scale(plan),
        genes=vocabulary.genes,
        conditions=vocabulary.conditions,
        blocks=vocabulary.blocks,
        support=vocabulary.index.support(),
        vae_config=config.vae,
        flow_config=config.flow,
        about=provenance(context.paths) | {"config_hash": config_hash(config)},
    )
    context.journal.artifact(context.paths.model, "model")
    return model_hash


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
