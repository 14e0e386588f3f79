"""Training under seeded schedules of faults ends with the model and the losses it would have had.

Jobs share one cluster of two nodes with a CPU each, and training wants both, so the world size is
the same whatever happens. A schedule is two faults at random steps; in some, MLflow is down too.
"""

import os
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path

import numpy as np
import pytest
from ray_nodes import Nodes
from training_job import STEPS, TrainingJob, kill_worker, prepare, workers_below

from save_dist.stores.checkpoint import TENSORS

pytestmark = [pytest.mark.slow, pytest.mark.chaos]

N_PLACES = sum(STEPS.values())
FULL_DISK = Path(__file__).parents[1] / "full_disk"


@dataclass
class Scene:
    """What a fault may touch."""

    job: TrainingJob
    nodes: Nodes
    disk: Path
    """While this file exists, the folder it lies in is on a full disk."""
    rng: np.random.Generator

    def workers(self):
        return workers_below([self.nodes.process.pid])


def a_worker_dies(scene):
    kill_worker(scene.job, int(scene.rng.integers(2)), [scene.nodes.process.pid])


def the_driver_dies(scene):
    """The next attempt does not wait until the workers of this one are gone."""
    scene.job.kill()
    scene.job.begin()


def a_node_is_lost_and_comes_back(scene):
    scene.nodes.lose()
    time.sleep(scene.rng.uniform(0, 3))
    scene.nodes.add()


def the_disk_is_full_for_a_while(scene):
    scene.disk.touch()
    try:
        assert scene.job.wait() == 5, scene.job.tail()
    finally:
        scene.disk.unlink()
    assert "free space" in scene.job.tail()
    scene.job.begin()


def a_checkpoint_is_torn(scene):
    scene.job.kill()
    gone_by = time.monotonic() + 30
    while scene.workers() and time.monotonic() < gone_by:
        time.sleep(0.1)
    folders = (scene.job.run / "checkpoints").glob("*/step-*")
    newest = max(folders, key=lambda folder: folder.stat().st_mtime_ns)
    place = newest / scene.rng.choice([TENSORS, "about.json", "manifest.json"])
    os.truncate(place, int(scene.rng.integers(place.stat().st_size)))
    scene.job.begin()


Fault = Callable[[Scene], None]
FAULTS: dict[str, Fault] = {
    "worker": a_worker_dies,
    "driver": the_driver_dies,
    "node": a_node_is_lost_and_comes_back,
    "disk": the_disk_is_full_for_a_while,
    "torn": a_checkpoint_is_torn,
}


def schedule(seed):
    """Every fault comes first in four of twenty schedules, a second one is drawn."""
    rng = np.random.default_rng(seed)
    names = list(FAULTS)
    faults = [names[seed % len(names)], str(rng.choice(names))]
    places = np.sort(rng.integers(30, N_PLACES - 150, len(faults)))
    return faults, places.tolist(), bool(rng.random() < 0.4), rng


def case(seed):
    faults, _, is_mlflow_down, _ = schedule(seed)
    name = "-".join([str(seed), *faults, *(["mlflow"] if is_mlflow_down else [])])
    return pytest.param(seed, id=name)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("chaos")


@pytest.fixture(scope="module")
def nodes(folder):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FULL_DISK", str(folder / "full"))
        patch.setenv("PYTHONPATH", str(FULL_DISK), prepend=os.pathsep)
        with Nodes(2) as nodes:
            yield nodes


@pytest.fixture(scope="module")
def prepared(folder, tiny_cells):
    return prepare(folder / "prepared", tiny_cells)


@pytest.fixture(scope="module")
def undisturbed(folder, nodes, prepared):
    """Model and losses of a run that nothing happens to."""
    more = {"cluster.address": nodes.address}
    with TrainingJob(prepared, folder / "calm", nodes.environment, **more) as job:
        assert job.wait() == 0, job.tail()
    return job.outcome()


@pytest.mark.parametrize("seed", [case(seed) for seed in range(20)])
def test_faults_change_nothing(folder, nodes, prepared, undisturbed, seed):
    faults, places, is_mlflow_down, rng = schedule(seed)
    more = {"cluster.address": nodes.address, "cluster.max_failures": 2}
    if is_mlflow_down:
        more |= {"tracking.backend": "mlflow", "tracking.uri": "http://127.0.0.1:9"}
    with TrainingJob(prepared, folder / str(seed), nodes.environment, **more) as job:
        scene = Scene(job, nodes, folder / "full", rng)
        for fault, place in zip(faults, places, strict=True):
            job.wait_for(place)
            assert job.place() < N_PLACES, "all over before the fault"
            FAULTS[fault](scene)
        assert job.wait() == 0, job.tail()
    model, losses = job.outcome()
    assert model == undisturbed[0]
    assert losses == undisturbed[1]
    assert not list((job.run / "checkpoints").rglob(".*"))
    shutil.rmtree(job.run)


# ---------------------------------------------------------------- fewer workers than wanted

ELASTIC = {
    "training.stream.n_lanes": 12,
    "vae.optim.cells_per_step": 96,
    "flow.optim.cells_per_step": 96,
    "vae.optim.n_steps": 200,
    "flow.optim.n_steps": 100,
}


def test_training_goes_on_with_the_workers_that_are_left(folder, nodes, prepared):
    """Three are wanted; two CPUs are there, then one."""
    more = {**ELASTIC, "cluster.address": nodes.address}
    with TrainingJob(prepared, folder / "two", nodes.environment, **more) as calm:
        assert calm.wait() == 0, calm.tail()
    more |= {"cluster.n_workers": 3, "cluster.min_workers": 1}
    with TrainingJob(prepared, folder / "elastic", nodes.environment, **more) as job:
        try:
            job.wait_for(60)
            nodes.lose()
            assert job.wait() == 0, job.tail()
        finally:
            nodes.add()
    assert set(calm.values("vae", "perf/world_size")) == {2}
    assert [size for size, _ in groupby(job.values("vae", "perf/world_size"))] == [2, 1]
    expected, found = calm.outcome()[1], job.outcome()[1]
    for stage, losses in expected.items():
        assert found[stage] == pytest.approx(losses, rel=1e-5)
