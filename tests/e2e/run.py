"""`make e2e-cluster`: every job submitted to a Ray cluster that loses a node, MLflow with a login.

A head and two worker nodes are separate processes with folders and addresses of their own, in a
private network that holds loopback alone. One node dies while an atlas is generated. At the end
all jobs are done, the atlas verifies, the server has runs, metrics and figures, its compare page
shows them in a browser, and no process is left. Linux only.
"""

import json
import os
import secrets
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from browser import check_pages
from chromium import find_chromium
from network import enter_private_network
from processes import Child, Children, children, clean_environment, descendants, wait_until
from services import (
    ADMIN,
    PATIENCE,
    START_S,
    Cluster,
    Mlflow,
    start_cluster,
    start_databases,
    start_mlflow,
)
from tracking import Tracked, check_tracking

ROOT = Path(__file__).resolve().parents[2]
TINY = ROOT / "configs" / "tiny"
PICTURE = ROOT / "docs" / "images" / "mlflow-compare.png"
EXPERIMENT = "save/e2e"
VERBS = ["ingest", "blocks", "train", "generate", "evaluate"]
N_NODES = 2
N_PARTS_BEFORE = 3
"""Finished parts after which a node dies."""
JOB_LIMIT_S = 600.0
GRID = ["grid.cells_per_condition=4096", "output.cells_per_part=512"]
N_CELLS, N_PARTS = 6 * 4096, 48
"""What the grid amounts to; long enough for a node to die in the midst of it."""


@dataclass(frozen=True)
class Site:
    """Where the jobs run."""

    folder: Path
    run: Path
    environment: dict[str, str]
    cluster: Cluster
    mlflow: Mlflow


def main() -> int:
    """Everything, in order; returns 0, or raises AssertionError."""
    if not enter_private_network():
        say("no private network allowed here: Ray's ports are those of this machine, with a token")
    folder = Path(tempfile.mkdtemp(prefix="sde-", dir="/tmp"))  # short: sockets end at 107 bytes
    try:
        environment = make_environment(folder)
        with children(folder, environment) as started:
            site = open_site(folder, environment, started)
            simulate(site)
            for verb in VERBS:
                run_job(site, verb)
            verify_atlas(site)
            tracked = check_tracking(site.mlflow, EXPERIMENT, site.run, VERBS)
            say("MLflow: runs, metrics and figures are there")
            look_at_pages(site, tracked)
            check_secrets(site)
        assert not descendants(), descendants()
        say("no process is left")
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    say("green")
    return 0


def make_environment(folder: Path) -> dict[str, str]:
    """Variables of every process: one throw-away token, one throw-away login."""
    token = folder / "token"
    token.touch(mode=0o600)
    token.write_text(secrets.token_hex(16))
    return clean_environment() | {
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN_PATH": str(token),
        "RAY_USAGE_STATS_ENABLED": "0",
        **PATIENCE,
        "MLFLOW_TRACKING_USERNAME": ADMIN,
        "MLFLOW_TRACKING_PASSWORD": secrets.token_hex(16),
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]),
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
    }


def open_site(folder: Path, environment: dict[str, str], started: Children) -> Site:
    """Server and cluster, both answering."""
    begun = time.monotonic()
    databases = start_databases(started)
    mlflow, server = start_mlflow(started, databases, environment["MLFLOW_TRACKING_PASSWORD"])
    cluster = start_cluster(started, N_NODES)
    say(f"Ray: a head and {N_NODES} nodes are up after {time.monotonic() - begun:.0f} s")
    wait_until(lambda: _is_up(mlflow), "MLflow", [server, cluster.head], START_S)
    kind = databases.records.partition(":")[0]
    say(f"MLflow over {kind}: takes its login after {time.monotonic() - begun:.0f} s")
    return Site(folder, folder / "run", environment, cluster, mlflow)


def simulate(site: Site) -> None:
    """Cells to work on."""
    command(site, "simulate", str(site.folder / "cells.h5ad"))


