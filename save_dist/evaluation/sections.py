"""The parts of the report page, from verdict to provenance."""

import itertools
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from save_dist.evaluation import catalogue, markup
from save_dist.evaluation.catalogue import CANDIDATES, FLOOR, GENERATED, MARGINAL
from save_dist.evaluation.drawings import label_of
from save_dist.evaluation.enrichment import Enrichment
from save_dist.evaluation.scores import (
    Average,
    CombinationScores,
    GroupScores,
    Responder,
    Scores,
)
from save_dist.evaluation.verdict import GROUP_TITLES, comparisons, score_of, sentences

MAX_LISTED = 200
"""Combinations listed on the page; metrics.json has all."""
MAX_SETS = 5
"""Gene sets shown per block."""
MAX_RATE = 0.05
"""False discovery rate up to which a gene set is shown."""
TRAINED = "trained"
"""Key of the provenance that is shown at the top: what was trained on what."""

_DISTANCE_PANELS = catalogue.DISTANCES
_AUC_PANELS = ("c2st_trees_gene", "c2st_trees_pca", "c2st_logistic_gene", "c2st_logistic_pca")
_HELD_OUT_METRICS = ("c2st_trees_gene", "mean_r2", "zero_difference")


def head(scores: Scores, provenance: Mapping[str, Any], notes: Sequence[str]) -> Iterator[str]:
    """Title, verdict, key figures, and what was trained on what."""
    yield markup.tag(
        "header",
        markup.text("p", f"save_dist, evaluation protocol {scores.protocol}", class_="eyebrow")
        + markup.text("h1", "How close are the generated cells to real ones?")
        + markup.text("p", _lead(scores), class_="lead"),
    )
    named = ((name, scores.group(name)) for name in GROUP_TITLES)
    cards = [_card(group, name) for name, group in named if group is not None]
    yield markup.tag("div", "".join(cards), class_="verdict")
    yield markup.heading("What was trained on what")
    yield markup.facts(provenance.get(TRAINED, {}))
    yield from (markup.text("p", note, class_="note") for note in notes)


def _lead(scores: Scores) -> str:
    n_seen, n_held_out = (
        sum(c.group == name for c in scores.combinations)
        for name in (catalogue.SEEN, catalogue.HELD_OUT)
    )
    parts = [f"{n_seen} combinations seen in training"]
    if n_held_out:
        parts.append(f"{n_held_out} held out")
    missing = f" {len(scores.missing)} more were not generated." if scores.missing else ""
    return (
        f"{' and '.join(parts)}, compared over {scores.space.n_genes} genes with real cells that "
        f"training never saw.{missing}"
    )


def _card(group: GroupScores, name: str) -> str:
    """Key figures and verdict of one group."""
    parts = [markup.text("h3", GROUP_TITLES[name])]
    tiles = []
    if (score := score_of(group, GENERATED)) is not None:
        tiles.append(_tile(markup.number(score.mean), "energy score"))
    row = group.metrics.get(GENERATED, {})
    for metric in ("c2st_trees_gene", "mean_r2", "zero_difference"):
        if metric in row:
            tiles.append(_tile(markup.number(row[metric].mean), catalogue.title_of(metric)))
    parts.append(markup.tag("div", "".join(tiles), class_="tiles"))
    parts += [markup.text("p", s.text, class_=f"says {s.kind}") for s in sentences(group, name)]
    return markup.tag("div", "".join(parts), class_="card")


def _tile(value: str, label: str) -> str:
    return markup.tag("div", markup.text("b", value) + markup.text("span", label), class_="tile")


def score_bars(scores: Scores) -> Iterator[str]:
    """Floor, baselines and the model as bars, for every distance and classifier."""
    yield markup.heading("Scores beside floor and baselines")
    yield markup.text(
        "p",
        "A distance alone says little. The floor is the distance between two halves of the real "
        "test cells; random real cells ignore the condition. The score puts the first at 0 and "
        "the second at 1. Shorter bars are better.",
    )
    for name, title in GROUP_TITLES.items():
        group = scores.group(name)
        if group is not None and group.n_averaged:
            yield markup.text("h3", f"{title}, {group.n_averaged} averaged")
            first, more = _DISTANCE_PANELS, _AUC_PANELS
            yield _panels(group, first[:2], more[:2])
            yield markup.folded(
                "Wasserstein distances and linear classifiers", _panels(group, first[2:], more[2:])
            )


def _panels(group: GroupScores, distances: Sequence[str], classifiers: Sequence[str]) -> str:
    panels = [_score_panel(group, d) for d in distances]
    panels += [_auc_panel(group, m) for m in classifiers]
    return markup.tag("div", "".join(panels), class_="panels")


def _score_panel(group: GroupScores, distance: str) -> str:
    rows = []
    fixed = {FLOOR: 0.0, MARGINAL: 1.0}
    for key, (title, _) in CANDIDATES.items():
        average = score_of(group, key, distance)
        value = fixed.get(key) if average is None else average.mean
        if value is not None:
            rows.append((key, title, value / 1.1, markup.number(value, 2)))
    return _panel(f"{catalogue.title_of(distance)}, score", rows)


