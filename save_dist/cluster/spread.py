"""Ray tasks behind `core.spread`: independent items worked on by several processes at once."""

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from save_dist.cluster import runtime
from save_dist.config.schema import ClusterConfig
from save_dist.core.errors import InfrastructureError, SaveDistError
from save_dist.core.spread import Item, Result, in_order

_TASKS_PER_WORKER = 2
"""Submitted ahead, so that no worker waits while the results before its own are awaited."""


@dataclass(frozen=True)
class RaySpread:
    """A `core.spread.Spread` over the workers of a cluster.

    One item, or one worker, needs no Ray and starts none. A task whose process dies is tried
    again; an error raised by the work ends everything.
    """

    config: ClusterConfig

    def __call__(self, work: Callable[[Item], Result], items: Sequence[Item]) -> Iterator[Result]:
        """Results in the order of the items.

        Raises:
            SaveDistError: what the work raised.
            InfrastructureError: if a task was lost more often than cluster.max_failures.
        """
        if min(len(items), self.config.n_workers) < 2:
            yield from in_order(work, items)
            return
        with runtime.session(self.config):
            yield from _tasks(work, items, self.config)


def _tasks(
    work: Callable[[Item], Result], items: Sequence[Item], config: ClusterConfig
) -> Iterator[Result]:
    import ray

    task = ray.remote(_run).options(
        num_cpus=config.cpus_per_worker,
        max_retries=config.max_failures,
        runtime_env={"env_vars": runtime.worker_environment(config)},
    )
    shared = ray.put(work)
    waiting: deque[object] = deque()
    try:
        for item in items:
            waiting.append(task.remote(shared, item))
            if len(waiting) >= _TASKS_PER_WORKER * config.n_workers:
                yield _result(waiting.popleft())
        while waiting:
            yield _result(waiting.popleft())
    finally:
        for reference in waiting:
            ray.cancel(reference)


def _run(work: Callable[[Item], Result], item: Item) -> Result:
    return work(item)


def _result(reference: object) -> Result:  # type: ignore[type-var]  # Ray's references are untyped
    import ray
    import ray.exceptions

    try:
        found: Result = ray.get(reference)
    except ray.exceptions.RayTaskError as e:
        if isinstance(e.cause, SaveDistError):
            raise e.cause from None
        raise InfrastructureError(f"a task failed: {str(e)[-500:]}; run the same command") from e
    except ray.exceptions.RayError as e:
        raise InfrastructureError(
            f"a task was lost: {str(e)[-500:]}. What is finished is kept; run the same command to "
            "continue"
        ) from e
    return found
