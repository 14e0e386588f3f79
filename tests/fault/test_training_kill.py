"""A train command whose driver is killed, then a worker: nothing is left behind, nothing differs.

Longer schedules of more kinds of faults: test_training_chaos.py.
"""

import os
import time

import psutil
import pytest
from tiny_run import CONFIGS
from training_job import TrainingJob, kill_worker, prepare, workers_below

from save_dist.cli import run_job

pytestmark = pytest.mark.slow

SHORT = {"vae.optim.n_steps": 160, "flow.optim.n_steps": 60}


def test_kills_leave_nothing_behind_and_change_nothing(tmp_path, tiny_cells, ray_session):
    prepared = prepare(tmp_path / "prepared", tiny_cells)
    calm = TrainingJob(prepared, tmp_path / "calm", {}, **SHORT)
    assert run_job("train", CONFIGS / "train.yaml", calm.settings) == 0

    environment = os.environ | {"RAY_AUTH_MODE": "disabled"}
    own = {"cluster.address": "local", "cluster.max_failures": 1}
    with TrainingJob(prepared, tmp_path / "killed", environment, **SHORT, **own) as job:
        job.wait_for(40)
        driver = psutil.Process(job.process.pid)
        started = driver.children(recursive=True)
        # a private Ray takes as much of the machine as its driver
        assert {w.nice() for w in workers_below([driver.pid])} == {driver.nice()}
        job.kill()
        deadline = time.monotonic() + 30
        while (left := [p for p in map(described, started) if p]) and time.monotonic() < deadline:
            time.sleep(0.2)
        assert not left
        job.begin()
        kill_worker(job, 1, [job.process.pid])
        assert job.wait() == 0, job.tail()
    assert job.outcome() == calm.outcome()
    assert not list((job.run / "checkpoints").rglob(".*"))


def described(process):
    """The command of a process that runs; empty for one that is gone or only not waited for."""
    try:
        return "" if process.status() == psutil.STATUS_ZOMBIE else " ".join(process.cmdline())
    except psutil.NoSuchProcess:
        return ""
