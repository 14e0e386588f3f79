"""What a person sees of a job: bars on a terminal, plain lines elsewhere, a table at the end.

Progress goes to stderr; stdout carries the final table and, as its last line, a JSON summary.
"""

import contextlib
import io
import json
import math
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Protocol, runtime_checkable

import rich.progress
from rich.console import Console
from rich.table import Table

MIN_SECONDS_BETWEEN_LINES = 5.0
"""Plain progress writes one line per task at most this often."""

PIPE_WIDTH = 240
"""Widest table, in characters, where stdout is not a terminal."""


@runtime_checkable
class Task(Protocol):
    """One thing under way."""

    def update(self, done: int, text: str = "", total: int | None = None) -> None:
        """Say how much is done, a few words on how it goes, and the total once it is known."""


@runtime_checkable
class Progress(Protocol):
    """Shows tasks; the same calls draw bars or write lines."""

    def task(
        self, title: str, total: int | None, unit: str
    ) -> contextlib.AbstractContextManager[Task]:
        """Show a task while the block runs; a total of None is one not known yet."""


def make_progress() -> Progress:
    """Bars if a person watches on a terminal, plain lines otherwise."""
    if sys.stdout.isatty() and sys.stderr.isatty():
        return BarProgress(Console(stderr=True))
    return LineProgress(sys.stderr.write)


class LineProgress:
    """One plain line per task at most every few seconds, and one when it ends."""

    def __init__(
        self,
        write: Callable[[str], object],
        min_interval_s: float = MIN_SECONDS_BETWEEN_LINES,
    ) -> None:
        self._write = write
        self._min_interval_s = min_interval_s

    @contextlib.contextmanager
    def task(self, title: str, total: int | None, unit: str) -> Iterator[Task]:
        """Show a task while the block runs."""
        task = _LineTask(self._write, self._min_interval_s, title, total, unit)
        try:
            yield task
        except BaseException:
            task.finish("stopped")
            raise
        task.finish("done")


class _LineTask:
    def __init__(
        self,
        write: Callable[[str], object],
        min_interval_s: float,
        title: str,
        total: int | None,
        unit: str,
    ) -> None:
        self._write, self._min_interval_s = write, min_interval_s
        self._title, self._total, self._unit = title, total, unit
        self._began = self._told = time.monotonic()
        self._first: int | None = None
        self._done, self._text = 0, ""

    def update(self, done: int, text: str = "", total: int | None = None) -> None:
        """Remember where the task is; write a line if the last one is old enough."""
        self._total = total or self._total
        self._done, self._text = done, text or self._text
        if self._first is None:
            self._first, self._began = done, time.monotonic()  # resumed work is not speed
        if time.monotonic() - self._told >= self._min_interval_s:
            self._told = time.monotonic()
            self._tell(self._pace())

    def finish(self, word: str) -> None:
        """The last line."""
        self._tell(f"{word} in {duration(time.monotonic() - self._began)}")

    def _pace(self) -> str:
        seconds = time.monotonic() - self._began
        rate = (self._done - (self._first or 0)) / seconds if seconds > 0 else 0.0
        if rate <= 0:
            return ""
        pace = f"{rate:.3g} {self._unit}/s"
        if self._total is None:
            return pace
        return f"{pace}, {duration((self._total - self._done) / rate)} left"

    def _tell(self, pace: str) -> None:
        of = "" if self._total is None else f"/{self._total}"
        parts = [f"{self._done}{of} {self._unit}", pace, self._text]
        self._write(f"{self._title}: {', '.join(p for p in parts if p)}\n")


class BarProgress:
    """Rich bars, alive while at least one task is."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._live: rich.progress.Progress | None = None

    @contextlib.contextmanager
    def task(self, title: str, total: int | None, unit: str) -> Iterator[Task]:
        """Show a task while the block runs; tasks may be nested."""
        outermost = self._live is None
        live = self._live = self._live or _bars(self._console)
        if outermost:
            live.start()
        try:
            yield _BarTask(live, live.add_task(title, total=total, unit=unit, text=""))
        finally:
            if outermost:
                live.stop()
                self._live = None


class _BarTask:
    def __init__(self, live: rich.progress.Progress, number: rich.progress.TaskID) -> None:
        self._live, self._number = live, number

    def update(self, done: int, text: str = "", total: int | None = None) -> None:
        """Move the bar."""
        self._live.update(self._number, completed=done, total=total)  # rich keeps what is None
        if text:
            self._live.update(self._number, text=text)


def _bars(console: Console) -> rich.progress.Progress:
    return rich.progress.Progress(
        rich.progress.TextColumn("{task.description}", markup=False),
        rich.progress.BarColumn(),
        rich.progress.MofNCompleteColumn(),
        rich.progress.TextColumn("{task.fields[unit]}", markup=False),
        rich.progress.TimeElapsedColumn(),
        rich.progress.TimeRemainingColumn(),
        rich.progress.TextColumn("{task.fields[text]}", markup=False),
        console=console,
    )


def duration(seconds: float) -> str:
    """Seconds as people say them.

    >>> duration(8.21), duration(75), duration(3720)
    ('8.2 s', '1 min 15 s', '1 h 02 min')
    """
    if round(seconds, 1) < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(math.ceil(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest:02d} s"
    return f"{minutes // 60} h {minutes % 60:02d} min"


def render_table(table: Table) -> str:
    """A table as plain text, as wide as it needs: for files, pipes and terminals alike."""
    measured = Console(width=10_000).measure(table).maximum
    with io.StringIO() as out:
        Console(file=out, width=max(60, measured)).print(table)
        return out.getvalue()


def print_summary(summary: Mapping[str, Any]) -> None:
    """The JSON summary of a job, as one line; it must be the last thing on stdout."""
    sys.stdout.write(json.dumps(summary, sort_keys=True) + "\n")
    sys.stdout.flush()
