"""The settings and outcome of tiny runs, for the tests that make them or look at them."""

import json
from pathlib import Path

from save_dist.core.paths import RunPaths
from save_dist.tracking.tracker import read_records

CONFIGS = Path(__file__).resolve().parents[1] / "configs" / "tiny"


def settings(run: Path, cells: Path, **more: object) -> list[str]:
    pairs = {"run.dir": str(run), "ingest.inputs": json.dumps([{"path": str(cells)}]), **more}
    return [f"{key}={value}" for key, value in pairs.items()]


def last_line(text: str) -> dict:
    return json.loads(text.strip().splitlines()[-1])


def steps_of(run: Path) -> list[tuple[str, int]]:
    """Every training step that the journal of a run has, in the order they were taken."""
    records = read_records(RunPaths(run).metrics, kind="metrics")
    found = [(record.run, record.step) for record in records if "train/loss" in record.values]
    assert found
    return found
