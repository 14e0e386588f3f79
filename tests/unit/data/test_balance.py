"""Balanced streams over a store: the right cells, whatever the reader, world and start."""

import numpy as np
import pytest
from helpers_soma import index_of

from save_dist.config.schema import StreamConfig
from save_dist.data.balance import Balance
from save_dist.data.cache import ensure_cache
from save_dist.data.partition import StreamPlan
from save_dist.data.source import SomaSource
from save_dist.data.splits import CellIndex
from save_dist.data.stream import CellStream


@pytest.fixture
def skewed(cells):
    """The index of the store with one common and three rare combinations."""
    codes = np.zeros((cells.index.n_cells, 1), dtype=np.int16)
    codes[::50], codes[7::100], codes[3] = 1, 2, 3
    return CellIndex(cells.index.joinids, codes, cells.index.split)


def open_stream(cells, index, **options):
    plan = StreamPlan(index.n_cells, 64, 16, 12, n_lanes=4, seed=3)
    balance = Balance(index.codes, 0.0, seed=3)
    return CellStream(cells.locator, index, cells.gene_positions, plan, balance=balance, **options)


def test_every_combination_equally_often_and_counts_belong(cells, skewed):
    with open_stream(cells, skewed) as stream:
        n_steps = stream.plan.n_steps_per_epoch
        batches = list(stream.batches(0, n_steps))
    codes = np.concatenate([b.codes[:, 0] for b in batches])
    assert np.bincount(codes).tolist() == pytest.approx([208] * 4, abs=20)  # 800 / 4, and filler
    for batch in batches:
        assert np.array_equal(batch.counts, cells.counts_of(batch.joinids))
        assert np.array_equal(batch.codes, skewed.codes[batch.positions])
        assert np.bincount(batch.codes[:, 0], minlength=4).min() > 1  # in every minibatch


def test_ranks_cache_and_resume_give_the_same_cells(cells, skewed, tmp_path):
    with SomaSource(cells.locator) as source:
        cache = ensure_cache(source, skewed, cells.gene_positions, tmp_path, 2**30)
    with open_stream(cells, skewed) as one:
        whole = list(one.batches(0, 20))
    for rank in (0, 1):
        with open_stream(cells, skewed, rank=rank, world_size=2, cache=cache) as stream:
            for batch in stream.batches(9, 20):
                lanes = whole[batch.step].counts.reshape(4, 16, -1)[rank::2]
                assert np.array_equal(batch.counts, lanes.reshape(32, -1))


def test_another_index_is_refused(cells):
    index = cells.index
    balance = Balance(index_of(index.joinids[:-1]).codes, 0.5, 0)
    with pytest.raises(AssertionError, match="another index"):
        CellStream(
            cells.locator,
            index,
            cells.gene_positions,
            StreamPlan(index.n_cells, 64, 16, 12, n_lanes=4, seed=3),
            balance=balance,
        )


@pytest.mark.parametrize("exponent", [-0.1, 1.1])
def test_exponents_out_of_range(exponent):
    with pytest.raises(ValueError, match="balance"):
        StreamConfig(balance=exponent)
