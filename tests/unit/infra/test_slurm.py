"""The Slurm script, run with stand-ins for Slurm and Ray that write down how they were called."""

import os
import signal
import subprocess
import time

import pytest
from infra_kustomize import ROOT

SCRIPT = ROOT / "infra" / "slurm" / "save.sbatch"
STANDINS = {
    "scontrol": '[ "$1" = requeue ] || printf "n1\\nn2\\nn3\\n"',
    "srun": 'while [ "${1#--}" != "$1" ]; do shift; done; exec "$@"',
    "hostname": "echo 10.0.0.1",
    "ray": '[ "$1" = health-check ] || exec sleep 60; until_called "ray start --head"',
    "save-dist": '[ "$1" != doctor ] || { until_called "ray start --block"; exit 0; }; '
    '[ -z "${JOB_S:-}" ] || exec sleep "$JOB_S"; exit "${JOB_CODE:-0}"',
}

# what the script starts in the background is waited for, so that the order of calls is certain
UNTIL_CALLED = 'until_called() { until grep -q "^$1" "$CALLS"; do sleep 0.02; done; }'


@pytest.fixture
def place(tmp_path):
    """A folder of submission with an environment whose programs are stand-ins."""
    programs = tmp_path / ".venv" / "bin"
    programs.mkdir(parents=True)
    (programs / "activate").write_text(f'export PATH="{programs}:$PATH"\n')
    for name, body in STANDINS.items():
        program = programs / name
        program.write_text(f'#!/bin/bash\n{UNTIL_CALLED}\necho "{name} $*" >>"$CALLS"\n{body}\n')
        program.chmod(0o755)
    return tmp_path


def start(place, **environment):
    slurm = {
        "SLURM_JOB_ID": "123456789",
        "SLURM_JOB_NODELIST": "n[1-3]",
        "SLURM_CPUS_PER_TASK": "8",
        "CALLS": str(place / "calls"),
    }
    path = f"{place / '.venv' / 'bin'}:{os.environ['PATH']}"
    return subprocess.Popen(
        ["bash", str(SCRIPT), "train", "t.yaml", "--set", "run.seed=1"],
        cwd=place,
        env=os.environ | slurm | environment | {"PATH": path},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def calls(place):
    return (place / "calls").read_text().splitlines()


@pytest.mark.parametrize("code", [0, 4])
def test_job_ends_with_its_own_code_and_leaves_nothing(place, code):
    job = start(place, JOB_CODE=str(code))
    out, _ = job.communicate(timeout=30)
    assert job.returncode == code, out
    made = calls(place)
    assert "save-dist doctor --verb train --config t.yaml --set run.seed=1" in made
    assert "save-dist train --config t.yaml --set run.seed=1" in made
    assert sum("ray start --head" in call and "srun" not in call for call in made) == 1
    assert any("--nodes=2" in call and "--nodelist=n2,n3" in call for call in made)
    assert not any("requeue" in call for call in made)
    assert sorted(p.name for p in place.iterdir()) == [".venv", "calls"]


def test_near_the_time_limit_the_job_goes_back_into_the_queue(place):
    job = start(place, JOB_S="30")
    deadline = time.monotonic() + 20
    wanted = "save-dist train"
    while time.monotonic() < deadline:
        if (place / "calls").exists() and any(c.startswith(wanted) for c in calls(place)):
            break
        time.sleep(0.05)
    job.send_signal(signal.SIGTERM)
    out, _ = job.communicate(timeout=30)
    assert job.returncode == 130, out
    assert calls(place)[-1] == "scontrol requeue 123456789"
    assert not list(place.glob(".save-*"))
