"""Minibatches of latents: the cells of the plan, or those that a balance puts in their places."""

import numpy as np
import pytest

from save_dist.data.balance import Balance
from save_dist.data.partition import StreamPlan
from save_dist.data.splits import CellIndex
from save_dist.stores.latents import LatentStore
from save_dist.training.latents import LatentStream
from save_dist.training.loop import Ranks

N_CELLS, SEED = 400, 5
PLAN = StreamPlan(N_CELLS, 40, 8, 10, n_lanes=4, seed=SEED)
STEPS = PLAN.n_steps_per_epoch


@pytest.fixture(scope="module")
def latents(tmp_path_factory):
    """Latents that say their row; 20 of the cells are of a second combination."""
    rows = np.arange(N_CELLS, dtype=np.float32)
    store = LatentStore.create(tmp_path_factory.mktemp("latents") / "l", N_CELLS, 1, {"vae": "v"})
    store.write(0, mean=rows[:, None], var=(rows[:, None] + 1) ** 2, log_library=rows + 1000)
    store.commit_region(0, N_CELLS)
    codes = np.zeros((N_CELLS, 1), dtype=np.int16)
    codes[::20] = 1
    joinids = np.arange(N_CELLS, dtype=np.int64) * 3
    return store, CellIndex(joinids, codes, np.zeros(N_CELLS, dtype=np.uint8))


def batches(latents, balance, start=0, stop=STEPS, ranks=None):
    store, index = latents
    return list(LatentStream(store, index, PLAN, ranks or Ranks(), balance).batches(start, stop))


def rows_of(batch):
    return batch.mean[:, 0].numpy().astype(np.int64)


def equal_shares(latents):
    return Balance(latents[1].codes, 0.0, SEED)


def test_without_balance_every_cell_once(latents):
    rows = np.concatenate([rows_of(batch) for batch in batches(latents, None)])
    assert np.array_equal(np.sort(rows), np.arange(N_CELLS))


@pytest.mark.parametrize("epoch", [0, 3])
def test_balanced_draws_are_those_of_the_balance(latents, epoch):
    found = batches(latents, equal_shares(latents), epoch * STEPS, (epoch + 1) * STEPS)
    rows = np.concatenate([rows_of(batch) for batch in found])
    wanted = equal_shares(latents).n_draws_of_cells(epoch)
    assert np.array_equal(np.bincount(rows, minlength=N_CELLS), wanted)
    codes = np.concatenate([batch.codes[:, 0].numpy() for batch in found])
    assert np.bincount(codes).tolist() == pytest.approx([N_CELLS / 2] * 2, abs=1)


def test_what_comes_with_a_drawn_cell_is_its_own(latents):
    index = latents[1]
    for step, batch in enumerate(batches(latents, equal_shares(latents))):
        rows = rows_of(batch)
        assert batch.step == step
        assert np.array_equal(batch.joinids, index.joinids[rows])
        assert np.array_equal(batch.codes.numpy(), index.codes[rows])
        assert np.array_equal(batch.sd[:, 0].numpy(), rows + 1)
        assert np.array_equal(batch.log_library.numpy(), rows + 1000)


@pytest.mark.parametrize("world_size", [2, 4])
def test_ranks_and_resume_draw_what_one_rank_draws(latents, world_size):
    whole = batches(latents, equal_shares(latents), stop=2 * STEPS)
    for rank in range(world_size):
        ranks = Ranks(rank, world_size)
        for batch in batches(latents, equal_shares(latents), 7, 2 * STEPS, ranks):
            lanes = rows_of(whole[batch.step]).reshape(4, -1)[rank::world_size]
            assert np.array_equal(rows_of(batch), lanes.ravel())
