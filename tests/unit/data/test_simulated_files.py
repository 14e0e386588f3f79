"""Simulated cells come back from disk as they were, with the settings they were drawn from."""

import json
from pathlib import Path

import anndata
import numpy as np
import pytest
import tiledbsoma

from save_dist.core.errors import ConfigError, InfrastructureError
from save_dist.data.simulate import SimulationConfig, simulate
from save_dist.data.simulated_files import check_output, form_of, read_settings, write_cells
from save_dist.data.source import SomaSource, StoreLocator

CONFIG = SimulationConfig(
    n_cells=60, n_genes=30, n_types=2, n_conditions=2, n_donors=2, interaction=0.7, seed=3
)


@pytest.fixture(params=["h5ad", "soma"])
def form(request):
    return request.param


@pytest.fixture
def stored(tmp_path, form):
    path = tmp_path / "deep" / f"cells.{form}"
    write_cells(simulate(CONFIG), path, form)
    return path


def test_settings_come_back(stored):
    assert read_settings(stored) == CONFIG
    assert [p.name for p in stored.parent.iterdir()] == [stored.name]  # nothing aside is left


def test_a_store_holds_the_cells_and_their_labels(tmp_path):
    adata = simulate(CONFIG)
    write_cells(adata, tmp_path / "x", "soma")
    with SomaSource(StoreLocator(str(tmp_path / "x"))) as source:
        counts = source.read_counts(source.joinids)
        obs = source.obs(["cell_id", "input", "n_counts", "cell_type", "condition", "batch_id"])
        assert source.gene_ids == tuple(adata.var_names)
    assert counts.indptr.tolist() == adata.X.indptr.tolist()
    assert counts.genes.tolist() == adata.X.indices.tolist()
    assert counts.counts.tolist() == adata.X.data.tolist()
    assert obs["cell_id"].tolist() == [f"simulated:{name}" for name in adata.obs_names]
    assert set(obs["input"]) == {"simulated"}
    assert obs["n_counts"].tolist() == adata.X.sum(axis=1).A1.tolist()
    for column in ("cell_type", "condition", "batch_id"):
        assert obs[column].tolist() == adata.obs[column].tolist()


def test_a_store_holds_counts_beyond_16_bits(tmp_path):
    config = SimulationConfig(
        n_cells=2, n_genes=2, n_types=1, n_conditions=1, n_donors=1, n_batches=1, library_median=1e7
    )
    adata = simulate(config)
    write_cells(adata, tmp_path / "x.soma", "soma")
    with SomaSource(StoreLocator(str(tmp_path / "x.soma"))) as source:
        assert source.read_counts(source.joinids).counts.tolist() == adata.X.data.tolist()


def test_a_file_is_replaced_whole(tmp_path):
    path = tmp_path / "cells.h5ad"
    write_cells(simulate(CONFIG), path, "h5ad")
    check_output(path, "h5ad")
    write_cells(simulate(CONFIG)[:10].copy(), path, "h5ad")
    assert anndata.read_h5ad(path).n_obs == 10


def test_a_failed_write_leaves_what_was_there(tmp_path, monkeypatch, form):
    def full(self, path):
        Path(path).write_text("half")
        raise OSError("no space left")

    path = tmp_path / f"cells.{form}"
    monkeypatch.setattr(anndata.AnnData, "write_h5ad", full)
    monkeypatch.setattr("save_dist.data.writer.write_obs", lambda *_: full(None, tmp_path / "x"))
    with pytest.raises(InfrastructureError, match=r"could not write .*no space left; free space"):
        write_cells(simulate(CONFIG), path, form)
    assert not [p for p in tmp_path.iterdir() if "cells" in p.name]


@pytest.mark.parametrize(
    ("name", "asked", "form"),
    [("a.h5ad", None, "h5ad"), ("a.soma", None, "soma"), ("a", "soma", "soma")],
)
def test_form(name, asked, form):
    assert form_of(Path(name), asked) == form


def test_form_that_nothing_says():
    with pytest.raises(ConfigError, match=r"a.zarr from its ending '.zarr'; name it a.h5ad or a.s"):
        form_of(Path("a.zarr"))


@pytest.mark.parametrize("form", ["h5ad", "soma"])
def test_folders_are_not_written_over(tmp_path, form):
    with pytest.raises(ConfigError, match="exists; delete it or choose another name"):
        check_output(tmp_path, form)


def alter(path, form, key, value):
    """Replace one of the two facts a file carries."""
    if form == "h5ad":
        adata = anndata.read_h5ad(path)
        adata.uns[key] = value
        adata.write_h5ad(path)
        return
    with tiledbsoma.Experiment.open(str(path), "w") as experiment:
        experiment.metadata[f"save_dist_{key}"] = json.dumps(value)


@pytest.mark.parametrize(
    ("key", "value", "text"),
    [
        pytest.param("simulation_fingerprint", [1.0] * 10, "give other parameters", id="truth"),
        pytest.param("simulation_fingerprint", [1.0], "give other parameters", id="fewer parts"),
        pytest.param("simulation", {"n_genes": 5}, "are n_genes, expected batch_sd", id="other"),
    ],
)
def test_settings_of_another_version(stored, form, key, value, text):
    value = np.array(value) if form == "h5ad" and isinstance(value, list) else value
    alter(stored, form, key, value)
    with pytest.raises(ConfigError, match=text):
        read_settings(stored)


def test_cells_that_are_not_simulated(tmp_path):
    with pytest.raises(ConfigError, match="do not exist"):
        read_settings(tmp_path / "nowhere.h5ad")
    (tmp_path / "text.h5ad").write_text("x")
    anndata.AnnData(np.ones((2, 2), dtype=np.float32)).write_h5ad(tmp_path / "real.h5ad")
    (tmp_path / "folder").mkdir()
    for name in ("text.h5ad", "real.h5ad", "folder"):
        with pytest.raises(ConfigError, match=f"{name} does not say how it was simulated"):
            read_settings(tmp_path / name)
