import json
import re
from dataclasses import replace
from html.parser import HTMLParser

import numpy as np
import pytest
from rich.console import Console

from save_dist.evaluation import markup
from save_dist.evaluation.attention import AttentionMap
from save_dist.evaluation.drawings import MAX_ROWS, heat_rows, value_rows
from save_dist.evaluation.enrichment import Enrichment
from save_dist.evaluation.report import responders_table, scores_table, write_report

CURVES = {"vae/train/loss": ([1, 2, 3], [3.0, 2.0, 1.5])}
PROVENANCE = {
    "trained": {"data": "a & b", "cells": 800},
    "git_commit": "0123abc",
    "versions": {"numpy": "2.4", "deep": {"torch": "2.13"}},
    "config": "run:\n  dir: x\n",
}
VOID = {"meta", "img", "source", "br"}


class Reader(HTMLParser):
    """Checks that elements close in order, and gathers attributes and text."""

    def __init__(self):
        super().__init__()
        self.open, self.tags, self.links, self.text = [], [], [], []

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.links += [v for k, v in attrs if k in ("src", "href", "srcset")]
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open and self.open[-1] != "style":
            self.text.append(data)


def read(path):
    reader = Reader()
    reader.feed(path.read_text())
    assert reader.open == []
    return reader


@pytest.fixture(scope="module")
def folder(perfect, tmp_path_factory):
    folder = tmp_path_factory.mktemp("report")
    write_report(
        folder, perfect, curves=CURVES, provenance=PROVENANCE,
        notes=["cell_type labels are marker-derived"],
    )  # fmt: skip
    return folder


def test_page_is_one_file_without_script_or_outside_resource(folder):
    page = read(folder / "index.html")
    assert "script" not in page.tags
    assert "link" not in page.tags
    assert page.links
    outside = [link for link in page.links if not link.startswith(("data:image/png;base64,", "#"))]
    assert outside == []
    assert not re.search(r"https?://|@import|url\(", (folder / "index.html").read_text())


def test_page_fits_phones_and_both_appearances(folder):
    text = (folder / "index.html").read_text()
    assert '<meta name="viewport" content="width=device-width' in text
    assert "prefers-color-scheme: dark" in text
    page = read(folder / "index.html")
    assert (
        page.tags.count("source") == page.tags.count("img") == len(list(folder.glob("*.png"))) // 2
    )


def test_every_picture_is_written_beside_the_page(folder):
    light = {p.name for p in folder.glob("*.png") if "-dark" not in p.name}
    assert {f"{n[:-4]}-dark.png" for n in light} == {p.name for p in folder.glob("*-dark.png")}
    assert {"umap-source.png", "combinations.png", "genes-seen-zeros.png"} <= light


def test_page_says_what_matters(folder, perfect):
    text = " ".join(read(folder / "index.html").text)
    score = perfect.seen.normalised["generated"]["energy"].mean
    for words in (
        f"Energy score {score:.3f}", "cell_type labels are marker-derived", "a & b", "0123abc",
        "Similarity-weighted shift", "stim / T (held out)", "ours is", "umap_cells", "dir: x",
        "2.13", "n/2",
    ):  # fmt: skip
        assert words in text


def test_contents_lead_to_headings(folder):
    text = (folder / "index.html").read_text()
    links = re.findall(r'href="#([^"]+)"', text)
    assert len(links) >= 9
    assert links == re.findall(r'<h2 id="([^"]+)"', text)


def test_known_responders_are_ranked_on_the_page_and_in_the_terminal(folder, perfect):
    held_out = [r for r in perfect.responders if r.group == "held_out"]
    assert [r.gene for r in held_out] == ["GENE24", "GENE32", "GENE1"]
    strong = {r.gene: r for r in held_out}
    assert abs(strong["GENE32"].real_change) > abs(strong["GENE1"].real_change)  # only 4n respond
    assert strong["GENE32"].predicted_rank < strong["GENE1"].predicted_rank
    text = " ".join(read(folder / "index.html").text)
    assert "Genes of known response" in text
    assert "not among those compared: ABSENT" in text
    table = responders_table(perfect.responders)
    assert [column.header for column in table.columns] == ["", "GENE24", "GENE32", "GENE1"]
    first = [next(iter(column.cells)) for column in table.columns[:2]]
    ranks = strong["GENE24"]
    assert first == ["stim / T (held out)", f"{ranks.predicted_rank} ({ranks.real_rank})"]


def test_attention_as_a_table():
    shares = np.array([[0.2, 0.8], [0.5, 0.5]])
    rows = (("condition", "ctrl"), ("cell_type", "B"))
    attention = AttentionMap(rows, np.array([7, 9]), shares, shares[::-1])
    lines = list(attention.lines())
    assert lines[0].split("\t") == ["network", "column", "value", "n_cells", "block_0", "block_1"]
    assert lines[1] == "encoder\tcondition\tctrl\t7\t0.2\t0.8"
    assert lines[4] == "decoder\tcell_type\tB\t9\t0.2\t0.8"


