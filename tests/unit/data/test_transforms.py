import numpy as np
import pytest
import torch

from save_dist.core.errors import DataError
from save_dist.data.packed import PackedCells
from save_dist.data.transforms import (
    DenseBuffers,
    densify,
    invert_log_normalise,
    log_normalise,
    scale_max_abs,
    unscale_max_abs,
)

COUNTS = np.array([[0, 1, 2, 63], [0, 0, 0, 0], [64, 65535, 0, 1], [5, 0, 0, 0]])


def pack(counts, dtype=np.uint16):
    """A count matrix as packed cells."""
    rows, genes = np.nonzero(counts)
    indptr = np.searchsorted(rows, np.arange(len(counts) + 1)).astype(np.int64)
    return PackedCells(indptr, np.stack([genes, counts[rows, genes]], axis=1).astype(dtype))


def reference(counts):
    """log1p of counts per 10,000 in NumPy, double precision."""
    library = counts.sum(1, keepdims=True)
    return np.log1p(counts * 1e4 / np.where(library == 0, 1, library))


@pytest.mark.parametrize("dtype", [np.uint16, np.uint32])
@pytest.mark.parametrize(
    "rows",
    [
        pytest.param([0, 1, 2, 3], id="in order"),
        pytest.param([3, 0, 0, 1], id="any order and repeats"),
        pytest.param([1], id="the empty cell"),
        pytest.param([], id="none"),
    ],
)
def test_densify(rows, dtype):
    rows = np.array(rows, dtype=np.int64)
    dense = densify(pack(COUNTS, dtype), rows, 4)
    assert {array.dtype for array in dense} == {np.dtype(np.float32)}
    assert np.array_equal(dense.counts, COUNTS[rows])
    assert np.array_equal(dense.library, COUNTS[rows].sum(1))
    np.testing.assert_allclose(dense.log_x, reference(COUNTS)[rows], rtol=2e-7)


def test_counts_beyond_16_bits():
    counts = np.array([[70_000, 1]])
    dense = densify(pack(counts, np.uint32), np.array([0]), 2)
    assert np.array_equal(dense.counts, counts)
    assert dense.library[0] == 70_001


def test_log_normalise_gives_the_numbers_of_the_stream():
    rng = np.random.default_rng(0)
    counts = rng.negative_binomial(0.3, 0.01, size=(200, 50))
    counts[17] = 0
    dense = densify(pack(counts), np.arange(200), 50)
    assert np.array_equal(log_normalise(counts.astype(np.float32)), dense.log_x)
    assert np.array_equal(log_normalise(counts.astype(np.float64)), dense.log_x)


@pytest.mark.parametrize("value", [-1.0, np.nan, np.inf, -np.inf])
def test_log_normalise_refuses(value):
    counts = np.ones((5, 3))
    counts[3, 1] = value
    with pytest.raises(DataError, match="cell 3 holds a negative or non-finite count"):
        log_normalise(counts)


def test_max_abs_maps_into_the_unit_interval_and_back():
    log_x = log_normalise(COUNTS.astype(np.float32))
    max_log = np.where(log_x.max(0) > 0, log_x.max(0), 1).astype(np.float32)
    scaled = scale_max_abs(log_x, max_log)
    assert scaled.dtype == np.float32
    assert scaled.max(0).tolist() == [1, 1, 1, 1]
    assert scaled.min() == 0
    np.testing.assert_allclose(unscale_max_abs(scaled, max_log), log_x, rtol=1e-6)


def test_inverse_needs_the_library():
    counts = COUNTS.astype(np.float32)
    back = invert_log_normalise(log_normalise(counts), counts.sum(1))
    assert back.dtype == np.float32
    assert np.array_equal(np.rint(back), counts)


class TestBuffers:
    """Memory is handed out again only when nobody can see it."""

    cells = pack(COUNTS)

    def take(self, buffers, rows=(0, 1)):
        return densify(self.cells, np.array(rows), 4, buffers)

    def test_dropped_results_are_reused(self):
        buffers = DenseBuffers()
        places = set()
        for _ in range(6):
            places.add(self.take(buffers).counts.ctypes.data)
        assert len(places) <= 2

    @pytest.mark.parametrize(
        "keep",
        [
            pytest.param(lambda dense: dense, id="the record"),
            pytest.param(lambda dense: dense.log_x, id="one array"),
            pytest.param(lambda dense: dense.counts[1:], id="a view"),
            pytest.param(lambda dense: dense.library[::2].reshape(1, 1), id="a view of a view"),
            pytest.param(lambda dense: torch.from_numpy(dense.log_x)[0], id="a tensor"),
        ],
    )
    def test_kept_results_stay_as_they_are(self, keep):
        buffers = DenseBuffers()
        kept = [keep(self.take(buffers)) for _ in range(8)]
        for _ in range(8):
            self.take(buffers, rows=(2, 3))
        expected = keep(self.take(None))
        for result in kept:
            parts = zip(result, expected, strict=True)
            assert all(np.array_equal(a, b) for a, b in parts)

    def test_shapes_do_not_mix(self):
        buffers = DenseBuffers()
        for rows in ((0,), (0, 1, 2), (0,)):
            assert np.array_equal(self.take(buffers, rows).counts, COUNTS[list(rows)])