def _auc_panel(group: GroupScores, metric: str) -> str:
    rows = []
    for key, (title, _) in CANDIDATES.items():
        if (average := group.metrics.get(key, {}).get(metric)) is not None:
            rows.append((key, title, 2 * (average.mean - 0.5), markup.number(average.mean, 2)))
    return _panel(f"{catalogue.title_of(metric)} (0.5 is best)", rows)


def _panel(title: str, rows: list[tuple[str, str, float, str]]) -> str:
    if len(rows) < 2:
        return ""
    return markup.tag("div", markup.text("h3", title) + markup.bars(rows))


def held_out(scores: Scores) -> Iterator[str]:
    """The model beside everything simple on combinations that training never saw."""
    group = scores.held_out
    if group is None or not group.n_averaged:
        return
    outcomes = {c.rival: c.outcome for c in comparisons(group, catalogue.HELD_OUT)}
    changes = [m for m in _known_metrics(group) if m.startswith(("change_slope", "change_pcc"))]
    metrics = [*_HELD_OUT_METRICS, *changes]
    yield markup.heading("Held-out combinations against simple methods")
    yield markup.text(
        "p",
        "Training saw each of these values, but never together. Whoever wants such cells could "
        "also shift control cells, or take the most similar ones there are.",
    )
    head = ["", "Energy score", "", "MMD score", "W2 score", *map(catalogue.title_of, metrics)]
    rows = [
        _held_out_row(group, key, metrics, outcomes.get(key, ""))
        for key in CANDIDATES
        if key in group.metrics
    ]
    yield markup.table(head, rows)


def _held_out_row(group: GroupScores, key: str, metrics: list[str], outcome: str) -> str:
    fixed = {FLOOR: "0", MARGINAL: "1"}
    says = {"better": "ours is better", "worse": "ours is worse", "level": "level"}
    css = "ours" if key == GENERATED else ""
    values = group.metrics[key]
    averages = {d: score_of(group, key, d) for d in ("energy", "mmd2", "w2")}
    scored = [
        fixed.get(key, "-") if average is None else markup.number(average.mean)
        for average in averages.values()
    ]
    measured = [markup.number(values[m].mean if m in values else None) for m in metrics]
    first = [(CANDIDATES[key][0], css), (scored[0], css), (says.get(outcome, ""), outcome)]
    return markup.row([*first, *((text, css) for text in [*scored[1:], *measured])])


def all_numbers(scores: Scores) -> Iterator[str]:
    """Every metric of every candidate, averaged."""
    yield markup.heading("All numbers")
    yield markup.text(
        "p",
        "Means over combinations of the same weight; in brackets the bootstrap 95% interval. "
        "The last column weights combinations by their test cells. The other half of the real "
        "cells shows what a perfect generator would get.",
    )
    for name, title in GROUP_TITLES.items():
        group = scores.group(name)
        if group is not None and group.n_averaged:
            yield markup.folded(f"{title}, {group.n_averaged} averaged", _numbers(group))


def _numbers(group: GroupScores) -> str:
    candidates = [key for key in CANDIDATES if key in group.metrics]
    titles = [CANDIDATES[key][0] for key in candidates]
    rows: list[str] = []
    heading = ""
    for metric in _known_metrics(group):
        about, _ = catalogue.metric_of(metric)
        if about.group != heading:
            heading = about.group
            rows.append(markup.section_row(heading, len(candidates) + 4))
        found = [group.metrics[key].get(metric) for key in candidates]
        ideal = ("-" if about.ideal is None else f"{about.ideal:g}", "muted")
        ours = group.metrics[GENERATED].get(metric)
        weighted = (markup.number(None if ours is None else ours.weighted), "muted")
        averages = [_average(average) for average in found]
        cells: list[str | tuple[str, str]] = [
            catalogue.title_of(metric),
            ideal,
            *averages,
            weighted,
        ]
        rows.append(markup.row([*cells, (about.hint, "text muted")]))
    return markup.table(["", "Ideal", *titles, "Generated, by cells", ""], rows)


def _average(average: Average | None) -> str:
    if average is None:
        return "-"
    mean = markup.number(average.mean)
    if average.low is None or average.high is None:
        return mean
    return f"{mean} [{markup.number(average.low)}, {markup.number(average.high)}]"


def _known_metrics(group: GroupScores) -> list[str]:
    names = {metric for row in group.metrics.values() for metric in row}
    return sorted(names, key=catalogue.rank_of)


def combinations(scores: Scores) -> Iterator[str]:
    """One line per combination, worst first; small ones are there too."""
    listed = sorted(scores.combinations, key=_badness, reverse=True)[:MAX_LISTED]
    metrics = ("energy", "c2st_trees_gene", "mean_r2", "zero_difference", "library_ratio")
    head = ["", "Train", "Test", "Compared", "Energy score", *map(catalogue.title_of, metrics)]
    rows = [_combination_row(c, metrics) for c in listed]
    more = len(scores.combinations) - len(listed)
    content = markup.table(head, rows)
    if more:
        content += markup.text("p", f"{more} more stand in metrics.json.", class_="muted")
    yield markup.folded(f"Combination by combination ({len(scores.combinations)})", content)
    if scores.missing:
        names = [" / ".join(condition.values()) for condition in scores.missing[:MAX_LISTED]]
        yield markup.folded(
            f"Real but not generated ({len(scores.missing)})",
            markup.text("p", "; ".join(names)),
        )


