import dask
import numpy as np
import pytest
from helpers_soma import encoded_counts, gapped_joinids, make_store

from save_dist.data.lazy import lazy_rows, soma_reader
from save_dist.data.source import SomaSource

N_GENES = 6


def test_rows_are_read_block_by_block_when_asked_for():
    log = []

    def read(rows):
        log.append(rows.tolist())
        return (rows[:, None] * np.ones(2)).astype(np.float32)

    counts = lazy_rows(read, np.array([7, 5, 9, 1]), (3, 1), 2, np.float32)
    assert log == []
    with dask.config.set(scheduler="synchronous"):
        assert np.asarray(counts[[1, 2]]).tolist() == [[5, 5], [9, 9]]
        assert log == [[7, 5, 9]]
        assert np.asarray(counts)[:, 0].tolist() == [7, 5, 9, 1]


def test_no_rows():
    assert lazy_rows(pytest.fail, np.empty(0, dtype=np.int64), (), 3, np.uint16).shape == (0, 3)


def test_store_is_read_in_any_order(tmp_path):
    joinids = gapped_joinids(60)
    locator = make_store(tmp_path / "store", joinids, encoded_counts(joinids, N_GENES))
    positions = np.array([4, 0, 5])
    wanted = np.random.default_rng(0).permutation(joinids)[:20]
    with SomaSource(locator) as source:
        counts = lazy_rows(soma_reader(source, positions), wanted, (12, 8), 3, np.float32)
        with dask.config.set(scheduler="synchronous"):
            found = np.asarray(counts)
    np.testing.assert_array_equal(found, encoded_counts(wanted, N_GENES)[:, positions])
