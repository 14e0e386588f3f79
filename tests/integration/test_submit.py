"""Submission and doctor against a real Ray head with a token, started and ended here."""

import dataclasses
import json
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import pytest

from save_dist.data.simulation import QUICK
from save_dist.pipelines.simulate import simulate

pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parents[2]
TINY = ROOT / "configs" / "tiny"
START_S = 60


@dataclass
class Head:
    address: str
    gcs: str
    environment: dict[str, str]
    folder: Path

    def run(self, *arguments, **changes):
        """`save-dist ...` as a person would call it; a value of None unsets a variable."""
        environment = {k: v for k, v in (self.environment | changes).items() if v is not None}
        done = subprocess.run(
            [sys.executable, "-m", "save_dist.cli", *arguments],
            cwd=ROOT,
            env=environment,
            capture_output=True,
            text=True,
            timeout=400,
            check=False,
        )
        return done, json.loads(done.stdout.strip().splitlines()[-1])


@pytest.fixture(scope="module")
def head():
    folder = Path(tempfile.mkdtemp(prefix="sd-", dir="/tmp"))
    token = folder / "token"
    token.write_text(secrets.token_hex(16))
    token.chmod(0o600)
    gcs, dashboard, agent, metrics, client = free_ports(5)
    environment = {k: v for k, v in os.environ.items() if not k.startswith("RAY_")} | {
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN_PATH": str(token),
        "RAY_USAGE_STATS_ENABLED": "0",
        "PYTHONPATH": str(ROOT),
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
    }
    command = [
        *("ray", "start", "--head", "--block", f"--port={gcs}", f"--temp-dir={folder / 'ray'}"),
        *(f"--dashboard-port={dashboard}", "--dashboard-host=127.0.0.1"),
        *(f"--dashboard-agent-listen-port={agent}", f"--metrics-export-port={metrics}"),
        *(f"--ray-client-server-port={client}", "--num-cpus=2"),
        "--object-store-memory=150000000",
    ]
    with (folder / "log").open("w") as log:
        process = subprocess.Popen(command, env=environment, stdout=log, stderr=log)
    try:
        address = f"http://127.0.0.1:{dashboard}"
        wait_for(address, process, folder / "log")
        yield Head(address, f"127.0.0.1:{gcs}", environment, folder)
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(60)
        shutil.rmtree(folder, ignore_errors=True)


def free_ports(n):
    with ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(n)]
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [one.getsockname()[1] for one in sockets]


def wait_for(address, process, log):
    deadline = time.monotonic() + START_S
    while time.monotonic() < deadline:
        assert process.poll() is None, log.read_text()
        try:
            urllib.request.urlopen(f"{address}/api/version", timeout=2)
        except urllib.error.HTTPError:
            return  # it wants the token, so it is there
        except OSError:
            time.sleep(0.5)
        else:
            return
    raise AssertionError(log.read_text())


def test_without_the_token_one_clear_error(head):
    config = ["--config", str(TINY / "ingest.yaml"), "--address", head.address]
    _, summary = head.run("submit", "ingest", *config, RAY_AUTH_MODE=None, RAY_AUTH_TOKEN_PATH=None)
    assert summary["exit_code"] == 2
    assert "RAY_AUTH_MODE=token and RAY_AUTH_TOKEN_PATH" in summary["error"]


def test_exit_code_and_reason_of_a_failed_job_come_back(head):
    run = f"run.dir={head.folder / 'none'}"
    arguments = ["--config", str(TINY / "train.yaml"), "--set", run, "--address", head.address]
    done, summary = head.run("submit", "train", *arguments)
    assert done.returncode == summary["exit_code"] == 3, done.stderr
    assert "run `save-dist ingest`" in summary["error"]
    assert summary["job"]["verb"] == "train"
    assert "run `save-dist ingest`" in done.stderr  # the log of the job


def test_finished_job_runs_again_under_the_next_number(head):
    cells, run = head.folder / "cells.h5ad", head.folder / "run"
    simulate(cells, dataclasses.replace(QUICK, n_cells=300, n_genes=60))
    inputs = json.dumps([{"path": str(cells)}])
    pairs = ["--set", f"run.dir={run}", "--set", f"ingest.inputs={inputs}"]
    config = ["--config", str(TINY / "ingest.yaml"), *pairs, "--address", head.address]
    done, first = head.run("submit", "ingest", *config)
    assert done.returncode == 0, done.stderr
    assert first["job"]["stages"]["n_cells"] == 300
    assert (run / "store.soma").is_dir()
    _, second = head.run("submit", "ingest", *config)
    assert second["submission_id"] == f"{first['submission_id']}-2"


def test_rays_own_command_runs_a_job_of_a_checkout(head):
    """As infra/README.md has it; what travels is what git does not ignore."""
    cells, run = head.folder / "few.h5ad", head.folder / "plain"
    simulate(cells, dataclasses.replace(QUICK, n_cells=300, n_genes=60))
    inputs = json.dumps([{"path": str(cells)}])
    job = ["python", "jobs/ingest.py", "--config", "configs/tiny/ingest.yaml"]
    job += ["--set", f"run.dir={run}", "--set", f"ingest.inputs={inputs}"]
    done = subprocess.run(
        ["ray", "job", "submit", "--address", head.address, "--working-dir", ".", "--", *job],
        cwd=ROOT,
        env=head.environment,
        capture_output=True,
        text=True,
        timeout=400,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert json.loads((run / "result.json").read_text())["stages"]["n_cells"] == 300
    assert (run / "store.soma").is_dir()


def test_doctor_looks_at_the_cluster(head):
    run = head.folder / "new"
    arguments = ["--config", str(TINY / "train.yaml"), "--set", f"run.dir={run}"]
    done, summary = head.run("doctor", *arguments, RAY_ADDRESS=head.gcs)
    levels = {check["name"]: check["level"] for check in summary["checks"]}
    assert done.returncode == 5  # there is no store to train from
    assert levels.pop("store") == levels.pop("vocabulary") == "error"
    for name in ("config", "token", "ray", "versions", "clocks", "shared storage"):
        assert levels[name] == "ok", summary
    assert not run.exists()
