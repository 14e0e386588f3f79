"""The journal of a run: an append-only metrics.jsonl that is the truth of everything tracked.

Driver and rank 0 append to it; nothing here knows a tracking server. `tracking.mlflow` reads the
journal from the side and replays it, so a slow or absent server is never felt by a job.
"""

import contextlib
import dataclasses
import json
import logging
import math
import os
import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol, runtime_checkable

from save_dist.core.errors import InfrastructureError, StoppedError
from save_dist.core.redaction import redact

_log = logging.getLogger(__name__)

ROOT = "pipeline"
"""Run that all others of a run folder are children of."""

Kind = Literal[
    "start",
    "end",
    "params",
    "metrics",
    "tags",
    "artifact",
    "dataset",
    "model",
    "checkpoint",
    "child",
]
Status = Literal["FINISHED", "FAILED", "KILLED"]


@runtime_checkable
class Tracker(Protocol):
    """What a stage may say about itself while it runs."""

    def params(self, values: Mapping[str, object]) -> None:
        """Settings; nested mappings become dotted keys."""

    def metrics(self, values: Mapping[str, float | int], step: int, model: str = "") -> None:
        """Numbers at one step; names are slash groups such as `train/loss`.

        `model` is the hash of the exported model that they are about, if they are about one.
        """

    def tags(self, values: Mapping[str, str]) -> None:
        """Labels to search runs by."""

    def artifact(self, path: Path, folder: str = "") -> None:
        """A finished file or folder, kept under `folder` of the run's artifacts."""

    def dataset(
        self, name: str, uri: str, digest: str, context: str, facts: Mapping[str, int | str]
    ) -> None:
        """Cells that were read or written; `digest` tells versions of one `uri` apart."""

    def model(self, path: Path, model_hash: str, facts: Mapping[str, str]) -> None:
        """An exported model, to be kept and registered where there is a registry."""

    def checkpoint(self, path: Path, step: int, digest: str) -> None:
        """A finished checkpoint of a stage; it stays where it is."""


@dataclass(frozen=True)
class Record:
    """One line of the journal."""

    run: str
    kind: Kind
    step: int | None
    values: dict[str, Any]
    time_ms: int
    attempt: int
    model: str = ""
    """Hash of the exported model that the metrics are about; empty: of none."""


@dataclass(frozen=True)
class Journal:
    """Appends records of one run; holds no file handle, so it travels to workers."""

    path: Path
    run: str = ROOT
    attempt: int = 0
    """How often the run folder was started before."""

    def child(self, run: str) -> "Journal":
        """The same journal, speaking for a child run such as `vae`."""
        return dataclasses.replace(self, run=run)

    @contextlib.contextmanager
    def running(self, identity: str = "") -> Iterator["Journal"]:
        """Write `start`, then `end` with the status that the block ends with.

        Args:
            identity: what makes this run itself (a config hash). Starting again with the same
                identity continues it; with another one, a new run of the same name begins.
        """
        self.start(identity)
        status: Status = "FAILED"
        try:
            yield self
            status = "FINISHED"
        except (KeyboardInterrupt, SystemExit, StoppedError):
            status = "KILLED"
            raise
        finally:
            self.end(status)

    def start(self, identity: str = "") -> None:
        """Begin or continue the run."""
        self._append("start", {"identity": identity})

    def end(self, status: Status) -> None:
        """End the run."""
        self._append("end", {"status": status})

    def params(self, values: Mapping[str, object]) -> None:
        """Settings; nested mappings become dotted keys, other values their text."""
        self._append("params", flatten(values))

    def metrics(self, values: Mapping[str, float | int], step: int, model: str = "") -> None:
        """Numbers at one step. Non-finite ones are kept, as text."""
        numbers = {key: _number(value) for key, value in values.items()}
        self._append("metrics", numbers, step, model)

    def tags(self, values: Mapping[str, str]) -> None:
        """Labels to search runs by."""
        self._append("tags", dict(values))

    def artifact(self, path: Path, folder: str = "") -> None:
        """A finished file or folder; stored as a path relative to the journal if below it."""
        self._append("artifact", {"path": self._place(path), "folder": folder})

    def dataset(
        self, name: str, uri: str, digest: str, context: str, facts: Mapping[str, int | str]
    ) -> None:
        """Cells that were read or written, e.g. context `training`, facts {"n_cells": 10}."""
        values = {"name": name, "uri": uri, "digest": digest, "context": context}
        self._append("dataset", {**values, "facts": dict(facts)})

    def model(self, path: Path, model_hash: str, facts: Mapping[str, str]) -> None:
        """An exported model, to be kept and registered where there is a registry."""
        values = {"path": self._place(path), "hash": model_hash, "facts": dict(facts)}
        self._append("model", values)

    def checkpoint(self, path: Path, step: int, digest: str) -> None:
        """A finished checkpoint of a stage, and how the stage stood when it was written."""
        points = _standing(read_records(self.path, run=self.run, kind="metrics"), step)
        values = {"path": self._place(path), "digest": digest, "metrics": points}
        self._append("checkpoint", values, step)

    def child_journal(self, path: Path) -> None:
        """Another run folder whose run belongs below this one, such as a trial of a sweep."""
        self._append("child", {"journal": self._place(path)})

    def _place(self, path: Path) -> str:
        home, place = self.path.parent.resolve(), path.resolve()
        return str(place.relative_to(home)) if place.is_relative_to(home) else str(place)

    def _append(
        self, kind: Kind, values: dict[str, Any], step: int | None = None, model: str = ""
    ) -> None:
        now_ms = time.time_ns() // 1_000_000
        record = Record(self.run, kind, step, values, now_ms, self.attempt, model)
        line = json.dumps(_redacted(dataclasses.asdict(record)), allow_nan=False)
        _append_line(self.path, line)


