"""Reading an atlas by condition: what comes back, and how much of the store is touched."""

import shutil
import subprocess
import sys
import warnings

import anndata
import numpy as np
import pytest
import zarr
from tiny_atlas import begin, fill

import save_dist
from save_dist.config.schema import GridConfig, OutputConfig
from save_dist.core.errors import AtlasError, ConfigError
from save_dist.generation.atlas_view import Atlas
from save_dist.generation.grid import plan_grid
from save_dist.stores import atlas
from save_dist.stores.facts import ModelFacts
from save_dist.stores.part import PartColumns, write_part
from save_dist.vocab.conditions import ConditionVocabulary
from save_dist.vocab.genes import GeneVocabulary


@pytest.fixture(scope="module")
def model(random_model):
    return random_model


@pytest.fixture(scope="module")
def path(random_run):
    """6 conditions of 15 cells in parts of 32."""
    return random_run / "atlas.zarr"


@pytest.fixture(scope="module")
def whole(path):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # anndata announces its own future defaults
        return anndata.io.read_zarr(path)


def same(found, expected):
    np.testing.assert_array_equal(found.X, expected.X)
    assert found.obs_names.tolist() == expected.obs_names.tolist()
    assert found.var_names.tolist() == expected.var_names.tolist()
    assert list(found.obs) == list(expected.obs)
    for column in expected.obs:
        assert found.obs[column].tolist() == expected.obs[column].tolist(), column


def test_all_cells_lazily_are_those_that_anndata_reads(path, whole):
    found = save_dist.open_atlas(path)
    lazy = found.to_anndata()
    assert lazy.X.chunks == ((32, 32, 26), (12,)), "one dask chunk per file"
    same(lazy.to_memory(), whole)
    assert lazy.uns["save_dist"]["seed"] == 3
    assert (found.n_obs, found.n_vars, found.cells_per_part) == (90, 12, 32)
    assert found.x.sum().compute() == whole.X.sum()
    assert repr(found) == "save_dist.Atlas(90 cells x 12 genes)"


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ({"cell_type": "NK", "condition": "stim"}, {"cell_type": ["NK"], "condition": ["stim"]}),
        ({"condition": "ctrl"}, {"condition": ["ctrl"]}),
        ({"cell_type": ["T", "B"]}, {"cell_type": ["B", "T"]}),
        ({"cell_type": "[NT]*"}, {"cell_type": ["NK", "T"]}),
        ({}, {}),
    ],
)
def test_selected_cells_are_those_of_the_conditions(path, whole, values, expected):
    wanted = np.ones(whole.n_obs, bool)
    for column, names in expected.items():
        wanted &= whole.obs[column].isin(names).to_numpy()
    found = Atlas(path).select(**values)
    assert type(found.X).__module__.startswith("dask")
    same(found.to_memory(), whole[wanted])


def test_conditions_without_cells_and_wrong_names_are_told(tmp_path, model, path):
    grid = GridConfig(cells_per_condition=4, exclude=[{"cell_type": "B", "condition": "stim"}])
    other, plan = begin(tmp_path, model, grid=grid)
    fill(other, model, range(plan.n_parts))
    atlas.finish(other)
    with pytest.raises(ConfigError, match=r"holds no cell of .*'B'.* its grid leaves"):
        Atlas(other).select(cell_type="B", condition="stim")
    assert Atlas(other).select(cell_type="B").n_obs == 4
    with pytest.raises(ConfigError, match=r"unknown condition column 'tissue'; the atlas has cell"):
        Atlas(path).select(tissue="lung")
    with pytest.raises(ConfigError, match=r"select: the model knows no cell_type 'X'"):
        Atlas(path).select(cell_type="X")


def test_uneven_and_masked_grids(tmp_path, model):
    grid = GridConfig(
        masked=["condition"],
        cells_per_condition=[{"n": 3}, {"condition": {"cell_type": "NK"}, "n": 40}],
    )
    path, plan = begin(tmp_path, model, grid=grid)
    fill(path, model, range(plan.n_parts))
    atlas.finish(path)
    found = Atlas(path)
    assert found.conditions.categories == (("B", "NK", "T"), ("ctrl", "stim"))
    assert found.ranges(cell_type="NK").tolist() == [[3, 43]]
    cells = found.select(cell_type=["B", "T"])
    assert cells.obs["cell_type"].tolist() == ["B"] * 3 + ["T"] * 3
    assert set(cells.obs["condition"]) == {"MASK"}


