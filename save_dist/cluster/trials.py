"""Training jobs side by side on one Ray: a driver process each, workers wherever there is room."""

import ctypes
import os
import signal
import subprocess
import sys
import time
from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from save_dist.cluster import runtime
from save_dist.config.schema import ClusterConfig
from save_dist.tracking.progress import Progress

POLL_S = 0.5
LOG = "trial.log"
COMMAND = (sys.executable, "-m", "save_dist.cli", "train", "--config")
_PR_SET_PDEATHSIG = 1


@dataclass(frozen=True)
class TrialProcess:
    """One training job to run."""

    name: str
    config: Path
    """Its whole configuration."""
    folder: Path
    """Its run folder; what it prints is appended to a file there."""


def run_trials(
    trials: Sequence[TrialProcess], n_parallel: int, config: ClusterConfig, progress: Progress
) -> dict[str, int]:
    """Run training jobs, some at once; returns their exit codes by name.

    A job that fails does not end the others. When this process is told to stop, the jobs are told
    to save their state first.

    Args:
        trials: jobs to run, in this order.
        n_parallel: jobs at once.
        config: the cluster as every single job uses it; a private one gets room for all at once.
        progress: where it is shown how many have ended.

    Raises:
        InfrastructureError: if Ray does not start or answer.
    """
    if not trials:
        return {}
    room = config.model_copy(update={"n_workers": n_parallel * config.n_workers})
    codes: dict[str, int] = {}
    waiting, active = deque(trials), dict[str, subprocess.Popen[bytes]]()
    with runtime.session(room), progress.task("trials", len(trials), "trials") as task:
        address = runtime.present_address()
        try:
            while waiting or active:
                while waiting and len(active) < n_parallel:
                    trial = waiting.popleft()
                    active[trial.name] = _start(trial, address)
                for name in [
                    name for name, process in active.items() if process.poll() is not None
                ]:
                    codes[name] = active.pop(name).returncode
                n_failed = sum(code != 0 for code in codes.values())
                task.update(len(codes), f"{n_failed} failed" if n_failed else "")
                time.sleep(POLL_S)
        finally:
            _end(active.values(), config.grace_s)
    return codes


def _start(trial: TrialProcess, address: str) -> "subprocess.Popen[bytes]":
    words = [*COMMAND, str(trial.config)]
    with (trial.folder / LOG).open("ab") as log:
        return subprocess.Popen(
            words,
            env=os.environ | {"RAY_ADDRESS": address},
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,  # Ctrl-C is for the sweep, which asks its trials to save
            preexec_fn=_stop_with_parent,
        )


def _stop_with_parent() -> None:
    """Linux: a trial is told to save and end when the sweep dies, however it dies."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM, 0, 0, 0)


def _end(processes: Iterable["subprocess.Popen[bytes]"], grace_s: float) -> None:
    """Ask all to save and end, and wait for them."""
    left = list(processes)
    for process in left:
        process.terminate()
    deadline = time.monotonic() + grace_s + 10
    for process in left:
        try:
            process.wait(max(0.0, deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
