"""Scores -> one page for people, its pictures as files, and metrics.json for machines."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.table import Table

from save_dist.core.durable import write_bytes, write_json
from save_dist.evaluation import catalogue, markup, plots, sections
from save_dist.evaluation.attention import AttentionMap
from save_dist.evaluation.drawings import Drawing, Series, drawings
from save_dist.evaluation.enrichment import Enrichment
from save_dist.evaluation.scores import GroupScores, Responder, Scores
from save_dist.evaluation.verdict import GROUP_TITLES, score_of

PAGE = "index.html"
METRICS_FILE = "metrics.json"
BLOCKS_FILE = "blocks.tsv"
"""Every gene set that shares a gene with a block."""
ATTENTION_FILE = "attention.tsv"
"""What share of attention every block gets, per network and condition value."""

_TABLE_DISTANCES = {"energy": "energy s", "mmd2": "MMD s"}
_TABLE_METRICS = {
    "c2st_trees_gene": "AUC genes",
    "c2st_trees_pca": "AUC PCA",
    "mean_r2": "mean R2",
    "variance_ratio": "variance",
    "zero_difference": "zeros",
    "library_ratio": "library",
    "change_slope": "slope",
}
_TABLE_CANDIDATES = {
    catalogue.SEEN: (catalogue.GENERATED, catalogue.FLOOR, catalogue.SHUFFLE),
    catalogue.HELD_OUT: (
        catalogue.GENERATED,
        catalogue.FLOOR,
        catalogue.CONTROL,
        catalogue.ADDITIVE,
        catalogue.SIMILARITY,
    ),
}


def write_report(
    folder: Path,
    scores: Scores,
    *,
    curves: Mapping[str, Series],
    provenance: Mapping[str, Any],
    notes: Sequence[str] = (),
    enriched: Sequence[Enrichment] = (),
    attention: AttentionMap | None = None,
) -> Path:
    """Write index.html, metrics.json and the pictures; gives the path of the page.

    Args:
        folder: made if absent; files of the same names are replaced.
        scores: what was found.
        curves: series name, e.g. `vae/train/loss` -> steps and values.
        provenance: facts of the run, JSON-able. The mapping under `trained` stands at the top of
            the page, other mappings are folded, texts of several lines (a config) too.
        notes: what a reader must know first, e.g. "cell_type labels are marker-derived".
        enriched: gene sets in the gene blocks; goes to blocks.tsv, too.
        attention: of condition values over gene blocks; goes to attention.tsv, too.
    """
    drawn = [_draw(folder, drawing) for drawing in drawings(scores, curves, attention)]
    value = {"scores": scores.to_json(), "provenance": dict(provenance), "notes": list(notes)}
    write_json(folder / METRICS_FILE, value)
    if enriched:
        write_bytes(folder / BLOCKS_FILE, _as_table(enriched).encode())
    if attention is not None:
        write_bytes(folder / ATTENTION_FILE, ("\n".join(attention.lines()) + "\n").encode())
    first, *rest = _body(scores, drawn, provenance, notes, enriched)
    body = [first, markup.contents(rest), *rest]
    write_bytes(folder / PAGE, markup.page("save_dist report", body).encode())
    return folder / PAGE


def _as_table(enriched: Sequence[Enrichment]) -> str:
    """Tab-separated, with a header."""
    lines = ["\t".join(Enrichment._fields)]
    lines += ["\t".join(str(value).replace("\t", " ") for value in row) for row in enriched]
    return "\n".join(lines) + "\n"


def scores_table(scores: Scores) -> Table:
    """The few numbers that matter, for a terminal: a row per group and candidate."""
    table = Table(title="Generated against real cells", caption=_TABLE_CAPTION)
    table.add_column("", no_wrap=True)
    for title in (*_TABLE_DISTANCES.values(), *_TABLE_METRICS.values()):
        table.add_column(title, justify="right")
    for name, candidates in _TABLE_CANDIDATES.items():
        group = scores.group(name)
        if group is None or not group.n_averaged:
            continue
        table.add_section()
        for candidate in candidates:
            if candidate in group.metrics:
                title = f"{GROUP_TITLES[name].split()[0]}: {catalogue.CANDIDATES[candidate][0]}"
                table.add_row(title.lower(), *_table_cells(group, candidate))
    return table


def responders_table(responders: Sequence[Responder]) -> Table:
    """Ranks of the genes of known response, held-out combinations first, for a terminal.

    A row per combination and column; a cell is the rank of the predicted change and, in brackets,
    that of the real one.
    """
    genes = list(dict.fromkeys(r.gene for r in responders))
    table = Table(title="Genes of known response: rank of the predicted (real) change")
    table.add_column("", no_wrap=True)
    for gene in genes:
        table.add_column(gene, justify="right")
    rows: dict[tuple[str, ...], dict[str, str]] = {}
    for found in sorted(responders, key=lambda r: r.group != catalogue.HELD_OUT):
        held_out = " (held out)" if found.group == catalogue.HELD_OUT else ""
        label = " / ".join(found.condition.values()) + held_out
        row = rows.setdefault((label, found.column), {})
        row[found.gene] = f"{found.predicted_rank} ({found.real_rank})"
    for (label, _), row in rows.items():
        table.add_row(label, *(row.get(gene, "-") for gene in genes))
    return table


_TABLE_CAPTION = (
    "s: 0 as close as real cells, 1 no better than ignoring the condition; AUC: 0.5 is best; "
    "variance, library, slope: 1 is best; zeros: 0 is best"
)


def _table_cells(group: GroupScores, candidate: str) -> Iterator[str]:
    """Figures of one row; by definition the floor's scores are 0."""
    for distance in _TABLE_DISTANCES:
        average = score_of(group, candidate, distance)
        absent = "0" if candidate == catalogue.FLOOR else "-"
        yield absent if average is None else markup.number(average.mean)
    for key in _TABLE_METRICS:
        # a change is measured per reference column; the first stands for all
        names = (m for m in group.metrics[candidate] if catalogue.metric_of(m)[0].key == key)
        first = next(iter(sorted(names)), None)
        yield markup.number(None if first is None else group.metrics[candidate][first].mean)


