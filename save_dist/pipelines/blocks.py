"""Blocks: SOMA store -> vocabulary. Conditions, split, genes and gene blocks, fitted on train."""

import time

import numpy as np

from save_dist.cluster.runtime import shared_session
from save_dist.cluster.spread import RaySpread
from save_dist.config.schema import BlocksJob, PipelineJob
from save_dist.core.durable import digest, read_json
from save_dist.core.errors import DataError
from save_dist.data.source import SomaSource, StoreLocator
from save_dist.data.splits import TRAIN, CellIndex, assign_splits
from save_dist.data.statistics import (
    gene_statistics,
    select_genes,
    vocabulary_statistics,
)
from save_dist.pipelines.context import Context, Summary, finished, record
from save_dist.pipelines.gene_vectors import check_embedding, gene_vectors, input_digests
from save_dist.pipelines.ingest import attached
from save_dist.stores.vocabulary import RunVocabulary, save_vocabulary
from save_dist.vocab.blocks import build_blocks
from save_dist.vocab.conditions import ConditionVocabulary, matches
from save_dist.vocab.genes import GeneVocabulary


def blocks(config: BlocksJob | PipelineJob, context: Context) -> Summary:
    """Fix what the numbers of the run mean, before anything is trained."""
    ingested = _ingested(context)
    inputs = input_digests(config.blocks.embedding)
    key = digest([ingested, config.run.seed, _settings(config), *inputs])
    if (summary := finished(context, "blocks", key)) is not None:
        return summary
    check_embedding(config.blocks.embedding)

    locator = attached(context.paths) or StoreLocator(
        str(context.paths.store.absolute()), timestamp=time.time_ns() // 1_000_000
    )
    with SomaSource(locator) as source:
        conditions, index = _index_cells(source, config, ingested["label_origin"])
        train, store_genes = index.where(TRAIN), source.gene_ids
    spread = RaySpread(config.cluster)
    with shared_session(), context.progress.task("gene statistics", 2, "passes") as task:
        statistics = gene_statistics(locator, train, spread=spread)
        positions = select_genes(statistics, store_genes, config.genes)
        task.update(1)
        chosen = vocabulary_statistics(
            locator,
            train,
            positions,
            with_covariance=config.blocks.embedding.source == "coexpression",
            spread=spread,
        )
        task.update(2)

    genes = GeneVocabulary(tuple(store_genes[p] for p in positions))
    embedding = gene_vectors(
        config.blocks.embedding, genes, chosen.covariance, context, config.run.seed
    )
    gene_blocks = build_blocks(
        embedding.vectors,
        config.blocks.genes_per_block,
        n_iterations=config.blocks.n_iterations,
        seed=config.run.seed,
    )

    vocabulary = save_vocabulary(
        context.paths.vocab,
        RunVocabulary(
            genes=genes,
            conditions=conditions,
            blocks=gene_blocks,
            index=index,
            gene_positions=positions,
            scale=chosen.max_log,
            fraction=(chosen.mean_count / chosen.mean_count.sum()).astype(np.float32),
            store=locator,
            hash="",
        ),
    )
    context.journal.artifact(context.paths.vocab / "conditions.json", "vocab")
    context.journal.artifact(context.paths.vocab / "blocks.json", "vocab")
    summary = {
        "n_genes": len(genes),
        "n_blocks": int(gene_blocks.members.shape[0]),
        "n_train_cells": train.n_cells,
        "n_combinations": len(index.support()),
        "embedding": embedding.source,
        "embedding_digest": embedding.digest,
        "n_genes_with_vector": embedding.n_found,
        "vocabulary_hash": vocabulary.hash,
    }
    return record(context, "blocks", key, summary)


def preview(config: BlocksJob | PipelineJob) -> Summary:
    """How genes will be grouped; fails if the vectors it needs cannot be had."""
    return {
        "genes_per_block": config.blocks.genes_per_block,
        "gene_vectors": check_embedding(config.blocks.embedding),
    }


def _ingested(context: Context) -> Summary:
    path = context.paths.stages / "ingest.json"
    if not path.is_file():
        raise DataError(
            f"{context.paths.store} is not a finished store: run `save-dist ingest` with this "
            "run.dir first"
        )
    summary: Summary = read_json(path)["summary"]
    return summary


def _settings(config: BlocksJob | PipelineJob) -> list[object]:
    sections = (config.conditions, config.split, config.genes, config.blocks)
    return [section.model_dump(mode="json") for section in sections]


def _index_cells(
    source: SomaSource, config: BlocksJob | PipelineJob, label_origin: dict[str, str]
) -> tuple[ConditionVocabulary, CellIndex]:
    """Condition codes and split of every cell that is not excluded."""
    obs = source.obs(config.conditions.columns)
    obs = obs[~matches(obs, config.conditions.exclude)]
    conditions = ConditionVocabulary.from_frame(obs, config.conditions, label_origin)
    codes = conditions.encode(obs)
    cell_ids = source.cell_names.loc[obs.index].tolist()
    split = assign_splits(cell_ids, codes, conditions, config.split, config.run.seed)
    return conditions, CellIndex(obs.index.to_numpy(np.int64), codes, split)
