"""Figures of the report: one panel each, so that a phone can show them below one another.

Every function returns a matplotlib `Figure` of its own; no global plotting state is touched.
Colours are those of Okabe and Ito, told apart by colour-blind readers too.
"""

import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float, Float64, Int
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import LinearSegmentedColormap, to_hex, to_rgb
from matplotlib.figure import Figure
from numpy import ndarray

from save_dist.core import seeding
from save_dist.evaluation import catalogue
from save_dist.evaluation.biology import pearson, r2
from save_dist.evaluation.scores import Picture, TopGenes

OKABE_ITO = (
    "#009E73", "#CC79A7", "#D55E00", "#56B4E9", "#F0E442", "#0072B2", "#E69F00",
)  # fmt: skip
N_COLOURS = 2 * len(OKABE_ITO)
"""Categories with a colour of their own; rarer ones share grey."""
DPI = 144
_SIDE = 4.6
_NAME_WIDTH, _NAME_HEIGHT = 0.021, 0.045
"""Size of a letter of a group's name, as a share of the axes."""
_N_FIELDS = 20
_MAX_LABEL = 28
"""Letters of a row's label that fit beside a heat map on a phone."""


@dataclass(frozen=True)
class Theme:
    """Colours of one appearance of the page."""

    name: str
    paper: str
    ink: str
    muted: str
    grid: str
    real: str
    generated: str


LIGHT = Theme("light", "#ffffff", "#1b1f24", "#656d76", "#e6e8eb", "#0072B2", "#E69F00")
DARK = Theme("dark", "#171b20", "#e6e9ec", "#98a2ad", "#2d333b", "#56B4E9", "#E69F00")
THEMES = (LIGHT, DARK)


@dataclass(frozen=True)
class Curve:
    """One line of a training figure."""

    label: str
    steps: Sequence[float | int]
    values: Sequence[float | int]


@dataclass(frozen=True)
class HeatRow:
    """One line of the heat map: a combination, or all that share a value."""

    label: str
    support: str
    values: tuple[float | None, ...]


def png(figure: Figure) -> bytes:
    """The figure as PNG bytes; equal figures give equal bytes."""
    buffer = io.BytesIO()
    FigureCanvasAgg(figure)
    figure.savefig(buffer, format="png", dpi=DPI, metadata={"Software": None})
    return buffer.getvalue()


def cells_by_source(picture: Picture, theme: Theme) -> Figure:
    """Real and generated cells."""
    groups = picture.is_generated.astype(np.int64)
    return _cells(picture, groups, {"real": theme.real, "generated": theme.generated}, theme)


def cells_by_group(picture: Picture, theme: Theme) -> Figure:
    """Held-out combinations before all others, real and generated apart."""
    groups = np.where(picture.is_held_out, 1 + picture.is_generated, 0)
    colours = {
        "seen": theme.grid,
        "held out, real": theme.real,
        "held out, generated": theme.generated,
    }
    return _cells(picture, groups, colours, theme, in_order=True)


def cells_by_column(
    picture: Picture, column: int, categories: Sequence[str], generated: bool, theme: Theme
) -> Figure:
    """One condition column, real cells alone or generated ones alone, on the same plane.

    Names stand where their cells are densest. Colours are those of both sides together.
    """
    codes = picture.codes[:, column].astype(np.int64)
    counts = np.bincount(codes, minlength=len(categories))
    common = np.argsort(-counts, kind="stable")[:N_COLOURS]
    common = np.sort(common[counts[common] > 0])
    colours = dict(zip((categories[i] for i in common), _palette(theme), strict=False))
    groups = np.full(len(codes), len(common))
    for place, code in enumerate(common):
        groups[codes == code] = place
    if np.any(groups == len(common)):
        colours[f"{int((counts > 0).sum()) - len(common)} others"] = theme.muted
    side = np.flatnonzero(picture.is_generated == generated)
    shown = picture.take(side)
    figure = _cells(shown, groups[side], colours, theme, within=picture)
    _name_groups(figure.axes[0], shown, groups[side], [categories[i] for i in common], theme)
    return figure


