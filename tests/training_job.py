"""A train command in a run folder of its own, as an operator runs it: again, until it is done."""

import contextlib
import json
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
from tiny_run import CONFIGS, settings

from save_dist.cli import run_job
from save_dist.tracking.tracker import Record, read_records

STAGES = ("vae", "flow")
STEPS = {"vae": 400, "flow": 300}
CHECKPOINT_STEPS = 25
LOG_STEPS = 5


def prepare(run: Path, cells: Path) -> Path:
    """A run folder in which ingest and blocks are done and nothing else."""
    for name in ("ingest", "blocks"):
        pairs = settings(run, cells, **{"cluster.n_workers": 1})
        pairs = pairs if name == "ingest" else [p for p in pairs if not p.startswith("ingest.")]
        assert run_job(name, CONFIGS / f"{name}.yaml", pairs) == 0
    return run


def settings_of(run: Path, **more: object) -> list[str]:
    """Settings as KEY=VALUE."""
    pairs = {
        "run.dir": run,
        "vae.optim.n_steps": STEPS["vae"],
        "flow.optim.n_steps": STEPS["flow"],
        "training.checkpoint.every_steps": CHECKPOINT_STEPS,
        "training.log_every_steps": LOG_STEPS,
        **more,
    }
    return [f"{key}={value}" for key, value in pairs.items()]


class TrainingJob:
    """One run folder and the process that trains in it; a context manager that ends it.

    Args:
        prepared: folder to start from.
        run: copied there.
        environment: of the command.
        more: settings besides those of this file.
    """

    def __init__(self, prepared: Path, run: Path, environment: dict, **more: object) -> None:
        self.run = Path(shutil.copytree(prepared, run))
        self._environment = environment
        config = str(CONFIGS / "train.yaml")
        self.command = [sys.executable, "-m", "save_dist.cli", "train", "--config", config]
        self.settings = settings_of(run, **more)
        self.command += [word for pair in self.settings for word in ("--set", pair)]
        self.process: subprocess.Popen | None = None

    def __enter__(self) -> "TrainingJob":
        self.begin()
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()

    def begin(self) -> None:
        """Run the command."""
        self._known = self._n_reports()
        with (self.run / "output.txt").open("ab") as output:
            self.process = subprocess.Popen(
                self.command, env=self._environment, stdout=output, stderr=output
            )

    def kill(self) -> None:
        """SIGKILL to the driver."""
        self.process.kill()
        self.process.wait()

    def wait(self, timeout_s: float = 600) -> int:
        """Exit code of the command."""
        return self.process.wait(timeout_s)

    def place(self) -> int:
        """Steps that the journal knows of, over both stages."""
        return sum(max((step for step, _ in self.losses(s)), default=0) for s in STAGES)

    def wait_for(self, place: int, timeout_s: float = 600) -> None:
        """Until the journal knows of so many steps."""
        deadline = time.monotonic() + timeout_s
        while self.place() < place:
            assert self.process.poll() is None, f"ended before step {place}: {self.tail()}"
            assert time.monotonic() < deadline, f"step {place} not reached: {self.tail()}"
            time.sleep(0.02)

    def wait_for_a_step(self, timeout_s: float = 600) -> None:
        """Until this attempt has reported a step: an earlier one may have been far ahead."""
        deadline = time.monotonic() + timeout_s
        while self._n_reports() <= self._known:
            assert self.process.poll() is None, f"ended before a step: {self.tail()}"
            assert time.monotonic() < deadline, f"no step was taken: {self.tail()}"
            time.sleep(0.02)

    def losses(self, stage: str) -> list[tuple[int, float]]:
        """Steps and training losses in the order they were written."""
        return [(r.step, r.values["train/loss"]) for r in self._records(stage)]

    def values(self, stage: str, name: str) -> list[float]:
        """A metric in the order it was written."""
        return [r.values[name] for r in self._records(stage)]

    def _n_reports(self) -> int:
        return sum(len(self.losses(stage)) for stage in STAGES)

    def _records(self, stage: str) -> list[Record]:
        records = read_records(self.run / "metrics.jsonl", run=stage, kind="metrics")
        return [record for record in records if "train/loss" in record.values]

    def outcome(self) -> tuple[str, dict[str, dict[int, float]]]:
        """Hash of the exported model, and the last loss written for every step."""
        result = json.loads((self.run / "result.json").read_text())
        assert result["exit_code"] == 0, result
        return result["stages"]["model_hash"], {s: dict(self.losses(s)) for s in STAGES}

    def tail(self) -> str:
        """The end of what the command printed."""
        return (self.run / "output.txt").read_text()[-2000:]


def kill_worker(job: TrainingJob, number: int, above: list[int]) -> None:
    """SIGKILL to one of the training workers below the processes `above`, once there is one."""
    job.wait_for_a_step()
    deadline = time.monotonic() + 120
    while not (workers := workers_below(above)):
        assert job.process.poll() is None, f"ended before its worker was killed: {job.tail()}"
        assert time.monotonic() < deadline, f"no worker came: {job.tail()}"
        time.sleep(0.02)
    workers[number % len(workers)].send_signal(signal.SIGKILL)


def workers_below(pids: list[int]) -> list[psutil.Process]:
    """Training workers among the children of processes."""
    found = []
    for pid in pids:
        for process in psutil.Process(pid).children(recursive=True):
            with contextlib.suppress(psutil.NoSuchProcess):
                if "RayTrainWorker" in " ".join(process.cmdline()):
                    found.append(process)
    return found
