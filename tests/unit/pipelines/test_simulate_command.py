"""`save-dist simulate`: every setting, both formats, the truth of a file, and what it refuses."""

import dataclasses
import json

import anndata
import numpy as np
import pytest
from typer.testing import CliRunner

from save_dist.cli import app
from save_dist.data.simulate import SimulationConfig, sample_truth, simulate
from save_dist.data.simulated_files import read_settings
from save_dist.data.simulation import QUICK

FEW = ["--cells", "60", "--genes", "30", "--types", "2"]


def run(*words):
    """Exit code, JSON summary (None where the arguments do not parse), all output."""
    result = CliRunner().invoke(app, ["simulate", *map(str, words)])
    lines = result.stdout.splitlines()
    summary = json.loads(lines[-1]) if lines and lines[-1].startswith("{") else None
    return result.exit_code, summary, result.output


@pytest.fixture(scope="module")
def cells(tmp_path_factory):
    path = tmp_path_factory.mktemp("cells") / "cells.h5ad"
    assert run(path, *FEW, "--interaction", "0.5")[0] == 0
    return path


def test_a_file_name_is_enough(tmp_path):
    code, summary, _ = run(tmp_path / "cells.h5ad")
    assert (code, summary["n_cells"], summary["n_genes"]) == (0, 1200, 200)
    assert read_settings(tmp_path / "cells.h5ad") == QUICK


def test_every_setting_is_an_option(tmp_path):
    path = tmp_path / "cells.soma"
    changed = {
        field.name: getattr(QUICK, field.name) * 0.5 + 0.25
        if field.type is float
        else getattr(QUICK, field.name) + 1
        for field in dataclasses.fields(SimulationConfig)
    }
    changed["n_batches"] = 1
    words = [
        word
        for name, value in changed.items()
        for word in ("--" + name.removeprefix("n_").replace("_", "-"), value)
    ]
    assert run("cells", *words, path)[0] == 0
    assert dataclasses.asdict(read_settings(path)) == changed


def test_truth_of_a_file(tmp_path, cells):
    asked = {"cell_type": "type-0", "condition": "stim-1"}
    pairs = [word for k, v in asked.items() for word in ("--condition", f"{k}={v}")]
    out = tmp_path / "truth.h5ad"
    code, summary, _ = run("truth", out, "--from", cells, *pairs, "-n", 40, "--seed", 5)
    assert (code, summary["n_cells"], summary["condition"]) == (0, 40, asked)
    found, expected = anndata.read_h5ad(out), sample_truth(read_settings(cells), asked, 40, 5)
    assert (found.X != expected.X).nnz == 0
    assert set(found.obs["condition"]) == {"stim-1"}
    code, summary, _ = run("truth", tmp_path / "all.soma", "--from", out)
    assert (code, summary["n_cells"], summary["condition"]) == (0, 1000, {})


def test_format_overrules_the_ending(tmp_path):
    assert run(tmp_path / "store", "--format", "soma", *FEW)[0] == 0
    assert (tmp_path / "store").is_dir()


@pytest.mark.parametrize(
    ("words", "text"),
    [
        pytest.param(["{out}.csv"], "cannot tell the format", id="ending"),
        pytest.param(["{out}.h5ad", "--format", "loom"], "loom", id="format"),
        pytest.param(["{out}.h5ad", "--cells", "many"], "--cells", id="no number"),
        pytest.param(["{out}.h5ad", "--batches", 9], "n_batches=9 exceeds n_donors=2", id="batch"),
        pytest.param(["{out}.h5ad", "--interaction", -1], "interaction=-1.0, expected", id="range"),
        pytest.param(["{out}.h5ad", "--library-median", 1e15], "lower library_median", id="counts"),
        pytest.param(["{out}.h5ad", "--tissues", 2], "--tissues", id="option"),
        pytest.param(["truth", "{out}.h5ad"], "--from", id="truth of what"),
        pytest.param(["truth", "{out}.h5ad", "--from", "{out}.h5ad"], "do not exist", id="absent"),
        pytest.param(
            ["truth", "{out}.h5ad", "--from", "{cells}", "--condition", "stim-1"],
            "not of the form column=value",
            id="pair",
        ),
        pytest.param(
            ["truth", "{out}.h5ad", "--from", "{cells}", "--condition", "condition=stim-9"],
            "no simulated cell has condition='stim-9'; known: ctrl, stim-1",
            id="value",
        ),
        pytest.param(
            ["truth", "{out}.h5ad", "--from", "{cells}", *["--condition", "donor=donor-0"] * 2],
            "names donor twice",
            id="column twice",
        ),
        pytest.param(
            ["truth", "{out}.h5ad", "--from", "{cells}", "-n", 0], "n_cells=0", id="no cell"
        ),
        pytest.param(
            ["truth", "{here}", "--from", "{cells}", "--format", "h5ad"], "exists", id="folder"
        ),
    ],
)
def test_bad_input_ends_with_2(tmp_path, cells, words, text):
    places = {"out": tmp_path / "out", "cells": cells, "here": tmp_path}
    code, summary, output = run(*(str(word).format(**places) for word in words))
    assert code == 2
    assert text in (summary["error"] if summary else output)
    assert not list(tmp_path.iterdir())


def test_a_store_is_never_replaced(tmp_path):
    path = tmp_path / "cells.soma"
    assert run(path, *FEW)[0] == 0
    code, summary, _ = run(path, *FEW, "--seed", 1)
    assert code == 2
    assert "exists; delete it" in summary["error"]
    assert read_settings(path).seed == 0


def test_defaults_of_the_command_are_a_quick_data_set():
    adata = simulate(QUICK)
    assert adata.obs.value_counts(["cell_type", "condition", "donor"]).size == 12
    assert np.isclose(adata.uns["simulation"]["interaction"], 0)
