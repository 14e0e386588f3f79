"""Evaluate: atlas and held-back real cells -> scores, pictures, one page."""

import sys
from typing import Any, NamedTuple

import numpy as np

from save_dist.config.schema import EvaluateJob, PipelineJob
from save_dist.core.durable import digest, read_json, write_bytes
from save_dist.core.errors import DataError
from save_dist.data.lazy import soma_reader
from save_dist.data.source import SomaSource
from save_dist.data.splits import HELD_OUT, TEST, TRAIN, CellIndex
from save_dist.data.subsample import sample_combinations, sample_split
from save_dist.evaluation.attention import attention_map
from save_dist.evaluation.enrichment import GeneSet, enrich, read_gene_sets
from save_dist.evaluation.protocol import CellTable, Scores
from save_dist.evaluation.protocol import evaluate as score
from save_dist.evaluation.report import responders_table, scores_table, write_report
from save_dist.pipelines.context import Context, Summary, finished, record
from save_dist.pipelines.provenance import provenance, versions
from save_dist.pipelines.train import open_vocabulary
from save_dist.stores.atlas_reader import choose_cells
from save_dist.stores.bundle import ModelBundle, load_bundle
from save_dist.stores.vocabulary import RunVocabulary
from save_dist.tracking.progress import render_table
from save_dist.tracking.tracker import read_records
from save_dist.vocab.blocks import PADDING

TRAIN_CELLS = 20_000
"""Training cells at most that principal components and baselines are fitted on."""
TABLE_FILE = "scores.txt"
"""The final table, as printed."""
CURVES = ("train/loss", "train/kl", "val/loss", "val/reconstruction", "val/kl")
"""Series of the journal that the report shows."""
DRAWS = 4
"""Cells read per combination and side, as a multiple of evaluate.n_max."""


def evaluate(config: EvaluateJob | PipelineJob, context: Context) -> Summary:
    """Score the atlas of the run and write the report."""
    vocabulary = open_vocabulary(context)
    generated = _generated(context)
    settings = config.evaluate.model_dump(mode="json", exclude_none=True)
    key = digest([generated["atlas_digest"], settings, vocabulary.hash])
    if (summary := finished(context, "evaluate", key)) is not None:
        sys.stdout.write((context.paths.report / TABLE_FILE).read_text())
        return summary

    sets = _gene_sets(config, vocabulary)
    bundle = load_bundle(context.paths.model)
    with (
        SomaSource(vocabulary.store) as source,
        context.progress.task("evaluating", None, "jobs") as task,
    ):
        real = real_tables(config, vocabulary, source)
        scores = score(
            train=real.train,
            test=real.test,
            held_out=real.held_out,
            generated=_generated_cells(config, context, vocabulary),
            conditions=vocabulary.conditions,
            gene_names=vocabulary.genes.ids,
            config=config.evaluate,
            n_workers=config.evaluate.n_workers,
            progress=lambda done, total: task.update(done, total=total),
        )
        stamp = _stamp(scores, generated, vocabulary, source)
        attention = attention_map(bundle.vae, real.test, vocabulary.conditions, config.run.seed)

    write_report(
        context.paths.report,
        scores,
        curves=_curves(context),
        provenance={
            "trained": _trained(vocabulary, bundle),
            **stamp,
            "versions": provenance(context.paths),
        },
        notes=_notes(vocabulary),
        enriched=[] if sets is None else enrich(block_genes(vocabulary), sets),
        attention=attention,
    )
    table = render_table(scores_table(scores))
    if scores.responders:
        table += render_table(responders_table(scores.responders))
    write_bytes(context.paths.report / TABLE_FILE, table.encode())
    sys.stdout.write(table)
    journal = context.journal.child("evaluate")
    journal.params({**stamp, "versions": versions()})
    journal.metrics(scores.flat(), step=0, model=generated["model_hash"])
    journal.artifact(context.paths.report, "report")
    return record(context, "evaluate", key, scores.headline())


def preview(config: EvaluateJob) -> Summary:
    """Nothing beyond a valid configuration is known before the cells are read."""
    return {"run_dir": str(config.run.dir)}


def _generated_cells(
    config: EvaluateJob | PipelineJob, context: Context, vocabulary: RunVocabulary
) -> CellTable:
    """Cells of the atlas; their counts are read when they are asked for."""
    most = DRAWS * config.evaluate.n_max
    atlas = choose_cells(
        context.paths.atlas, vocabulary.conditions, vocabulary.genes, most, config.run.seed
    )
    return CellTable.lazy(atlas.read, atlas.rows, atlas.codes, atlas.n_genes, np.uint16)


