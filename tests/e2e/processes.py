"""Processes that end with the script that started them; nothing else is ever signalled."""

import contextlib
import ctypes
import os
import signal
import socket
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import psutil

STOP_S = 20.0
_PR_SET_CHILD_SUBREAPER = 36


@dataclass(frozen=True)
class Child:
    """A process started here, and all that it started."""

    name: str
    process: subprocess.Popen[bytes]
    log: Path

    def kill(self) -> int:
        """End it and its descendants as a power cut would; returns how many there were."""
        victims = _tree(self.process.pid)
        for victim in victims:
            with contextlib.suppress(psutil.NoSuchProcess):
                victim.kill()
        psutil.wait_procs(victims, timeout=STOP_S)
        self.process.wait(STOP_S)
        return len(victims)

    def tail(self, n_lines: int = 30) -> str:
        """The last lines it wrote."""
        return "\n".join(self.log.read_text(errors="replace").splitlines()[-n_lines:])


@dataclass(frozen=True)
class Children:
    """Starts processes, each with a log in `folder`."""

    folder: Path
    environment: Mapping[str, str]

    def start(self, name: str, *command: str, **more: str) -> Child:
        """Start `command` with `more` variables."""
        log = self.folder / f"{name}.log"
        with log.open("wb") as file:
            process = subprocess.Popen(
                command,
                env={**self.environment, **more},
                cwd=self.folder,
                stdout=file,
                stderr=subprocess.STDOUT,
                stdin=subprocess.DEVNULL,
            )
        return Child(name, process, log)


@contextlib.contextmanager
def children(folder: Path, environment: Mapping[str, str]) -> Iterator[Children]:
    """A place to start processes; on leaving, everything started is ended and waited for."""
    adopt_orphans()
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield Children(folder, environment)
    except BaseException as e:
        for log in sorted(folder.glob("*.log")):
            e.add_note(f"end of {log.name}:\n{log.read_text(errors='replace')[-2000:]}")
        raise
    finally:
        end_descendants()


def adopt_orphans() -> None:
    """Make this process the parent of every descendant that loses its own (Linux)."""
    if ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0) != 0:
        raise OSError("prctl(PR_SET_CHILD_SUBREAPER) was refused")


def descendants() -> list[psutil.Process]:
    """Living processes that this one started, however indirectly."""
    return [p for p in psutil.Process().children(recursive=True) if _lives(p)]


def _lives(process: psutil.Process) -> bool:
    """False, too, if it ended since it was listed."""
    try:
        return process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def end_descendants() -> None:
    """Ask all to end, then end those that did not."""
    for process in descendants():
        with contextlib.suppress(psutil.NoSuchProcess):
            process.terminate()
    psutil.wait_procs(descendants(), timeout=STOP_S)
    while left := descendants():
        for process in left:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        psutil.wait_procs(left, timeout=STOP_S)


def wait_until(
    ready: Callable[[], bool], what: str, children_: Sequence[Child], limit_s: float
) -> None:
    """Poll until `ready`.

    Raises:
        AssertionError: with the end of its log, if a child ends before; after `limit_s` with all.
    """
    deadline = time.monotonic() + limit_s
    while not ready():
        for child in children_:
            assert child.process.poll() is None, f"{child.name} ended:\n{child.tail()}"
        assert time.monotonic() < deadline, f"{what}: not after {limit_s:.0f} s\n" + "\n".join(
            child.tail() for child in children_
        )
        time.sleep(0.2)


def answers(url: str) -> bool:
    """Whether a web server is there, be it with a refusal."""
    try:
        urllib.request.urlopen(url, timeout=2).close()
    except urllib.error.HTTPError:
        return True
    except OSError:
        return False
    return True


def free_ports(n: int) -> list[int]:
    """Ports of loopback that nobody listens on."""
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(n)]
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [one.getsockname()[1] for one in sockets]


def clean_environment() -> dict[str, str]:
    """This process's variables without what would point at another cluster or server."""
    foreign = ("RAY_", "MLFLOW_", "SAVE_DIST_")
    return {k: v for k, v in os.environ.items() if not k.startswith(foreign)}


def _tree(pid: int) -> list[psutil.Process]:
    root = psutil.Process(pid)
    return [root, *root.children(recursive=True)]
