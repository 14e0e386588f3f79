"""The one primitive all stores use: write aside, sync, publish by rename, with a digest.

A reader never sees half a file. What spans several files (a checkpoint, a bundle) is published by
one last small manifest that carries the sha256 of each; without its manifest it does not exist.
"""

import contextlib
import hashlib
import json
import os
import secrets
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from save_dist.core.errors import CheckpointError, InfrastructureError

MANIFEST = "manifest.json"


def canonical_json(value: object) -> str:
    """JSON with sorted keys and no spaces: equal values give equal text."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)


def digest(value: object) -> str:
    """sha256 of a JSON-able value, as hex.

    >>> digest({"a": 1, "b": 2}) == digest({"b": 2, "a": 1})
    True
    """
    return hashlib.sha256(canonical_json(value).encode()).hexdigest()


def file_digest(path: Path) -> str:
    """sha256 of a file's bytes, as hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def free_bytes(place: Path) -> int:
    """Free on the disk that holds a place, or will: asked of the nearest folder that exists."""
    whole = place.absolute()
    return shutil.disk_usage(next(p for p in (whole, *whole.parents) if p.exists())).free


def write_bytes(path: Path, data: bytes) -> None:
    """Replace `path` by `data`: after a crash it holds the old bytes or the new, never a mix.

    Raises:
        InfrastructureError: if the disk refuses (full, read-only); `path` is untouched.
    """
    aside = _aside(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with aside.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        aside.replace(path)
        _sync_folder(path.parent)
    except OSError as e:
        with contextlib.suppress(OSError):
            aside.unlink(missing_ok=True)
        raise _refused(path, e) from e


def write_json(path: Path, value: object) -> None:
    """Durably write a JSON-able value, indented for people."""
    write_bytes(path, json_bytes(value))


def json_bytes(value: object) -> bytes:
    """A JSON-able value as the bytes of a file, indented for people."""
    return (json.dumps(value, indent=1, sort_keys=True) + "\n").encode()


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object.

    Raises:
        CheckpointError: if the file is absent or does not hold one.
    """
    try:
        data = path.read_bytes()
    except FileNotFoundError as e:
        raise CheckpointError(f"{path} does not exist; run the job that writes it first") from e
    return parse_json(data, str(path))


def parse_json(data: bytes, place: str) -> dict[str, Any]:
    """The JSON object in the bytes of a file; `place` names it in errors.

    Raises:
        CheckpointError: if they do not hold one.
    """
    try:
        value = json.loads(data)
    except (json.JSONDecodeError, UnicodeDecodeError) as e:
        raise CheckpointError(f"{place} is not valid JSON ({e}); remove it and run again") from e
    if not isinstance(value, dict):
        raise CheckpointError(f"{place} holds a {type(value).__name__}, expected a JSON object")
    return value


@contextlib.contextmanager
def publish_folder(target: Path, about: dict[str, Any]) -> Iterator[Path]:
    """Fill a folder aside; on leaving, sync it, write its manifest and rename it to `target`.

    Args:
        target: folder to publish; one that stands there already is replaced.
        about: facts stored in the manifest beside the digests (under any key but `files`).

    Raises:
        InfrastructureError: if the disk refuses (full, read-only); `target` is untouched.
    """
    assert "files" not in about, "the manifest keeps its digests there"
    aside = _aside(target)
    try:
        recover_folder(target)
        aside.mkdir(parents=True)
        yield aside
        files = sorted(p for p in aside.rglob("*") if p.is_file())
        for path in files:
            _sync_file(path)
        for folder in (p for p in aside.rglob("*") if p.is_dir()):
            _sync_folder(folder)
        entries = {str(p.relative_to(aside)): file_digest(p) for p in files}
        write_json(aside / MANIFEST, {"files": entries, **about})
        _swap(aside, target)
    except OSError as e:
        raise _refused(target, e) from e
    finally:
        shutil.rmtree(aside, ignore_errors=True)


@contextlib.contextmanager
def adopt_folder(target: Path) -> Iterator[Path]:
    """Bring a folder that was published elsewhere: on leaving, `aside/whole` becomes `target`.

    Several processes may bring the same folder at once. The block checks what it brings.

    Raises:
        InfrastructureError: if the disk refuses (full, read-only); `target` is untouched.
    """
    aside = _aside(target)
    try:
        aside.mkdir(parents=True)
        yield aside
        for path in sorted(p for p in (aside / "whole").rglob("*") if p.is_file()):
            _sync_file(path)
        try:
            _swap(aside / "whole", target)
        except OSError:
            if not target.exists():  # else another process brought it in this moment
                raise
    except OSError as e:
        raise _refused(target, e) from e
    finally:
        shutil.rmtree(aside, ignore_errors=True)


def recover_folder(target: Path) -> None:
    """Put back the folder that a crash left set aside while it was being replaced.

    Replacing takes two renames; between them only the set-aside old folder is complete under a
    name that outlives the writer. Does nothing where `target` stands.
    """
    if not target.exists() and (_old(target) / MANIFEST).is_file():
        _old(target).rename(target)
        _sync_folder(target.parent)


def verify_folder(folder: Path) -> dict[str, Any]:
    """Check every file of a published folder against its manifest, which is returned.

    Raises:
        CheckpointError: if the manifest is absent, or a file is missing or differs.
    """
    with contextlib.suppress(OSError):  # a read-only disk: report the folder as it stands
        recover_folder(folder)
    if not folder.exists():
        raise CheckpointError(f"{folder} does not exist; run the job that writes it first")
    if not (folder / MANIFEST).is_file():
        raise CheckpointError(f"{folder} has no {MANIFEST}: it was never completed; remove it")
    manifest = read_json(folder / MANIFEST)
    files = manifest.get("files")
    if not isinstance(files, dict):
        raise CheckpointError(f"{folder / MANIFEST} lists no files; remove {folder}")
    for name, expected in files.items():
        if ".." in Path(name).parts or Path(name).is_absolute():
            raise CheckpointError(
                f"{folder / MANIFEST} lists {name!r}, a place outside the folder; do not use "
                f"{folder}, and ask where it comes from"
            )
        path = folder / name
        found = file_digest(path) if path.is_file() else "missing"
        if found != expected:
            raise CheckpointError(
                f"{path} does not match its manifest: sha256 {found}, expected {expected}; "
                "restore the file or remove the folder"
            )
    return manifest


def _swap(aside: Path, target: Path) -> None:
    """Rename `aside` to `target`; an older `target` steps out of the way first.

    A crash between the renames is mended by `recover_folder`.
    """
    old = _old(target)
    if target.exists():
        shutil.rmtree(old, ignore_errors=True)
        target.rename(old)
    try:
        aside.rename(target)
    except OSError:
        recover_folder(target)
        raise
    _sync_folder(target.parent)
    shutil.rmtree(old, ignore_errors=True)


def _aside(target: Path) -> Path:
    """A name of this call alone: on a shared disk, workers of two hosts may have one pid."""
    return target.with_name(f".{target.name}.{os.getpid()}-{secrets.token_hex(4)}.part")


def _old(target: Path) -> Path:
    return target.with_name(f".{target.name}.old")


def _refused(target: Path, error: OSError) -> InfrastructureError:
    return InfrastructureError(
        f"could not write {target}: {error}; free space or fix permissions, then run again"
    )


def _sync_file(path: Path) -> None:
    with path.open("rb") as file:
        os.fsync(file.fileno())


def _sync_folder(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
