"""Journal records -> calls of an MLflow client, so that replaying a record twice changes nothing.

What guards against doubles: every MLflow run carries the place of the record that opened it as a
tag and is found again by it; a metric point is sent only if its step lies beyond the last one
sent, which for a run that another process opened is asked of the server. Imports mlflow inside
functions: the import is slow, and only the mirror's thread may wait for it.
"""

import hashlib
import itertools
import json
import logging
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from save_dist.core.durable import read_json, write_json
from save_dist.tracking.registry import HASH_TAG, find_logged, keep_checkpoint, keep_model
from save_dist.tracking.tracker import ROOT, Record, parse_record

_log = logging.getLogger(__name__)

PARAM_LIMIT = 500
"""Characters of a parameter value; longer ones do not fit the compare view."""
NAME_LIMIT = 250
TAG_LIMIT = 5000
METRICS_PER_CALL = 1000
PARAMS_PER_CALL = 100
BYTES_PER_CHUNK = 2**20
"""Journal bytes replayed between two saves of the state."""
TOKEN_TAG = "save_dist.token"  # noqa: S105 (the name of a tag)
_BATCHED = ("params", "metrics", "tags")
_REJECTED = (
    "INVALID_PARAMETER_VALUE", "BAD_REQUEST", "MALFORMED_REQUEST",
    "ENDPOINT_NOT_FOUND",  # an older server that knows no logged models
)  # fmt: skip


@dataclass
class MirrorState:
    """How far one journal has been replayed to one server."""

    journal: str = ""
    """Digest of the journal's first line: tells a new journal in an old folder."""
    offset: int = 0
    """Bytes of the journal that the server has."""
    run_ids: dict[str, str] = field(default_factory=dict)
    """Run name -> MLflow run id of its present identity."""
    identities: dict[str, str] = field(default_factory=dict)
    """Run name -> identity given at its start."""
    last_steps: dict[str, dict[str, int]] = field(default_factory=dict)
    """MLflow run id -> metric -> last step sent."""

    @classmethod
    def load(cls, path: Path, journal: str) -> "MirrorState":
        """The saved state, or a fresh one if there is none or it belongs to another journal."""
        state = cls(**read_json(path)) if path.is_file() else cls(journal)
        return state if state.journal == journal else cls(journal)

    def save(self, path: Path) -> None:
        """Durably replace the saved state."""
        write_json(path, vars(self))


@dataclass(frozen=True)
class PlacedRecord:
    """A record and the bytes it takes in the journal."""

    start: int
    end: int
    record: Record


def read_chunk(journal: Path, offset: int) -> tuple[list[PlacedRecord], int]:
    """Records of about one chunk of complete lines from `offset` on, and where they end."""
    out: list[PlacedRecord] = []
    place = offset
    if not journal.is_file():
        return out, place
    with journal.open("rb") as file:
        file.seek(offset)
        for line in file:
            if not line.endswith(b"\n") or place - offset > BYTES_PER_CHUNK:
                break
            record = parse_record(line)
            if record is not None:
                out.append(PlacedRecord(place, place + len(line), record))
            place += len(line)
    return out, place


def first_line_digest(journal: Path) -> str:
    """What tells one journal from another in the same place."""
    with journal.open("rb") as file:
        return hashlib.sha256(file.readline()).hexdigest()


def opening_place(journal: Path) -> int | None:
    """Where the journal opens the run that its job has now; None if it has none."""
    place, identity, offset = None, None, 0
    while True:
        placed, end = read_chunk(journal, offset)
        for item in placed:
            if item.record.run == ROOT and item.record.kind == "start":
                if place is None or item.record.values["identity"] != identity:
                    place = item.start
                identity = item.record.values["identity"]
        if end == offset:
            return place
        offset = end


def _token(journal: str, run: str, place: int) -> str:
    """Tag by which a run is found again: its journal's digest, its name, where it was opened."""
    return f"{journal[:16]}:{run}:{place}"


