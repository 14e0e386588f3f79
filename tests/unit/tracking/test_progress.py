import io
import json
import re

import pytest
from rich.console import Console
from rich.table import Table

from save_dist.tracking import progress
from save_dist.tracking.progress import BarProgress, LineProgress, duration, make_progress


class Clock:
    def __init__(self, monkeypatch):
        self.now = 100.0
        monkeypatch.setattr(progress.time, "monotonic", lambda: self.now)


@pytest.fixture
def clock(monkeypatch):
    return Clock(monkeypatch)


def test_a_line_at_most_every_interval_and_one_at_the_end(clock):
    stream = io.StringIO()
    with LineProgress(stream.write).task("training vae", total=100, unit="steps") as task:
        for done in range(1, 13):
            task.update(done, text=f"loss {done}")
            clock.now += 1
    assert stream.getvalue().splitlines() == [
        "training vae: 6/100 steps, 1 steps/s, 1 min 34 s left, loss 6",
        "training vae: 11/100 steps, 1 steps/s, 1 min 29 s left, loss 11",
        "training vae: 12/100 steps, done in 12.0 s, loss 12",
    ]


def test_resumed_work_is_not_counted_as_speed(clock):
    stream = io.StringIO()
    with LineProgress(stream.write).task("training", total=1000, unit="steps") as task:
        task.update(900)
        clock.now += 10
        task.update(920)
    assert "920/1000 steps, 2 steps/s, 40.0 s left" in stream.getvalue()


def test_an_unknown_total_shows_speed_alone(clock):
    stream = io.StringIO()
    with LineProgress(stream.write).task("reading", total=None, unit="cells") as task:
        task.update(0)
        clock.now += 6
        task.update(12)
    assert stream.getvalue().splitlines()[0] == "reading: 12 cells, 2 cells/s"


def test_a_total_that_becomes_known_is_shown_from_then_on(clock):
    stream = io.StringIO()
    with LineProgress(stream.write).task("reading", total=None, unit="cells") as task:
        task.update(0)
        clock.now += 6
        task.update(12, total=24)
        clock.now += 6
        task.update(24)
    assert stream.getvalue().splitlines() == [
        "reading: 12/24 cells, 2 cells/s, 6.0 s left",
        "reading: 24/24 cells, 2 cells/s, 0.0 s left",
        "reading: 24/24 cells, done in 12.0 s",
    ]


def test_no_progress_claims_no_speed(clock):
    stream = io.StringIO()
    with LineProgress(stream.write).task("waiting", total=5, unit="parts") as task:
        task.update(0)
        clock.now += 6
        task.update(0)
    assert stream.getvalue().splitlines()[0] == "waiting: 0/5 parts"


def test_a_failing_task_says_stopped_and_the_error_passes():
    stream = io.StringIO()

    def fail():
        with LineProgress(stream.write).task("training", total=5, unit="steps") as task:
            task.update(2)
            raise ValueError("boom")

    with pytest.raises(ValueError, match="boom"):
        fail()
    assert re.search(r"training: 2/5 steps, stopped in", stream.getvalue())


def test_bars_show_nested_tasks_and_text_as_it_is():
    console = Console(file=io.StringIO(), force_terminal=True, width=160, color_system=None)
    bars = BarProgress(console)
    with bars.task("whole [run]", total=2, unit="stages") as outer:
        with bars.task("vae", total=10, unit="steps") as inner:
            inner.update(10, text="loss [1.5]")
        outer.update(1)
    text = console.file.getvalue()
    for words in ("whole [run]", "10/10", "1/2", "loss [1.5]"):
        assert words in text
    with bars.task("again", total=None, unit="step") as task:  # a stopped display starts anew
        task.update(1, total=7)
        task.update(2)
    assert "2/7" in console.file.getvalue()


@pytest.mark.parametrize(
    ("terminals", "kind"),
    [
        pytest.param((True, True), BarProgress, id="terminal"),
        pytest.param((False, True), LineProgress, id="stdout piped"),
        pytest.param((True, False), LineProgress, id="stderr piped"),
    ],
)
def test_bars_only_where_a_person_watches(monkeypatch, terminals, kind):
    for stream, answer in zip((progress.sys.stdout, progress.sys.stderr), terminals, strict=True):
        monkeypatch.setattr(stream, "isatty", lambda answer=answer: answer, raising=False)
    assert isinstance(make_progress(), kind)


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        pytest.param(0.04, "0.0 s", id="none"),
        pytest.param(59.94, "59.9 s", id="seconds"),
        pytest.param(59.97, "1 min 00 s", id="nearly a minute"),
        pytest.param(119.5, "2 min 00 s", id="minutes"),
        pytest.param(3599.5, "1 h 00 min", id="nearly an hour"),
        pytest.param(90_000.0, "25 h 00 min", id="hours"),
    ],
)
def test_duration(seconds, text):
    assert duration(seconds) == text


def test_the_table_is_never_cut_and_the_summary_comes_last(capsys):
    table = Table("metric", "value", title="Result")
    table.add_row("m" * 150, "0.5")
    text = progress.render_table(table)
    assert any("m" * 150 in line and "0.5" in line for line in text.splitlines())
    progress.print_summary({"status": "done", "cells": 3})
    assert json.loads(capsys.readouterr().out.splitlines()[-1]) == {"status": "done", "cells": 3}
