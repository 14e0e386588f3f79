import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from save_dist.data.partition import StreamPlan, permute


@st.composite
def plans(draw):
    n_lanes = draw(st.integers(1, 16))
    cells_per_step = n_lanes * draw(st.integers(1, 8))
    return StreamPlan(
        n_cells=draw(st.integers(cells_per_step, cells_per_step + 400)),
        cells_per_step=cells_per_step,
        rows_per_chunk=draw(st.integers(1, 40)),
        chunks_per_pool=draw(st.integers(1, 30)),
        n_lanes=n_lanes,
        seed=draw(st.integers(0, 2**31)),
    )


def steps_of(plan, start, stop, lanes):
    """Positions [step cell] of some lanes, as a reader meets them."""
    rows = [plan.rows_of(stretch, lanes) for stretch in plan.stretches(start, stop)]
    return np.concatenate(rows)


@given(plan=plans(), epoch=st.integers(0, 5))
@settings(max_examples=150, deadline=None)
def test_every_cell_once_and_few_twice(plan, epoch):
    first = epoch * plan.n_steps_per_epoch
    rows = steps_of(plan, first, first + plan.n_steps_per_epoch, range(plan.n_lanes))
    counts = np.bincount(rows.ravel(), minlength=plan.n_cells)
    assert counts.size == plan.n_cells
    assert counts.min() == 1
    assert counts.max() <= 2
    assert (counts == 2).sum() < plan.cells_per_step


@given(plan=plans(), data=st.data())
@settings(max_examples=100, deadline=None)
def test_worlds_share_the_same_global_steps(plan, data):
    worlds = [w for w in range(1, 17) if plan.n_lanes % w == 0]
    world_size = data.draw(st.sampled_from(worlds))
    start = data.draw(st.integers(0, 3 * plan.n_steps_per_epoch))
    stop = start + data.draw(st.integers(1, 12))
    whole = steps_of(plan, start, stop, plan.lanes_of(0, 1))
    lanes = [plan.lanes_of(rank, world_size) for rank in range(world_size)]
    parts = [steps_of(plan, start, stop, mine) for mine in lanes]
    assert {part.shape for part in parts} == {(stop - start, plan.cells_per_step // world_size)}
    assert sorted(lane for mine in lanes for lane in mine) == list(range(plan.n_lanes))
    assert np.array_equal(np.sort(np.concatenate(parts, axis=1)), np.sort(whole))


@given(plan=plans(), data=st.data())
@settings(max_examples=100, deadline=None)
def test_any_start_replays_the_uninterrupted_run(plan, data):
    stop = data.draw(st.integers(1, 2 * plan.n_steps_per_epoch + 1))
    start = data.draw(st.integers(0, stop - 1))
    lanes = range(plan.n_lanes)
    assert np.array_equal(
        steps_of(plan, start, stop, lanes), steps_of(plan, 0, stop, lanes)[start:]
    )


@given(n_items=st.integers(1, 3000), seed=st.integers(0, 2**31), epoch=st.integers(0, 9))
@settings(max_examples=100, deadline=None)
def test_permutation_is_one_to_one(n_items, seed, epoch):
    images = permute(np.arange(n_items), n_items, seed, epoch)
    assert np.array_equal(np.sort(images), np.arange(n_items))


@given(n_items=st.integers(10**6, 10**12), seed=st.integers(0, 9), start=st.integers(0, 10**6))
@settings(max_examples=50, deadline=None)
def test_permutation_of_large_sets_stays_inside_without_collisions(n_items, seed, start):
    items = np.arange(start, min(start + 500, n_items))
    images = permute(items, n_items, seed, 0)
    assert np.unique(images).size == items.size
    assert images.min(initial=0) >= 0
    assert images.max(initial=0) < n_items
