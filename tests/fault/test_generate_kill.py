"""Generate commands that are killed, lose a node or run twice at once: the undisturbed atlas.

The digest of an atlas is taken over its template and all receipts, and these hold the sha256 of
every file; verify compares the files with them.
"""

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
from tiny_atlas import fill, receipts_folder, tiny_plan
from tiny_model import save_tiny_model

from save_dist.config.schema import GridConfig, OutputConfig
from save_dist.pipelines.provenance import versions
from save_dist.stores import atlas
from save_dist.stores.bundle import load_bundle

pytestmark = pytest.mark.slow

N_PARTS = 24
GRID = {"cells_per_condition": 128, "seed": 3, "solver": {"n_steps": 60}}
OUTPUT = {"cells_per_part": 32, "cells_per_chunk": 16, "cells_per_minibatch": 16}
"""6 conditions; steps enough for a good tenth of a second of sampling per part."""
ENVIRONMENT = os.environ | {"OMP_NUM_THREADS": "1"}
FULL_DISK = Path(__file__).parents[1] / "full_disk"


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    folder = tmp_path_factory.mktemp("killed") / "model"
    save_tiny_model(folder)
    return folder


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory, model):
    """Digest of the atlas that one process writes when nobody interferes."""
    path = started(tmp_path_factory.mktemp("calm"), model)
    fill(path, model, range(N_PARTS))
    return atlas.finish(path)


def started(folder, model):
    """An empty atlas of the grid."""
    path = folder / "atlas.zarr"
    plan = tiny_plan(load_bundle(model), GridConfig(**GRID), OutputConfig(**OUTPUT))
    assert plan.n_parts == N_PARTS
    atlas.create_template(path, plan.layout(), versions())
    return path


@pytest.fixture
def command(tmp_path, model):
    """A generate job on two workers in a run folder of its own."""
    shutil.copytree(model, tmp_path / "run" / "model")
    settings = {
        "run": {"dir": str(tmp_path / "run")},
        "tracking": {"backend": "none"},
        "cluster": {"address": "local", "n_workers": 2},
        "grid": GRID,
        "output": OUTPUT,
    }
    config = tmp_path / "generate.yaml"
    config.write_text(json.dumps(settings))
    return [sys.executable, "-m", "save_dist.cli", "generate", "--config", str(config)]


@pytest.fixture
def path(tmp_path):
    return tmp_path / "run" / "atlas.zarr"


def begun(command: list[str], **environment: str) -> subprocess.Popen:
    return subprocess.Popen(
        command, env=ENVIRONMENT | environment, stdout=subprocess.PIPE, text=True
    )


def n_finished(path: Path) -> int:
    return len(list(receipts_folder(path).glob("[0-9]*.json")))


def wait_for_parts(path: Path, n_parts: int, process: subprocess.Popen) -> None:
    deadline = time.monotonic() + 600
    while n_finished(path) < n_parts:
        assert process.poll() is None, f"ended with {process.returncode} before part {n_parts}"
        assert time.monotonic() < deadline, f"{n_parts} parts not reached in 600 s"
        time.sleep(0.02)


def actors_of(process: subprocess.Popen) -> list[psutil.Process]:
    children = psutil.Process(process.pid).children(recursive=True)
    return [p for p in children if "MapWorker" in " ".join(p.cmdline())]


def assert_undisturbed(path: Path, digest: str) -> None:
    assert atlas.atlas_digest(path) == digest
    assert atlas.is_complete(path) and atlas.verify(path).is_sound
    assert not list(receipts_folder(path).glob(".*"))


@pytest.mark.parametrize(
    "seed", [0, *(pytest.param(seed, marks=pytest.mark.chaos) for seed in range(1, 20))]
)
def test_a_killed_job_ends_with_the_undisturbed_atlas(command, path, undisturbed, seed):
    """An actor at one random moment, the driver at a later one, then the same command."""
    rng = np.random.default_rng(seed)
    at_actor, at_driver = sorted(rng.choice(np.arange(1, N_PARTS - 6), 2, replace=False).tolist())
    first = begun(command)
    try:
        wait_for_parts(path, at_actor, first)
        time.sleep(rng.uniform(0, 0.2))
        actors_of(first)[0].send_signal(signal.SIGKILL)
        wait_for_parts(path, at_driver, first)
    finally:
        first.kill()
        first.wait()
    assert n_finished(path) < N_PARTS
    subprocess.run(command, check=True, env=ENVIRONMENT, capture_output=True)
    assert_undisturbed(path, undisturbed)


def test_a_full_disk_ends_the_job_with_5_and_the_next_one_completes(
    command, path, undisturbed, tmp_path
):
    flag = tmp_path / "full"
    search = os.pathsep.join([str(FULL_DISK), *filter(None, [os.environ.get("PYTHONPATH")])])
    first = begun(command, PYTHONPATH=search, FULL_DISK=str(flag))
    try:
        wait_for_parts(path, 3, first)
        flag.touch()
        told, _ = first.communicate(timeout=600)
    finally:
        first.kill()
        first.wait()
    n_kept, summary = n_finished(path), json.loads(told.splitlines()[-1])
    assert (first.returncode, summary["exit_code"]) == (5, 5)
    assert "No space left on device" in summary["error"]
    assert "free space or fix permissions" in summary["error"]
    assert 3 <= n_kept < N_PARTS and not atlas.is_complete(path)
    flag.unlink()
    subprocess.run(command, check=True, env=ENVIRONMENT, capture_output=True)
    assert_undisturbed(path, undisturbed)


@pytest.mark.chaos
@pytest.mark.parametrize("seed", range(4))
def test_a_lost_node_costs_no_part(tmp_path, model, undisturbed, seed):
    """Two nodes with one worker each; the parts of the one that dies go to the other."""
    path = started(tmp_path, model)
    script = Path(__file__).resolve().parents[1] / "lost_node.py"
    command = [sys.executable, str(script), str(model), str(path), str(seed)]
    process = subprocess.Popen(command, env=ENVIRONMENT, stdout=subprocess.PIPE)
    try:
        told, _ = process.communicate(timeout=600)
    finally:
        process.kill()  # what it started ends with it
        process.wait()
    found = json.loads(told.splitlines()[-1])
    assert found == {"outcomes": [[part, ""] for part in range(N_PARTS)], "n_nodes": 1}
    assert atlas.finish(path) == undisturbed
    assert_undisturbed(path, undisturbed)


@pytest.mark.chaos
def test_two_jobs_on_one_output_leave_the_undisturbed_atlas(command, path, undisturbed):
    both = [begun(command) for _ in range(2)]
    try:
        codes = [job.wait(600) for job in both]
    finally:
        for job in both:
            job.kill()
            job.wait()
    assert 0 in codes
    subprocess.run(command, check=True, env=ENVIRONMENT, capture_output=True)
    assert_undisturbed(path, undisturbed)
