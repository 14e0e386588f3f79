"""The settings and outcome of tiny runs, for the tests that make them or look at them."""

import json
from pathlib import Path

CONFIGS = Path(__file__).resolve().parents[1] / "configs" / "tiny"


def settings(run: Path, cells: Path, **more: object) -> list[str]:
    pairs = {"run.dir": str(run), "ingest.inputs": json.dumps([{"path": str(cells)}]), **more}
    return [f"{key}={value}" for key, value in pairs.items()]


def last_line(text: str) -> dict:
    return json.loads(text.strip().splitlines()[-1])
