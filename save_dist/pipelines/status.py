"""Status: how far a run is, from its files alone. Reads only, so it may look at a running job.

Journal, stage records, checkpoints and receipts are the truth a resumed job goes by, so what is
said here is what would be kept if the job died now.
"""

import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

from rich.table import Table

from save_dist.config.load import read_yaml
from save_dist.core.durable import read_json
from save_dist.core.errors import AtlasError, DataError
from save_dist.core.paths import TRIALS, RunPaths
from save_dist.stores.checkpoint_facts import CheckpointFacts
from save_dist.stores.receipts import read_record, receipts_of
from save_dist.tracking.progress import duration
from save_dist.tracking.system import is_sample
from save_dist.tracking.tracker import ROOT, Record, read_records
from save_dist.training.standing import is_finished

STAGES = (
    "ingest",
    "blocks",
    "vae",
    "flow",
    "reflow",
    "transport",
    "train",
    "sweep",
    "generate",
    "evaluate",
    "transfer",
)
RECENT_POINTS = 5
"""Last points of a curve that a pace is taken from."""


@dataclass(frozen=True)
class StageStatus:
    """How far one stage is."""

    stage: str
    state: str
    """done, running, stopped, failed or waiting."""
    done: int = 0
    total: int = 0
    """Steps or parts; 0 if the stage has none."""
    unit: str = ""
    durable: int = 0
    """What a restart would find: the newest checkpoint, or the parts with a receipt."""
    cells_per_s: float = 0.0
    eta_s: float | None = None


@dataclass(frozen=True)
class RunStatus:
    """How far a run is."""

    run_dir: str
    state: str
    """running, done, failed, stopped, or new if no job was started."""
    attempt: int
    n_failures: int
    """Attempts that ended without finishing."""
    silent_s: float | None
    """Seconds since the run's files last changed, as far as the journal and receipts tell."""
    error: str
    stages: tuple[StageStatus, ...]


def status(root: Path, now_s: float | None = None) -> RunStatus:
    """The state of a run folder.

    Raises:
        DataError: if it is no run folder.
    """
    paths, now = RunPaths(root), time.time() if now_s is None else now_s
    if not paths.metrics.is_file() and not paths.config.is_file():
        raise DataError(
            f"{root} is no run folder: it has neither {paths.metrics.name} nor "
            f"{paths.config.name}; give the run.dir of a job"
        )
    records = list(read_records(paths.metrics))
    state = _state(records)
    result = read_json(paths.result) if paths.result.is_file() else {}
    settings = read_yaml(paths.config) if paths.config.is_file() else {}
    paths = RunPaths(root, settings.get("run", {}).get("atlas"))
    atlas = _atlas(paths, records, is_running=state == "running")
    stages = [*_trained(paths, settings, records, state), *([atlas] if atlas else [])]
    known = {stage.stage: stage for stage in [*_recorded(paths, settings), *stages]}
    return RunStatus(
        run_dir=str(root),
        state=state,
        attempt=max((r.attempt for r in records), default=0),
        n_failures=_failures(records),
        silent_s=_silence(paths, records, now),
        error="" if state in ("running", "done") else str(result.get("error", "")),
        stages=_in_order(known, is_running=state == "running"),
    )


def headline(found: RunStatus) -> str:
    """The run in one line."""
    began = "no job was started in it" if found.state == "new" else f"attempt {found.attempt + 1}"
    parts = [f"{found.run_dir}: {found.state}", began]
    if found.n_failures:
        parts.append(f"{found.n_failures} ended early")
    if found.silent_s is not None:
        parts.append(f"last sign of life {duration(found.silent_s)} ago")
    return ", ".join(parts) + (f"\n{found.error}" if found.error else "")


def table(found: RunStatus) -> Table:
    """One row per stage."""
    drawn = Table("stage", "state", "done", "kept", "cells/s", "left")
    for s in found.stages:
        done = f"{s.done} of {s.total} {s.unit}" if s.total else ""
        pace = f"{s.cells_per_s:.0f}" if s.cells_per_s else ""
        left = "" if s.eta_s is None else duration(s.eta_s)
        drawn.add_row(s.stage, s.state, done, str(s.durable) if s.total else "", pace, left)
    return drawn


def _in_order(known: Mapping[str, StageStatus], *, is_running: bool) -> tuple[StageStatus, ...]:
    """The stages as they follow each other; of a running job, the first that waits is running."""
    stages = [known[name] for name in STAGES if name in known]
    if is_running and all(stage.state != "running" for stage in stages):
        first = next((n for n, stage in enumerate(stages) if stage.state == "waiting"), None)
        if first is not None:
            stages[first] = replace(stages[first], state="running")
    return tuple(stages)


