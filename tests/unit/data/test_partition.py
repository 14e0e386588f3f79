import tracemalloc

import numpy as np
import pytest

from save_dist.core.errors import ConfigError, DataError
from save_dist.data.partition import StreamPlan, Stretch, permute


def make_plan(n_cells=1000, cells_per_step=64, chunk=16, pool=8, lanes=4, seed=0):
    return StreamPlan(n_cells, cells_per_step, chunk, pool, lanes, seed)


def order_of(plan, epoch):
    """Positions of one epoch, [step cell], over all lanes."""
    first = epoch * plan.n_steps_per_epoch
    stretches = plan.stretches(first, first + plan.n_steps_per_epoch)
    return np.concatenate([plan.rows_of(s, range(plan.n_lanes)) for s in stretches])


@pytest.mark.parametrize(
    ("plan", "n_steps", "steps_per_pool", "n_pools"),
    [
        pytest.param(make_plan(), 16, 2, 8, id="last step filled up"),
        pytest.param(make_plan(n_cells=1024), 16, 2, 8, id="even"),
        pytest.param(make_plan(pool=7), 16, 1, 16, id="pool not of whole steps"),
        pytest.param(make_plan(pool=1, chunk=1), 16, 1, 16, id="pool below one step"),
        pytest.param(make_plan(pool=10_000), 16, 16, 1, id="pool above the epoch"),
        pytest.param(make_plan(n_cells=64), 1, 1, 1, id="one step"),
        pytest.param(make_plan(pool=12), 16, 3, 6, id="short last pool"),
    ],
)
def test_sizes(plan, n_steps, steps_per_pool, n_pools):
    assert plan.n_steps_per_epoch == n_steps
    assert plan.steps_per_pool == steps_per_pool
    assert len(list(plan.stretches(0, n_steps))) == n_pools
    assert plan.cells_per_lane == 16


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        pytest.param(
            {"n_cells": 63},
            DataError,
            "63 cells are fewer than cells_per_step=64; lower optim.cells_per_step to at most 63",
            id="fewer cells than a step",
        ),
        pytest.param(
            {"lanes": 5},
            ConfigError,
            "cells_per_step=64 is not a multiple of n_lanes=5",
            id="lanes",
        ),
    ],
)
def test_refused(arguments, error, message):
    with pytest.raises(error, match=message):
        make_plan(**arguments)


@pytest.mark.parametrize(
    ("rank", "world_size", "lanes"),
    [
        pytest.param(0, 1, (0, 1, 2, 3, 4, 5, 6, 7), id="1 of 1"),
        pytest.param(1, 2, (1, 3, 5, 7), id="2 of 2"),
        pytest.param(2, 4, (2, 6), id="3 of 4"),
        pytest.param(7, 8, (7,), id="8 of 8"),
    ],
)
def test_lanes_of_ranks(rank, world_size, lanes):
    assert make_plan(lanes=8).lanes_of(rank, world_size) == lanes


def test_lanes_that_do_not_divide_are_refused():
    with pytest.raises(
        ConfigError, match=r"n_lanes=4 is not a multiple of world_size=3.*n_lanes to 12"
    ):
        make_plan().lanes_of(0, 3)


def test_stretches_end_with_pools_and_epochs():
    plan = make_plan(pool=12)  # 16 steps in pools of 3, the last of 1
    assert list(plan.stretches(2, 21)) == [
        Stretch(2, 0, 0, 2, 1),
        Stretch(3, 0, 1, 0, 3),
        Stretch(6, 0, 2, 0, 3),
        Stretch(9, 0, 3, 0, 3),
        Stretch(12, 0, 4, 0, 3),
        Stretch(15, 0, 5, 0, 1),
        Stretch(16, 1, 0, 0, 3),
        Stretch(19, 1, 1, 0, 2),
    ]
    assert list(plan.stretches(5, 5)) == []


def test_epochs_and_seeds_differ_and_repeat():
    orders = {
        (seed, epoch): order_of(make_plan(seed=seed), epoch).tobytes()
        for seed in (0, 1)
        for epoch in (0, 1, 2)
    }
    assert len(set(orders.values())) == len(orders)
    assert order_of(make_plan(seed=1), 2).tobytes() == orders[1, 2]


