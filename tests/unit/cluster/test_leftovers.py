"""A driver that is killed takes its processes and its folder along; one that ends, neither."""

import subprocess
import sys
import time

import psutil
import pytest

DRIVER = """
import subprocess, sys, time
from save_dist.cluster import leftovers
sleep = [sys.executable, "-c", "import time; time.sleep(60)"]
child = subprocess.Popen(sleep, stdout=subprocess.DEVNULL, start_new_session=True)
with leftovers.cleared(sys.argv[1]):
    print(child.pid, flush=True)
    sys.stdin.readline()
"""


@pytest.fixture
def driver(tmp_path):
    """A driver with a child in a session of its own."""
    command = [sys.executable, "-c", DRIVER, str(tmp_path / "ray")]
    (tmp_path / "ray").mkdir()
    process = subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1
    )
    child = psutil.Process(int(process.stdout.readline()))
    yield process, child
    process.kill()
    process.communicate()
    if child.is_running():
        child.kill()


def runs(process):
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def test_after_a_kill_nothing_is_left(driver, tmp_path):
    process, child = driver
    process.kill()
    deadline = time.monotonic() + 20
    while runs(child) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not runs(child)
    while (tmp_path / "ray").exists() and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not (tmp_path / "ray").exists()


def test_what_ends_by_itself_is_left_alone(driver, tmp_path):
    process, child = driver
    process.communicate("end\n", timeout=20)
    time.sleep(0.2)
    assert runs(child) and (tmp_path / "ray").exists()
