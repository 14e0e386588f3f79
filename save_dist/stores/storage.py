"""Where an atlas is kept: a folder, or a bucket. All that writes, checks or reads one goes through.

A storage holds named files, names being relative paths with `/`. A file is replaced as a whole: a
reader sees the old bytes or the new ones, after a crash too.
"""

import contextlib
import os
import secrets
import shutil
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from save_dist.core.durable import file_digest, free_bytes, write_bytes

Where = Path | str
"""A folder, or `s3://bucket/prefix`."""
_BUCKET = "s3://"
Item = TypeVar("Item")
Result = TypeVar("Result")


class Entry(NamedTuple):
    """One file of a storage."""

    name: str
    n_bytes: int
    modified_s: float
    """Wall clock, seconds since the epoch."""


class Storage(ABC):
    """The files below one root; as text it is the root.

    What reads an absent file raises FileNotFoundError, what is refused raises OSError or
    InfrastructureError.
    """

    @property
    @abstractmethod
    def zarr(self) -> Any:
        """What zarr opens to read or write the same files."""

    @abstractmethod
    def exists(self) -> bool:
        """Whether there is anything at the root."""

    @abstractmethod
    def read(self, name: str) -> bytes:
        """All bytes of a file."""

    @abstractmethod
    def n_bytes(self, name: str) -> int | None:
        """Length of a file; None if it is absent."""

    @abstractmethod
    def sha256(self, name: str) -> str:
        """Digest of a file, as hex; it is never in memory as a whole."""

    @abstractmethod
    def entries(self) -> Iterator[Entry]:
        """Files directly below the root, in any order."""

    @abstractmethod
    def write(self, name: str, data: bytes) -> None:
        """Replace a file; it is durable when this returns."""

    @abstractmethod
    def delete(self, name: str) -> None:
        """Remove a file, if it is there."""

    @abstractmethod
    def sync(self, names: Iterable[str]) -> None:
        """Make durable what zarr wrote."""

    @abstractmethod
    def workspace(self) -> contextlib.AbstractContextManager[Path]:
        """An empty local folder to prepare files in, for `adopt`; it is removed afterwards."""

    @abstractmethod
    def adopt(self, workspace: Path, names: Sequence[str]) -> None:
        """Put files of a workspace in place, in this order; they are durable when this returns.

        All at once, if there is nothing at the root yet and the storage can.
        """

    def free_bytes(self) -> int | None:
        """What still fits; None where nobody can tell."""
        return None

    @abstractmethod
    def sweep(self) -> None:
        """Remove what killed writers left unfinished."""

    def each(self, work: Callable[[Item], Result], items: Iterable[Item]) -> Iterator[Result]:
        """Results of work on the files, in the order of the items."""
        return map(work, items)


class Folder(Storage):
    """A folder of a local or shared disk."""

    def __init__(self, root: Path) -> None:
        self._root = root

    def __str__(self) -> str:
        return str(self._root)

    @property
    def zarr(self) -> Path:
        """The folder."""
        return self._root

    def exists(self) -> bool:
        """Whether there is anything at the root."""
        return self._root.exists()

    def read(self, name: str) -> bytes:
        """All bytes of a file."""
        return (self._root / name).read_bytes()

    def n_bytes(self, name: str) -> int | None:
        """Length of a file; None if it is absent."""
        place = self._root / name
        return place.stat().st_size if place.is_file() else None

    def sha256(self, name: str) -> str:
        """Digest of a file, as hex."""
        return file_digest(self._root / name)

    def entries(self) -> Iterator[Entry]:
        """Files directly below the root; none if there is no such folder."""
        if not self._root.is_dir():
            return
        with os.scandir(self._root) as found:
            for entry in found:
                if entry.is_file():
                    stat = entry.stat()
                    yield Entry(entry.name, stat.st_size, stat.st_mtime)

    def write(self, name: str, data: bytes) -> None:
        """Replace a file by way of one that is written aside, synced and renamed."""
        write_bytes(self._root / name, data)

    def delete(self, name: str) -> None:
        """Remove a file, if it is there."""
        (self._root / name).unlink(missing_ok=True)

    def sync(self, names: Iterable[str]) -> None:
        """Force files to disk."""
        sync(self._root / name for name in names)

    @contextlib.contextmanager
    def workspace(self) -> Iterator[Path]:
        """A folder beside the root, from where files can be renamed into it."""
        aside = self._root.with_name(f".{self._root.name}.{secrets.token_hex(4)}.part")
        aside.mkdir(parents=True)
        try:
            yield aside
        finally:
            shutil.rmtree(aside, ignore_errors=True)

    def adopt(self, workspace: Path, names: Sequence[str]) -> None:
        """Sync and rename: the whole workspace if there is no root, else file by file."""
        sync(workspace / name for name in names)
        if not self.exists():
            workspace.rename(self._root)
            sync([self._root.parent])
            return
        for name in names:
            (self._root / name).parent.mkdir(parents=True, exist_ok=True)
            (workspace / name).replace(self._root / name)
        sync({(self._root / name).parent for name in names})

    def free_bytes(self) -> int | None:
        """Free on the disk that holds the folder, or will."""
        return free_bytes(self._root)

    def sweep(self) -> None:
        """Remove workspaces beside the root and torn files in it."""
        beside = self._root.parent.glob(f".{self._root.name}.*.part")
        for left in [*beside, *self._root.glob(".*.part")]:
            if left.is_dir():
                shutil.rmtree(left, ignore_errors=True)
            else:
                left.unlink(missing_ok=True)


def storage_of(where: Where) -> Storage:
    """The storage at a place.

    Raises:
        ConfigError: for a bucket without a prefix.
    """
    if not is_bucket(where):
        return Folder(Path(where))
    from save_dist.stores.bucket import Bucket  # its client comes with the first one

    return Bucket(str(where))


def is_bucket(where: object) -> bool:
    """Whether a place is in an object store."""
    return isinstance(where, str) and where.startswith(_BUCKET)


def place_of(text: str) -> Where:
    """The place that a user names."""
    return text if is_bucket(text) else Path(text)


def sync(places: Iterable[Path]) -> None:
    """Force local files and folders to disk."""
    for place in places:
        handle = os.open(place, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
