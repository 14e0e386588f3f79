"""Work spread over Ray tasks: order, errors, lost processes."""

import os
from functools import partial

import pytest
from spread_work import crash, die, die_once, refuse, square

from save_dist.cluster.spread import RaySpread
from save_dist.config.schema import ClusterConfig
from save_dist.core.errors import DataError, InfrastructureError
from save_dist.core.spread import in_order


def test_in_order_and_lazy():
    results = in_order(square, [3, 1, 2])
    assert next(results) == 9
    assert list(results) == [1, 4]


@pytest.mark.parametrize(("n_workers", "items"), [(1, [1, 2, 3]), (2, [5]), (2, [])])
def test_no_ray_for_what_one_process_does(n_workers, items, monkeypatch):
    monkeypatch.setattr("save_dist.cluster.runtime.session", None)  # would fail if called
    spread = RaySpread(ClusterConfig(n_workers=n_workers))
    assert list(spread(square, items)) == [n * n for n in items]


@pytest.fixture
def spread(ray_session):
    return RaySpread(ClusterConfig(n_workers=2, max_failures=1))


@pytest.mark.slow
def test_results_come_in_the_order_of_the_items(spread):
    assert list(spread(square, list(range(9)))) == [n * n for n in range(9)]


@pytest.mark.slow
def test_what_the_work_raises_is_raised(spread):
    results = spread(refuse, [1, 2, 3, 4])
    assert [next(results), next(results)] == [1, 2]
    with pytest.raises(DataError, match=r"^input 3 is torn$"):
        next(results)
    with pytest.raises(InfrastructureError, match=r"(?s)a task failed.*ZeroDivisionError"):
        list(spread(crash, [1, 2]))


@pytest.mark.slow
def test_a_lost_process_is_replaced(spread, tmp_path):
    results = list(spread(partial(die_once, tmp_path), [0, 1, 2]))
    assert [number for number, _ in results] == [0, 1, 2]
    assert os.getpid() not in {pid for _, pid in results}
    with pytest.raises(InfrastructureError, match=r"(?s)a task was lost.*run the same command"):
        list(spread(die, [0, 1]))
