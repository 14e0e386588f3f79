import itertools

import numpy as np
import scipy.sparse as sp
from hypothesis import given, settings
from hypothesis import strategies as st

from save_dist.data.csr import CsrPiece, assemble, rows_of, sort_rows


@st.composite
def entries(draw):
    """Joinids with gaps, and distinct (cell, gene) entries in any order, cut anywhere."""
    joinids = sorted(draw(st.sets(st.integers(0, 2**40), min_size=1, max_size=12)))
    places = st.tuples(st.integers(0, len(joinids) - 1), st.integers(0, 30))
    found = draw(st.lists(places, unique=True, max_size=60))
    cuts = sorted(draw(st.lists(st.integers(0, len(found)), max_size=4)))
    return np.array(joinids, dtype=np.int64), found, [0, *cuts, len(found)]


@given(entries())
@settings(deadline=None)
def test_entries_in_any_order_and_any_pieces_give_sorted_rows(case):
    joinids, found, cuts = case
    rows = np.array([r for r, _ in found], dtype=np.int64)
    genes = np.array([g for _, g in found], dtype=np.uint16)
    counts = np.arange(1, len(found) + 1, dtype=np.uint16)
    pieces = [
        CsrPiece(rows_of(joinids[rows[a:b]], joinids), genes[a:b], counts[a:b])
        for a, b in itertools.pairwise(cuts)
    ]
    csr = assemble(pieces, joinids.size, np.uint16, np.uint16)
    assert sort_rows(*csr) == -1
    want = sp.coo_array((counts, (rows, genes)), shape=(joinids.size, 31)).tocsr()
    want.sort_indices()
    np.testing.assert_array_equal(csr.indptr, want.indptr)
    np.testing.assert_array_equal(csr.genes, want.indices)
    np.testing.assert_array_equal(csr.counts, want.data)


@given(st.lists(st.integers(0, 9), min_size=1, max_size=12), st.integers(0, 11))
@settings(deadline=None)
def test_a_gene_twice_in_a_row_is_found(genes, cut):
    indptr = np.array([0, min(cut, len(genes)), len(genes)], dtype=np.int64)
    rows = [genes[a:b] for a, b in itertools.pairwise(indptr)]
    twice = [i for i, row in enumerate(rows) if len(set(row)) < len(row)]
    found = sort_rows(indptr, np.array(genes, dtype=np.uint16), np.ones(len(genes), np.uint16))
    assert found == (twice[0] if twice else -1)
