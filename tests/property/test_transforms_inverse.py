import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from save_dist.data.packed import PackedCells
from save_dist.data.transforms import (
    densify,
    invert_log_normalise,
    log_normalise,
    scale_max_abs,
    unscale_max_abs,
)

COUNTS = hnp.arrays(
    np.int64,
    hnp.array_shapes(min_dims=2, max_dims=2, min_side=1, max_side=12),
    elements=st.one_of(st.just(0), st.integers(0, 20), st.integers(0, 65_535)),
)


@given(counts=COUNTS)
@settings(max_examples=100, deadline=None)
def test_packed_cells_come_out_as_they_went_in(counts):
    rows, genes = np.nonzero(counts)
    indptr = np.searchsorted(rows, np.arange(len(counts) + 1)).astype(np.int64)
    packed = PackedCells(indptr, np.stack([genes, counts[rows, genes]], 1).astype(np.uint16))
    dense = densify(packed, np.arange(len(counts)), counts.shape[1])
    assert np.array_equal(dense.counts, counts)
    assert np.array_equal(dense.library, counts.sum(1))
    assert np.array_equal(dense.log_x, log_normalise(counts.astype(np.float32)))


@given(counts=COUNTS)
@settings(max_examples=100, deadline=None)
def test_log_normalisation_has_an_inverse(counts):
    log_x = log_normalise(counts.astype(np.float64))
    back = invert_log_normalise(log_x, counts.sum(1).astype(np.float64))
    np.testing.assert_allclose(back, counts, rtol=1e-5, atol=1e-4)


@given(counts=COUNTS)
@settings(max_examples=100, deadline=None)
def test_max_abs_scaling_has_an_inverse(counts):
    log_x = log_normalise(counts.astype(np.float64))
    max_log = np.where(log_x.max(0) > 0, log_x.max(0), 1)
    scaled = scale_max_abs(log_x, max_log)
    assert scaled.min() >= 0
    assert scaled.max() <= 1
    np.testing.assert_allclose(unscale_max_abs(scaled, max_log), log_x, rtol=1e-6)
