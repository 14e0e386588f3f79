"""An atlas in the forms of other tools."""

import json
import shutil
import warnings

import anndata
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
import zarr
from typer.testing import CliRunner

from save_dist import cli
from save_dist.core.errors import AtlasError, ConfigError
from save_dist.data.source import SomaSource, StoreLocator
from save_dist.generation.atlas_view import Atlas
from save_dist.pipelines import export as forms
from save_dist.stores import atlas


@pytest.fixture(scope="module")
def path(random_run):
    """6 conditions of 15 cells in parts of 32, 32 and 26."""
    return random_run / "atlas.zarr"


@pytest.fixture(scope="module")
def whole(path):
    return Atlas(path).to_anndata().to_memory()


def same(found, expected):
    assert sp.issparse(found.X) and found.X.dtype == np.uint16
    np.testing.assert_array_equal(found.X.toarray(), expected.X)
    assert found.var_names.tolist() == expected.var_names.tolist()
    assert found.obs_names.tolist() == expected.obs_names.tolist()
    assert list(found.obs) == list(expected.obs)
    for column in expected.obs:
        assert found.obs[column].tolist() == expected.obs[column].tolist(), column
        is_categorical = isinstance(found.obs[column].dtype, pd.CategoricalDtype)
        assert is_categorical == isinstance(expected.obs[column].dtype, pd.CategoricalDtype)


def test_h5ad(path, whole, tmp_path):
    summary = forms.export(path, tmp_path / "out" / "cells.h5ad", "h5ad")
    assert (summary["n_cells"], summary["n_pieces"]) == (90, 1)
    found = anndata.read_h5ad(tmp_path / "out" / "cells.h5ad")
    same(found, whole)
    assert found.uns["save_dist"]["plan_hash"] == whole.uns["save_dist"]["plan_hash"]
    backed = anndata.read_h5ad(tmp_path / "out" / "cells.h5ad", backed="r")
    assert backed[5:9].X.shape == (4, 12)


def test_one_h5ad_per_condition(path, whole, tmp_path):
    summary = forms.export(path, tmp_path / "cells", "h5ad-per-condition")
    assert summary["n_pieces"] == 6
    table = pd.read_csv(tmp_path / "cells" / "conditions.csv")
    assert table["file"].tolist()[:2] == ["0_B_ctrl.h5ad", "1_B_stim.h5ad"]
    for row in table.itertuples():
        wanted = (whole.obs["cell_type"] == row.cell_type) & (
            whole.obs["condition"] == row.condition
        )
        same(anndata.read_h5ad(tmp_path / "cells" / row.file), whole[wanted])


def test_soma(path, whole, tmp_path):
    forms.export(path, tmp_path / "cells.soma", "soma")
    with SomaSource(StoreLocator(str(tmp_path / "cells.soma"))) as source:
        assert source.gene_ids == tuple(whole.var_names)
        found = source.read_counts(np.arange(90, dtype=np.int64))
        obs = source.obs(["cell_id", "cell_type", "seen", "cell_seed", "n_counts"])
    counts = sp.csr_matrix((found.counts, found.genes, found.indptr), shape=whole.shape)
    np.testing.assert_array_equal(counts.toarray(), whole.X)
    assert obs["cell_id"].tolist() == whole.obs_names.tolist()
    assert obs["cell_type"].tolist() == whole.obs["cell_type"].tolist()
    assert obs["cell_seed"].tolist() == whole.obs["cell_seed"].tolist()
    assert obs["seen"].tolist() == whole.obs["seen"].tolist()
    assert obs["n_counts"].tolist() == whole.X.sum(axis=1).tolist()


def test_collection(path, whole, tmp_path):
    assert forms.export(path, tmp_path / "cells", "collection")["n_pieces"] == 3
    root = zarr.open_group(tmp_path / "cells", mode="r")
    assert dict(root.attrs) == forms.COLLECTION
    assert sorted(root.group_keys()) == ["dataset_0", "dataset_1", "dataset_2"]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # anndata announces its own future defaults
        second = anndata.io.read_zarr(tmp_path / "cells" / "dataset_1")
    same(second, whole[32:64])


@pytest.mark.parametrize("form", ["h5ad-per-condition", "soma", "collection"])
def test_a_killed_export_goes_on(path, tmp_path, monkeypatch, form):
    """The pieces that were finished are not read again."""
    reads, read = [], Atlas.read

    def counted(self, start, stop):
        if len(reads) == 2:
            raise KeyboardInterrupt
        reads.append(start)
        return read(self, start, stop)

    with monkeypatch.context() as patch:
        patch.setattr(Atlas, "read", counted)
        with pytest.raises(KeyboardInterrupt):
            forms.export(path, tmp_path / "cells", form)
    again = []

    def noted(self, start, stop):
        again.append(start)
        return read(self, start, stop)

    monkeypatch.setattr(Atlas, "read", noted)
    forms.export(path, tmp_path / "cells", form)
    assert not set(again) & set(reads)
    monkeypatch.undo()
    straight = forms.export(path, tmp_path / "straight", form)
    assert (
        straight["n_pieces"] == json.loads((tmp_path / "cells.export.json").read_text())["n_done"]
    )


def test_what_stands_there_is_kept(path, tmp_path):
    (tmp_path / "mine.h5ad").write_text("mine")
    with pytest.raises(ConfigError, match=r"mine\.h5ad exists and is not from an export"):
        forms.export(path, tmp_path / "mine.h5ad", "h5ad")
    assert (tmp_path / "mine.h5ad").read_text() == "mine"
    forms.export(path, tmp_path / "cells.h5ad", "h5ad")
    before = (tmp_path / "cells.h5ad").stat().st_mtime_ns
    assert forms.export(path, tmp_path / "cells.h5ad", "h5ad")["did"].startswith("nothing")
    assert (tmp_path / "cells.h5ad").stat().st_mtime_ns == before
    with pytest.raises(ConfigError, match=r"holds an export of plan .* to h5ad, asked for is"):
        forms.export(path, tmp_path / "cells.h5ad", "collection")
    (tmp_path / "cells.h5ad").unlink()
    assert forms.export(path, tmp_path / "cells.h5ad", "h5ad")["did"] == "exported"


def test_what_cannot_be_exported(path, tmp_path):
    with pytest.raises(ConfigError, match=r"--to 'loom' is unknown; choose one of h5ad,"):
        forms.export(path, tmp_path / "x", "loom")
    with pytest.raises(AtlasError, match="holds no generated atlas"):
        forms.export(tmp_path / "absent.zarr", tmp_path / "x", "h5ad")
    for name in ("atlas.zarr", "atlas.zarr.receipts"):
        shutil.copytree(path.with_name(name), tmp_path / name)
    atlas.discard_parts(tmp_path / "atlas.zarr", [1])
    with pytest.raises(AtlasError, match="is incomplete"):
        forms.export(tmp_path / "atlas.zarr", tmp_path / "x", "h5ad")
    assert not (tmp_path / "x").exists()


def test_the_command(path, tmp_path):
    arguments = ["export", str(path), str(tmp_path / "cells.h5ad"), "--to", "h5ad"]
    done = CliRunner().invoke(cli.app, arguments)
    summary = json.loads(done.stdout.splitlines()[-1])
    assert (done.exit_code, summary["did"], summary["form"]) == (0, "exported", "h5ad")
