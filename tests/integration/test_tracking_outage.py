"""MLflow is away for a whole training run and comes back: nothing is lost, nothing doubled."""

import contextlib
import json
import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.request

import pytest
from mlflow_server import Server
from tiny_run import CONFIGS, last_line
from typer.testing import CliRunner

from save_dist.cli import app, run_job
from save_dist.core.paths import RunPaths
from save_dist.stores.bundle import load_bundle
from save_dist.tracking.registry import Registry

pytestmark = pytest.mark.slow


@contextlib.contextmanager
def mlflow_server(port, database, folder):
    """A real server on a port, which hands artifacts on."""
    words = [sys.executable, "-m", "mlflow", "server", "--workers", "1", "--port", str(port)]
    places = ["--backend-store-uri", f"sqlite:///{database}", "--artifacts-destination", folder]
    environment = os.environ | {
        "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
        "MLFLOW_DISABLE_TELEMETRY": "true",
    }
    with (folder.parent / "server.log").open("w") as log:
        process = subprocess.Popen(
            [*words, *map(str, places)], env=environment, stdout=log, stderr=log
        )
        try:
            _until_healthy(f"http://127.0.0.1:{port}/health", process)
            yield
        finally:
            process.terminate()
            process.wait(30)


def _until_healthy(url, process):
    deadline = time.monotonic() + 300
    while time.monotonic() < deadline and process.poll() is None:
        with contextlib.suppress(OSError), urllib.request.urlopen(url, timeout=5) as answer:
            if answer.status == 200:
                return
        time.sleep(0.2)
    pytest.fail("the MLflow server did not start")


def curves(server, experiment):
    """Stage and metric -> points, of all that does not depend on the clock."""
    return {
        (stage, key): server.history(stage, key, experiment)
        for stage in ("vae", "flow")
        for key in server.run(stage, experiment).data.metrics
        if key.startswith(("train/", "val/"))
    }


def test_a_run_without_mlflow_is_sent_afterwards_as_if_it_had_been_there(
    tiny_run, tiny_cells, template_db, tmp_path, capsys
):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        uri = f"http://127.0.0.1:{free.getsockname()[1]}"
    run = tmp_path / "run"
    for name in ("store.soma", "vocab", "stages"):
        shutil.copytree(tiny_run / name, run / name)
    (run / "stages" / "train.json").unlink()
    pairs = [f"run.dir={run}", "tracking.backend=mlflow", f"tracking.uri={uri}"]
    assert run_job("train", CONFIGS / "train.yaml", pairs) == 0
    trained = last_line(capsys.readouterr().out)["stages"]["model_hash"]
    assert (
        trained
        == json.loads((tiny_run / "result.json").read_text())["stages"]["train"]["model_hash"]
    )

    database, artifacts = tmp_path / "mlflow.db", tmp_path / "artifacts"
    shutil.copy(template_db, database)
    undisturbed = curves(Server(f"sqlite:///{tiny_run / 'mlflow.db'}"), "save")
    assert len(undisturbed) > 6 and all(len(points) >= 3 for points in undisturbed.values())
    with mlflow_server(int(uri.rpartition(":")[2]), database, artifacts):
        sent = []
        for _ in range(2):
            done = CliRunner().invoke(app, ["track", "sync", str(run)])
            assert done.exit_code == 0, done.stderr
            sent.append(last_line(done.stdout)["points"])
            assert curves(Server(uri), "save") == undisturbed
        assert sent[0] > 0 and sent[1] == 0
        known = Registry(uri, "save")
        (version,) = known.versions()
        known.fetch(version, tmp_path / "fetched")
    assert load_bundle(tmp_path / "fetched").hash == version.model_hash == trained
    assert not list(RunPaths(run).root.glob("mlflow.db"))
