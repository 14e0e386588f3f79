"""Trials as processes: how many at once, what a failure and a stop do to the others. No Ray."""

import contextlib
import io
import json
import sys

import pytest

from save_dist.cluster import trials
from save_dist.cluster.trials import TrialProcess, run_trials
from save_dist.config.schema import ClusterConfig
from save_dist.tracking.progress import LineProgress

JOB = """
import json, os, signal, sys, time
from pathlib import Path
place = Path(sys.argv[1])
asked = json.loads(place.read_text())
def stop(number, frame):
    (place.parent / "saved").touch()
    sys.exit(130)
signal.signal(signal.SIGTERM, stop)
print("at", os.environ["RAY_ADDRESS"], flush=True)
began = time.time()
(place.parent / "began").touch()
time.sleep(asked["seconds"])
(place.parent / "times").write_text(json.dumps([began, time.time()]))
sys.exit(asked["code"])
"""


@pytest.fixture
def asked(monkeypatch, tmp_path):
    """Processes that sleep stand in for training jobs; the list says which room Ray was given."""
    rooms = []

    @contextlib.contextmanager
    def session(config):
        rooms.append(config.n_workers)
        yield

    monkeypatch.setattr(trials.runtime, "session", session)
    monkeypatch.setattr(trials.runtime, "present_address", lambda: "here:1")
    monkeypatch.setattr(trials, "COMMAND", (sys.executable, "-S", "-c", JOB))
    monkeypatch.setattr(trials, "POLL_S", 0.02)
    return rooms


def make(folder, name, seconds=0.0, code=0):
    place = folder / name
    place.mkdir()
    (place / "trial.yaml").write_text(json.dumps({"seconds": seconds, "code": code}))
    return TrialProcess(name, place / "trial.yaml", place)


def run(some, n_parallel, out=None):
    out = out or io.StringIO()
    return run_trials(some, n_parallel, ClusterConfig(n_workers=3), LineProgress(out.write))


def test_a_failure_does_not_end_the_others(asked, tmp_path):
    out = io.StringIO()
    codes = run([make(tmp_path, f"t{n}", code=n % 2 * 3) for n in range(5)], 2, out)
    assert codes == {"t0": 0, "t1": 3, "t2": 0, "t3": 3, "t4": 0}
    assert asked == [6] and "5/5 trials" in out.getvalue() and "2 failed" in out.getvalue()
    assert (tmp_path / "t4" / "trial.log").read_text() == "at here:1\n"


@pytest.mark.parametrize("n_parallel", [1, 3])
def test_no_more_run_at_once_than_were_asked_for(asked, tmp_path, n_parallel):
    run([make(tmp_path, f"t{n}", seconds=0.3) for n in range(4)], n_parallel)
    spans = [json.loads((tmp_path / f"t{n}" / "times").read_text()) for n in range(4)]
    at_once = [sum(a <= start < b for a, b in spans) for start, _ in spans]
    assert max(at_once) <= n_parallel


def test_a_stop_lets_every_trial_save(asked, tmp_path):
    some = [make(tmp_path, f"t{n}", seconds=60) for n in range(2)]

    class Stopped(LineProgress):
        @contextlib.contextmanager
        def task(self, title, total, unit):
            yield self

        def update(self, done, text=""):
            if all((trial.folder / "began").exists() for trial in some):
                raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_trials(some, 2, ClusterConfig(), Stopped(io.StringIO().write))
    assert all((trial.folder / "saved").exists() for trial in some)


def test_without_trials_ray_is_not_asked_for(asked):
    assert run([], 2) == {} and asked == []
