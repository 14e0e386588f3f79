"""Fixtures that every test may use. One thread per process: tests share few cores."""

import os

# read when torch, numba and BLAS load, so before any test imports them; subprocesses inherit it
os.environ.setdefault("OMP_NUM_THREADS", "1")

import contextlib
import secrets
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest

RAY_FOLDERS = {
    "tests/fault": "faults",
    "tests/integration": "jobs",
    "tests/unit/cluster": "jobs",
}
"""Folders whose tests use Ray, and who shares one."""
SHARED_DATA = Path(__file__).resolve().parents[2] / "shared" / "data"


def pytest_collection_modifyitems(items):
    """Say in one line per test why it cannot run here."""
    no_data = pytest.mark.skip(reason=f"development data folder {SHARED_DATA} is absent")
    for item in items:
        if item.get_closest_marker("shared_data") and not SHARED_DATA.is_dir():
            item.add_marker(no_data)


@pytest.hookimpl(optionalhook=True)  # of pytest-xdist
def pytest_xdist_make_scheduler(config, log):
    """Tests that share a Ray share a process, and so do those of any other file.

    Those with Ray take longest and come first: each process begins with half of them.

    The groups of pytest-xdist 3.8 would say the same, were they not lost on pytest 9.2.
    """
    from xdist.scheduler import LoadScopeScheduling

    class ByRay(LoadScopeScheduling):
        def _split_scope(self, nodeid):
            sharing = (ray for folder, ray in RAY_FOLDERS.items() if nodeid.startswith(folder))
            return next(sharing, nodeid.split("::")[0])

    return ByRay(config, log)


def pytest_runtest_setup(item):
    if item.get_closest_marker("gpu"):
        import torch

        if not torch.cuda.is_available():
            pytest.skip("needs a CUDA device")


@pytest.fixture(scope="session")
def shared_data():
    """Folder of development data sets; the test also carries the marker `shared_data`."""
    return SHARED_DATA


@pytest.fixture
def run_dir(tmp_path):
    """An empty run folder."""
    folder = tmp_path / "run"
    folder.mkdir()
    return folder


@pytest.fixture(scope="session")
def ray_session():
    """One private Ray for the whole session, in its own short temp folder, removed afterwards."""
    folder = Path(tempfile.mkdtemp(prefix="sd-", dir="/tmp"))  # AF_UNIX paths hold 107 bytes
    token = folder / "token"
    token.write_text(secrets.token_hex(16))
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("RAY_ADDRESS", raising=False)
        patch.setenv("RAY_AUTH_MODE", "token")
        patch.setenv("RAY_AUTH_TOKEN_PATH", str(token))
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        patch.setenv("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", "0.2")
        patch.setenv("RAY_worker_niceness", "0")  # else beside other tests they starve
        here = str(Path(__file__).parent)  # where workers find what tests send them
        patch.setenv("PYTHONPATH", here, prepend=os.pathsep)
        import ray

        try:
            ray.init(
                address="local",
                num_cpus=4,
                include_dashboard=False,
                object_store_memory=150 * 2**20,
                log_to_driver=False,
                _temp_dir=str(folder),
            )
            yield ray
            assert ray.is_initialized(), "a test has ended the Ray that tests share"
        finally:
            ray.shutdown()
            shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="session")
def random_model(tmp_path_factory):
    """The folder of a model of random weights (tests/tiny_model.py); tests must not change it."""
    from tiny_model import save_tiny_model

    folder = tmp_path_factory.mktemp("random") / "model"
    save_tiny_model(folder)
    return folder


@pytest.fixture(scope="session")
def random_run(random_model):
    """A run folder of that model and its finished atlas.zarr; tests must not change it."""
    from tiny_atlas import N_PARTS, begin, fill

    from save_dist.stores import atlas

    path, _ = begin(random_model.parent, random_model)
    fill(path, random_model, range(N_PARTS))
    atlas.finish(path)
    return random_model.parent


@pytest.fixture(scope="session")
def tiny_cells(tmp_path_factory):
    """A simulated data set of 1,200 cells."""
    from save_dist.data.simulation import QUICK
    from save_dist.pipelines.simulate import simulate

    path = tmp_path_factory.mktemp("cells") / "cells.h5ad"
    simulate(path, QUICK)
    return path


@pytest.fixture(scope="session")
def tiny_run(tmp_path_factory, tiny_cells, ray_session):
    """A run folder in which the whole tiny pipeline has run; tests must not change it."""
    from tiny_run import CONFIGS, settings

    from save_dist.cli import run_job

    run = tmp_path_factory.mktemp("runs") / "tiny"
    tracked = {"tracking.backend": "mlflow"}
    code = run_job("pipeline", CONFIGS / "pipeline.yaml", settings(run, tiny_cells, **tracked))
    assert code == 0, (run / "result.json").read_text()
    return run


@pytest.fixture
def tiny_copy(tiny_run, tmp_path):
    """A copy of the tiny run, for tests that run jobs in it."""
    return Path(shutil.copytree(tiny_run, tmp_path / "tiny"))


@pytest.fixture(scope="session")
def template_db(tmp_path_factory):
    """A migrated MLflow database: the first start on a new file takes seconds, a copy none."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MLFLOW_DISABLE_TELEMETRY", "true")
        patch.setenv("MLFLOW_LOGGING_LEVEL", "WARNING")
        import mlflow

        path = tmp_path_factory.mktemp("mlflow") / "template.db"
        mlflow.MlflowClient(tracking_uri=f"sqlite:///{path}").search_experiments()
    return path


@pytest.fixture
def server(template_db, tmp_path):
    """An own, empty MLflow database."""
    from mlflow_server import Server

    path = tmp_path / "mlflow" / "mlflow.db"
    path.parent.mkdir()
    shutil.copy(template_db, path)
    return Server(f"sqlite:///{path}")


@pytest.fixture(scope="session")
def s3_address():
    """Host and port of a local S3 server.

    A process of its own: TileDB waits for some answers without letting go of the GIL.
    """
    pytest.importorskip("moto.server", reason="moto (extra dev) is absent: no local S3 server")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)]
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    with subprocess.Popen(command, **quiet) as process:
        try:
            _wait_for(port)
            yield f"127.0.0.1:{port}"
        finally:
            process.terminate()


def _wait_for(port):
    for _ in range(600):
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
            return
        time.sleep(0.1)
    pytest.fail("the S3 server did not start")


@pytest.fixture
def s3_server(s3_address, monkeypatch):
    """Host and port of a local S3 server; credentials stand in the environment."""
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "testing")
    for name in ("AWS_PROFILE", "AWS_SESSION_TOKEN", "HTTP_PROXY", "http_proxy"):
        monkeypatch.delenv(name, raising=False)
    return s3_address
