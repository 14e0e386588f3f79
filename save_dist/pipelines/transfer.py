"""Transfer: model and real cells -> the same cells under another condition."""

import shutil
import warnings
from pathlib import Path

import anndata
import numpy as np
import pandas as pd

from save_dist.api import Model
from save_dist.config.schema import Condition, TransferJob
from save_dist.core.durable import digest
from save_dist.core.errors import ConfigError, DataError
from save_dist.data.source import SomaSource
from save_dist.data.splits import CellIndex
from save_dist.pipelines.context import Context, Summary, finished, record
from save_dist.pipelines.train import open_vocabulary
from save_dist.stores.bundle import load_bundle
from save_dist.stores.vocabulary import RunVocabulary
from save_dist.training.latents import dense_cells

CELLS_AT_ONCE = 4096


def transfer(config: TransferJob, context: Context) -> Summary:
    """Decode the cells that match `source` under `target`, into an AnnData-Zarr store."""
    vocabulary = open_vocabulary(context)
    model = Model(load_bundle(context.paths.model))
    wanted = config.transfer
    key = digest([model.bundle.hash, vocabulary.hash, wanted.model_dump(mode="json")])
    if (summary := finished(context, "transfer", key)) is not None:
        return summary

    index = _matching(vocabulary, wanted.source)
    names = _cell_ids(vocabulary, index)
    method = wanted.method  # of all cells alike, however they are read
    if method == "auto":
        method = "transport" if model.carries(index.codes, wanted.target) else "redecode"
    out = []
    with context.progress.task("transferring", index.n_cells, "cells") as task:
        for first, cells in dense_cells(
            vocabulary.store, index, vocabulary.gene_positions, CELLS_AT_ONCE
        ):
            rows = slice(first, first + cells.library.size)
            real = _as_anndata(vocabulary, cells.counts, index.codes[rows], names[rows])
            moved = model.transfer(real, wanted.target, seed=config.run.seed, method=method)
            out.append(moved)
            task.update(rows.stop)

    path = context.paths.root / wanted.output
    _write(anndata.concat(out, merge="same", uns_merge="same"), path)
    summary = {
        "n_cells": index.n_cells,
        "output": str(path),
        "method": method,
        "model_hash": model.bundle.hash,
    }
    return record(context, "transfer", key, summary)


def _matching(vocabulary: RunVocabulary, source: Condition) -> CellIndex:
    """Cells whose condition has all values of `source`."""
    codes = vocabulary.conditions.encode_one(source)
    index = vocabulary.index
    chosen = np.ones(index.n_cells, dtype=bool)
    for number, column in enumerate(vocabulary.conditions.columns):
        if column in source:
            chosen &= index.codes[:, number] == codes[number]
    if not chosen.any():
        raise ConfigError(
            f"transfer.source={source} matches no cell of the store; check the combination"
        )
    return index.take(np.flatnonzero(chosen))


def _cell_ids(vocabulary: RunVocabulary, index: CellIndex) -> np.ndarray:
    with SomaSource(vocabulary.store) as source:
        names = source.cell_names
    if missing := set(index.joinids.tolist()) - set(names.index):
        raise DataError(f"the store lacks {len(missing)} cells of the vocabulary; ingest again")
    ids: np.ndarray = names.loc[index.joinids].to_numpy()
    return ids


def _as_anndata(
    vocabulary: RunVocabulary, counts: np.ndarray, codes: np.ndarray, names: np.ndarray
) -> anndata.AnnData:
    conditions = vocabulary.conditions
    obs = pd.DataFrame(index=pd.Index(names.astype(str)))
    for number, column in enumerate(conditions.columns):
        obs[column] = np.array(conditions.categories[number], dtype=object)[codes[:, number]]
    return anndata.AnnData(counts, obs=obs, var=pd.DataFrame(index=list(vocabulary.genes.ids)))


def _write(adata: anndata.AnnData, path: Path) -> None:
    """Write aside, then rename: the store is there whole or not at all."""
    aside = path.with_name(f".{path.name}.part")
    shutil.rmtree(aside, ignore_errors=True)
    with (
        anndata.settings.override(zarr_write_format=3, auto_shard_zarr_v3=True),
        warnings.catch_warnings(),
    ):
        # zarr 3.1 warns that the v3 specification has no consolidated metadata yet
        warnings.simplefilter("ignore", UserWarning)
        adata.write_zarr(aside)
    shutil.rmtree(path, ignore_errors=True)
    aside.rename(path)
