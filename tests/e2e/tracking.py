"""What the MLflow server must know after the jobs, asked through its REST API."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from services import Mlflow

LEAST_FIGURE_BYTES = 2_000


@dataclass(frozen=True)
class Tracked:
    """Ids of what the server knows."""

    experiment: str
    stages: dict[str, str]
    """Name of a child run -> its id."""


def check_tracking(mlflow: Mlflow, experiment: str, run: Path, verbs: list[str]) -> Tracked:
    """Every job's run, its metrics and figures.

    Raises:
        AssertionError: naming what is missing.
    """
    question = "api/2.0/mlflow/experiments/search?max_results=1"
    assert mlflow.status(question, login=False) == 401, "MLflow answers without a login"
    runs = _runs(mlflow, experiment)
    parents = {_tags(r)["verb"]: r for r in runs if "verb" in _tags(r)}
    assert set(parents) == set(verbs), f"runs of {sorted(parents)}, expected {verbs}"
    states = {verb: run["info"]["status"] for verb, run in parents.items()}
    assert set(states.values()) == {"FINISHED"}, states

    stages = {_tags(r)["mlflow.runName"]: r for r in runs if "mlflow.parentRunId" in _tags(r)}
    for stage in ("vae", "flow"):
        _check_curve(mlflow, stages[stage]["info"]["run_id"])
    _check_scores(stages["evaluate"], run)
    _check_figures(mlflow, stages["evaluate"]["info"]["run_id"])
    _check_model(mlflow, experiment, run)
    ids = {name: str(stage["info"]["run_id"]) for name, stage in stages.items()}
    return Tracked(_experiment_id(mlflow, experiment), ids)


def _experiment_id(mlflow: Mlflow, name: str) -> str:
    """Id of an experiment."""
    answer = mlflow.ask(f"api/2.0/mlflow/experiments/get-by-name?experiment_name={name}")
    return str(answer["experiment"]["experiment_id"])


def _runs(mlflow: Mlflow, experiment: str) -> list[dict[str, Any]]:
    body = {"experiment_ids": [_experiment_id(mlflow, experiment)], "max_results": 100}
    return list(mlflow.ask("api/2.0/mlflow/runs/search", body)["runs"])


def _check_curve(mlflow: Mlflow, run_id: str) -> None:
    """A loss with several points, no step twice."""
    path = f"api/2.0/mlflow/metrics/get-history?run_id={run_id}&metric_key=train/loss"
    steps = [int(point["step"]) for point in mlflow.ask(path)["metrics"]]
    assert len(steps) >= 3 and len(set(steps)) == len(steps), f"train/loss of {run_id}: {steps}"


def _check_scores(run: Mapping[str, Any], folder: Path) -> None:
    """The server has every score of the journal, with its value."""
    sent = {m["key"]: m["value"] for m in run["data"]["metrics"]}
    records = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    scores = [r["values"] for r in records if (r["run"], r["kind"]) == ("evaluate", "metrics")]
    assert len(scores) == 1 and len(scores[0]) > 20, scores
    assert sorted(sent.values()) == sorted(float(value) for value in scores[0].values())


def _check_figures(mlflow: Mlflow, run_id: str) -> None:
    files = mlflow.files(run_id, "report")
    figures = {f: n for f, n in files.items() if f.endswith((".png", ".svg"))}
    assert figures and min(figures.values()) > LEAST_FIGURE_BYTES, files
    assert "report/index.html" in files, files


def _check_model(mlflow: Mlflow, experiment: str, run: Path) -> None:
    """The registry holds the model that the atlas was made with."""
    query = f"name={experiment.replace('/', '-')}&alias=candidate"
    version = mlflow.ask(f"api/2.0/mlflow/registered-models/alias?{query}")["model_version"]
    tags = {tag["key"]: tag["value"] for tag in version["tags"]}
    record = json.loads((run / "atlas.zarr.receipts" / "plan.json").read_text())
    assert tags["save_dist.model_hash"] == record["model_hash"], (version, record["model_hash"])


def _tags(run: Mapping[str, Any]) -> dict[str, str]:
    return {tag["key"]: tag["value"] for tag in run["data"]["tags"]}