def test_an_incomplete_atlas_is_opened_on_request_alone(tmp_path, model):
    path, _ = begin(tmp_path, model)
    fill(path, model, [1])
    with pytest.raises(AtlasError, match=r"is incomplete: .*incomplete=True"):
        save_dist.open_atlas(path)
    found = save_dist.open_atlas(path, incomplete=True)
    assert repr(found).endswith("incomplete)")
    cells = found.to_anndata()
    assert (cells.obs["part"] == -1).sum() == 90 - 32
    assert cells.obs["cell_type"].isna().sum() == 90 - 32


@pytest.mark.parametrize("make", [lambda p: None, lambda p: zarr.create_group(p)])
def test_what_is_no_atlas_is_named(tmp_path, make):
    make(tmp_path / "other.zarr")
    with pytest.raises(AtlasError, match=r"other\.zarr holds no generated atlas"):
        save_dist.open_atlas(tmp_path / "other.zarr")


def test_the_store_alone_is_enough(tmp_path, path, whole):
    """Copied without its receipts, and opened without torch."""
    shutil.copytree(path, tmp_path / "copy.zarr")
    code = (
        "import sys, save_dist; a = save_dist.open_atlas(sys.argv[1]); "
        "print(a.select(cell_type='NK').X.sum().compute(), 'torch' in sys.modules)"
    )
    command = [sys.executable, "-c", code, str(tmp_path / "copy.zarr")]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout.split() == [str(whole[whole.obs["cell_type"] == "NK"].X.sum()), "False"]


# ---------------------------------------------------------------- what is touched

N_CELLS, N_GENES = 32, 400


class Counting(zarr.storage.LocalStore):
    """Counts the bytes of what is read below the arrays."""

    n_bytes = 0

    async def get(self, key, prototype, byte_range=None):
        found = await super().get(key, prototype, byte_range)
        if found is not None and "/c/" in key and not key.startswith(("uns", "var")):
            Counting.n_bytes += len(found)
        return found


@pytest.fixture(scope="module")
def thousand(tmp_path_factory):
    """1,000 conditions of 32 cells, 32 conditions to a part."""
    vocabulary = ConditionVocabulary(
        ("kind", "drug"),
        (tuple(f"k{i}" for i in range(10)), tuple(f"d{i:02}" for i in range(100))),
    )
    genes = GeneVocabulary(tuple(f"g{i}" for i in range(N_GENES)))
    plan = plan_grid(
        GridConfig(cells_per_condition=N_CELLS),
        OutputConfig(cells_per_part=1024, cells_per_chunk=32),
        ModelFacts("m", vocabulary, {}, genes),
    )
    path = tmp_path_factory.mktemp("thousand") / "atlas.zarr"
    record = atlas.create_template(path, plan.layout(), {})
    rng = np.random.default_rng(0)
    for index in range(plan.n_parts):
        part = plan.part(index)
        codes = np.repeat([s.codes for s in part.segments], [s.n_cells for s in part.segments], 0)
        columns = PartColumns(
            counts=rng.poisson(0.5, (part.n_cells, N_GENES)).astype(np.uint16),
            codes=codes.astype(np.int16),
            n_train_cells=codes[:, 0].astype(np.int64),
            route=np.zeros(part.n_cells, np.int16),
            n_route_cells=np.zeros(part.n_cells, np.int64),
            cell_seed=rng.integers(0, 2**63, part.n_cells).astype(np.uint64),
        )
        write_part(path, record, index, columns, n_evaluations=1, start_s=0.0)
    atlas.finish(path)
    return path


def test_one_condition_of_a_thousand_touches_at_most_twice_what_holds_it(thousand):
    size = sum(file.stat().st_size for file in thousand.rglob("*") if "c" in file.parts)
    holds = size / 1000
    found = Atlas(Counting(thousand, read_only=True))
    Counting.n_bytes = 0
    cells = found.select(kind="k7", drug="d42")
    touched_by_obs = Counting.n_bytes
    loaded = cells.to_memory()
    assert loaded.n_obs == N_CELLS
    assert set(loaded.obs["kind"]) == {"k7"} and set(loaded.obs["drug"]) == {"d42"}
    assert 0 < touched_by_obs < Counting.n_bytes <= 2 * holds
