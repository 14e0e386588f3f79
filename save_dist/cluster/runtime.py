"""Starting and leaving Ray: a private one for this process, or a cluster that is there already."""

import contextlib
import logging
import math
import os
import shutil
import sys
import tempfile
from collections.abc import Iterator

from save_dist.cluster.leftovers import cleared
from save_dist.config.schema import ClusterConfig
from save_dist.core.errors import InfrastructureError

logger = logging.getLogger(__name__)

# Ray reads these when it is imported or started, so they are set before both.
_SETTINGS = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.5",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "RAY_DEDUP_LOGS": "1",
    "RAY_TQDM": "0",
}
_PRIVATE_SETTINGS = {
    # what its own processes say below this level stays in nobody's terminal
    "RAY_BACKEND_LOG_LEVEL": "fatal",
    # 15 otherwise: beside any other work on the machine a job would get a thirtieth of a core
    "RAY_worker_niceness": "0",
}
"""Of a private Ray alone."""
_BANNER = b"Set ray log level from environment variable"

_outer: list[contextlib.ExitStack] = []
"""Open `shared_session` blocks of this process."""


@contextlib.contextmanager
def session(config: ClusterConfig) -> Iterator[None]:
    """Ray for the duration of the block.

    A session that is already open (tests, notebooks) is used and left open.

    Raises:
        InfrastructureError: if the cluster does not answer.
    """
    settings = _SETTINGS | (_PRIVATE_SETTINGS if is_private(config) else {})
    for name, value in settings.items():
        os.environ.setdefault(name, value)
    import ray

    if ray.is_initialized():
        yield
    elif _outer:
        _outer[0].enter_context(_running(config))
        yield
    else:
        with _running(config):
            yield


@contextlib.contextmanager
def shared_session() -> Iterator[None]:
    """Let the sessions within the block share one Ray, started by the first that needs it.

    A block within another one shares that one's.
    """
    if _outer:
        yield
        return
    with contextlib.ExitStack() as stack:
        _outer.append(stack)
        try:
            yield
        finally:
            _outer.pop()


@contextlib.contextmanager
def _running(config: ClusterConfig) -> Iterator[None]:
    import ray

    folder = tempfile.mkdtemp(prefix="sd-")  # short: Ray's socket paths end at 107 bytes
    try:
        with _without_banner():
            _start(config, folder)
        with cleared(folder) if is_private(config) else contextlib.nullcontext():
            yield
    finally:
        ray.shutdown()
        shutil.rmtree(folder, ignore_errors=True)


@contextlib.contextmanager
def _without_banner() -> Iterator[None]:
    """Ray's C++ core says on stderr that it was told to be quiet; everything else passes."""
    sys.stderr.flush()
    before = os.dup(2)
    with tempfile.TemporaryFile() as caught:
        os.dup2(caught.fileno(), 2)
        try:
            yield
        finally:
            sys.stderr.flush()
            os.dup2(before, 2)
            os.close(before)
            caught.seek(0)
            for line in caught:
                if _BANNER not in line:
                    os.write(2, line)


def present_address() -> str:
    """Address of the Ray of the open session, for other processes to join."""
    import ray

    return str(ray.get_runtime_context().gcs_address)


def is_private(config: ClusterConfig) -> bool:
    """Whether a job with this configuration runs on a Ray of its own."""
    joins = config.address == "auto" and "RAY_ADDRESS" in os.environ
    return config.address == "local" or (config.address == "auto" and not joins)


def worker_environment(config: ClusterConfig) -> dict[str, str]:
    """Environment of every worker: as many threads as the CPUs it reserves."""
    n_threads = str(max(1, int(config.cpus_per_worker)))
    return {"OMP_NUM_THREADS": n_threads, "NUMBA_NUM_THREADS": n_threads}


def _start(config: ClusterConfig, folder: str) -> None:
    import ray

    quiet = {"log_to_driver": False, "logging_level": logging.ERROR}
    try:
        if not is_private(config):
            address = os.environ["RAY_ADDRESS"] if config.address == "auto" else config.address
            ray.init(address=address, **quiet)
            return
        ray.init(
            address="local",
            num_cpus=math.ceil(config.n_workers * config.cpus_per_worker) + 1,
            include_dashboard=config.dashboard,
            object_store_memory=config.object_store_bytes,
            _temp_dir=folder,
            **quiet,
        )
    except (ConnectionError, RuntimeError, ValueError) as e:
        raise InfrastructureError(
            f"Ray at cluster.address={config.address!r} did not start or answer: {e}. Check the "
            "address and token, or use cluster.address: local"
        ) from e
