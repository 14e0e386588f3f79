"""One tiny run of the whole pipeline, made once and looked at by many tests."""

import json
from pathlib import Path

import pytest

from save_dist.cli import run_job
from save_dist.pipelines.verbs import simulate

CONFIGS = Path(__file__).resolve().parents[2] / "configs" / "tiny"


def settings(run: Path, cells: Path, **more: object) -> list[str]:
    pairs = {"run.dir": str(run), "ingest.inputs": json.dumps([{"path": str(cells)}]), **more}
    return [f"{key}={value}" for key, value in pairs.items()]


def last_line(text: str) -> dict:
    return json.loads(text.strip().splitlines()[-1])


@pytest.fixture(scope="session")
def tiny_cells(tmp_path_factory):
    path = tmp_path_factory.mktemp("cells") / "cells.h5ad"
    simulate(path, cells=1200, genes=200, interaction=0.0, seed=0)
    return path


@pytest.fixture(scope="session")
def tiny_run(tmp_path_factory, tiny_cells, ray_session):
    run = tmp_path_factory.mktemp("runs") / "tiny"
    code = run_job(
        "pipeline",
        CONFIGS / "pipeline.yaml",
        settings(run, tiny_cells, **{"tracking.backend": "mlflow"}),
    )
    assert code == 0, (run / "result.json").read_text()
    return run
