"""Which figures a report has, and what each one is called."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
from jaxtyping import Float64, Int64
from matplotlib.figure import Figure
from numpy import ndarray

from save_dist.evaluation import catalogue, plots
from save_dist.evaluation.attention import AttentionMap
from save_dist.evaluation.plots import Curve, HeatRow, Theme
from save_dist.evaluation.scores import CombinationScores, Scores
from save_dist.evaluation.verdict import GROUP_TITLES

MAX_ROWS = 40
"""Rows of a heat map; of more combinations the worst, and averages per condition value."""
MAX_CURVE_POINTS = 2000
_HEADS = ("Energy", "MMD", "W1", "W2")

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


def drawings(
    scores: Scores, curves: Mapping[str, Series], attention: AttentionMap | None
) -> list[Drawing]:
    """All figures in the order of the page."""
    return [
        *_cells(scores),
        *_top_genes(scores),
        *_genes(scores),
        *_heat_maps(scores),
        *_attention(attention),
        *_curves(curves),
    ]


def _cells(scores: Scores) -> Iterator[Drawing]:
    picture = scores.picture
    yield Drawing(
        "umap-source",
        "cells",
        "Scatter of real and generated cells",
        "Real and generated cells; where they mix, they are alike.",
        partial(plots.cells_by_source, picture),
    )
    if picture.is_held_out.any():
        yield Drawing(
            "umap-held-out",
            "cells",
            "The same cells, held-out combinations in colour",
            "Combinations that training never saw, before all others.",
            partial(plots.cells_by_group, picture),
        )
    for i, column in enumerate(scores.columns):
        for side, generated in (("real", False), ("generated", True)):
            yield Drawing(
                f"umap-column-{i}-{side}",
                "cells-by-column",
                f"The {side} cells of the same plane, coloured by {column}",
                f"{side.capitalize()} cells by {column}.",
                partial(plots.cells_by_column, picture, i, scores.categories[i], generated),
            )


def _top_genes(scores: Scores) -> Iterator[Drawing]:
    for i, top in enumerate(scores.top_genes):
        name = " / ".join(top.condition.values()) + (" (held out)" if top.is_held_out else "")
        yield Drawing(
            f"violins-{i}",
            "violins",
            f"Expression of {', '.join(top.genes)} in control, real and generated cells of {name}",
            f"{name}: log expression against its control in {top.column}.",
            partial(plots.violins, top),
        )


def _attention(attention: AttentionMap | None) -> Iterator[Drawing]:
    if attention is None:
        return
    says = {
        "decoder": "Decoder, steered by the condition",
        "encoder": "Encoder, which sees expression",
    }
    for side, caption in says.items():
        shares = getattr(attention, side)
        shown = np.sort(_most_uneven(shares)[:MAX_ROWS])
        more = f" The {MAX_ROWS} most uneven rows of {len(shares)}." * (len(shares) > MAX_ROWS)
        yield Drawing(
            f"attention-{side}",
            "attention",
            f"Attention to each gene block in the {side}, per condition value",
            f"{caption}: attention to each gene block, as a multiple of an even share.{more}",
            partial(plots.attention, shares[shown], [": ".join(attention.rows[i]) for i in shown]),
        )


def _most_uneven(shares: Float64[ndarray, "value gene_block"]) -> Int64[ndarray, " value"]:
    """Rows by how far they are from the mean row, farthest first."""
    distance = np.abs(shares - shares.mean(axis=0)).sum(axis=1)
    order: ndarray = np.argsort(-distance, kind="stable")
    return order


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


def _heat_maps(scores: Scores) -> Iterator[Drawing]:
    scale = "0: as close as other real cells. 1: no better than ignoring the condition."
    rows = heat_rows(scores)
    if rows:
        of = f"the worst {len(rows)} of {len(scores.combinations)} combinations"
        what = "all combinations" if len(rows) == len(scores.combinations) else of
        yield Drawing(
            "combinations",
            "combinations",
            "Normalised scores per combination, worst first",
            f"Normalised scores of {what}. {scale}",
            partial(plots.heat_map, rows, _HEADS),
        )
    if len(rows) < len(scores.combinations) and (rows := value_rows(scores)):
        yield Drawing(
            "combinations-by-value",
            "combinations",
            "Normalised scores averaged per condition value, worst first",
            f"Averages over the combinations of a value; in brackets their number. {scale}",
            partial(plots.heat_map, rows, _HEADS),
        )


def heat_rows(scores: Scores) -> list[HeatRow]:
    """One row per combination, worst energy score first, `MAX_ROWS` at most."""
    return _worst(_row(label_of(c), [c]) for c in _scored(scores))


def value_rows(scores: Scores) -> list[HeatRow]:
    """One row per condition value: means over its combinations, worst energy score first."""
    scored = _scored(scores)
    return _worst(
        _row(f"{column}: {value} ({len(members)})", members)
        for column in scores.columns
        for value, members in _by_value(scored, column).items()
    )


def _scored(scores: Scores) -> list[CombinationScores]:
    return [c for c in scores.combinations if c.normalised.get(catalogue.GENERATED)]


def _worst(rows: Iterable[HeatRow]) -> list[HeatRow]:
    def badness(row: HeatRow) -> float:
        return -np.inf if row.values[0] is None else row.values[0]

    return sorted(rows, key=badness, reverse=True)[:MAX_ROWS]


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