class Replayer:
    """Brings one experiment of one server up to date with one journal.

    Args:
        client: an `mlflow.MlflowClient`.
        experiment_id: where runs are opened.
        home: the journal's folder; artifact paths are relative to it.
        state: advanced in place, record group by record group.
    """

    def __init__(self, client: Any, experiment_id: str, home: Path, state: MirrorState) -> None:
        self._client, self._experiment_id = client, experiment_id
        self._home, self._state = home, state
        self._opened_here: set[str] = set()
        self._asked: set[tuple[str, str]] = set()
        self._params: dict[str, dict[str, str]] = {}
        self._model_ids: dict[str, str | None] = {}

    def replay(self, placed: Sequence[PlacedRecord]) -> int:
        """Send records in order; returns the number of metric points sent."""
        from mlflow.exceptions import MlflowException

        n_points = 0
        for group in _groups(placed):
            try:
                n_points += self._send(group)
            except MlflowException as e:
                if e.error_code not in _REJECTED:
                    raise
                _log.warning("event=tracking_rejected kind=%s error=%s", group[0].record.kind, e)
            self._state.offset = group[-1].end
        return n_points

    def _send(self, group: Sequence[PlacedRecord]) -> int:
        record = group[0].record
        if record.kind == "start":
            self._start(group[0])
            return 0
        run_id = self._run_id(record.run, group[0].start)
        match record.kind:
            case "end":
                self._client.set_terminated(run_id, record.values["status"], record.time_ms)
                if record.run == ROOT:
                    self._end_stages(record)
            case "artifact":
                self._artifact(run_id, record.values["path"], record.values["folder"])
            case "dataset":
                self._client.log_inputs(run_id, datasets=[_dataset_input(record.values)])
            case "model":
                folder = self._home / record.values["path"]
                keep_model(self._client, self._experiment_id, run_id, folder, record.values)
            case "child":
                self._adopt(run_id, self._home / record.values["journal"])
            case "checkpoint":
                assert record.step is not None
                place = (self._home / record.values["path"]).absolute()
                keep_checkpoint(
                    self._client, self._experiment_id, run_id, place, record.step, record.values
                )
            case _:
                return self._batch(run_id, [item.record for item in group])
        return 0

    def _start(self, placed: PlacedRecord) -> None:
        record, runs = placed.record, self._state.run_ids
        identity = record.values["identity"]
        known = self._state.identities.get(record.run, identity)
        if known != identity:
            # the parent's new identity opens a new family; the old one stays as it ended
            for name in list(runs) if record.run == ROOT else [record.run]:
                self._close(name)
        self._state.identities[record.run] = identity
        run_id = self._run_id(record.run, placed.start)
        self._client.update_run(run_id, status="RUNNING")
        self._client.set_tag(run_id, "attempt", str(record.attempt))

    def _adopt(self, run_id: str, journal: Path) -> None:
        """Show the run of another journal below one of this; it has been sent before."""
        place = opening_place(journal)
        token = None if place is None else _token(first_line_digest(journal), ROOT, place)
        found = token and self._find(token)
        if not found:
            _log.warning("event=tracking_child_absent journal=%s", journal)
            return
        self._client.set_tag(found, "mlflow.parentRunId", run_id)

    def _end_stages(self, record: Record) -> None:
        """A stage that did not say how it ended, ended with its job."""
        for name, run_id in self._state.run_ids.items():
            if name != ROOT and self._client.get_run(run_id).info.status == "RUNNING":
                self._client.set_terminated(run_id, record.values["status"], record.time_ms)

    def _close(self, name: str) -> None:
        run_id = self._state.run_ids.pop(name, None)
        self._state.identities.pop(name, None)
        if run_id and self._client.get_run(run_id).info.status == "RUNNING":
            self._client.set_terminated(run_id, "KILLED")

    def _run_id(self, run: str, place: int) -> str:
        """MLflow run of a run name, opened if this record is its first."""
        if run in self._state.run_ids:
            return self._state.run_ids[run]
        tags = {TOKEN_TAG: _token(self._state.journal, run, place), "stage": run}
        if run != ROOT:
            tags["mlflow.parentRunId"] = self._run_id(ROOT, place)
        run_id = self._find(tags[TOKEN_TAG])
        if run_id is None:
            name = self._home.resolve().name if run == ROOT else run
            opened = self._client.create_run(self._experiment_id, tags=tags, run_name=name)
            run_id = str(opened.info.run_id)
            self._opened_here.add(run_id)
        self._state.run_ids[run] = run_id
        return run_id

    def _find(self, token: str) -> str | None:
        """MLflow run that a token was given to."""
        query = f"tags.`{TOKEN_TAG}` = '{token}'"
        found = self._client.search_runs([self._experiment_id], query, max_results=1)
        return str(found[0].info.run_id) if found else None

    def _batch(self, run_id: str, records: Sequence[Record]) -> int:
        from mlflow.entities import Metric, Param, RunTag

        points = [
            Metric(*point, model_id=self._model_id(about), run_id=run_id)
            for *point, about in self._new_points(run_id, records)
        ]
        for some in _pieces(points, METRICS_PER_CALL):
            self._client.log_batch(run_id, metrics=some)
            for point in some:
                self._state.last_steps.setdefault(run_id, {})[point.key] = point.step
        params = self._new_params(run_id, records)
        for some in _pieces([Param(*pair) for pair in params.items()], PARAMS_PER_CALL):
            self._client.log_batch(run_id, params=some)
        self._params.setdefault(run_id, {}).update(params)
        tags = {_name(key): text[:TAG_LIMIT] for key, text in _items(records, "tags")}
        for some in _pieces([RunTag(*pair) for pair in tags.items()], PARAMS_PER_CALL):
            self._client.log_batch(run_id, tags=some)
        return len(points)

    def _new_points(
        self, run_id: str, records: Sequence[Record]
    ) -> Iterator[tuple[str, float, int, int, str]]:
        """Points beyond the last step of their metric: (key, value, time, step, model hash)."""
        last: dict[str, int] = {}
        for record in records:
            if record.kind != "metrics" or record.step is None:
                continue
            for name, value in record.values.items():
                key = _name(name)
                if record.step > last.setdefault(key, self._last_step(run_id, key)):
                    last[key] = record.step
                    yield key, float(value), record.time_ms, record.step, record.model

    def _model_id(self, model_hash: str) -> str | None:
        """The logged model that numbers are about, if the server knows it."""
        if not model_hash:
            return None
        if model_hash not in self._model_ids:
            found = find_logged(self._client, self._experiment_id, HASH_TAG, model_hash)
            self._model_ids[model_hash] = None if found is None else str(found.model_id)
        return self._model_ids[model_hash]

    def _last_step(self, run_id: str, key: str) -> int:
        """Last step the server has; asked of it once per key if another process may have sent."""
        steps = self._state.last_steps.setdefault(run_id, {})
        if run_id not in self._opened_here and (run_id, key) not in self._asked:
            history = self._client.get_metric_history(run_id, key)
            steps[key] = max([steps.get(key, -1), *(point.step for point in history)])
            self._asked.add((run_id, key))
        return steps.get(key, -1)

    def _new_params(self, run_id: str, records: Sequence[Record]) -> dict[str, str]:
        """Parameters the run does not have; MLflow would refuse a call that changes one."""
        new: dict[str, str] = {}
        for name, value in _items(records, "params"):
            if run_id not in self._params:
                self._params[run_id] = dict(self._client.get_run(run_id).data.params)
            key, text = _name(name), _param_text(name, value)
            old = self._params[run_id].get(key, new.get(key))
            if old is None:
                new[key] = text
            elif old != text:
                _log.warning("event=tracking_param_kept key=%s old=%r new=%r", key, old, text)
        return new

    def _artifact(self, run_id: str, path: str, folder: str) -> None:
        place = self._home / path
        if place.is_dir():
            self._client.log_artifacts(run_id, str(place), folder or place.name)
        elif place.is_file():
            self._client.log_artifact(run_id, str(place), folder or None)
        else:
            _log.warning("event=tracking_artifact_gone path=%s", place)


