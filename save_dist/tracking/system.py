"""How busy the driver's machine is while a job runs, under the names that MLflow's UI looks for."""

import contextlib
import logging
import threading
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import psutil

from save_dist.core.background import beside
from save_dist.core.errors import InfrastructureError
from save_dist.tracking.tracker import Journal, Record, read_records

_log = logging.getLogger(__name__)

EVERY_S = 15.0
"""Seconds between samples; a day of them is about 2 MB of journal."""
PREFIX = "system/"
_MB = 10**6


@contextlib.contextmanager
def sampled(journal: Journal, every_s: float = EVERY_S) -> Iterator[None]:
    """Append `system/...` metrics while the block runs; never a reason for it to fail.

    The step is the number of whole seconds since the journal began, so that restarts go on.

    Args:
        journal: where they go; its run is the one they belong to.
        every_s: seconds between samples.
    """
    began_ms = next((r.time_ms for r in read_records(journal.path)), _now_ms())
    with beside(partial(_work, journal, began_ms, every_s), "system-metrics"):
        yield


def sample(folder: Path, sent: int = 0, received: int = 0) -> dict[str, float]:
    """Present load of this machine.

    Args:
        folder: place whose disk is meant.
        sent: bytes that the network had sent when counting began.
        received: the same for received bytes.
    """
    memory, disk, net = psutil.virtual_memory(), psutil.disk_usage(str(folder)), _network()
    return {
        "system/cpu_utilization_percentage": psutil.cpu_percent(),
        "system/system_memory_usage_megabytes": memory.used / _MB,
        "system/system_memory_usage_percentage": memory.percent,
        "system/disk_usage_percentage": disk.percent,
        "system/disk_available_megabytes": disk.free / _MB,
        "system/network_transmit_megabytes": (net[0] - sent) / _MB,
        "system/network_receive_megabytes": (net[1] - received) / _MB,
    }


def is_sample(record: Record) -> bool:
    """Whether a record says how busy a machine was, and nothing of the job."""
    return record.kind == "metrics" and all(name.startswith(PREFIX) for name in record.values)


def _work(journal: Journal, began_ms: int, every_s: float, stop: threading.Event) -> None:
    sent, received = _network()
    psutil.cpu_percent()  # the first call has nothing to compare with
    while not stop.wait(every_s):
        step = (_now_ms() - began_ms) // 1000
        try:
            journal.metrics(sample(journal.path.parent, sent, received), step)
        except (InfrastructureError, OSError, psutil.Error) as e:
            _log.warning("event=system_metrics_stopped reason=%r", str(e))
            return


def _now_ms() -> int:
    return time.time_ns() // 1_000_000


def _network() -> tuple[int, int]:
    """Bytes sent and received since the machine started; zeros where it does not say."""
    counted = psutil.net_io_counters()
    return (0, 0) if counted is None else (counted.bytes_sent, counted.bytes_recv)
