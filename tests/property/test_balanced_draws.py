"""Balanced draws: exact shares, no cell forgotten, the same for every world and resume point."""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from save_dist.data.balance import Balance
from save_dist.data.partition import StreamPlan

SIZES = st.lists(st.integers(1, 90), min_size=1, max_size=7)
EXPONENT = st.sampled_from([0.0, 0.25, 0.5, 0.9, 0.999, 1.0])


def codes_of(sizes, seed):
    """Cells of combinations of these sizes, in random order."""
    numbers = np.repeat(np.arange(len(sizes)), sizes)
    numbers = np.random.default_rng(seed).permutation(numbers)
    return np.stack([numbers // 3, numbers % 3], axis=1).astype(np.int16), numbers


def counts_by(numbers, weights=None):
    return np.bincount(numbers, weights).astype(np.int64)


@settings(deadline=None, max_examples=60)
@given(SIZES, EXPONENT, st.integers(0, 2**31), st.integers(1, 6))
def test_shares_are_exact_and_no_cell_is_forgotten(sizes, exponent, seed, n_epochs):
    codes, numbers = codes_of(sizes, seed)
    balance = Balance(codes, exponent, seed)
    sizes = np.array(sizes, dtype=float)
    share = sizes**exponent / (sizes**exponent).sum() * numbers.size
    drawn = np.zeros(numbers.size, dtype=np.int64)
    for epoch in range(n_epochs):
        now = balance.n_draws_of_cells(epoch)
        cells = balance.cells(epoch)
        assert now.min() >= 0
        assert cells.size == numbers.size == now.sum()
        assert np.array_equal(np.bincount(cells, minlength=numbers.size), now)
        of_combination = counts_by(numbers, now)
        assert np.abs(of_combination - share).max() < 2 + 1e-3
        drawn += now
        for number in range(len(sizes)):
            assert np.ptp(drawn[numbers == number]) <= 1
    assert np.abs(counts_by(numbers, drawn) - n_epochs * share).max() < 1 + 1e-3 * n_epochs


@settings(deadline=None, max_examples=20)
@given(SIZES, st.integers(0, 2**31))
def test_an_exponent_of_one_is_every_cell_once_in_order(sizes, seed):
    codes, numbers = codes_of(sizes, seed)
    balance = Balance(codes, 1.0, seed)
    for epoch in (0, 1, 7):
        assert np.array_equal(balance.cells(epoch), np.arange(numbers.size))


@settings(deadline=None, max_examples=40)
@given(
    sizes=st.lists(st.integers(1, 60), min_size=2, max_size=6),
    exponent=EXPONENT,
    world_size=st.sampled_from([1, 2, 4, 8, 16]),
    resume=st.integers(0, 12),
    seed=st.integers(0, 2**31),
)
def test_worlds_share_one_order_and_any_start_replays_it(sizes, exponent, world_size, resume, seed):
    codes, numbers = codes_of([*sizes, 32], seed)
    balance = Balance(codes, exponent, seed)
    plan = StreamPlan(numbers.size, 32, 4, 16, n_lanes=16, seed=seed)
    stop = 2 * plan.n_steps_per_epoch

    def positions(rank, world, start, source):
        lanes = plan.lanes_of(rank, world)
        rows = [
            source.cells(stretch.epoch)[plan.rows_of(stretch, lanes)]
            for stretch in plan.stretches(start, stop)
        ]
        return np.concatenate(rows) if rows else np.empty((0, 32 // world), dtype=np.int64)

    whole = positions(0, 1, 0, balance).reshape(stop, 16, 2)
    start = min(resume, stop)
    for rank in range(world_size):
        again = positions(rank, world_size, start, Balance(codes, exponent, seed))
        mine = whole[start:, rank::world_size].reshape(stop - start, 32 // world_size)
        assert np.array_equal(again, mine)
    for epoch in (0, 1):
        steps = slice(epoch * plan.n_steps_per_epoch, (epoch + 1) * plan.n_steps_per_epoch)
        found = np.bincount(whole[steps].ravel(), minlength=numbers.size)
        excess = found - balance.n_draws_of_cells(epoch)
        assert excess.min() >= 0
        assert excess.sum() < 32  # what fills the last step


def test_expectations_are_exact_over_seeds():
    """Every cell of a combination is equally likely, at the share the exponent says."""
    sizes = [1, 5, 40, 54]
    codes, numbers = codes_of(sizes, 0)
    n_seeds = 1500
    drawn = sum(Balance(codes, 0.3, seed).n_draws_of_cells(2) for seed in range(n_seeds))
    weights = np.array(sizes, dtype=float) ** 0.3
    expected = (weights / weights.sum() * 100 / sizes)[numbers] * n_seeds
    # a cell's draws in an epoch are one of two neighbouring numbers: sd at most a half
    assert np.abs(drawn - expected).max() < 5 * 0.5 * np.sqrt(n_seeds)


def test_epochs_differ_and_draws_of_a_cell_lie_apart():
    codes, numbers = codes_of([4000, 40, 40, 40], 1)
    balance = Balance(codes, 0.0, 3)
    first, second = (set(np.flatnonzero(balance.n_draws_of_cells(e))) for e in (0, 1))
    common = set(np.flatnonzero(numbers == 0))
    assert not first & second & common  # a pass lasts four epochs
    places = np.flatnonzero(balance.cells(0) == np.flatnonzero(numbers == 1)[0])
    assert places.size > 20
    assert np.diff(places).min() >= 50


def test_common_cells_are_drawn_in_runs_of_neighbours():
    codes = np.zeros((6000, 1), dtype=np.int16)
    codes[5900:] = 1
    cells = np.flatnonzero(Balance(codes, 0.0, 5).n_draws_of_cells(0)[:5900])
    n_runs = 1 + np.count_nonzero(np.diff(cells) > 1)
    assert n_runs < 1.2 * cells.size / 16
