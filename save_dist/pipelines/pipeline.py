"""The whole path, in order. Finished stages are recognised and skipped."""

from save_dist.cluster.runtime import shared_session
from save_dist.config.schema import PipelineJob
from save_dist.pipelines import blocks, evaluate, generate, ingest, train
from save_dist.pipelines.context import Context, Summary
from save_dist.pipelines.gene_vectors import check_embedding


def pipeline(config: PipelineJob, context: Context) -> Summary:
    """Files of cells -> store -> vocabulary -> model -> atlas -> report."""
    check_embedding(config.blocks.embedding)
    with shared_session():
        summary = {
            "ingest": ingest.ingest(config, context),
            "blocks": blocks.blocks(config, context),
        }
        summary["train"] = train.train(config, context)
        summary["generate"] = generate.generate(config, context)
    summary["evaluate"] = evaluate.evaluate(config, context)
    return summary


def preview(config: PipelineJob) -> Summary:
    """What is known before there is a model."""
    return {
        "ingest": ingest.preview(config),
        "blocks": blocks.preview(config),
        "train": train.preview(config),
    }
