"""What stops training from outside, and what notices that it stands still.

A signal reaches the driver, not the ranks. The driver leaves a note in the run folder, which all
machines share; rank 0 finds it, all ranks save after the same step, and the job ends in order.
"""

import contextlib
import faulthandler
import logging
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from save_dist.core.durable import read_json, write_json
from save_dist.core.errors import InfrastructureError
from save_dist.training.loop import Watch

logger = logging.getLogger(__name__)

_LOOK_S = 0.5  # between two looks at the note, which may lie on a network disk


@dataclass(frozen=True)
class Orders:
    """How a job is told to end, and where ranks that hang say so.

    Args:
        folder: on storage that driver and ranks share; emptied by the driver before it starts.
        deadline_s: wall clock, seconds since 1970, when training must end; None: never.
        step_limit_s: longest duration of one step.
    """

    folder: Path
    deadline_s: float | None
    step_limit_s: float

    @property
    def note(self) -> Path:
        """There if the job was asked to end."""
        return self.folder / "stop.json"

    def stalls(self) -> list[str]:
        """What ranks wrote before they gave up."""
        return [read_json(path)["message"] for path in sorted(self.folder.glob("stalled-*.json"))]

    @contextlib.contextmanager
    def obeyed(self, grace_s: float) -> Iterator[None]:
        """In the driver: SIGTERM asks the ranks to save, and only then ends the job.

        A second SIGTERM, or `grace_s` without an end, does what SIGTERM does outside the block.
        Outside the main thread, where no signal arrives, nothing is changed.
        """
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        outer = signal.getsignal(signal.SIGTERM)

        def ask(number: int, frame: object) -> None:
            signal.signal(signal.SIGTERM, outer)
            signal.setitimer(signal.ITIMER_REAL, grace_s)
            logger.warning("event=stop_asked grace_s=%g", grace_s)
            with contextlib.suppress(InfrastructureError):  # a full disk: the grace runs out
                write_json(self.note, {"reason": "SIGTERM"})

        def give_up(number: int, frame: object) -> None:
            os.kill(os.getpid(), signal.SIGTERM)

        alarm = signal.signal(signal.SIGALRM, give_up)
        signal.signal(signal.SIGTERM, ask)
        try:
            yield
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
            signal.signal(signal.SIGTERM, outer)
            signal.signal(signal.SIGALRM, alarm)


class Foreman:
    """Carries out the orders of a job on one rank; a `training.loop.Supervisor`."""

    def __init__(self, orders: Orders, rank: int) -> None:
        self._orders, self._rank = orders, rank
        self._reason, self._looked_s = "", 0.0

    def asked_to_stop(self) -> str:
        """Why, once there is a reason; looks at the disk twice a second at most."""
        now = time.monotonic()
        if self._reason or now - self._looked_s < _LOOK_S:
            return self._reason
        self._looked_s = now
        deadline_s = self._orders.deadline_s
        if deadline_s is not None and time.time() > deadline_s:
            self._reason = "training.max_hours is reached"
        elif self._orders.note.is_file():
            self._reason = "SIGTERM"
        return self._reason

    @contextlib.contextmanager
    def watch(self, stage: str) -> Iterator[Watch]:
        """Ends this process if a step takes too long; the first one, which prepares, may."""
        watchdog = Watchdog(self._orders.step_limit_s, lambda at: self._stalled(stage, at))
        with watchdog:
            yield watchdog.begin

    def _stalled(self, stage: str, at: "Activity") -> None:
        message = (
            f"rank {self._rank} stood still for {self._orders.step_limit_s:g} s in step {at.step} "
            f"of the stage {stage} ({at.what}); if steps do take that long, raise "
            "cluster.collective_timeout_s"
        )
        logger.critical("event=stalled %s", message)
        faulthandler.dump_traceback()
        with contextlib.suppress(InfrastructureError):
            place = self._orders.folder / f"stalled-{self._rank}-{time.time_ns()}.json"
            write_json(place, {"message": message})
        os._exit(InfrastructureError.exit_code)  # nothing else ends a thread that hangs in C


@dataclass(frozen=True)
class Activity:
    """What a rank does."""

    step: int
    what: str
    began_s: float


class Watchdog:
    """Calls `on_stall`, once, if one step lasts longer than `limit_s`.

    The clock starts with the second step it is told of, so that compiling and first reads are
    not taken for a stall. Use as a context manager around the steps.
    """

    def __init__(self, limit_s: float, on_stall: Callable[[Activity], None]) -> None:
        self._limit_s, self._on_stall = limit_s, on_stall
        self._first: int | None = None
        self._now: Activity | None = None
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._work, name="watchdog", daemon=True)

    def __enter__(self) -> "Watchdog":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._end.set()
        self._thread.join()

    def begin(self, step: int, what: str) -> None:
        """A rank begins something; another step restarts the clock."""
        if self._first is None:
            self._first = step
        if step == self._first:
            return
        now = self._now
        began_s = now.began_s if now and now.step == step else time.monotonic()
        self._now = Activity(step, what, began_s)

    def _work(self) -> None:
        while not self._end.wait(self._limit_s / 20):
            now = self._now
            if now is not None and time.monotonic() - now.began_s > self._limit_s:
                self._on_stall(now)
                return
