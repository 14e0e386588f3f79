"""Which figures a report has, and what each one is called."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
from matplotlib.figure import Figure

from save_dist.evaluation import catalogue, plots
from save_dist.evaluation.plots import Curve, HeatRow, Theme
from save_dist.evaluation.scores import CombinationScores, Scores
from save_dist.evaluation.verdict import GROUP_TITLES

MAX_ROWS = 60
"""Combinations shown one by one; more are averaged per condition value."""
MAX_CURVE_POINTS = 2000

Series = tuple[Sequence[float | int], Sequence[float | int]]
"""Steps and values of one training curve."""


@dataclass(frozen=True)
class Drawing:
    """A figure to be drawn once per theme.

    Args:
        name: file name without its ending.
        section: part of the page it belongs to.
        description: what a reader who cannot see it should know.
        caption: one line below it.
        draw: makes the figure.
    """

    name: str
    section: str
    description: str
    caption: str
    draw: Callable[[Theme], Figure]


def drawings(scores: Scores, curves: Mapping[str, Series]) -> list[Drawing]:
    """All figures in the order of the page."""
    return [*_cells(scores), *_genes(scores), *_heat_map(scores), *_curves(curves)]


def _cells(scores: Scores) -> Iterator[Drawing]:
    picture = scores.picture
    yield Drawing(
        "umap-source",
        "cells",
        "Scatter of real and generated cells",
        "Real and generated cells; where they mix, they are alike.",
        partial(plots.cells_by_source, picture),
    )
    for i, column in enumerate(scores.columns):
        yield Drawing(
            f"umap-column-{i}",
            "cells",
            f"The same cells coloured by {column}",
            f"Coloured by {column}, real and generated together.",
            partial(plots.cells_by_column, picture, i, scores.categories[i]),
        )
    if picture.is_held_out.any():
        yield Drawing(
            "umap-held-out",
            "cells",
            "The same cells, held-out combinations in colour",
            "Combinations that training never saw, before all others.",
            partial(plots.cells_by_group, picture),
        )


def _genes(scores: Scores) -> Iterator[Drawing]:
    titles = ("mean expression", "variance", "zero fraction")
    for name, profiles in scores.profiles.items():
        for part, title in zip(profiles.real._fields, titles, strict=True):
            truth, found = (getattr(p, part) for p in (profiles.real, profiles.generated))
            yield Drawing(
                f"genes-{name.replace('_', '-')}-{part}",
                f"genes-{name}",
                f"{title} of each gene, generated against real",
                f"{title.capitalize()} per gene, {GROUP_TITLES[name].lower()}.",
                partial(plots.genes, truth, found, title),
            )


def _heat_map(scores: Scores) -> Iterator[Drawing]:
    rows = heat_rows(scores)
    if rows:
        yield Drawing(
            "combinations",
            "combinations",
            "Normalised scores per combination, worst first",
            "Normalised scores of the generated cells. 0: as close as other real cells. 1: no "
            "better than ignoring the condition.",
            partial(plots.heat_map, rows, ("Energy", "MMD", "W1", "W2")),
        )


def heat_rows(scores: Scores) -> list[HeatRow]:
    """Rows of the heat map, worst energy score first; one per condition value if many."""
    scored = [c for c in scores.combinations if c.normalised.get(catalogue.GENERATED)]
    rows = [_row(label_of(c), [c]) for c in scored]
    if len(scored) > MAX_ROWS:
        rows = [
            _row(f"{column}: {value} ({len(members)})", members)
            for column in scores.columns
            for value, members in _by_value(scored, column).items()
        ]
    rows.sort(key=lambda row: -np.inf if row.values[0] is None else row.values[0], reverse=True)
    return rows[:MAX_ROWS]


def label_of(combination: CombinationScores) -> str:
    """Values of the condition, and whether it was held out."""
    label = " / ".join(combination.condition.values())
    return f"{label} (held out)" if combination.group == catalogue.HELD_OUT else label


def _row(label: str, members: Sequence[CombinationScores]) -> HeatRow:
    support = f"{sum(c.n_train for c in members)} | {sum(c.n_test for c in members)}"
    values = []
    for distance in catalogue.DISTANCES:
        found = [c.normalised[catalogue.GENERATED].get(distance) for c in members]
        known = [v for v in found if v is not None]
        values.append(float(np.mean(known)) if known else None)
    return HeatRow(label, support, tuple(values))


def _by_value(
    combinations: Sequence[CombinationScores], column: str
) -> dict[str, list[CombinationScores]]:
    found: dict[str, list[CombinationScores]] = {}
    for combination in combinations:
        found.setdefault(combination.condition[column], []).append(combination)
    return found


def _curves(curves: Mapping[str, Series]) -> Iterator[Drawing]:
    """One figure per stage and quantity; `vae/train/loss` and `vae/val/loss` share one."""
    panels: dict[tuple[str, str], list[Curve]] = {}
    for name, (steps, values) in curves.items():
        if len(steps) > 1:
            stage, label, quantity = _split(name)
            thin = max(1, len(steps) // MAX_CURVE_POINTS)
            curve = Curve(label or quantity, steps[::thin], values[::thin])
            panels.setdefault((stage, quantity), []).append(curve)
    for i, ((stage, quantity), members) in enumerate(sorted(panels.items())):
        title = f"{stage} {quantity}".strip()
        yield Drawing(
            f"training-{i}",
            "training",
            f"{title} over optimiser steps",
            title,
            partial(plots.training, members, title),
        )


def _split(name: str) -> tuple[str, str, str]:
    """Stage, line and quantity of a series name; a name of two parts has no stage."""
    *before, quantity = name.split("/")
    if len(before) < 2:
        return "", "/".join(before), quantity
    return before[0], "/".join(before[1:]), quantity
