"""The whole path, in order. Finished stages are recognised and skipped."""

from save_dist.cluster.runtime import shared_session
from save_dist.config.schema import PipelineJob
from save_dist.pipelines.blocks import blocks
from save_dist.pipelines.context import Context, Summary
from save_dist.pipelines.evaluate import evaluate
from save_dist.pipelines.gene_vectors import check_embedding
from save_dist.pipelines.generate import generate
from save_dist.pipelines.ingest import ingest
from save_dist.pipelines.train import train


def pipeline(config: PipelineJob, context: Context) -> Summary:
    """Files of cells -> store -> vocabulary -> model -> atlas -> report."""
    check_embedding(config.blocks.embedding)
    with shared_session():
        summary = {"ingest": ingest(config, context), "blocks": blocks(config, context)}
        summary["train"] = train(config, context)
        summary["generate"] = generate(config, context)
    summary["evaluate"] = evaluate(config, context)
    return summary
