"""The atlases that a run has made: one JSON line per event, appended, never changed.

A line says what began or was finished, by which model and plan, and where. It is a pointer: what
stands at the place is verified by whoever follows it.
"""

import json
import logging
import os
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path

from save_dist.core.errors import AtlasError, InfrastructureError
from save_dist.stores.receipts import missing_parts, read_record
from save_dist.stores.storage import Where, is_bucket, sync

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Entry:
    """One line."""

    time: str
    """UTC, ISO 8601."""
    model_hash: str
    plan_hash: str
    path: str
    """The atlas: relative to the folder of the catalogue if it lies below it, else as a whole."""
    n_cells: int
    is_complete: bool
    digest: str = ""
    """Of a complete atlas: of its template and all parts."""


def note(
    catalogue: Path,
    atlas: Where,
    *,
    model_hash: str,
    plan_hash: str,
    n_cells: int,
    digest: str = "",
) -> None:
    """Append what began, or with a digest was finished, unless the last line of the atlas says so.

    Raises:
        InfrastructureError: if the disk refuses.
    """
    shown = _shown(atlas, catalogue.parent.resolve())
    now = datetime.now(UTC).isoformat(timespec="seconds")
    entry = Entry(now, model_hash, plan_hash, shown, n_cells, bool(digest), digest)
    before = [old for old in entries(catalogue) if old.path == entry.path]
    if before and {**asdict(before[-1]), "time": now} == asdict(entry):
        return
    try:
        _append(catalogue, json.dumps(asdict(entry), sort_keys=True))
    except OSError as e:
        raise InfrastructureError(
            f"could not write {catalogue}: {e}; free space or fix permissions, then run again"
        ) from e


def entries(catalogue: Path) -> Iterator[Entry]:
    """All lines in the order they were written; a torn one, after a crash, is left out."""
    if not catalogue.is_file():
        return
    for line in catalogue.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            yield Entry(**json.loads(line))
        except (ValueError, TypeError):
            if line:
                logger.warning("event=catalogue_line_skipped path=%s line=%r", catalogue, line[:80])


def newest_complete(
    catalogue: Path, *, model_hash: str | None = None, plan_hash: str | None = None
) -> Where | None:
    """The atlas that was finished last and still has all its parts; None if there is none.

    Args:
        catalogue: its file.
        model_hash: only atlases of this model.
        plan_hash: only atlases of this plan.
    """
    for entry in reversed(list(entries(catalogue))):
        fits = entry.is_complete and model_hash in (None, entry.model_hash)
        place = entry.path if is_bucket(entry.path) else catalogue.parent / entry.path
        if fits and plan_hash in (None, entry.plan_hash) and _is_whole(place, entry):
            return place
    return None


def _is_whole(place: Where, entry: Entry) -> bool:
    """Whether the atlas is there, of the same plan, with a receipt for every part."""
    try:
        return read_record(place).plan_hash == entry.plan_hash and not missing_parts(place)
    except AtlasError:
        return False


def _shown(atlas: Where, folder: Path) -> str:
    """The place of an atlas as a line of a catalogue in `folder` says it."""
    if isinstance(atlas, str):
        return atlas
    place = atlas.resolve()
    return str(place.relative_to(folder) if place.is_relative_to(folder) else place)


def _append(catalogue: Path, line: str) -> None:
    """One write at the end of the file, on disk before this returns."""
    catalogue.parent.mkdir(parents=True, exist_ok=True)
    handle = os.open(catalogue, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o644)
    try:
        size = os.fstat(handle).st_size
        is_torn = size > 0 and os.pread(handle, 1, size - 1) != b"\n"
        os.write(handle, (b"\n" if is_torn else b"") + line.encode() + b"\n")
        os.fsync(handle)
    finally:
        os.close(handle)
    sync([catalogue.parent])
