"""Ingest: files of cells -> one TileDB-SOMA experiment with raw counts.

Or, with `source`, a store of others: it is checked and pinned, and nothing is copied.
"""

import dataclasses
import time

from save_dist.cluster.spread import RaySpread
from save_dist.config.schema import IngestConfig, IngestJob, PipelineJob, SourceConfig
from save_dist.core.durable import digest, read_json
from save_dist.core.paths import RunPaths
from save_dist.data.attach import attach
from save_dist.data.ingest import check_inputs
from save_dist.data.ingest import ingest as write_store
from save_dist.data.source import StoreLocator
from save_dist.pipelines.context import Context, Summary, finished, record


def ingest(config: IngestJob | PipelineJob, context: Context) -> Summary:
    """Check every input, then write the store; finished inputs of a killed run are kept."""
    if config.source is not None:
        return _attach(config, config.source, context)
    assert config.ingest is not None  # checked by the schema
    key, summary = _copy(config, config.ingest, context)
    _announce(context, f"soma://{context.paths.store.name}", key, summary)
    return record(context, "ingest", key, summary)


def preview(config: IngestJob | PipelineJob) -> Summary:
    """What the inputs, or a store of others, amount to; reads their headers."""
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


def attached(paths: RunPaths) -> StoreLocator | None:
    """The store of others that the run uses, as it was pinned; None for a run with its own."""
    place = paths.stages / "ingest.json"
    facts = read_json(place)["summary"].get("store") if place.is_file() else None
    return None if facts is None else StoreLocator.from_json(facts, paths.root)


def _copy(
    config: IngestJob | PipelineJob, ingest_config: IngestConfig, context: Context
) -> tuple[str, Summary]:
    """Write the run's own store; returns its identity and what it holds."""
    with context.progress.task("ingesting", None, "cells") as task:
        written = write_store(
            ingest_config,
            config.conditions,
            context.paths.store,
            seed=config.run.seed,
            progress=lambda done, total: task.update(done, total=total),
            spread=RaySpread(config.cluster),
        )
    summary = dataclasses.asdict(written)
    return summary.pop("key"), summary


def _attach(config: IngestJob | PipelineJob, source: SourceConfig, context: Context) -> Summary:
    key = digest({"source": source.model_dump(mode="json"), "columns": config.conditions.columns})
    if (summary := finished(context, "ingest", key)) is not None:
        return summary
    found = attach(source, config.conditions.columns, time.time_ns() // 1_000_000)
    summary = {
        "n_cells": found.n_cells,
        "n_genes": found.n_genes,
        "label_origin": {},
        "store": found.locator.to_json(context.paths.root),
    }
    uri = f"soma://{found.locator.uri}?timestamp={found.locator.timestamp}"
    _announce(context, uri, key, summary)
    return record(context, "ingest", key, summary)


def _announce(context: Context, uri: str, key: str, summary: Summary) -> None:
    """Tell the trackers which cells the run is about."""
    journal = context.journal.child("ingest")
    names = ("n_cells", "n_genes", "nnz")
    facts: dict[str, int] = {name: summary[name] for name in names if name in summary}
    journal.metrics({f"data/{name}": value for name, value in facts.items()}, step=0)
    journal.dataset(context.paths.root.name, uri, key[:36], "training", facts)