def _state(records: list[Record]) -> str:
    """What the last start or end of the job says; one that was killed looks like running."""
    ends = {"FINISHED": "done", "FAILED": "failed", "KILLED": "stopped"}
    for record in reversed(records):
        if record.run == ROOT and record.kind == "start":
            return "running"
        if record.run == ROOT and record.kind == "end":
            return ends[record.values["status"]]
    return "new"


def _failures(records: list[Record]) -> int:
    """Starts that were followed by another start, or by an end other than FINISHED."""
    words = [
        str(r.values.get("status", "START"))
        for r in records
        if r.run == ROOT and r.kind in ("start", "end")
    ]
    followers = pairwise([*words, ""])
    return sum(1 for word, after in followers if word == "START" and after not in ("FINISHED", ""))


def _recorded(paths: RunPaths, settings: Mapping[str, Any]) -> Iterable[StageStatus]:
    """Stages with a record of their end, and those the configuration still asks for."""
    sections = {"ingest": "ingest", "blocks": "blocks", "generate": "grid", "evaluate": "evaluate"}
    for stage in STAGES:
        if (paths.stages / f"{stage}.json").is_file():
            yield StageStatus(stage, "done")
        elif sections.get(stage) in settings:
            yield StageStatus(stage, "waiting")


def _trained(
    paths: RunPaths, settings: Mapping[str, Any], records: list[Record], state: str
) -> Iterable[StageStatus]:
    """Training stages: the journal says how far, checkpoints what is kept."""
    if "sweep" in settings:
        yield _trials(paths, state)
        return
    is_current, unfinished = True, "stopped" if state == "new" else state
    for stage in settings.get("training", {}).get("stages", []):
        optim = settings[stage]["optim"]
        total, cells_per_step = int(optim["n_steps"]), int(optim["cells_per_step"])
        checkpoints = CheckpointFacts(paths.checkpoints(stage))
        kept = max(checkpoints.steps(), default=0)
        about = checkpoints.about(kept) if kept else {}
        points = [r for r in records if r.run == stage and "train/loss" in r.values]
        done = max(kept, points[-1].step or 0) if points else kept
        if is_finished(kept, about, total):
            yield StageStatus(stage, "done", kept, total, "steps", kept)
            continue
        pace = _pace(points) if is_current and state == "running" else 0.0
        eta = (total - done) * cells_per_step / pace if pace else None
        word = unfinished if is_current and done else "waiting"
        yield StageStatus(stage, word, done, total, "steps", kept, pace, eta)
        is_current = False  # the stages behind it wait


def _trials(paths: RunPaths, state: str) -> StageStatus:
    """A sweep: its trials have run folders of their own."""
    trials = [RunPaths(folder) for folder in sorted((paths.root / TRIALS).glob("*"))]
    ends = [read_json(trial.result) for trial in trials if trial.result.is_file()]
    done = sum(end["exit_code"] == 0 for end in ends)
    return StageStatus("sweep", state, done, len(trials), "trials", done)


def _pace(points: list[Record]) -> float:
    """Cells per second of the last points of a curve."""
    name = "data/cells_per_s"
    recent = [float(r.values[name]) for r in points[-RECENT_POINTS:] if name in r.values]
    return sum(recent) / len(recent) if recent else 0.0


def _atlas(paths: RunPaths, records: list[Record], *, is_running: bool) -> StageStatus | None:
    """Parts with a receipt of those planned; the pace is that of the present attempt."""
    try:
        plan = read_record(paths.atlas)
    except AtlasError:
        return None
    written = sorted(_receipt_times(paths))
    total, done = plan.n_parts, len(written)
    if (paths.stages / "generate.json").is_file() and done == total:
        return StageStatus("generate", "done", total, total, "parts", done)
    began = max((r.time_ms / 1000 for r in records if r.kind == "start"), default=0.0)
    recent = [t for t in written if t >= began]
    pace = 0.0
    if is_running and len(recent) > 1 and recent[-1] > recent[0]:
        parts_per_s = (len(recent) - 1) / (recent[-1] - recent[0])
        pace = parts_per_s * min(plan.cells_per_part, plan.n_cells)
    left = min((total - done) * plan.cells_per_part, plan.n_cells)
    state = "running" if is_running else "stopped"
    return StageStatus(
        "generate", state, done, total, "parts", done, pace, left / pace if pace else None
    )


def _receipt_times(paths: RunPaths) -> Iterable[float]:
    """When each receipt was written; their content is not read, there may be a million."""
    for entry in receipts_of(paths.atlas).entries():
        stem, _, suffix = entry.name.partition(".")
        if suffix == "json" and stem.isdecimal():
            yield entry.modified_s


def _silence(paths: RunPaths, records: list[Record], now_s: float) -> float | None:
    """Seconds since the journal or a receipt was last written."""
    told = [r for r in records if not is_sample(r)]  # the driver lives while its workers may hang
    times = [r.time_ms / 1000 for r in told[-1:]] + sorted(_receipt_times(paths))[-1:]
    return max(0.0, now_s - max(times)) if times else None
