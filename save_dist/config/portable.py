"""Configurations that mean the same wherever they are read: every path in them absolute."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel

from save_dist.config.schema import JobConfig
from save_dist.core.paths import PACKAGE_PREFIX

Job = TypeVar("Job", bound=JobConfig)

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
        entry["path"] = _placed(entry["path"], folder)
    embedding = values.get("blocks", {}).get("embedding", {})
    if embedding.get("model") is not None:
        embedding["model"] = _placed(embedding["model"], folder)
    return type(config).model_validate(values)


def _placed(path: str, folder: Path) -> str:
    return path if path.startswith(PACKAGE_PREFIX) else str(folder / path)


def _walk(value: Any, place: Callable[[Path], str]) -> Any:
    """Plain values of a section, its paths placed."""
    if isinstance(value, BaseModel):
        return {name: _walk(getattr(value, name), place) for name in type(value).model_fields}
    if isinstance(value, list | tuple):
        return [_walk(item, place) for item in value]
    if isinstance(value, dict):
        return {key: _walk(item, place) for key, item in value.items()}
    return place(value) if isinstance(value, Path) else value
