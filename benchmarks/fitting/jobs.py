"""Whole train commands on a private Ray: waiting for data, and a worker that is killed."""

import itertools
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
from generation.figures import Line, share

from save_dist.cli import run_job
from save_dist.data.simulate import SimulationConfig
from save_dist.pipelines.simulate import simulate
from save_dist.tracking.tracker import Record, read_records

CONFIGS = Path(__file__).resolve().parents[2] / "configs"
CELLS = SimulationConfig(n_cells=12_000, n_genes=1500, n_types=6, n_conditions=2, n_donors=4)
N_STEPS, INTERVAL, LOG_STEPS, KILLED_AT = 600, 100, 5, 250
STAGES = ("vae", "flow")


def jobs(folder: Path, repeats: int) -> Iterator[Line]:
    """The demo's networks on simulated cells; every command loses a worker in its first stage."""
    prepared = prepare(folder / "prepared")
    recoveries: list[float] = []
    lost: list[int] = []
    waits: dict[str, list[float]] = {stage: [] for stage in STAGES}
    for repeat in range(repeats):
        run = Path(shutil.copytree(prepared, folder / f"run{repeat}"))
        begun_s, killed_s = train_and_kill(run)
        records = steps_of(run, "vae")
        gaps = [b.time_ms - a.time_ms for a, b in itertools.pairwise(records)]
        gap = gaps.index(max(gaps))  # the group is started again
        last, first = records[gap], records[gap + 1]
        cold_s = records[0].time_ms / 1000 - begun_s
        recoveries.append((first.time_ms / 1000 - killed_s) / cold_s)
        lost.append((last.step or 0) - (first.step or 0) + LOG_STEPS)
        for stage, found in waits.items():
            found += [float(r.values["time/data_wait_share"]) for r in steps_of(run, stage)[1:]]
    yield Line("first step after a worker's death, in cold starts", share(recoveries), "<= 1.5")
    what = f"steps taken twice, of the {INTERVAL} between checkpoints, at most"
    yield Line(what, f"{max(lost)}", f"<= {INTERVAL}")
    for stage, found in waits.items():
        mean = sum(found) / len(found)
        yield Line(f"demo, {stage}: share of a step waiting for data", f"{mean:.3f}", "<= 0.05")


def prepare(run: Path) -> Path:
    """A run folder in which ingest and blocks are done."""
    cells = run.with_name("cells.h5ad")
    simulate(cells, CELLS)
    place, inputs = f"run.dir={run}", json.dumps([{"path": str(cells)}])
    for name, more in (
        ("ingest", [f"ingest.inputs={inputs}"]),
        ("blocks", ["genes.n_top=1000", "blocks.genes_per_block=100"]),
    ):
        pairs = [place, "cluster.n_workers=1", *more]
        assert run_job(name, CONFIGS / "tiny" / f"{name}.yaml", pairs) == 0
    return run


def train_and_kill(run: Path) -> tuple[float, float]:
    """A train command that loses a worker; when it began and when that was, in Unix seconds."""
    pairs = [
        f"run.dir={run}",
        "cluster.address=local",
        "tracking.backend=none",
        "training.stages=[vae, flow]",
        f"training.log_every_steps={LOG_STEPS}",
        f"training.checkpoint.every_steps={INTERVAL}",
        *(f"{stage}.optim.n_steps={N_STEPS}" for stage in STAGES),
    ]
    config = str(CONFIGS / "demo" / "train.yaml")
    command = [sys.executable, "-m", "save_dist.cli", "train", "--config", config]
    command += [word for pair in pairs for word in ("--set", pair)]
    environment = {k: v for k, v in os.environ.items() if k != "RAY_ADDRESS"}
    begun_s = time.time()
    job = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL)
    try:
        while not any((r.step or 0) >= KILLED_AT for r in steps_of(run, "vae")):
            assert job.poll() is None, f"training ended with {job.returncode}"
            time.sleep(0.02)
        workers_of(job.pid)[0].kill()
        killed_s = time.time()
        assert job.wait() == 0
    finally:
        job.kill()
        job.wait()
    return begun_s, killed_s


def steps_of(run: Path, stage: str) -> list[Record]:
    """Records of training steps in the order they were written."""
    records = read_records(run / "metrics.jsonl", run=stage, kind="metrics")
    return [record for record in records if "train/loss" in record.values]


def workers_of(pid: int) -> list[psutil.Process]:
    """Ranks below a driver."""
    children = psutil.Process(pid).children(recursive=True)
    return [p for p in children if p.is_running() and "RayTrainWorker" in " ".join(p.cmdline())]
