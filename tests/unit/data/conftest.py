import numpy as np
import pytest
from helpers_soma import (
    CENSUS,
    N_STORE_GENES,
    OURS,
    Cells,
    encoded_counts,
    gapped_joinids,
    index_of,
    make_store,
)


@pytest.fixture(
    scope="session", params=[pytest.param(OURS, id="ours"), pytest.param(CENSUS, id="census")]
)
def cells(request, tmp_path_factory):
    """1000 cells with gaps in their joinids, every 11th without counts; 800 in the index."""
    joinids = gapped_joinids(1000)
    folder = tmp_path_factory.mktemp("store") / "store.soma"
    locator = make_store(folder, joinids, encoded_counts(joinids, N_STORE_GENES), request.param)
    genes = np.random.default_rng(1).permutation(N_STORE_GENES)[:40]
    return Cells(locator, index_of(joinids[joinids % 5 != 2]), genes)


@pytest.fixture(scope="session")
def make_cells(tmp_path_factory):
    """Make a store of given counts [cell gene]; all genes are in the vocabulary."""

    def make(counts, layout=OURS):
        joinids = np.arange(len(counts), dtype=np.int64) * 2
        folder = tmp_path_factory.mktemp("store") / "store.soma"
        locator = make_store(folder, joinids, np.asarray(counts), layout)
        return Cells(locator, index_of(joinids), np.arange(np.shape(counts)[1]))

    return make
