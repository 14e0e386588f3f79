"""What users get wrong: one clear line, the documented exit code, before anything expensive."""

import json
import re
from pathlib import Path

import anndata
import numpy as np
import pandas as pd
import pytest
from tiny_run import CONFIGS, last_line, settings

from save_dist.cli import run_job


def cells(tmp_path: Path, change=lambda adata: adata) -> Path:
    rng = np.random.default_rng(0)
    obs = pd.DataFrame(
        {
            "condition": np.tile(["ctrl", "stim-1"], 150),
            "cell_type": np.repeat(["type-0", "type-1", "type-2"], 100),
            "donor": "d",
        },
        index=[f"c{i}" for i in range(300)],
    )
    counts = rng.poisson(2.0, (300, 50)).astype(np.float32)
    adata = anndata.AnnData(counts, obs=obs, var=pd.DataFrame(index=[f"g{i}" for i in range(50)]))
    path = tmp_path / "cells.h5ad"
    change(adata).write_h5ad(path)
    return path


def normalised(adata):
    adata.X = np.log1p(adata.X)
    return adata


def without_column(adata):
    del adata.obs["cell_type"]
    return adata


def with_duplicate_gene(adata):
    adata.var_names = ["g0", *adata.var_names[:-1]]
    return adata


@pytest.mark.filterwarnings("ignore:Variable names are not unique")
@pytest.mark.parametrize(
    ("change", "message"),
    [
        pytest.param(normalised, r"cells\.h5ad.*(integer|counts)", id="h5ad-without-counts"),
        pytest.param(without_column, r"cell_type.*cells\.h5ad|cells\.h5ad.*cell_type", id="column"),
        pytest.param(with_duplicate_gene, r"g0", id="duplicate-gene-names"),
    ],
)
def test_wrong_cells_end_with_3(tmp_path, capsys, change, message):
    path = cells(tmp_path, change)
    code = run_job("ingest", CONFIGS / "ingest.yaml", settings(tmp_path / "run", path))
    error = last_line(capsys.readouterr().out)["error"]
    assert code == 3
    assert re.search(message, error), error
    assert not (tmp_path / "run" / "store.soma").exists()


def test_missing_file_ends_with_3(tmp_path, capsys):
    arguments = settings(tmp_path / "run", tmp_path / "nowhere.h5ad")
    assert run_job("ingest", CONFIGS / "ingest.yaml", arguments) == 3
    assert "nowhere.h5ad" in last_line(capsys.readouterr().out)["error"]


@pytest.mark.parametrize(
    ("override", "message"),
    [
        pytest.param("vae.widht=3", "vae.widht: unknown key", id="unknown-key"),
        pytest.param("vae.width=0", "vae.width", id="out-of-range"),
        pytest.param("cluster.n_workers=3", "n_lanes=2", id="lanes-and-workers"),
        pytest.param("output.cells_per_part=100", "not a multiple", id="part-and-chunk"),
        pytest.param("grid.columns={tissue: all}", "tissue", id="unknown-grid-column"),
        pytest.param("vae", "not of the form", id="no-assignment"),
    ],
)
def test_wrong_settings_end_with_2(tmp_path, capsys, override, message):
    arguments = [*settings(tmp_path / "run", tmp_path / "cells.h5ad"), override]
    assert run_job("pipeline", CONFIGS / "pipeline.yaml", arguments) == 2
    summary = last_line(capsys.readouterr().out)
    assert message in summary["error"]
    assert summary["exit_code"] == 2
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_grid_naming_an_unknown_cell_type_ends_with_2(tiny_copy, capsys):
    pairs = [f"run.dir={tiny_copy}", "grid.columns={cell_type: [type-9]}"]
    assert run_job("generate", CONFIGS / "generate.yaml", pairs) == 2
    error = last_line(capsys.readouterr().out)["error"]
    assert "type-9" in error and "type-0" in error


@pytest.mark.parametrize("verb", ["blocks", "train", "generate", "evaluate", "transfer"])
def test_a_job_whose_input_is_not_there_says_which_job_comes_first(tmp_path, capsys, verb):
    run = tmp_path / "run"
    assert run_job(verb, CONFIGS / f"{verb}.yaml", [f"run.dir={run}"]) == 3
    assert "first" in last_line(capsys.readouterr().out)["error"]


def test_run_folder_that_cannot_be_written_ends_with_5(tmp_path, capsys):
    (tmp_path / "file").write_text("")
    arguments = settings(tmp_path / "file" / "run", cells(tmp_path))
    assert run_job("ingest", CONFIGS / "ingest.yaml", arguments) == 5
    assert "free space or fix permissions" in last_line(capsys.readouterr().out)["error"]


def test_last_line_is_json_even_for_the_worst_failure(tmp_path, capsys, monkeypatch):
    from save_dist.pipelines import verbs

    def broken(config, context):
        raise ZeroDivisionError("by design")

    monkeypatch.setitem(verbs.RUN, "ingest", broken)
    arguments = settings(tmp_path / "run", cells(tmp_path))
    assert run_job("ingest", CONFIGS / "ingest.yaml", arguments) == 5
    summary = last_line(capsys.readouterr().out)
    assert summary["error"] == "unexpected ZeroDivisionError: by design"
    assert json.loads((tmp_path / "run" / "result.json").read_text())["exit_code"] == 5