def _badness(combination: CombinationScores) -> float:
    return combination.normalised.get(GENERATED, {}).get("energy", float("-inf"))


def _combination_row(combination: CombinationScores, metrics: Sequence[str]) -> str:
    label = label_of(combination) + ("" if combination.is_averaged else " (not averaged)")
    score = combination.normalised.get(GENERATED, {}).get("energy")
    values = combination.metrics.get(GENERATED, {})
    sizes = (combination.n_train, combination.n_test, combination.n_used)
    cells = [label, *map(str, sizes), markup.number(score)]
    return markup.row([*cells, *(markup.number(values.get(m)) for m in metrics)])


def responders(scores: Scores) -> Iterator[str]:
    """Where genes of known response stand among the changes, held-out combinations first."""
    if not scores.responders:
        return
    yield markup.text("h3", "Genes of known response")
    yield markup.text(
        "p",
        "Rank among all compared genes by the size of the change; 1 changes most. Where a gene "
        "leads the real change, it should lead the predicted one.",
    )
    ordered = sorted(scores.responders, key=lambda r: r.group != catalogue.HELD_OUT)
    head = ["", "Gene", "Real change", "Predicted", "Real rank", "Predicted rank"]
    content = markup.table(head, map(_responder_row, ordered[:MAX_LISTED]))
    if (more := len(ordered) - MAX_LISTED) > 0:
        content += markup.text("p", f"{more} more stand in metrics.json.", class_="muted")
    yield markup.folded(f"Gene by gene ({len(ordered)})", content)


def _responder_row(found: Responder) -> str:
    held_out = " (held out)" if found.group == catalogue.HELD_OUT else ""
    changes = (f"{change:+.2f}" for change in (found.real_change, found.predicted_change))
    ranks = map(str, (found.real_rank, found.predicted_rank))
    label = " / ".join(found.condition.values()) + held_out
    return markup.row([label, (found.gene, "text"), *changes, *ranks])


def gene_blocks(found: Sequence[Enrichment]) -> Iterator[str]:
    """The gene sets that stand out most in each block."""
    if not found:
        return
    yield markup.heading("What the gene blocks are about")
    yield markup.text(
        "p",
        "Gene sets that share more genes with a block than chance would have it: one-sided "
        "hypergeometric test among the genes of the model, false discovery rate by Benjamini and "
        f"Hochberg over all blocks and sets. Shown are the {MAX_SETS} smallest rates of each block "
        f"below {MAX_RATE:g}; blocks.tsv has all.",
    )
    rows = []
    for block, members in itertools.groupby(found, key=lambda e: e.block):
        best = [e for e in members if e.q <= MAX_RATE][:MAX_SETS]
        rows += [_enriched_row(block, e) for e in best]
    head = ["Block", "Gene set", "Shared", "In block", "In set", "Rate"]
    n_blocks = len({e.block for e in found})
    yield markup.folded(f"Block by block ({n_blocks})", markup.table(head, rows[:MAX_LISTED]))


def _enriched_row(block: int, found: Enrichment) -> str:
    sizes = map(str, (found.n_shared, found.n_block, found.n_set))
    return markup.row([str(block), (found.name, "text"), *sizes, f"{found.q:.1e}"])


def how_to_read(scores: Scores) -> Iterator[str]:
    """What the numbers are made of."""
    yield markup.heading("How to read this")
    items = [f"{title}: {what}." for title, what in CANDIDATES.values()]
    items += scores.remarks
    yield markup.tag("ul", "".join(markup.text("li", item) for item in items))


def provenance_section(provenance: Mapping[str, Any], scores: Scores) -> Iterator[str]:
    """Hashes, versions, settings."""
    yield markup.heading("Where this comes from")
    plain = {k: v for k, v in provenance.items() if not isinstance(v, Mapping)}
    long = {k: v for k, v in plain.items() if isinstance(v, str) and "\n" in v}
    yield markup.facts({k: v for k, v in plain.items() if k not in long})
    for key, value in provenance.items():
        if isinstance(value, Mapping) and key != TRAINED:
            yield markup.folded(key, _nested(value))
    for key, value in long.items():
        yield markup.folded(key, markup.text("pre", value))
    yield markup.folded("evaluation settings", markup.facts(scores.config))


def _nested(value: Mapping[str, Any]) -> str:
    """Names and values; mappings within become headed parts of their own."""
    plain = {k: v for k, v in value.items() if not isinstance(v, Mapping)}
    parts = [markup.facts(plain)] if plain else []
    for key, inner in value.items():
        if isinstance(inner, Mapping):
            parts += [markup.text("h3", str(key)), _nested(inner)]
    return "".join(parts)
