"""One thread that reads ahead of the consumer, and never outlives it."""

import time
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor, wait
from typing import TypeVar

T = TypeVar("T")


class Prefetcher:
    """Runs loads on one thread: while the consumer uses one result, the next is loaded.

    A thread, since reading releases the GIL and a forked reader of TileDB hangs. The executor's
    thread is joined by `close`, and at the latest before the interpreter ends.
    """

    def __init__(self, name: str) -> None:
        self._executor = ThreadPoolExecutor(1, thread_name_prefix=name)
        self.wait_s = 0.0
        """Time consumers have waited for results."""

    def run(self, loads: Iterable[Callable[[], T]]) -> Generator[T, None, None]:
        """Results of `loads` in order. An error of a load is raised where its result was due.

        Leaving the iterator early waits for the load under way, whose result is dropped.
        """
        todo = iter(loads)
        under_way = self._submit(todo)
        try:
            while under_way is not None:
                result = self._result(under_way)
                under_way = self._submit(todo)
                yield result
                del result  # or two would stay in memory while the third is loaded
        finally:
            if under_way is not None and not under_way.cancel():
                wait([under_way])

    def close(self) -> None:
        """Join the thread; harmless when repeated."""
        self._executor.shutdown(wait=True, cancel_futures=True)

    def _submit(self, todo: Iterator[Callable[[], T]]) -> "Future[T] | None":
        load = next(todo, None)
        return None if load is None else self._executor.submit(load)

    def _result(self, future: "Future[T]") -> T:
        started = time.perf_counter()
        try:
            return future.result()
        finally:
            self.wait_s += time.perf_counter() - started
