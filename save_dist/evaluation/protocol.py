"""Evaluation from end to end: real and generated cells -> scores.

Fits the space and the baselines on training cells, makes one task per condition combination,
runs the tasks over processes, and averages what comes back.
"""

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import chain
from typing import Any

import numpy as np

from save_dist.config.schema import EvaluateConfig
from save_dist.core import seeding
from save_dist.core.errors import DataError
from save_dist.evaluation import catalogue, summary
from save_dist.evaluation.biology import GeneProfile
from save_dist.evaluation.classify import fit_labels
from save_dist.evaluation.combination import (
    N_CORRELATED,
    N_TREE_GENES,
    CombinationResult,
    Shared,
)
from save_dist.evaluation.discrimination import with_discrimination
from save_dist.evaluation.pool import Job, one_thread, run_jobs
from save_dist.evaluation.responders import rank_responders
from save_dist.evaluation.scores import (
    CombinationScores,
    GroupProfiles,
    Picture,
    Scores,
    SpaceFacts,
    TopGenes,
)
from save_dist.evaluation.space import Space, TrainCells, fit_space
from save_dist.evaluation.tables import CellTable, Codes, check_tables
from save_dist.evaluation.tasks import POOL, Real, Rival, TaskMaker
from save_dist.vocab.conditions import ConditionVocabulary

logger = logging.getLogger(__name__)

__all__ = ["CellTable", "Scores", "evaluate"]

MIN_SCORED = 20
"""Cells per side below which floor and marginal are too noisy for a normalised score."""
MIN_TRAIN_CELLS = 50
"""Training cells below which no space can be fitted."""


def evaluate(
    *,
    train: CellTable,
    test: CellTable,
    held_out: CellTable,
    generated: CellTable,
    conditions: ConditionVocabulary,
    gene_names: Sequence[str],
    config: EvaluateConfig,
    rivals: Mapping[str, CellTable] | None = None,
    n_workers: int = 1,
    progress: Callable[[int, int], None] | None = None,
) -> Scores:
    """Compare generated with real cells, combination by combination.

    Args:
        train: training cells, or a random part of them (20,000 are plenty); the space, the
            baselines and the label classifiers are fitted on them.
        test: real cells of seen combinations that nothing was fitted on.
        held_out: real cells of combinations that training never saw; may be empty.
        generated: cells of the model; further combinations are ignored.
        conditions: what the codes mean, and which value of a column is its reference.
        gene_names: names of the genes, in the order of the counts.
        config: settings of the protocol.
        rivals: cells that other methods made, by name; they stand beside the baselines in
            `metrics` and `normalised`, wherever they have cells of a combination.
        n_workers: processes; the scores do not depend on it.
        progress: called with jobs done and jobs in all.

    Raises:
        VocabMismatchError: if the tables differ in genes or columns.
        DataError: if there are too few training cells, or no real combination was generated.
        InfrastructureError: if a process dies.
    """
    rivals = {name: replace(table, name=name) for name, table in (rivals or {}).items()}
    tables = (train, test, held_out, generated)
    named = zip(tables, ("train", "test", "held_out", "generated"), strict=True)
    train, test, held_out, generated = (replace(table, name=name) for table, name in named)
    check_tables((train, test, held_out, generated, *rivals.values()), len(conditions.columns))
    if train.n_cells < MIN_TRAIN_CELLS:
        raise DataError(
            f"{train.n_cells} training cells are too few to compare anything with; expected "
            f"{MIN_TRAIN_CELLS} or more"
        )
    seed = config.seeds[0]
    with one_thread():
        space, known = fit_space(train, config.n_components, seed)
        shared = _shared(space, known, train, config)
    maker = TaskMaker(
        train=train,
        known=known,
        real=Real.of(test, held_out),
        generated=generated,
        space=space,
        conditions=conditions,
        gene_names=tuple(gene_names),
        n_max=config.n_max,
        seed=seed,
        generated_rows=generated.rows_by_combination(),
        rivals={name: Rival.of(table) for name, table in rivals.items()},
    )
    gathered = _run(maker, shared, config.umap_cells, n_workers, progress)
    gathered.results = with_discrimination(gathered.results, maker)
    return _scores(maker, gathered, config)


