"""Configurations that mean the same wherever they are read: every path in them absolute."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel

from save_dist.config.schema import JobConfig

Job = TypeVar("Job", bound=JobConfig)

_PACKAGE = "package:"
_SQLITE = "sqlite:///"


def anchored(config: Job, folder: Path) -> Job:
    """The configuration with its relative paths taken from `folder`.

    A job that is sent elsewhere starts in another working folder; only absolute paths survive.
    """
    values = _walk(config, lambda path: str(folder / path))
    uri = values["tracking"]["uri"]
    if uri is not None and uri.startswith(_SQLITE):
        values["tracking"]["uri"] = f"{_SQLITE}{folder / uri.removeprefix(_SQLITE)}"
    source = values.get("source")
    if source and source["uri"] and "://" not in source["uri"]:
        source["uri"] = str(folder / source["uri"])
    for entry in (values.get("ingest") or {}).get("inputs", []):
        if not entry["path"].startswith(_PACKAGE):
            entry["path"] = str(folder / entry["path"])
    return type(config).model_validate(values)


def _walk(value: Any, place: Callable[[Path], str]) -> Any:
    """Plain values of a section, its paths placed."""
    if isinstance(value, BaseModel):
        return {name: _walk(getattr(value, name), place) for name in type(value).model_fields}
    if isinstance(value, list | tuple):
        return [_walk(item, place) for item in value]
    return place(value) if isinstance(value, Path) else value