def open_journal(path: Path) -> Journal:
    """The journal of a run folder, made if absent; earlier attempts in it are counted.

    A line that a crash left unfinished is closed, so that it cannot swallow the next one.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.is_file() and (data := path.read_bytes()) and not data.endswith(b"\n"):
        _append_line(path, "")
    n_starts = sum(1 for _ in read_records(path, run=ROOT, kind="start"))
    return Journal(path, ROOT, n_starts)


def read_records(
    path: Path, *, run: str | None = None, kind: Kind | None = None
) -> Iterator[Record]:
    """Records of a journal in the order written, all of them or those of one run or kind."""
    if not path.is_file():
        return
    with path.open("rb") as file:
        for line in file:
            record = parse_record(line)
            if record is None or (run or record.run) != record.run:
                continue
            if (kind or record.kind) == record.kind:
                yield record


def parse_record(line: bytes) -> Record | None:
    """One line of the journal; None, with a warning, if a crash tore it."""
    if not line.strip():
        return None
    try:
        return Record(**json.loads(line))
    except (ValueError, TypeError):
        _log.warning("event=journal_line_skipped text=%r", line[:80])
        return None


def _standing(records: Iterable[Record], step: int) -> dict[str, tuple[Any, int, int]]:
    """Metric -> value, time and step of its last point up to `step`.

    Of a point that a restart repeated the first counts, as in the mirror.
    """
    last: dict[str, tuple[Any, int, int]] = {}
    for record in records:
        if record.step is None or record.step > step:
            continue
        for name, value in record.values.items():
            if name not in last or record.step > last[name][2]:
                last[name] = (value, record.time_ms, record.step)
    return last


def flatten(values: Mapping[str, object], prefix: str = "") -> dict[str, str]:
    """Nested mappings as dotted keys, values as text.

    >>> flatten({"vae": {"width": 64, "mask": {"p": 0.1}}})
    {'vae.width': '64', 'vae.mask.p': '0.1'}
    """
    out: dict[str, str] = {}
    for key, value in values.items():
        if isinstance(value, Mapping):
            out |= flatten(value, f"{prefix}{key}.")
        else:
            out[f"{prefix}{key}"] = str(value)
    return out


def _redacted(value: Any) -> Any:
    if isinstance(value, str):
        return redact(value)
    if isinstance(value, dict):
        return {key: _redacted(item) for key, item in value.items()}
    return value


def _number(value: float | int) -> float | str:
    number = float(value)
    return number if math.isfinite(number) else str(number)


def _append_line(path: Path, line: str) -> None:
    """One O_APPEND write: lines of several processes never mix."""
    data = f"{line}\n".encode()
    try:
        handle = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
        try:
            n_written = os.write(handle, data)
        finally:
            os.close(handle)
    except OSError as e:
        raise InfrastructureError(
            f"could not append to {path}: {e}; free space or fix permissions, then run again"
        ) from e
    if n_written < len(data):
        raise InfrastructureError(
            f"{path} took {n_written} of {len(data)} bytes: the disk is full; "
            "free space, then run again"
        )
