"""MLflow's pages as a person sees them, in headless Chromium."""

import json
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import quote

from chromium import QUIET
from playwright.sync_api import Page, sync_playwright
from services import ADMIN, Mlflow
from tracking import Tracked

COMPARED = ("vae", "flow")
PATIENCE_MS = 120_000
DRAWING_MS = 2_000
"""A plot is drawn after the data of its page came."""
SEEN_BEFORE = "localStorage.setItem('mlflow.assistant.fab.autoOpenedOnFirstLoad_v1', 'true')"
"""MLflow opens a panel over its pages on the first visit."""


def check_pages(mlflow: Mlflow, chromium: str, tracked: Tracked, picture: Path) -> None:
    """Two training runs side by side, with a screenshot, and the figures of the evaluation.

    Raises:
        AssertionError: a page that reports an error.
        playwright.sync_api.TimeoutError: naming the text that never came.
    """
    compared = {name: tracked.stages[name] for name in COMPARED}
    with open_page(mlflow, chromium) as (page, errors):
        listed = {"runs": list(compared.values()), "experiments": [tracked.experiment]}
        query = "&".join(f"{key}={quote(json.dumps(ids))}" for key, ids in listed.items())
        page.goto(f"{mlflow.uri}/#/compare-runs?{query}")
        expect(page, [f"Comparing {len(compared)} Runs", *compared, "train/loss"])
        page.wait_for_timeout(DRAWING_MS)
        page.screenshot(path=picture)
        run = tracked.stages["evaluate"]
        page.goto(f"{mlflow.uri}/#/experiments/{tracked.experiment}/runs/{run}/artifacts/report")
        expect(page, [Path(file).name for file in mlflow.files(run, "report")])
        assert not errors, errors


def expect(page: Page, texts: Sequence[str]) -> None:
    """Wait until each of `texts`, as whole words, can be seen on the page."""
    for text in texts:
        words = re.compile(rf"(?<!\w){re.escape(text)}(?!\w)")
        page.get_by_text(words).filter(visible=True).first.wait_for(timeout=PATIENCE_MS)


@contextmanager
def open_page(mlflow: Mlflow, chromium: str) -> Iterator[tuple[Page, list[str]]]:
    """A page that knows the login, and what goes wrong on it."""
    login = {"username": ADMIN, "password": mlflow.password}
    errors: list[str] = []
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=QUIET)
        view = {"width": 1280, "height": 1600}
        page = browser.new_page(http_credentials=login, viewport=view)
        page.add_init_script(SEEN_BEFORE)
        page.on("pageerror", lambda error: errors.append(str(error)))
        try:
            yield page, errors
        finally:
            browser.close()