@dataclass
class _Gathered:
    """Results as they come in."""

    results: dict[Codes, CombinationResult] = field(default_factory=dict)
    pictures: list[Picture] = field(default_factory=list)
    top_genes: list[TopGenes] = field(default_factory=list)

    def add(self, result: CombinationResult | Picture | TopGenes) -> None:
        if isinstance(result, Picture):
            self.pictures.append(result)
        elif isinstance(result, TopGenes):
            self.top_genes.append(result)
        else:
            self.results[result.codes] = result

    @property
    def n_done(self) -> int:
        """Jobs that are done."""
        return len(self.results) + len(self.pictures) + len(self.top_genes)


def _run(
    maker: TaskMaker,
    shared: Shared,
    n_picture_cells: int,
    n_workers: int,
    progress: Callable[[int, int], None] | None,
) -> _Gathered:
    """Run all tasks; the picture first, since it takes longest."""
    combinations = maker.combinations()
    if not combinations:
        raise DataError(
            f"none of the {len(maker.real.rows)} combinations of real cells was generated "
            f"(generated: {len(maker.generated_rows)} others); generate the conditions of the "
            "test cells, e.g. with an empty `grid`, which means all of them"
        )
    missing = [codes for codes in maker.real.rows if codes not in maker.generated_rows]
    if missing:
        first = maker.conditions.decode_one(missing[0])
        logger.warning("event=combinations_not_generated n=%d first=%s", len(missing), first)
    gathered = _Gathered()
    total = len(combinations) + 1 + len(maker.expressed())

    def report(result: CombinationResult | Picture | TopGenes) -> None:
        gathered.add(result)
        if progress is not None:
            progress(gathered.n_done, total)

    picture: list[Job[Any]] = [maker.picture(n_picture_cells)]
    run_jobs(
        chain(picture, maker.expressions(), maker.tasks()), shared, min(n_workers, total), report
    )
    return gathered


def _shared(space: Space, known: TrainCells, train: CellTable, config: EvaluateConfig) -> Shared:
    seed = config.seeds[0]
    rng = seeding.generator(seed, "marginal_cells")
    some = np.sort(rng.permutation(train.n_cells)[: POOL * config.n_max])
    return Shared(
        space=space,
        marginal=space.read(train.read(some)),
        train_pca=known.pca,
        labels=fit_labels(known.pca, train.codes, seed),
        n_max=config.n_max,
        seeds=tuple(config.seeds),
    )


def _scores(maker: TaskMaker, gathered: _Gathered, config: EvaluateConfig) -> Scores:
    scored = [_combination(maker, gathered.results[c], config) for c in maker.combinations()]
    groups = {
        name: [c for c in scored if c.group == name]
        for name in (catalogue.SEEN, catalogue.HELD_OUT)
    }
    averages = {
        name: summary.summarise(members, config.n_bootstrap, config.seeds[0])
        for name, members in groups.items()
    }
    missing = [codes for codes in maker.real.rows if codes not in maker.generated_rows]
    return Scores(
        protocol=catalogue.PROTOCOL,
        config=config.model_dump(mode="json"),
        columns=maker.conditions.columns,
        categories=maker.conditions.categories,
        space=_space_facts(maker),
        seen=averages[catalogue.SEEN],
        held_out=averages[catalogue.HELD_OUT],
        combinations=tuple(scored),
        missing=tuple(maker.conditions.decode_one(codes) for codes in missing),
        remarks=tuple(_remarks(maker, config)),
        responders=tuple(rank_responders(gathered.results, maker, config.responders)),
        top_genes=tuple(
            sorted(gathered.top_genes, key=lambda t: (not t.is_held_out, *t.condition.values()))
        ),
        profiles=dict(_profiles(groups, gathered.results)),
        picture=gathered.pictures[0],
    )