def test_cells_filling_the_last_step_differ_by_epoch():
    plan = make_plan()
    fillers = set()
    for epoch in range(4):
        counts = np.bincount(order_of(plan, epoch).ravel(), minlength=1000)
        assert counts.min() == 1
        assert counts.sum() == 1024
        fillers.add(np.flatnonzero(counts == 2).tobytes())
    assert len(fillers) == 4


def test_lane_reads_few_chunks_per_pool():
    plan = make_plan(n_cells=100_000, cells_per_step=256, chunk=128, pool=64)
    rows = plan.pool_rows(epoch=1, pool=3, lane=2)
    n_chunks = np.unique(rows // 128).size
    assert rows.shape == (32, 64)
    assert 16 <= n_chunks <= 18  # 64 chunks over 4 lanes; the short last one shifts the edges


def test_steps_mix_the_pool():
    plan = make_plan(n_cells=100_000, cells_per_step=256, chunk=128, pool=64)
    step = order_of(plan, 0)[5]
    n_chunks = np.unique(step // 128).size
    assert n_chunks > 50  # of 64: every step draws from nearly all chunks of its pool
    assert abs(np.corrcoef(step, np.arange(256))[0, 1]) < 0.3


def test_lanes_do_not_depend_on_the_pool_they_are_asked_with():
    plan = make_plan()
    stretch = next(plan.stretches(0, 2))
    both = plan.rows_of(stretch, (1, 3))
    assert np.array_equal(both[:, :16], plan.pool_rows(0, 0, 1))
    assert np.array_equal(both[:, 16:], plan.pool_rows(0, 0, 3))


def test_permutation_is_uniform_and_breaks_neighbours():
    n, n_epochs = 60, 3000
    images = np.stack([permute(np.arange(n), n, 1, epoch) for epoch in range(n_epochs)])
    places = np.zeros((n, n))
    np.add.at(places, (np.tile(np.arange(n), n_epochs), images.ravel()), 1)
    steps = np.bincount(((images[:, 1:] - images[:, :-1]) % n).ravel(), minlength=n)[1:]
    assert chi_square_z(places.ravel(), (n - 1) ** 2) < 4
    assert chi_square_z(steps, n - 2) < 4


def chi_square_z(counts, freedom):
    """Standard deviations by which counts are less even than chance."""
    expected = counts.mean()
    return (((counts - expected) ** 2 / expected).sum() - freedom) / np.sqrt(2 * freedom)


def test_pools_of_1024_ranks_share_no_cell_of_a_billion():
    plan = StreamPlan(10**9, 8192, 128, 64 * 1024, n_lanes=1024, seed=0)
    first_of_pool = [plan.pool_rows(3, 5, lane)[0] for lane in range(1024)]
    assert np.unique(np.concatenate(first_of_pool)).size == 8192


def test_a_rank_of_1024_plans_its_share_of_an_epoch_of_a_billion_cells():
    plan = StreamPlan(10**9, 8192, 128, 64 * 1024, n_lanes=1024, seed=0)
    lanes = plan.lanes_of(rank=7, world_size=1024)
    n_cells = 0
    for stretch in plan.stretches(0, plan.n_steps_per_epoch):
        n_cells += plan.rows_of(stretch, lanes).size
    assert n_cells == plan.n_steps_per_epoch * 8


def test_memory_of_a_plan_does_not_grow_with_cells_or_ranks():
    def peak(n_cells, n_lanes=16):
        plan = StreamPlan(n_cells, 8192, 128, 1024, n_lanes, seed=0)
        lanes = plan.lanes_of(7, n_lanes)
        plan.pool_rows(0, 0, 0)
        tracemalloc.start()
        for stretch in plan.stretches(0, 100 * plan.steps_per_pool):
            plan.rows_of(stretch, lanes)
        _, peak_bytes = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        return peak_bytes

    assert peak(10**9) < 1.2 * peak(10**7)
    assert peak(10**9, n_lanes=1024) < 1.2 * peak(10**9)
    assert peak(10**9) < 2**21
