"""The report as a reader sees it, in headless Chromium."""

import numpy as np
import pytest

from save_dist.evaluation.attention import AttentionMap
from save_dist.evaluation.enrichment import Enrichment
from save_dist.evaluation.report import write_report
from tests.e2e.chromium import QUIET, find_chromium

PHONE, DESK = {"width": 390, "height": 844}, {"width": 1280, "height": 900}
SECTIONS = (
    "What was trained on what", "Scores beside floor and baselines",
    "Held-out combinations against simple methods", "Cells side by side", "Genes that change most",
    "All genes", "Combinations, worst first", "All numbers", "Attention to gene blocks",
    "What the gene blocks are about", "Training", "How to read this", "Where this comes from",
)  # fmt: skip


@pytest.fixture(scope="module")
def page_path(perfect, tmp_path_factory):
    """A report with every part there is."""
    shares = np.random.default_rng(0).dirichlet(np.ones(40), 5)
    rows = (("condition", "ctrl"), ("condition", "stim"), *(("cell_type", t) for t in "ABC"))
    return write_report(
        tmp_path_factory.mktemp("page"),
        perfect,
        curves={"vae/train/loss": ([1, 2, 3], [3.0, 2.0, 1.5]), "flow/val/loss": ([1, 2], [2, 1])},
        provenance={
            "trained": {"Cells": "800 of 1,000"},
            "model": 64 * "0",
            "versions": {"numpy": "2.4"},
            "config": "run:\n  dir: " + 200 * "x",
        },
        notes=["Labels of cell_type are " + 80 * "y"],
        enriched=[Enrichment(0, "response to " + 90 * "z", 3, 10, 5, 1e-4, 1e-3)],
        attention=AttentionMap(rows, np.full(5, 100), shares, shares),
    )


@pytest.fixture(scope="module")
def browser():
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    if (chromium := find_chromium()) is None:
        pytest.skip("no Chromium on this machine")
    with playwright.sync_playwright() as started:
        found = started.chromium.launch(executable_path=chromium, args=QUIET)
        yield found
        found.close()


@pytest.mark.slow
@pytest.mark.parametrize("appearance", ["light", "dark"])
@pytest.mark.parametrize("view", [PHONE, DESK], ids=["phone", "desk"])
def test_the_page_in_a_browser(browser, page_path, view, appearance):
    context = browser.new_context(viewport=view, color_scheme=appearance, offline=True)
    page, errors = context.new_page(), []
    page.on("console", lambda message: errors.append(message.text))
    page.on("pageerror", lambda error: errors.append(str(error)))
    page.on("requestfailed", lambda request: errors.append(request.url[:80]))
    page.goto(page_path.as_uri())
    page.evaluate("document.querySelectorAll('details').forEach(d => { d.open = true })")
    assert tuple(page.locator("h2").all_inner_texts()) == SECTIONS
    figures = page.evaluate(
        "Array.from(document.images, i => [i.alt, i.complete && i.naturalWidth > 0,"
        " i.getBoundingClientRect().width])"
    )
    pictures = [p for p in page_path.parent.glob("*.png") if not p.stem.endswith("-dark")]
    assert len(figures) == len(pictures) > 15
    for description, is_drawn, width in figures:
        assert is_drawn and width > 250, description
    overflowing = page.evaluate(
        "Array.from(document.querySelectorAll('main *')).filter(e => {"
        " const scrolls = e.closest('.scroll, pre, nav');"
        " return !scrolls && e.getBoundingClientRect().right > innerWidth + 1"
        "}).map(e => e.tagName + ' ' + e.className + ' ' + e.textContent.slice(0, 60))"
    )
    assert overflowing == []
    assert page.evaluate("document.documentElement.scrollWidth") <= view["width"]
    page.locator("nav a").first.click()  # leads to its heading
    assert page.locator("h2").first.bounding_box()["y"] < view["height"]
    assert errors == []
    context.close()