def run_job(site: Site, verb: str) -> None:
    """Submit a job to the cluster and wait for its end; generation loses a node meanwhile."""
    pairs = {
        "run.dir": str(site.run),
        "tracking.backend": "mlflow",
        "tracking.uri": site.mlflow.uri,
        "tracking.experiment": EXPERIMENT,
    }
    settings = [f"{key}={value}" for key, value in pairs.items()]
    if verb == "ingest":
        settings.append(f"ingest.inputs={json.dumps([{'path': str(site.folder / 'cells.h5ad')}])}")
    if verb == "generate":
        settings += GRID
    words = ["submit", verb, "--config", str(TINY / f"{verb}.yaml")]
    words += ["--address", site.cluster.dashboard]
    words += [word for pair in settings for word in ("--set", pair)]
    if verb != "generate":
        command(site, *words)
        return
    with node_dying(site):
        summary = command(site, *words)
    stage = summary["job"]["stages"]
    assert (stage["n_parts"], stage["n_cells"]) == (N_PARTS, N_CELLS), stage


@contextmanager
def node_dying(site: Site) -> Iterator[None]:
    """Within the block, the last node dies once some parts are finished; it must, in time."""
    killed: list[tuple[int, int]] = []
    is_over = threading.Event()
    victim: Child = site.cluster.nodes[-1]

    def wait_and_kill() -> None:
        receipts = site.run / "atlas.zarr.receipts"
        while not is_over.wait(0.05):
            n_done = len(list(receipts.glob("0*.json")))
            if n_done >= N_PARTS_BEFORE:
                killed.append((victim.kill(), n_done))
                return

    thread = threading.Thread(target=wait_and_kill)
    thread.start()
    try:
        yield
    finally:
        is_over.set()
        thread.join()
    assert killed, "the job ended before enough parts were seen"
    n_processes, n_done = killed[0]
    say(f"a node of {n_processes} processes was killed after {n_done} of {N_PARTS} parts")
    assert n_done < N_PARTS, "the node died too late to matter; ask for more parts"


def verify_atlas(site: Site) -> None:
    """Every byte of the atlas against its receipts, three parts sampled again."""
    command(site, "verify", str(site.run / "atlas.zarr"), "--resample", "3")


def look_at_pages(site: Site, tracked: Tracked) -> None:
    """Open MLflow's pages in a browser, where the machine has one."""
    chromium = find_chromium()
    if chromium is None:
        say("no Chromium on this machine: MLflow's pages were not looked at")
        return
    check_pages(site.mlflow, chromium, tracked, PICTURE)
    say(f"MLflow's pages show them; screenshot in {PICTURE.relative_to(ROOT)}")


def check_secrets(site: Site) -> None:
    """Token and password stand in no file of run, server or Ray, logs and databases included."""
    token = site.folder / "token"
    secrets_ = [token.read_bytes(), site.environment["MLFLOW_TRACKING_PASSWORD"].encode()]
    found, files = [], [p for p in site.folder.rglob("*") if p.is_file() and p != token]
    for place in files:
        with suppress(FileNotFoundError):  # Ray is still at work
            content = place.read_bytes()
            found += [str(place)] * any(secret in content for secret in secrets_)
    assert not found, f"secrets stand in {found}"
    say(f"neither token nor password is in any of {len(files)} files")


def command(site: Site, *words: str) -> dict[str, Any]:
    """`save-dist WORDS`, which must end with 0; returns its summary."""
    started = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-m", "save_dist.cli", *words],
        cwd=site.folder,
        env=site.environment,
        capture_output=True,
        text=True,
        timeout=JOB_LIMIT_S,
        check=False,
    )
    assert done.returncode == 0, f"{words}\n{done.stdout[-3000:]}\n{done.stderr[-6000:]}"
    say(f"{' '.join(words[:2])}: {time.monotonic() - started:.0f} s")
    return dict(json.loads(done.stdout.strip().splitlines()[-1]))


def say(text: str) -> None:
    """One line on what happened."""
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


def _is_up(mlflow: Mlflow) -> bool:
    """Whether the API takes the login."""
    try:
        path = "api/2.0/mlflow/experiments/search?max_results=1"
        return mlflow.status(path, login=True) == 200
    except (OSError, ValueError):
        return False


if __name__ == "__main__":
    sys.exit(main())