def _combination(
    maker: TaskMaker, result: CombinationResult, config: EvaluateConfig
) -> CombinationScores:
    codes = result.codes
    n_test = len(maker.real.rows[codes])
    means, spreads = summary.mean_and_spread(result.metrics)
    return CombinationScores(
        condition=maker.conditions.decode_one(codes),
        codes=codes,
        group=catalogue.HELD_OUT if codes in maker.real.held_out else catalogue.SEEN,
        n_train=len(maker.known.rows.get(codes, ())),
        n_test=n_test,
        n_generated=len(maker.generated_rows[codes]),
        n_used=result.n_used,
        is_averaged=min(n_test, result.n_used) >= min(config.min_cells, config.n_max),
        metrics=means,
        spread=spreads.get(catalogue.GENERATED, {}),
        normalised=summary.normalised(means, spreads.get(catalogue.FLOOR, {}))
        if result.n_used >= MIN_SCORED
        else {},
    )


def _space_facts(maker: TaskMaker) -> SpaceFacts:
    return SpaceFacts(
        n_train_cells=maker.train.n_cells,
        n_genes=len(maker.space.genes),
        n_components=maker.space.components.shape[1],
        explained=maker.space.explained,
        median_squared=maker.space.median_squared,
    )


def _profiles(
    groups: dict[str, list[CombinationScores]], results: dict[Codes, CombinationResult]
) -> Iterator[tuple[str, GroupProfiles]]:
    """Mean gene profiles per group, over the averaged combinations if there are any."""
    for name, members in groups.items():
        chosen = [c for c in members if c.is_averaged] or members
        if chosen:
            found = [results[c.codes] for c in chosen]
            yield (
                name,
                GroupProfiles(
                    real=_mean_profile([r.real for r in found]),
                    generated=_mean_profile([r.generated for r in found]),
                ),
            )


def _mean_profile(profiles: Sequence[GeneProfile]) -> GeneProfile:
    mean, variance, zeros = (np.mean(parts, axis=0) for parts in zip(*profiles, strict=True))
    return GeneProfile(mean, variance, zeros)


def _remarks(maker: TaskMaker, config: EvaluateConfig) -> Iterator[str]:
    """How the numbers were made, for whoever reads them."""
    space = maker.space
    yield (
        f"Space: {len(space.genes)} genes, log1p of counts per 10,000; PCA with "
        f"{space.components.shape[1]} components fitted on {maker.train.n_cells} training cells, "
        f"which hold {space.explained:.1%} of their variance."
    )
    yield (
        f"Equal numbers on both sides, at most {config.n_max}; means over {len(config.seeds)} "
        "sampling seeds, but classifiers (AUC) and the distance to training cells: first seed."
    )
    yield (
        "Wasserstein distances, neighbourhoods and gene correlations depend on the number of "
        "cells, so all are compared at n/2, the number of the floor (half against half)."
    )
    yield (
        f"Boosted trees see the {min(N_TREE_GENES, len(space.genes))} most variable genes in gene "
        f"space; correlations are those of {min(N_CORRELATED, len(space.genes))} genes."
    )
    yield (
        f"Combinations with fewer than {config.min_cells} cells are listed, not averaged; "
        "intervals are bootstrap 95% over combinations."
    )
    space_names = {maker.gene_names[i] for i in space.genes.tolist()}
    if absent := [gene for gene in config.responders if gene not in space_names]:
        yield f"Genes of known response that are not among those compared: {', '.join(absent)}."
    if maker.real.held_out:
        yield (
            "Of held-out combinations the gene shuffle is made from the held-out cells "
            "themselves: a yardstick, not a rival."
        )
