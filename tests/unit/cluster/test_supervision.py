import os
import signal
import threading
import time

import pytest

from save_dist.cluster.supervision import Foreman, Orders, Watchdog


@pytest.fixture
def orders(tmp_path):
    return Orders(tmp_path, deadline_s=None, step_limit_s=60.0)


def test_nobody_asked(orders):
    assert Foreman(orders, 0).asked_to_stop() == ""


def test_the_deadline_is_a_reason(tmp_path):
    late = Orders(tmp_path, deadline_s=time.time() - 1, step_limit_s=60.0)
    assert Foreman(late, 0).asked_to_stop() == "training.max_hours is reached"


def test_sigterm_leaves_a_note_that_the_ranks_find(orders):
    with orders.obeyed(grace_s=60.0):
        os.kill(os.getpid(), signal.SIGTERM)
        deadline = time.monotonic() + 5
        while not orders.note.is_file() and time.monotonic() < deadline:
            time.sleep(0.01)
        assert Foreman(orders, 0).asked_to_stop() == "SIGTERM"
    assert signal.getitimer(signal.ITIMER_REAL) == (0.0, 0.0)


def handled_by(handler):
    before = signal.signal(signal.SIGTERM, handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


@pytest.fixture
def interrupting():
    """SIGTERM outside the block raises, as it does in the command."""

    def interrupt(number, frame):
        raise KeyboardInterrupt

    yield from handled_by(interrupt)


def terminate(n_signals):
    for _ in range(n_signals):
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(0.01)
    time.sleep(5)


@pytest.mark.parametrize(("grace_s", "n_signals"), [(0.05, 1), (60.0, 2)], ids=["grace", "twice"])
def test_the_end_comes_without_the_ranks_too(orders, interrupting, grace_s, n_signals):
    with pytest.raises(KeyboardInterrupt), orders.obeyed(grace_s):
        terminate(n_signals)
    assert signal.getitimer(signal.ITIMER_REAL) == (0.0, 0.0)


def test_a_step_that_hangs_is_reported_with_what_it_did():
    stalled, called = [], threading.Event()

    def on_stall(activity):
        stalled.append((activity.step, activity.what))
        called.set()

    with Watchdog(0.1, on_stall) as watchdog:
        watchdog.begin(1, "computing")
        time.sleep(0.25)  # the first step may compile
        assert not stalled
        watchdog.begin(2, "reading")
        watchdog.begin(2, "computing")
        assert called.wait(5)
    assert stalled == [(2, "computing")]


def test_steps_that_go_on_are_left_alone():
    stalled = []
    with Watchdog(0.2, stalled.append) as watchdog:
        for step in range(10):
            watchdog.begin(step, "computing")
            time.sleep(0.04)
    assert not stalled
