"""One fold of leave-one-out: a combination held out, a model without it, its cells, their scores.

A fold runs in one process on one thread, with the stages of a whole run in a folder of its own. It
goes on where it was killed, and its record is the last thing it writes.
"""

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import anndata
import numpy as np
import pandas as pd
import torch

from save_dist.api import Model
from save_dist.config.load import resolved
from save_dist.config.schema import PipelineJob
from save_dist.core.durable import MANIFEST, digest, read_json, write_json
from save_dist.core.errors import ConfigError, DataError
from save_dist.core.paths import RunPaths
from save_dist.data.source import SomaSource
from save_dist.data.splits import TRAIN
from save_dist.evaluation import catalogue
from save_dist.evaluation.protocol import CellTable, Scores
from save_dist.evaluation.protocol import evaluate as score
from save_dist.pipelines.blocks import blocks
from save_dist.pipelines.context import Context, Summary
from save_dist.pipelines.evaluate import real_tables
from save_dist.pipelines.ingest import ingest
from save_dist.pipelines.train import export, make_plan, open_vocabulary
from save_dist.stores.bundle import ModelBundle, load_bundle
from save_dist.stores.vocabulary import RunVocabulary
from save_dist.tracking.progress import LineProgress
from save_dist.tracking.tracker import Journal, open_journal
from save_dist.training.latents import dense_cells
from save_dist.training.ranks import Ranks
from save_dist.training.run import run_stages
from save_dist.vocab.transports import reference_codes

RECORD = "fold.json"
"""Scores of a finished fold."""
_CELLS_PER_TEST_CELL = 2
_NO_PICTURE = 2  # cells in the UMAP
_MIN_CONTROLS = 20
"""Control cells of training from which real controls are transferred."""


@dataclass(frozen=True)
class Fold:
    """What a process needs for one fold.

    Args:
        name: the value that is held out.
        held_out: the combination.
        config: the whole configuration, held-out combination and folder included.
        journal: speaks for this fold in the journal of the whole.
    """

    name: str
    held_out: Mapping[str, str]
    config: PipelineJob
    journal: Journal

    def run(self) -> Summary:
        """Train, make cells in every way the model knows, score them; gives the record.

        Raises:
            ConfigError: if the folder holds this fold under other settings.
        """
        paths, key = RunPaths(self.config.run.dir), _identity(self.config)
        if (paths.root / RECORD).is_file():
            return _known(paths, key)
        with self.journal.running(key):
            self.journal.params({"held_out": dict(self.held_out), "config_hash": key})
            context = Context(paths, open_journal(paths.metrics), LineProgress(lambda line: None))
            bundle, vocabulary = _trained(self.config, context, self.journal)
            figures = _figures(*_scored(self, bundle, vocabulary))
            record = {"key": key, "name": self.name, **figures, "model": bundle.hash}
            self.journal.metrics(_flat(record), step=0)
        write_json(paths.root / RECORD, record)
        return record


def work(fold: Fold) -> Summary:
    """The form in which a fold travels to a process."""
    return fold.run()


def _identity(config: PipelineJob) -> str:
    """Of everything that scores depend on: not where the fold lies or who watches."""
    settings = resolved(config)
    settings["run"].pop("dir")
    return digest({k: v for k, v in settings.items() if k not in ("tracking", "cluster", "source")})


def _known(paths: RunPaths, key: str) -> Summary:
    record: Summary = read_json(paths.root / RECORD)
    if record["key"] != key:
        raise ConfigError(
            f"{paths.root} holds a fold made with other settings (key {record['key'][:12]}, now "
            f"{key[:12]}); choose another run.dir, or delete {paths.root}"
        )
    return record


@dataclass(frozen=True)
class _Reporter:
    """Metrics of all stages under the name of the fold."""

    journal: Journal

    def metrics(self, stage: str, values: Mapping[str, float], step: int) -> None:
        self.journal.metrics({f"{stage}/{name}": value for name, value in values.items()}, step)


def _trained(
    config: PipelineJob, context: Context, journal: Journal
) -> tuple[ModelBundle, RunVocabulary]:
    """The model of the fold; finished stages are kept."""
    torch.set_num_threads(1)
    ingest(config, context)
    blocks(config, context)
    vocabulary = open_vocabulary(context)
    plan = make_plan(config, context, vocabulary)
    run_stages(plan, Ranks(), _Reporter(journal), torch.device("cpu"))
    if not (context.paths.model / MANIFEST).is_file():
        export(plan, vocabulary, config, context)
    return load_bundle(context.paths.model), vocabulary


