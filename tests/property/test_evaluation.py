"""What must hold of the metrics for any cells."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from save_dist.evaluation.biology import agreement, ranks, wasserstein_1d
from save_dist.evaluation.metrics import (
    Pairs,
    energy_distance,
    mmd2,
    neighbourhood,
    pairs_of,
    wasserstein,
)
from save_dist.evaluation.tables import CellTable

numbers = st.floats(-100, 100, allow_subnormal=False).map(lambda v: round(v, 3))


def vectors(n):
    return arrays(np.float64, n, elements=numbers)


@st.composite
def two_sides(draw, min_cells=2):
    n, m, d = (draw(st.integers(low, 9)) for low in (min_cells, min_cells, 1))
    return draw(arrays(np.float64, (n, d), elements=numbers)), draw(
        arrays(np.float64, (m, d), elements=numbers)
    )


@given(
    st.integers(2, 12).flatmap(lambda n: st.tuples(vectors(n), vectors(n))),
    st.floats(-1e6, 1e6),
    st.sampled_from([1e-9, 1e-3, 1.0, 1e6]),
)
def test_r2_is_never_above_the_squared_correlation(pair, offset, scale):
    truth, predicted = (scale * side + offset for side in pair)
    found = agreement(truth, predicted)  # which asserts it
    if np.isfinite(found.pcc) and scale == 1.0:
        assert found.r2 <= found.pcc**2 + 1e-6


@given(st.integers(1, 9).flatmap(vectors), st.integers(1, 9).flatmap(vectors))
def test_w1_of_numbers_is_symmetric_and_moves_with_an_offset(x, y):
    assert wasserstein_1d(x, y) == pytest.approx(wasserstein_1d(y, x))
    assert wasserstein_1d(x, x + 3) == pytest.approx(3)
    assert wasserstein_1d(x, y) >= abs(x.mean() - y.mean()) - 1e-9


@given(st.integers(1, 12).flatmap(vectors))
def test_ranks_keep_the_order_and_their_sum(x):
    found = ranks(x)
    assert found.sum() == pytest.approx(len(x) * (len(x) + 1) / 2)
    order = np.argsort(x, kind="stable")
    assert np.all(np.diff(found[order]) >= 0)


@settings(deadline=None)
@given(two_sides())
def test_distances_are_symmetric(sides):
    there = pairs_of(*sides)
    back = Pairs(there.generated, there.real, there.between.T)
    for distance in (energy_distance, lambda p: mmd2(p, 10.0), lambda p: wasserstein(p, 2)):
        assert distance(there) == pytest.approx(distance(back), rel=1e-6, abs=1e-6)


@settings(deadline=None)
@given(two_sides())
def test_w1_is_between_the_distance_of_means_and_w2(sides):
    real, generated = sides
    pairs = pairs_of(real, generated)
    apart = np.linalg.norm(real.mean(axis=0) - generated.mean(axis=0))
    w1, w2 = wasserstein(pairs, 1), wasserstein(pairs, 2)
    assert apart <= w1 + 1e-4
    assert w1 <= w2 + 1e-4


@settings(deadline=None)
@given(two_sides(min_cells=6))
def test_neighbourhood_shares_are_shares(sides):
    found = neighbourhood(pairs_of(*sides))
    for share in (found.precision, found.recall, found.coverage):
        assert 0 <= share <= 1
    assert found.density >= 0


@given(arrays(np.int16, st.tuples(st.integers(0, 30), st.integers(1, 3)),
              elements=st.integers(0, 3)))  # fmt: skip
def test_rows_of_combinations_tile_the_table(codes):
    table = CellTable(np.zeros((len(codes), 2), dtype=np.uint16), codes)
    rows = table.rows_by_combination()
    listed = np.concatenate([*rows.values(), np.empty(0, dtype=np.int64)])
    assert sorted(listed.tolist()) == list(range(len(codes)))
    for key, members in rows.items():
        assert np.all(codes[members] == key)
        assert np.all(np.diff(members) > 0)
