import os
from dataclasses import dataclass

import numpy as np
import pytest

from save_dist.core.errors import InfrastructureError
from save_dist.evaluation.combination import Shared
from save_dist.evaluation.pool import run_jobs
from save_dist.evaluation.space import fit_space


@dataclass(frozen=True)
class Square:
    value: int

    def run(self, shared):
        return self.value**2 + shared.n_max


@dataclass(frozen=True)
class Die:
    def run(self, shared):
        os._exit(3)


@pytest.fixture
def shared(real):
    space, known = fit_space(real["train"], 2, seed=0)
    marginal = space.read(real["train"].counts)
    return Shared(space, marginal, known.pca, (), n_max=100, seeds=(0,))


def test_jobs_in_this_process_run_in_order_and_lazily(shared):
    log = []

    def jobs():
        for i in range(3):
            log.append(f"made {i}")
            yield Square(i)

    run_jobs(jobs(), shared, 1, lambda result: log.append(result))
    assert log == ["made 0", 100, "made 1", 101, "made 2", 104]


@pytest.mark.slow
def test_jobs_over_processes_give_the_same(shared):
    found = []
    run_jobs((Square(i) for i in range(9)), shared, 2, found.append)
    assert sorted(found) == [i**2 + 100 for i in range(9)]


@pytest.mark.slow
def test_a_process_that_dies_is_an_infrastructure_error(shared):
    with pytest.raises(InfrastructureError, match="one of 2 evaluation processes died"):
        run_jobs([Die()], shared, 2, lambda result: None)


def test_error_of_a_job_reaches_the_caller(shared):
    class Wrong:
        def run(self, shared):
            raise ValueError("bad cell")

    with pytest.raises(ValueError, match="bad cell"):
        run_jobs([Wrong()], shared, 1, lambda result: None)


def test_linear_algebra_runs_on_one_thread(shared):
    from threadpoolctl import threadpool_info

    class Look:
        def run(self, shared):
            np.ones((4, 4)) @ np.ones((4, 4))
            return [pool["num_threads"] for pool in threadpool_info()]

    found = []
    run_jobs([Look()], shared, 1, found.extend)
    assert set(found) == {1}
