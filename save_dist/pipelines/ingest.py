"""Ingest: files of cells -> one TileDB-SOMA experiment with raw counts."""

import dataclasses

from save_dist.config.schema import IngestJob, PipelineJob
from save_dist.data.ingest import ingest as write_store
from save_dist.data.ingest import ingest_key
from save_dist.pipelines.context import Context, Summary, record


def ingest(config: IngestJob | PipelineJob, context: Context) -> Summary:
    """Check every input, then write the store; finished inputs of a killed run are kept."""
    with context.progress.task("ingesting", None, "cells") as task:
        written = write_store(
            config.ingest,
            config.conditions,
            context.paths.store,
            seed=config.run.seed,
            progress=lambda done, total: task.update(done, total=total),
        )

    journal = context.journal.child("ingest")
    facts = {"n_cells": written.n_cells, "n_genes": written.n_genes, "nnz": written.nnz}
    key = ingest_key(config.ingest, config.conditions, config.run.seed)
    journal.metrics({f"data/{name}": value for name, value in facts.items()}, step=0)
    journal.dataset(
        context.paths.root.name, f"soma://{context.paths.store.name}", key[:36], "training", facts
    )
    return record(context, "ingest", key, dataclasses.asdict(written))