def genes(
    real: Float64[ndarray, " gene"],
    generated: Float64[ndarray, " gene"],
    title: str,
    theme: Theme,
) -> Figure:
    """One point per gene, generated over real, with the line of equality."""
    figure, axes = _figure(_SIDE, _SIDE, theme)
    top = float(max(real.max(), generated.max(), 1e-9)) * 1.04
    axes.plot([0, top], [0, top], color=theme.muted, linewidth=1, zorder=1)
    axes.scatter(real, generated, s=9, color=theme.generated, alpha=0.6, linewidth=0, zorder=2)
    axes.set(xlim=(-0.02 * top, top), ylim=(-0.02 * top, top), aspect="equal")
    says = f"PCC {pearson(real, generated):.3f}\nR2 {r2(real, generated):.3f}"
    axes.text(0.04, 0.96, says, transform=axes.transAxes, va="top", color=theme.muted, fontsize=9.5)
    axes.set_xlabel(f"{title}, real")
    axes.set_ylabel(f"{title}, generated")
    axes.grid(color=theme.grid, linewidth=0.8)
    return figure


def heat_map(rows: Sequence[HeatRow], columns: Sequence[str], theme: Theme) -> Figure:
    """Normalised scores, one row per combination in the order given; pale is good."""
    labels = [_shortened(row.label) for row in rows]
    figure, axes = _figure(_SIDE + 0.6, 0.27 * len(rows) + 0.75, theme)
    values = np.array([[np.nan if v is None else v for v in row.values] for row in rows])
    stops = [theme.grid, "#E69F00", "#D55E00"]
    shade = LinearSegmentedColormap.from_list("score", stops).with_extremes(bad=theme.paper)
    axes.imshow(np.clip(values, 0, 1), cmap=shade, vmin=0, vmax=1, aspect="auto")
    for (i, j), value in np.ndenumerate(values):
        text = "-" if np.isnan(value) else f"{round(value, 2) + 0.0:.2f}"  # no -0.00
        ink = _ink_on(shade(float(np.clip(np.nan_to_num(value), 0, 1))))
        axes.text(j, i, text, ha="center", va="center", color=ink, fontsize=9)
    for i, row in enumerate((HeatRow("", "train | test", ()), *rows), start=-1):
        axes.text(len(columns) - 0.4, i, row.support, va="center", color=theme.muted, fontsize=8.5)
    axes.set_xticks(range(len(columns)), columns)
    axes.set_yticks(range(len(rows)), labels)
    _separate_fields(axes, len(columns), len(rows), theme)
    return figure