class RealTables(NamedTuple):
    """Real cells by what they are for; their counts are read when they are asked for."""

    train: CellTable
    test: CellTable
    held_out: CellTable


def real_tables(
    config: EvaluateJob | PipelineJob, vocabulary: RunVocabulary, source: SomaSource
) -> RealTables:
    """Training, test and held-out cells of a run."""
    seed, n_genes, conditions = config.run.seed, len(vocabulary.genes), vocabulary.conditions
    most = DRAWS * config.evaluate.n_max
    read = soma_reader(source, vocabulary.gene_positions)

    def real(chosen: CellIndex) -> CellTable:
        return CellTable.lazy(read, chosen.joinids, chosen.codes, n_genes, np.float32)

    index = vocabulary.index
    return RealTables(
        train=real(sample_split(index, TRAIN, TRAIN_CELLS, seed)),
        test=real(sample_combinations(index, TEST, conditions, most, seed)),
        held_out=real(sample_combinations(index, HELD_OUT, conditions, most, seed)),
    )


def _stamp(
    scores: Scores, generated: Summary, vocabulary: RunVocabulary, source: SomaSource
) -> dict[str, Any]:
    """Without which a number of the report means nothing: protocol, n, seeds, data, model."""
    return {
        "protocol": scores.protocol,
        "n_max": scores.config["n_max"],
        "seeds": scores.config["seeds"],
        "store": source.version or f"{vocabulary.store.timestamp} ms",
        "vocabulary": vocabulary.hash,
        "atlas": generated["atlas_digest"],
        "model": generated["model_hash"],
        "plan": generated["plan_hash"],
    }


def _generated(context: Context) -> Summary:
    path = context.paths.stages / "generate.json"
    if not path.is_file():
        raise DataError(
            f"{context.paths.atlas} is not a finished atlas: run `save-dist generate` with this "
            "run.dir first"
        )
    summary: Summary = read_json(path)["summary"]
    return summary


def _trained(vocabulary: RunVocabulary, bundle: ModelBundle) -> dict[str, str]:
    """What was trained on what, in words."""
    index = vocabulary.index
    vae, flow, reflow = bundle.vae_config, bundle.flow_config, bundle.reflow_config
    held_out = [" ".join(c.values()) for c in vocabulary.conditions.held_out]
    return {
        "Cells": f"{index.where(TRAIN).n_cells:,} of {index.n_cells:,}, in "
        f"{len(bundle.support)} combinations of {' x '.join(vocabulary.conditions.columns)}",
        "Held out": ", ".join(held_out) or "nothing",
        "Genes": f"{len(vocabulary.genes):,} in {vocabulary.blocks.n_blocks} blocks",
        "VAE": f"{vae.backbone}, width {vae.width}, latent {vae.latent_dim}, {vae.likelihood}; "
        f"{vae.optim.n_steps:,} steps of {vae.optim.cells_per_step} cells",
        "Flow": f"{flow.backbone}, width {flow.width}, centre {flow.centre}; "
        f"{flow.optim.n_steps:,} steps of {flow.optim.cells_per_step} cells"
        + (f"; reflowed in {reflow.optim.n_steps:,} steps" if reflow else ""),
    }


def _curves(context: Context) -> dict[str, tuple[list[int], list[float]]]:
    """Training curves of the journal: `stage/metric` -> steps and values.

    A point repeated after a restart is the same point; the last one counts.
    """
    points: dict[str, dict[int, float]] = {}
    for record_ in read_records(context.paths.metrics, kind="metrics"):
        if record_.run in ("vae", "flow", "reflow", "transport") and record_.step is not None:
            for name, value in record_.values.items():
                if name not in CURVES:
                    continue
                points.setdefault(f"{record_.run}/{name}", {})[record_.step] = float(value)
    return {
        name: (sorted(series), [series[step] for step in sorted(series)])
        for name, series in points.items()
    }


def _gene_sets(
    config: EvaluateJob | PipelineJob, vocabulary: RunVocabulary
) -> list[GeneSet] | None:
    """The gene sets asked for, read before anything is scored."""
    path = config.evaluate.gene_sets
    return None if path is None else read_gene_sets(path, vocabulary.genes.ids)


def block_genes(vocabulary: RunVocabulary) -> dict[int, list[str]]:
    """Names of the genes of every block."""
    names = vocabulary.genes.ids
    return {
        block: [names[i] for i in members if i != PADDING]
        for block, members in enumerate(vocabulary.blocks.members.tolist())
    }


def _notes(vocabulary: RunVocabulary) -> list[str]:
    """What a reader must know about the labels before believing a score."""
    notes = vocabulary.conditions.notes
    return [f"Labels of {column} are {origin}." for column, origin in sorted(notes.items())]
