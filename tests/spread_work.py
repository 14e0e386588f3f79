"""Work for other processes; they find it here, where the test session can be imported from."""

import os
import signal
from dataclasses import dataclass
from pathlib import Path

from save_dist.core.errors import DataError


def square(number):
    return number * number


def refuse(number):
    if number == 3:
        raise DataError("input 3 is torn")
    return number


def crash(number):
    raise ZeroDivisionError(number)


def die_once(folder, number):
    """Kill the own process at the first try of item 1."""
    mark = folder / "died"
    if number == 1 and not mark.exists():
        mark.touch()
        os.kill(os.getpid(), signal.SIGKILL)
    return number, os.getpid()


def die(number):
    os.kill(os.getpid(), signal.SIGKILL)


@dataclass(frozen=True)
class KilledOnce:
    """Work whose process dies after it wrote the counts of the second input, once."""

    work: object
    mark: Path

    def __call__(self, item):
        result = self.work(item)
        if item == 1 and not self.mark.exists():
            self.mark.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return result
