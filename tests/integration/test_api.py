"""A trained model in a notebook, without Ray."""

import subprocess
import sys

import anndata
import numpy as np
import pytest

import save_dist
from save_dist.core.errors import CheckpointError, ConfigError, DataError, VocabMismatchError

pytestmark = pytest.mark.slow

STIM = {"condition": "stim-1", "cell_type": "type-1"}


@pytest.fixture(scope="module")
def model(tiny_run):
    return save_dist.load(tiny_run / "model")


@pytest.fixture(scope="module")
def real(tiny_cells):
    return anndata.read_h5ad(tiny_cells)


def test_generated_cells_are_those_of_the_atlas(model, tiny_run):
    atlas = anndata.read_zarr(tiny_run / "atlas.zarr")
    rows = (atlas.obs["condition"] == "stim-1") & (atlas.obs["cell_type"] == "type-1")
    cells = model.generate(STIM, 60, seed=0, solver=_solver())
    # another minibatch sums in another order: last bits of a mean may move a draw
    assert np.mean(cells.X == atlas[rows].X) > 0.999
    assert cells.obs["seen"].all()
    assert cells.obsm["X_save"].shape == (60, 8)


def _solver():
    from save_dist.config.schema import SolverConfig

    return SolverConfig(method="midpoint", n_steps=3)


def test_seed_decides(model):
    one, two, other = (model.generate(STIM, 20, seed=s).X for s in (1, 1, 2))
    assert np.array_equal(one, two)
    assert not np.array_equal(one, other)


def test_several_conditions_and_masked_columns(model):
    cells = model.generate([STIM, {"condition": "ctrl"}], 5)
    assert cells.n_obs == 10
    assert (cells.obs["cell_type"] == "MASK").tolist() == [False] * 5 + [True] * 5
    assert cells.obs["n_train_cells"].iloc[5] > cells.obs["n_train_cells"].iloc[0]


def test_encode_does_not_depend_on_the_order_of_genes(model, real):
    z = model.encode(real[:100])
    assert z.shape == (100, 8)
    assert np.array_equal(z, model.encode(real[:100, ::-1].copy()))


def test_transfer_sets_the_target_and_keeps_the_library(model, real):
    control = real[real.obs["condition"] == "ctrl"][:50].copy()
    moved = model.transfer(control, {"condition": "stim-1"})
    assert set(moved.obs["condition"]) == {"stim-1"}
    assert moved.obs["cell_type"].astype(str).tolist() == control.obs["cell_type"].tolist()
    library = control[:, moved.var_names].X.sum(1).A1
    assert np.allclose(moved.layers["mean"].sum(1), library, rtol=1e-4)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        pytest.param(
            lambda m, a: m.generate({"condition": "heat"}, 5), ConfigError, "heat.*ctrl", id="value"
        ),
        pytest.param(
            lambda m, a: m.generate({"tissue": "lung"}, 5), ConfigError, "tissue", id="column"
        ),
        pytest.param(
            lambda m, a: m.encode(a[:5, :20].copy()), VocabMismatchError, "missing", id="genes"
        ),
        pytest.param(lambda m, a: m.encode(_normalised(a)), DataError, "raw counts", id="logs"),
    ],
)
def test_misuse_is_named(model, real, call, error, message):
    with pytest.raises(error, match=message):
        call(model, real)


def _normalised(adata):
    out = adata[:5].copy()
    out.X = np.log1p(out.X.toarray())
    return out


def test_missing_model_is_named(tmp_path):
    with pytest.raises(CheckpointError, match=r"nowhere.*does not exist"):
        save_dist.load(tmp_path / "nowhere")


def test_loading_needs_no_ray(tiny_run):
    code = (
        "import sys, save_dist; save_dist.load(sys.argv[1]); "
        "assert 'ray' not in sys.modules and 'mlflow' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code, str(tiny_run / "model")], check=True)