def _groups(placed: Sequence[PlacedRecord]) -> Iterator[list[PlacedRecord]]:
    """Neighbouring params, metrics and tags of one run together; any other record alone."""

    def key(numbered: tuple[int, PlacedRecord]) -> tuple[str, int]:
        number, item = numbered
        return item.record.run, -1 if item.record.kind in _BATCHED else number

    for _, group in itertools.groupby(enumerate(placed), key=key):
        yield [item for _, item in group]


def _items(records: Sequence[Record], kind: str) -> Iterator[tuple[str, Any]]:
    for record in records:
        if record.kind == kind:
            yield from record.values.items()


def _pieces(items: Sequence[Any], size: int) -> Iterable[Sequence[Any]]:
    return (items[start : start + size] for start in range(0, len(items), size))


def _name(name: str) -> str:
    """A key as MLflow takes it: letters, digits, _ - . : and space in groups divided by /."""
    groups = [g for g in name.split("/") if g.strip(".")]  # no empty group, no `..`
    return re.sub(r"[^\w\-. :/]", "_", "/".join(groups), flags=re.ASCII)[:NAME_LIMIT]


def _param_text(name: str, value: str) -> str:
    if len(value) > PARAM_LIMIT:
        _log.warning(
            "event=tracking_param_truncated key=%s length=%d limit=%d; the whole value is in "
            "config.resolved.yaml and metrics.jsonl",
            name,
            len(value),
            PARAM_LIMIT,
        )
    return value[:PARAM_LIMIT]


def _dataset_input(values: Mapping[str, Any]) -> Any:
    from mlflow.entities import Dataset, DatasetInput, InputTag

    from save_dist.tracking.soma_source import SomaDatasetSource

    source = SomaDatasetSource(values["uri"])
    dataset = Dataset(
        name=values["name"],
        digest=values["digest"][:36],  # MLflow's column is that wide
        source_type=source._get_source_type(),
        source=source.to_json(),
        profile=json.dumps(values["facts"]),
    )
    return DatasetInput(dataset, [InputTag("mlflow.data.context", values["context"])])