def _scored(fold: Fold, bundle: ModelBundle, vocabulary: RunVocabulary) -> tuple[str, Scores]:
    """Name of the first way of making the cells, and scores in which the others are rivals."""
    config, conditions = fold.config, vocabulary.conditions
    codes = np.array([conditions.encode_one(fold.held_out)], dtype=np.int16)
    with SomaSource(vocabulary.store) as source:
        real = real_tables(config, vocabulary, source)
        if not np.all(real.held_out.codes == codes, axis=1).any():
            raise DataError(
                f"no cell is {dict(fold.held_out)}; hold out a combination that the data have"
            )
        made = {
            name: CellTable(np.asarray(cells.X), np.repeat(codes, cells.n_obs, axis=0))
            for name, cells in _ways(fold, Model(bundle), vocabulary)
        }
        first, *_ = made
        scores = score(
            train=real.train,
            test=real.test,
            held_out=real.held_out,
            generated=made.pop(first),
            conditions=conditions,
            gene_names=vocabulary.genes.ids,
            config=config.evaluate.model_copy(update={"umap_cells": _NO_PICTURE}),
            rivals=made,
        )
    return first, scores


def _ways(
    fold: Fold, model: Model, vocabulary: RunVocabulary
) -> Iterator[tuple[str, anndata.AnnData]]:
    """Cells of the held-out combination: from noise, and from real control cells of training."""
    n, compose = _CELLS_PER_TEST_CELL * fold.config.evaluate.n_max, fold.config.grid.compose
    unmatched = compose.model_copy(update={"blend": 0.0})
    seed, solver = fold.config.run.seed, fold.config.grid.solver
    is_carried = bool(model.bundle.transport_columns)
    if is_carried:
        for name, decoding in (("composed", compose), ("composed, mean not matched", unmatched)):
            yield (
                name,
                model.generate(fold.held_out, n, seed=seed, solver=solver, compose=decoding),
            )
    yield "from labels", model.generate(fold.held_out, n, seed=seed, solver=solver, unseen="direct")
    target, controls = _controls(fold, vocabulary, n)
    if controls.n_obs < _MIN_CONTROLS:
        return
    if is_carried:
        for name, decoding in (("carried", compose), ("carried, mean not matched", unmatched)):
            cells = model.transfer(
                controls, target, method="transport", seed=seed, compose=decoding, solver=solver
            )
            yield f"controls {name}", cells
    yield "controls re-decoded", model.transfer(controls, target, method="reencode", seed=seed)
    yield (
        "controls inverted",
        model.transfer(controls, target, method="inversion", seed=seed, solver=solver),
    )
    yield (
        "controls, latent shift",
        model.transfer(controls, target, method="latent_shift", seed=seed),
    )


def _controls(
    fold: Fold, vocabulary: RunVocabulary, n: int
) -> tuple[dict[str, str], anndata.AnnData]:
    """What a control cell has to become, and control cells that training saw."""
    conditions = vocabulary.conditions
    wanted = conditions.encode_one(fold.held_out)
    at_reference = reference_codes(conditions, list(conditions.reference))
    control = tuple(at_reference.get(i, code) for i, code in enumerate(wanted))
    changed = [i for i, (a, b) in enumerate(zip(control, wanted, strict=True)) if a != b]
    columns = [conditions.columns[i] for i in changed]
    index = vocabulary.index.where(TRAIN)
    rows = np.flatnonzero(np.all(index.codes == control, axis=1))[: n if changed else 0]
    counts = np.zeros((rows.size, len(vocabulary.genes)), dtype=np.float32)
    for first, cells in dense_cells(vocabulary.store, index.take(rows), vocabulary.gene_positions):
        counts[first : first + cells.library.size] = cells.counts
    obs = pd.DataFrame(
        [conditions.decode_one(control)] * rows.size,
        index=pd.RangeIndex(rows.size).astype(str),
        columns=list(conditions.columns),
    )
    var = pd.DataFrame(index=pd.Index(vocabulary.genes.ids))
    return {c: fold.held_out[c] for c in columns}, anndata.AnnData(counts, obs=obs, var=var)


def _figures(first: str, scores: Scores) -> dict[str, Any]:
    """Scores of every way and every baseline in the held-out combination."""
    (only,) = (c for c in scores.combinations if c.group == catalogue.HELD_OUT)
    found = {
        candidate: {
            **values,
            **{f"{d}_s": s for d, s in only.normalised.get(candidate, {}).items()},
        }
        for candidate, values in only.metrics.items()
    }
    ways = {first: found.pop(catalogue.GENERATED)}
    ways |= {name: found.pop(name) for name in list(found) if name not in catalogue.CANDIDATES}
    return {
        "n_test": only.n_test,
        "n_used": only.n_used,
        "is_averaged": only.is_averaged,
        "ways": ways,
        "baselines": found,
        "responders": [asdict(r) for r in scores.responders],
        "protocol": scores.protocol,
    }


def _flat(record: Summary) -> dict[str, float]:
    """Metrics of every way for a tracker, `composed/energy_s` and so on."""
    return {
        f"{way.replace(',', '')}/{metric.replace(':', '.')}": value
        for way, values in record["ways"].items()
        for metric, value in values.items()
    }
