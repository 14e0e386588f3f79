"""`save-dist transfer` on a run folder, its parts filled in this process."""

import json
from pathlib import Path

import anndata
import numpy as np
import pytest
from helpers_soma import make_store
from tiny_model import CONDITIONS, save_tiny_model
from typer.testing import CliRunner

from save_dist import cli, open_atlas
from save_dist.api import load
from save_dist.cluster.generate import PartOutcome
from save_dist.core.errors import AtlasError
from save_dist.data.splits import TRAIN, CellIndex
from save_dist.pipelines import transfer
from save_dist.stores.bundle import load_bundle
from save_dist.stores.vocabulary import RunVocabulary, save_vocabulary
from save_dist.transfer.worker import TransferWorker

N = 60
JOINIDS = np.arange(N, dtype=np.int64) * 2
COUNTS = np.random.default_rng(0).poisson(3, (N, 12)).astype(np.int64)
CODES = np.stack([np.arange(N) % 3, np.arange(N) // 3 % 2], axis=1).astype(np.int16)
STIM = "transfer.target={condition: stim}"


@pytest.fixture
def run_folder(tmp_path):
    """A run with a store, a vocabulary and a model with a transport."""
    root = tmp_path / "run"
    save_tiny_model(root / "model", transport=True)
    model = load_bundle(root / "model")
    store = make_store(root / "store.soma", JOINIDS, COUNTS)
    vocabulary = RunVocabulary(
        genes=model.genes,
        conditions=CONDITIONS,
        blocks=model.blocks,
        index=CellIndex(JOINIDS, CODES, np.full(N, TRAIN, np.uint8)),
        gene_positions=np.arange(12, dtype=np.int64),
        scale=np.ones(12, np.float32),
        fraction=np.full(12, 1 / 12, np.float32),
        store=store,
        hash="",
    )
    save_vocabulary(root / "vocab", vocabulary)
    config = tmp_path / "transfer.yaml"
    settings = {
        "run": {"dir": str(root)},
        "tracking": {"backend": "none"},
        "transfer": {
            "masked": ["cell_type"],
            "cells_per_part": 16,
            "cells_per_chunk": 8,
            "cells_per_minibatch": 10,
            "compose": {"n_cells": 16},
        },
    }
    config.write_text(json.dumps(settings))
    return config, root


@pytest.fixture
def filled(monkeypatch):
    """Parts are filled here instead of on a cluster; the list says which."""
    parts_done = []

    def fill(parts, cells, bundle, atlas, config, progress, kind):
        worker = kind(Path(bundle), Path(atlas))
        parts_done.append((list(parts), cells))
        for part in parts:
            worker.run(part)
        return [PartOutcome(part, 1, 0.1, 1, "") for part in parts]

    monkeypatch.setattr(transfer.cluster_generate, "generate", fill)
    return parts_done


def run(verb, config, *pairs, options=()):
    arguments = [verb, "--config", str(config), *options]
    done = CliRunner().invoke(cli.app, [*arguments, *(w for p in pairs for w in ("--set", p))])
    return json.loads(done.stdout.splitlines()[-1])


def method_of(root):
    """The method that the finished stage names."""
    return json.loads((root / "stages" / "transfer.json").read_text())["summary"]["method"]


def real_cells():
    """The cells of the store as AnnData."""
    conditions = {
        column: np.array(values)[CODES[:, i]]
        for i, (column, values) in enumerate(
            zip(CONDITIONS.columns, CONDITIONS.categories, strict=True)
        )
    }
    adata = anndata.AnnData(COUNTS.astype(np.float32))
    adata.obs = adata.obs.assign(**conditions)
    adata.var_names = [f"gene{i}" for i in range(12)]
    return adata


def test_corrected_cells_are_those_of_the_python_interface(run_folder, filled):
    config, root = run_folder
    summary = run("transfer", config)
    assert (summary["exit_code"], filled) == (0, [([0, 1, 2, 3], N)])
    assert method_of(root) == "reencode"
    stored = anndata.read_zarr(root / "transfer.zarr")
    expected = load(root / "model").transfer(real_cells(), masked=["cell_type"])
    np.testing.assert_allclose(stored.layers["mean"], expected.layers["mean"], rtol=1e-5)
    np.testing.assert_allclose(stored.obsm["X_save"], expected.obsm["X_save"], atol=1e-6)
    assert stored.obs_names.tolist() == [f"c{i}" for i in JOINIDS]
    assert set(stored.obs["cell_type"]) == {"MASK"}
    assert (
        stored.obs["source_cell_type"].tolist()
        == expected.obs_names.map(lambda i: CONDITIONS.categories[0][int(i) % 3]).tolist()
    )
    assert stored.uns["save_dist"]["complete"]
    with pytest.raises(AtlasError, match=r"transferred cells; open them with anndata"):
        open_atlas(root / "transfer.zarr")


def test_a_lost_part_comes_back_alike_and_verify_knows_the_store(run_folder, filled):
    config, root = run_folder
    run("transfer", config)
    shard = root / "transfer.zarr" / "X" / "c" / "2" / "0"
    before = shard.read_bytes()
    shard.unlink()
    verify = ["verify", str(root / "transfer.zarr"), "--resample", "4"]
    assert CliRunner().invoke(cli.app, verify).exit_code == 4
    again = run("transfer", config)
    assert (again["exit_code"], filled[1]) == (0, ([2], 16))
    assert shard.read_bytes() == before
    assert CliRunner().invoke(cli.app, verify).exit_code == 0


def test_targets_follow_each_other(run_folder, filled):
    config, root = run_folder
    pairs = [
        "transfer.masked=[]",
        "transfer.source={condition: ctrl}",
        "transfer.target=[{condition: stim}, {cell_type: NK}]",
        "transfer.method=reencode",
    ]
    planned = run("transfer", config, *pairs, options=["--dry-run"])["plan"]
    assert planned == {"n_cells": 60, "n_targets": 2, "n_parts": 4, "method": "reencode"}
    assert run("transfer", config, *pairs)["exit_code"] == 0
    stored = anndata.read_zarr(root / "transfer.zarr")
    assert stored.obs["condition"].tolist() == ["stim"] * 30 + ["ctrl"] * 30
    assert set(stored.obs["cell_type"][30:]) == {"NK"} and stored.obs_names.is_unique


def test_control_cells_are_carried_by_default_and_another_plan_is_refused(run_folder, filled):
    config, root = run_folder
    pairs = ["transfer.masked=[]", "transfer.source={condition: ctrl}", STIM]
    assert run("transfer", config, *pairs)["exit_code"] == 0
    assert method_of(root) == "transport"
    other = run("transfer", config, *pairs, "transfer.method=inversion")
    assert "holds an atlas of plan" in other["error"]


def test_a_plan_that_was_altered_is_refused(run_folder, filled):
    config, root = run_folder
    run("transfer", config)
    record = root / "transfer.zarr.receipts" / "plan.json"
    plan = json.loads(record.read_text())
    plan["plan"]["n_chosen"] = 59
    record.write_text(json.dumps(plan))
    with pytest.raises(AtlasError, match=r"planned again it has"):
        TransferWorker(root / "model", root / "transfer.zarr")