def attention(
    shares: Float64[ndarray, "value gene_block"], labels: Sequence[str], theme: Theme
) -> Figure:
    """Attention per condition value and gene block, as a multiple of an even share.

    Blue is less than even, orange more; steps of the scale are equal factors, up to 2 each way or
    as far as the values go.
    """
    n_rows, n_blocks = shares.shape
    figure, axes = _figure(_SIDE + 0.6, 0.2 * n_rows + 1.1, theme)
    times_even = np.log2(np.maximum(shares * n_blocks, 1e-6))
    reach = float(np.clip(np.abs(times_even).max(), 0.1, 2.0))
    stops = [theme.real, theme.grid, theme.generated]
    shade = LinearSegmentedColormap.from_list("attention", stops)
    image = axes.imshow(times_even, cmap=shade, vmin=-reach, vmax=reach, aspect="auto")
    axes.set_yticks(range(n_rows), [_shortened(label) for label in labels])
    axes.set_xticks(range(0, n_blocks, -(-n_blocks // 12)))
    axes.set_xlabel("gene block")
    _separate_fields(axes, n_blocks if n_blocks <= 40 else 1, n_rows, theme)
    bar = figure.colorbar(image, ax=axes, fraction=0.04, pad=0.03)
    ticks = np.array([-reach, 0.0, reach])
    bar.set_ticks(ticks.tolist(), labels=[f"{2.0**tick:.2f}x" for tick in ticks])
    bar.ax.tick_params(colors=theme.muted, labelcolor=theme.ink, labelsize=8, length=0)
    for spine in bar.ax.spines.values():
        spine.set_visible(False)
    return figure


def violins(top: TopGenes, theme: Theme) -> Figure:
    """Expression of each gene in control, real and generated cells; bars are medians."""
    sides = {
        catalogue.CONTROL: ("control", theme.muted),
        catalogue.REAL: ("real", theme.real),
        catalogue.GENERATED: ("generated", theme.generated),
    }
    figure, axes = _figure(_SIDE + 0.6, 3.2, theme)
    for offset, (side, (name, colour)) in zip((-0.27, 0.0, 0.27), sides.items(), strict=True):
        places = np.arange(len(top.genes)) + offset
        values = [_spread(column) for column in top.values[side].T]
        found = axes.violinplot(values, places, widths=0.25, showextrema=False, showmedians=True)
        bodies: Any = found["bodies"]  # matplotlib types it as one collection, it is a list
        for body in bodies:
            body.set(facecolor=colour, edgecolor="none", alpha=0.85)
        found["cmedians"].set(color=theme.ink, linewidth=1.2)
        axes.scatter([], [], s=40, color=colour, label=name)
    axes.set_xticks(range(len(top.genes)), top.genes)
    axes.set_ylabel("log expression")
    axes.set_ylim(bottom=min(0.0, axes.get_ylim()[0]))
    axes.grid(axis="y", color=theme.grid, linewidth=0.8)
    axes.set_axisbelow(True)
    _legend(axes, theme, below=True, drop=0.1)
    return figure


def _spread(values: ndarray) -> ndarray:
    """The values; equal ones apart by a hair, since no density can be drawn of a point."""
    if np.ptp(values) > 0:
        return values
    out: ndarray = values + np.linspace(-1e-3, 1e-3, len(values))
    return out


def _shortened(label: str) -> str:
    """Beginning and end of a label that is too long."""
    if len(label) <= _MAX_LABEL:
        return label
    half = (_MAX_LABEL - 1) // 2
    return f"{label[:half].rstrip()}…{label[-half:].lstrip()}"


def _separate_fields(axes: Axes, n_columns: int, n_rows: int, theme: Theme) -> None:
    """Paper-coloured lines between the fields of a heat map, and no frame."""
    axes.set_xticks(np.arange(1, n_columns) - 0.5, minor=True)
    axes.set_yticks(np.arange(1, n_rows) - 0.5, minor=True)
    axes.xaxis.tick_top()
    axes.tick_params(which="both", length=0)
    axes.grid(which="minor", color=theme.paper, linewidth=2)
    for spine in axes.spines.values():
        spine.set_visible(False)


def training(curves: Sequence[Curve], title: str, theme: Theme) -> Figure:
    """Values over optimiser steps; a logarithmic axis where they span over two decades."""
    figure, axes = _figure(_SIDE, 3.2, theme)
    colours = (theme.real, theme.generated, *_palette(theme))
    for curve, colour in zip(curves, colours, strict=False):
        axes.plot(curve.steps, curve.values, color=colour, linewidth=1.6, label=curve.label)
    known = np.concatenate([np.asarray(c.values, dtype=float) for c in curves])
    if known.size and known.min() > 0 and known.max() > 100 * known.min():
        axes.set_yscale("log")
    axes.set_xlabel("step")
    axes.set_ylabel(title)
    axes.grid(color=theme.grid, linewidth=0.8)
    if len(curves) > 1:
        _legend(axes, theme)
    return figure


def _figure(width: float, height: float, theme: Theme) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(width, height), layout="constrained", facecolor=theme.paper)
    axes = figure.add_subplot(facecolor=theme.paper)
    axes.tick_params(colors=theme.muted, labelcolor=theme.ink, labelsize=9)
    for side, spine in axes.spines.items():
        spine.set_visible(side in ("left", "bottom"))
        spine.set_color(theme.muted)
    axes.xaxis.label.set(color=theme.ink, fontsize=10)
    axes.yaxis.label.set(color=theme.ink, fontsize=10)
    return figure, axes


def _cells(
    picture: Picture,
    groups: Int[ndarray, " cell"],
    colours: Mapping[str, str],
    theme: Theme,
    in_order: bool = False,
    within: Picture | None = None,
) -> Figure:
    """Cells in mixed order, so that no group hides another; `in_order` draws later ones on top.

    The axes hold the plane of `within`, so that figures of parts of it can be compared.
    """
    figure, axes = _figure(_SIDE, _SIDE + 0.5, theme)
    order = seeding.generator(0, "drawing_order").permutation(len(groups))
    if in_order:
        order = order[np.argsort(groups[order], kind="stable")]
    shades = np.array([to_rgb(colour) for colour in colours.values()])
    x, y = picture.points[order].T
    size = float(np.clip(12_000 / max(len(groups), 1), 2, 16))
    axes.scatter(x, y, s=size, c=shades[groups[order]], linewidth=0, alpha=0.8)
    axes.set(xticks=[], yticks=[])
    if within is not None and len(within.points):
        low, high = within.points.min(axis=0), within.points.max(axis=0)
        edge = 0.04 * np.maximum(high - low, 1e-9)
        axes.set(xlim=(low[0] - edge[0], high[0] + edge[0]))
        axes.set(ylim=(low[1] - edge[1], high[1] + edge[1]))
    for spine in axes.spines.values():
        spine.set_visible(False)
    for name, colour in colours.items():
        axes.scatter([], [], s=40, color=colour, label=name)
    _legend(axes, theme, below=True)
    return figure


def _name_groups(
    axes: Axes,
    picture: Picture,
    groups: Int[ndarray, " cell"],
    names: Sequence[str],
    theme: Theme,
) -> None:
    """Names where their cells are densest, most cells first; one that would overlap is left out."""
    from matplotlib.patheffects import withStroke

    halo = [withStroke(linewidth=3, foreground=theme.paper)]
    low, high = picture.points.min(axis=0), picture.points.max(axis=0)
    places = (picture.points - low) / np.maximum(high - low, 1e-9)
    taken: list[tuple[float, float, float]] = []
    for group in np.argsort(-np.bincount(groups, minlength=len(names))[: len(names)]):
        x, y = _densest(places[groups == group])
        half = _NAME_WIDTH * len(names[group]) / 2
        if any(abs(x - u) < half + w and abs(y - v) < _NAME_HEIGHT for u, v, w in taken):
            continue
        taken.append((x, y, half))
        axes.text(
            low[0] + x * (high[0] - low[0]), low[1] + y * (high[1] - low[1]), names[group],
            ha="center", va="center", fontsize=8.5, color=theme.ink, path_effects=halo,
        )  # fmt: skip


def _densest(places: Float[ndarray, "cell 2"]) -> tuple[float, float]:
    """Mean of the cells in the fullest field of a coarse grid over the unit square."""
    fields = np.minimum((places * _N_FIELDS).astype(np.int64), _N_FIELDS - 1)
    index = fields[:, 0] * _N_FIELDS + fields[:, 1]
    x, y = places[index == np.bincount(index).argmax()].mean(axis=0)
    return float(x), float(y)


def _legend(axes: Axes, theme: Theme, below: bool = False, drop: float = 0.0) -> None:
    """Names of the colours; below the axes, by `drop` of their height."""
    anchor = {"loc": "upper center", "bbox_to_anchor": (0.5, -drop), "ncols": 3}
    place = anchor if below else {}
    axes.legend(
        frameon=False, fontsize=8.5, labelcolor=theme.ink, handletextpad=0.3, columnspacing=1.0,
        **place,
    )  # fmt: skip


def _palette(theme: Theme) -> list[str]:
    """Okabe-Ito, then the same half faded into the paper."""
    paper = to_rgb(theme.paper)
    faded = [[(a + b) / 2 for a, b in zip(to_rgb(c), paper, strict=True)] for c in OKABE_ITO]
    return [*OKABE_ITO, *(to_hex(c) for c in faded)]


def _ink_on(colour: tuple[float, ...]) -> str:
    """Dark or light text, whichever stands out."""
    red, green, blue = colour[:3]
    is_bright = 0.299 * red + 0.587 * green + 0.114 * blue > 0.5
    return "#1b1f24" if is_bright else "#f2f4f6"
