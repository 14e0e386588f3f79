"""What every pipeline talks to, and the records by which a finished stage is known again."""

from dataclasses import dataclass
from typing import Any

from save_dist.core.durable import read_json, write_json
from save_dist.core.errors import ConfigError
from save_dist.core.paths import RunPaths
from save_dist.tracking.progress import Progress
from save_dist.tracking.tracker import Journal

Summary = dict[str, Any]
"""What a stage has to say in `result.json`; JSON-able."""


@dataclass(frozen=True)
class Context:
    """Places, journal and progress of the running job."""

    paths: RunPaths
    journal: Journal
    progress: Progress


def finished(context: Context, stage: str, key: str) -> Summary | None:
    """Summary of a stage that ran before with the same key; None if it has not run.

    Raises:
        ConfigError: if the run folder holds the stage under other settings or inputs.
    """
    path = context.paths.stages / f"{stage}.json"
    if not path.is_file():
        return None
    record = read_json(path)
    if record["key"] != key:
        raise ConfigError(
            f"{context.paths.root} holds the stage {stage!r} made with other settings or inputs "
            f"(key {record['key'][:12]}, now {key[:12]}); choose another run.dir, or delete "
            f"{context.paths.root} to start over"
        )
    summary: Summary = record["summary"]
    return summary


def record(context: Context, stage: str, key: str, summary: Summary) -> Summary:
    """Remember that a stage is finished; the last thing a stage does."""
    write_json(context.paths.stages / f"{stage}.json", {"key": key, "summary": summary})
    return summary
