import threading
import time
from functools import partial

import pytest

from save_dist.data.prefetch import Prefetcher


@pytest.fixture
def prefetcher():
    prefetcher = Prefetcher("test-reader")
    yield prefetcher
    prefetcher.close()
    assert not reader_threads()


def reader_threads():
    return [t for t in threading.enumerate() if t.name.startswith("test-reader")]


def await_length(loaded, n):
    deadline = time.monotonic() + 20
    while len(loaded) < n and time.monotonic() < deadline:
        time.sleep(0.005)


def test_results_come_in_order(prefetcher):
    loads = (partial(lambda i: i * i, i) for i in range(5))
    assert list(prefetcher.run(loads)) == [0, 1, 4, 9, 16]


def test_one_thread_reads_one_ahead(prefetcher):
    loaded = []
    results = prefetcher.run(partial(loaded.append, i) for i in range(9))
    for n_used in (1, 2, 3):
        next(results)
        await_length(loaded, n_used + 1)
        time.sleep(0.02)
        assert loaded == list(range(n_used + 1))
    assert len(reader_threads()) == 1


def test_an_error_is_raised_where_its_result_was_due(prefetcher):
    def load(i):
        if i == 2:
            raise KeyError("broken") from OSError("the cause")
        return i

    results = prefetcher.run(partial(load, i) for i in range(4))
    assert next(results) == 0
    assert next(results) == 1
    with pytest.raises(KeyError, match="broken") as caught:
        next(results)
    assert isinstance(caught.value.__cause__, OSError)
    assert list(results) == []


def test_leaving_early_waits_for_the_load_under_way(prefetcher):
    finished = []

    def load(i):
        time.sleep(0.05)
        finished.append(i)

    results = prefetcher.run(partial(load, i) for i in range(9))
    next(results)
    results.close()
    n_finished = len(finished)
    time.sleep(0.1)
    assert len(finished) == n_finished <= 2


def test_closing_joins_and_may_be_repeated(prefetcher):
    results = prefetcher.run(partial(time.sleep, 0.01) for _ in range(9))
    next(results)
    prefetcher.close()
    prefetcher.close()
    assert not reader_threads()


def test_waiting_is_counted(prefetcher):
    assert list(prefetcher.run([partial(time.sleep, 0.05)])) == [None]
    assert 0.04 < prefetcher.wait_s < 5


def test_the_next_load_begins_while_a_result_is_in_use(prefetcher):
    begun = [threading.Event() for _ in range(4)]
    for i, _ in enumerate(prefetcher.run(event.set for event in begun)):
        assert begun[min(i + 1, 3)].wait(60)
