"""Training that is killed, twice and in two ways, ends with the model it would have had."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import psutil
import pytest
from tiny_run import CONFIGS

from save_dist.tracking.tracker import read_records

pytestmark = [pytest.mark.slow, pytest.mark.timeout(400)]

N_STEPS = 800
ENVIRONMENT = os.environ | {"OMP_NUM_THREADS": "1"}


def command(run: Path) -> list[str]:
    pairs = [
        f"run.dir={run}",
        f"vae.optim.n_steps={N_STEPS}",
        "training.checkpoint.every_steps=25",
        "cluster.address=local",
    ]
    sets = [word for pair in pairs for word in ("--set", pair)]
    config = str(CONFIGS / "train.yaml")
    return [sys.executable, "-m", "save_dist.cli", "train", "--config", config, *sets]


def fork_of(tiny_run: Path, target: Path) -> Path:
    """A run folder in which ingest and blocks are done and nothing else."""
    target.mkdir(exist_ok=True)
    for name in ("store.soma", "vocab"):
        shutil.copytree(tiny_run / name, target / name)
    for name in ("ingest", "blocks"):
        (target / "stages").mkdir(exist_ok=True)
        shutil.copy(tiny_run / "stages" / f"{name}.json", target / "stages")
    return target


def last_step(run: Path) -> int:
    steps = [r.step or 0 for r in read_records(run / "metrics.jsonl", run="vae", kind="metrics")]
    return max(steps, default=0)


def wait_for_step(run: Path, step: int, process: subprocess.Popen) -> None:
    deadline = time.monotonic() + 120
    while last_step(run) < step:
        assert process.poll() is None, f"ended with {process.returncode} before step {step}"
        assert time.monotonic() < deadline, f"step {step} not reached in 120 s"
        time.sleep(0.05)


def workers_of(process: subprocess.Popen) -> list[psutil.Process]:
    children = psutil.Process(process.pid).children(recursive=True)
    return [p for p in children if "RayTrainWorker" in " ".join(p.cmdline())]


def model_hash(run: Path) -> str:
    result = json.loads((run / "result.json").read_text())
    assert result["exit_code"] == 0, result
    return result["stages"]["model_hash"]


@pytest.fixture(scope="module")
def undisturbed(tiny_run, tmp_path_factory):
    """Hash of the model that training gives when nobody interferes."""
    run = fork_of(tiny_run, tmp_path_factory.mktemp("calm"))
    subprocess.run(command(run), check=True, env=ENVIRONMENT, capture_output=True)
    return model_hash(run)


@pytest.mark.parametrize(
    "seed", [0, *(pytest.param(seed, marks=pytest.mark.chaos) for seed in range(1, 6))]
)
def test_killed_training_ends_with_the_undisturbed_model(tiny_run, tmp_path, undisturbed, seed):
    """A worker at one random step, then the driver at a later one, then the same command."""
    at_worker, more = np.random.default_rng(seed).integers([40, 30], [300, 200])
    run = fork_of(tiny_run, tmp_path / "rough")
    first = subprocess.Popen(command(run), env=ENVIRONMENT, stdout=subprocess.DEVNULL)
    try:
        wait_for_step(run, at_worker, first)
        workers_of(first)[0].send_signal(signal.SIGKILL)
        wait_for_step(run, last_step(run) + more, first)
    finally:
        first.kill()
        first.wait()
    assert last_step(run) < N_STEPS

    subprocess.run(command(run), check=True, env=ENVIRONMENT, capture_output=True)
    assert model_hash(run) == undisturbed
