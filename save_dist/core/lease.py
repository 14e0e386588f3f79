"""A lease file: at most one holder at a time, and none for ever when a holder dies.

The holder renews it; a lease that was not renewed in time may be taken over. Two holders at once
are possible only while clocks differ by more than the time to live, so what is done under a lease
must not be harmed by being done twice, only wasted.
"""

import contextlib
import fcntl
import json
import logging
import os
import secrets
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from save_dist.core.background import beside
from save_dist.core.durable import write_bytes
from save_dist.core.errors import InfrastructureError

logger = logging.getLogger(__name__)

TIME_TO_LIVE_S = 600.0


@dataclass(frozen=True)
class Lease:
    """What stands in a lease file."""

    owner: str
    expires_s: float
    """Wall clock, seconds since the epoch."""

    def dump(self) -> bytes:
        """The file's bytes."""
        return json.dumps({"owner": self.owner, "expires_s": self.expires_s}).encode()


@contextlib.contextmanager
def hold(path: Path, time_to_live_s: float = TIME_TO_LIVE_S) -> Iterator[bool]:
    """Whether the lease is ours; it is renewed while the block runs, and given back after it.

    Args:
        path: lease file; its folder is made, and a small lock file stays beside it.
        time_to_live_s: a holder that is silent for longer loses it.

    Raises:
        InfrastructureError: if the folder cannot be written or has no file locks.
    """
    owner = f"{os.getpid()}-{secrets.token_hex(8)}"
    if not _acquire(path, owner, time_to_live_s):
        yield False
        return
    try:
        with beside(partial(_renew, path, owner, time_to_live_s), "lease"):
            yield True
    finally:
        _give_back(path, owner)


def read(path: Path) -> Lease | None:
    """The lease in a file; None if there is none, an expired one if it cannot be read."""
    try:
        return Lease(**json.loads(path.read_bytes()))
    except FileNotFoundError:
        return None
    except (ValueError, TypeError):
        return Lease("unreadable", 0.0)


def _acquire(path: Path, owner: str, time_to_live_s: float) -> bool:
    with _alone(path):
        found = read(path)
        if found is not None:
            if found.expires_s > time.time():
                return False
            logger.warning("event=lease_taken_over path=%s from=%s", path, found.owner)
        write_bytes(path, Lease(owner, time.time() + time_to_live_s).dump())
    return True


@contextlib.contextmanager
def _alone(path: Path) -> Iterator[None]:
    """Nobody else looks at or changes the lease within the block; a crash frees it.

    Raises:
        InfrastructureError: if the file system has no locks.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.with_name(f".{path.name}.lock").open("a") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX)
        except OSError as e:
            raise InfrastructureError(
                f"{path.parent} has no file locks ({e}); mount it with them (NFS 4, Lustre -o "
                "flock), or make sure that jobs do not overlap and run `generate` itself"
            ) from e
        yield


def _give_back(path: Path, owner: str) -> None:
    with _alone(path):
        if (found := read(path)) is not None and found.owner == owner:
            path.unlink()


def _renew(path: Path, owner: str, time_to_live_s: float, stop: threading.Event) -> None:
    while not stop.wait(time_to_live_s / 10):
        with _alone(path):
            found = read(path)
            if found is None or found.owner != owner:
                logger.warning("event=lease_lost path=%s", path)
                return
            write_bytes(path, Lease(owner, time.time() + time_to_live_s).dump())
