import anndata
import numpy as np
import pandas as pd
import pytest

from save_dist.core.errors import AtlasError
from save_dist.stores.atlas_reader import choose_cells
from save_dist.vocab.conditions import ConditionVocabulary

CONDITIONS = ConditionVocabulary(("drug", "type"), (("a", "b"), ("k", "l", "m")))


@pytest.fixture
def atlas(tmp_path):
    """60 cells whose counts say their row and gene."""
    rows = np.arange(60)
    obs = pd.DataFrame(
        {
            "drug": pd.Categorical.from_codes(rows % 2, CONDITIONS.categories[0]),
            "type": pd.Categorical.from_codes(rows // 20, CONDITIONS.categories[1]),
        },
        index=[f"c{i}" for i in rows],
    )
    counts = (rows[:, None] * 10 + np.arange(3)).astype(np.uint16)
    with anndata.settings.override(zarr_write_format=3, auto_shard_zarr_v3=True):
        anndata.AnnData(counts, obs=obs).write_zarr(tmp_path / "atlas.zarr")
    return tmp_path / "atlas.zarr"


def test_cells_of_every_condition_and_their_counts(atlas):
    cells = choose_cells(atlas, CONDITIONS, 4, seed=0)
    assert cells.n_genes == 3
    np.testing.assert_array_equal(cells.codes, np.stack([cells.rows % 2, cells.rows // 20], axis=1))
    _, sizes = np.unique(cells.codes, axis=0, return_counts=True)
    assert sizes.tolist() == [4] * 6
    np.testing.assert_array_equal(cells.read(cells.rows)[:, 0], cells.rows * 10)


def test_other_categories_are_refused(atlas):
    other = ConditionVocabulary(("drug", "type"), (("a", "b"), ("k", "l", "x")))
    with pytest.raises(AtlasError, match=r"obs column .type. .*belongs to another model"):
        choose_cells(atlas, other, 4, seed=0)


def test_no_atlas(tmp_path):
    with pytest.raises(AtlasError, match="holds no atlas; generate one first"):
        choose_cells(tmp_path / "nothing.zarr", CONDITIONS, 4, seed=0)