@dataclass(frozen=True)
class _Drawn:
    """A drawing and its HTML."""

    drawing: Drawing
    html: str


def _draw(folder: Path, drawing: Drawing) -> _Drawn:
    """Write both appearances beside the page and make the piece that goes into it."""
    light, dark = (plots.png(drawing.draw(theme)) for theme in plots.THEMES)
    write_bytes(folder / f"{drawing.name}.png", light)
    write_bytes(folder / f"{drawing.name}-dark.png", dark)
    html = markup.picture(light, dark, drawing.description, drawing.caption)
    return _Drawn(drawing, html)


def _body(
    scores: Scores,
    drawn: Sequence[_Drawn],
    provenance: Mapping[str, Any],
    notes: Sequence[str],
    enriched: Sequence[Enrichment],
) -> Iterator[str]:
    """The page from top to bottom."""
    yield from sections.head(scores, provenance, notes)
    yield from sections.score_bars(scores)
    yield from sections.held_out(scores)
    yield markup.heading("Cells side by side")
    yield markup.text(
        "p", "UMAP of equal numbers of real and generated cells per combination, in one space."
    )
    for section in ("cells", "cells-by-column"):  # pairs of real and generated in rows of two
        yield _figures(drawn, section, css="figures two")
    yield from _top_genes(scores, drawn)
    yield markup.heading("All genes")
    for name in GROUP_TITLES:
        yield _figures(drawn, f"genes-{name}")
    yield markup.heading("Combinations, worst first")
    yield _figures(drawn, "combinations", css="figures two")
    yield from sections.combinations(scores)
    yield from sections.all_numbers(scores)
    yield from _blocks(drawn, enriched)
    if any(d.drawing.section == "training" for d in drawn):
        yield markup.heading("Training")
        yield _figures(drawn, "training")
    yield from sections.how_to_read(scores)
    yield from sections.provenance_section(provenance, scores)


def _top_genes(scores: Scores, drawn: Sequence[_Drawn]) -> Iterator[str]:
    """Genes that change most, and those whose response is known."""
    if not scores.top_genes and not scores.responders:
        return
    yield markup.heading("Genes that change most")
    if scores.top_genes:
        yield markup.text(
            "p",
            "Genes of most significant real change against the control (Welch's t), in the "
            f"{len(scores.top_genes)} largest combinations that have a control; held-out ones "
            "come first. Training saw no real cell of those.",
        )
        yield _figures(drawn, "violins", css="figures two")
    yield from sections.responders(scores)


def _blocks(drawn: Sequence[_Drawn], enriched: Sequence[Enrichment]) -> Iterator[str]:
    """Attention over gene blocks, and what the blocks are about."""
    if any(d.drawing.section == "attention" for d in drawn):
        yield markup.heading("Attention to gene blocks")
        yield markup.text(
            "p",
            "How the attention of a network's last layer is shared out among gene blocks, "
            "averaged over heads, over the blocks that ask, and over real test cells of each "
            "condition value; every combination counts the same. attention.tsv has the numbers.",
        )
        yield _figures(drawn, "attention", css="figures two")
    yield from sections.gene_blocks(enriched)


def _figures(drawn: Sequence[_Drawn], section: str, css: str = "figures") -> str:
    pieces = [d.html for d in drawn if d.drawing.section == section]
    return markup.tag("div", "".join(pieces), class_=css) if pieces else ""
