"""Independent jobs over processes, one thread each; the results do not depend on how many.

Processes are started afresh (`spawn`), so the caller may hold threads, a GPU or a Ray session.
"""

import contextlib
import os
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import get_context
from typing import Any, Protocol, TypeVar, runtime_checkable

from save_dist.core.errors import InfrastructureError
from save_dist.evaluation.combination import Shared

Result = TypeVar("Result", covariant=True)

_JOBS_PER_WORKER = 2
"""Jobs handed out per process; more would only hold their cells in memory twice."""
_shared: list[Shared] = []
"""In a worker process: what all of its jobs use."""


@runtime_checkable
class Job(Protocol[Result]):
    """Something to compute from its own fields and what all jobs share; it can be pickled."""

    def run(self, shared: Shared) -> Result:
        """Compute it."""


def run_jobs(
    jobs: Iterable[Job[Any]],
    shared: Shared,
    n_workers: int,
    report: Callable[[Any], None],
) -> None:
    """Run every job and report each result, in no particular order.

    Args:
        jobs: made lazily, only a few ahead of their turn.
        shared: sent to each process once.
        n_workers: processes; 1 runs in this one.
        report: called in this process with every result.

    Raises:
        InfrastructureError: if a process dies.
    """
    if n_workers == 1:
        with one_thread():
            for job in jobs:
                report(job.run(shared))
        return
    with ProcessPoolExecutor(
        n_workers, mp_context=get_context("spawn"), initializer=_start, initargs=(shared,)
    ) as pool:
        try:
            _hand_out(pool, iter(jobs), n_workers * _JOBS_PER_WORKER, report)
        except BrokenProcessPool as e:
            raise InfrastructureError(
                f"one of {n_workers} evaluation processes died, most likely for lack of memory; "
                "run again with fewer workers or a smaller evaluate.n_max"
            ) from e


@contextlib.contextmanager
def one_thread() -> Iterator[None]:
    """Linear algebra and trees on one thread: the last bits of a sum depend on their number."""
    import sklearn.ensemble  # noqa: F401 (loads the libraries whose threads are limited)
    from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]

    with threadpool_limits(limits=1):
        yield


def _hand_out(
    pool: ProcessPoolExecutor,
    jobs: Iterator[Job[Any]],
    n_at_once: int,
    report: Callable[[Any], None],
) -> None:
    running: set[Future[Any]] = set()
    is_more = True
    while is_more or running:
        while is_more and len(running) < n_at_once:
            job = next(jobs, None)
            is_more = job is not None
            if job is not None:
                running.add(pool.submit(_run, job))
        done, running = wait(running, return_when=FIRST_COMPLETED)
        for future in done:
            report(future.result())


def _start(shared: Shared) -> None:
    """Prepare a worker process."""
    os.environ["OMP_NUM_THREADS"] = "1"
    # POT imports torch, if installed, for a backend that nothing here uses.
    os.environ["POT_BACKEND_DISABLE_PYTORCH"] = "1"
    _shared.append(shared)


def _run(job: Job[Any]) -> Any:
    with one_thread():
        return job.run(_shared[0])
