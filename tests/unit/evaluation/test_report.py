import json
import re
from dataclasses import replace
from html.parser import HTMLParser

import pytest
from rich.console import Console

from save_dist.evaluation import markup
from save_dist.evaluation.drawings import heat_rows
from save_dist.evaluation.enrichment import Enrichment
from save_dist.evaluation.report import scores_table, write_report

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
    assert all(link.startswith("data:image/png;base64,") for link in page.links)
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
    rows = heat_rows(replace(perfect, combinations=combinations))
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