@pytest.mark.slow
def test_two_thousand_conditions_stay_a_page(perfect, tmp_path):
    combinations = tuple(
        replace(c, condition={"condition": f"drug-{i}", "cell_type": f"t{j}"})
        for i in range(50)
        for j, c in enumerate(8 * perfect.combinations[:5])
    )
    categories = (tuple(f"drug-{i}" for i in range(50)), tuple(f"t{j}" for j in range(40)))
    many = replace(perfect, combinations=combinations, categories=categories)
    assert len(many.combinations) == 2000
    shares = np.random.default_rng(0).dirichlet(np.ones(100), 2040)
    rows = tuple(("drug", f"drug-{i}") for i in range(2040))
    attention = AttentionMap(rows, np.ones(2040, dtype=np.int64), shares, shares)
    page = write_report(tmp_path, many, curves=CURVES, provenance={}, attention=attention)
    assert page.stat().st_size < 6e6
    text = " ".join(read(page).text)
    assert "the worst 40 of 2000 combinations" in text
    assert "1800 more stand in metrics.json" in text
    for name in ("combinations-by-value.png", "attention-decoder.png"):
        assert (tmp_path / name).is_file()
    assert len((tmp_path / "attention.tsv").read_text().splitlines()) == 1 + 2 * 2040
    assert (
        len(json.loads((tmp_path / "metrics.json").read_text())["scores"]["combinations"]) == 2000
    )


def test_metrics_file_holds_scores_and_provenance(folder, perfect):
    found = json.loads((folder / "metrics.json").read_text())
    assert found["scores"] == json.loads(json.dumps(perfect.to_json()))
    assert found["provenance"]["versions"]["numpy"] == "2.4"
    assert found["notes"] == ["cell_type labels are marker-derived"]


def test_report_twice_is_the_same(folder, perfect, tmp_path):
    write_report(
        tmp_path, perfect, curves=CURVES, provenance=PROVENANCE,
        notes=["cell_type labels are marker-derived"],
    )  # fmt: skip
    for path in folder.iterdir():
        assert (tmp_path / path.name).read_bytes() == path.read_bytes(), path.name


def test_names_from_data_are_escaped(perfect, tmp_path):
    nasty = "<script>alert(1)</script>"
    combinations = tuple(
        replace(c, condition={**c.condition, "cell_type": nasty}) for c in perfect.combinations
    )
    categories = (perfect.categories[0], (nasty, "NK", "T"))
    scores = replace(perfect, combinations=combinations, categories=categories)
    enriched = [
        Enrichment(0, f"{nasty} set {i}", 3, 10, 5, 1e-4, q) for i, q in ((0, 0.01), (1, 0.2))
    ]
    page = read(
        write_report(tmp_path, scores, curves={}, provenance={}, notes=[nasty], enriched=enriched)
    )
    text = " ".join(page.text)
    assert "script" not in page.tags
    assert nasty in text
    assert f"{nasty} set 0" in text and f"{nasty} set 1" not in text  # a rate of .2 is chance
    assert len((tmp_path / "blocks.tsv").read_text().splitlines()) == 3


def test_report_of_small_combinations_alone(perfect, tmp_path):
    combinations = tuple(replace(c, is_averaged=False) for c in perfect.combinations)
    empty = replace(perfect.seen, n_averaged=0, metrics={}, normalised={}, pooled={})
    scores = replace(perfect, combinations=combinations, seen=empty, held_out=None)
    page = read(write_report(tmp_path, scores, curves={}, provenance={}))
    text = " ".join(page.text)
    assert "None of the 5 combinations has enough cells" in text
    assert "(not averaged)" in text
    assert "Training" not in [t.strip() for t in page.text]
    assert scores_table(scores).row_count == 0


def test_missing_combinations_are_listed(perfect, tmp_path):
    scores = replace(perfect, missing=({"condition": "stim", "cell_type": "Mast"},))
    text = " ".join(read(write_report(tmp_path, scores, curves={}, provenance={})).text)
    assert "1 more were not generated" in text
    assert "stim / Mast" in text


def test_heat_rows_worst_first(perfect):
    rows = heat_rows(perfect)
    energies = [row.values[0] for row in rows if row.values[0] is not None]
    assert energies == sorted(energies, reverse=True)
    assert "stim / T (held out)" in {row.label for row in rows}
    assert rows[0].support.split(" | ")[1] == "80"


def test_many_combinations_are_averaged_per_value(perfect):
    combinations = tuple(
        replace(c, condition={"condition": c.condition["condition"], "cell_type": f"t{i}"})
        for i in range(12)
        for c in perfect.combinations
    )
    many = replace(perfect, combinations=combinations)
    assert len(heat_rows(many)) == MAX_ROWS
    rows = value_rows(many)
    labels = {row.label for row in rows}
    assert "condition: ctrl (36)" in labels
    assert "cell_type: t3 (6)" in labels
    assert len(rows) == 14


def test_table_for_the_terminal(perfect):
    console = Console(width=200, record=True, file=open("/dev/null", "w"))  # noqa: SIM115
    console.print(scores_table(perfect))
    text = console.export_text()
    for words in (
        "seen: generated",
        "held-out: generated",
        "control cells",
        "additive shift",
        "energy s",
    ):
        assert words in text
    energy = perfect.seen.normalised["generated"]["energy"].mean
    assert f"{energy:.3f}" in text


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (None, "-"), (0.0, "0.000"), (0.12345, "0.123"), (-0.0007, "-0.001"), (0.00007, "7e-05"),
        (12.345, "12.3"), (1234.5, "1234"), (-3.0, "-3.000"),
    ],
)  # fmt: skip
def test_numbers_for_people(value, text):
    assert markup.number(value) == text


def test_bars_stay_within_their_track():
    html = markup.bars([("generated", "a", 1.7, "1.7"), ("control", "b", -0.2, "-0.2")])
    assert re.findall(r"width:([\d.]+)%", html) == ["100.0", "0.0"]
    assert html.count("ours") == 2


def test_attributes_are_escaped():
    assert markup.tag("p", "x", title='a"b') == '<p title="a&quot;b">x</p>'
