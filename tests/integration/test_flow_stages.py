"""The flow around an additive mean and its reflow in their pipeline; one process, no Ray."""

import numpy as np
import pytest
import torch
from tiny_run import CONFIGS, last_line, settings

import save_dist
from save_dist.cli import run_job
from save_dist.config.schema import SolverConfig
from save_dist.pipelines import train as train_pipeline
from save_dist.stores.bundle import load_bundle
from save_dist.training.ranks import Ranks
from save_dist.training.run import run_stages

pytestmark = pytest.mark.slow

HELD_OUT = {"condition": "stim-1", "cell_type": "type-0"}
BASE = {"cluster.n_workers": 1, "flow.centre": "additive"}
REFLOW = {**BASE, "training.stages": "[vae, flow, reflow]", "reflow.optim.n_steps": 20}


class Silent:
    def metrics(self, stage, values, step):
        pass


def here(plan, config, journal, progress):
    """Stands in for the process group."""
    run_stages(plan, Ranks(), Silent(), torch.device("cpu"))


def train(folder, cells, **changes):
    own = [p for p in settings(folder, cells, **changes) if not p.startswith("ingest.")]
    return run_job("train", CONFIGS / "train.yaml", own)


@pytest.fixture(scope="module")
def trained(tmp_path_factory, tiny_cells):
    """A run folder whose flow was trained, then reflowed; the models before and after."""
    folder = tmp_path_factory.mktemp("stages") / "run"
    bundles = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(train_pipeline.cluster_train, "fit", here)
        assert run_job("ingest", CONFIGS / "ingest.yaml", settings(folder, tiny_cells)) == 0
        assert run_job("blocks", CONFIGS / "blocks.yaml", [f"run.dir={folder}"]) == 0
        for changes in (BASE, REFLOW):
            assert train(folder, tiny_cells, **changes) == 0
            bundles.append(load_bundle(folder / "model"))
    return folder, bundles


def test_the_model_holds_the_additive_mean_of_its_latents(trained):
    plain, reflowed = (bundle.velocity.centre.effects for bundle in trained[1])
    assert torch.equal(plain, reflowed)
    sizes = trained[1][0].conditions.sizes
    masks = np.cumsum([size + 1 for size in sizes]) - 1
    assert not plain[masks].any()
    assert plain.any(dim=1).sum() == sum(sizes)


def test_the_exported_flow_is_the_reflowed_one(trained):
    folder, (plain, reflowed) = trained
    assert (plain.reflow_config, plain.about["stages"]) == (None, "vae, flow")
    assert reflowed.reflow_config.optim.n_steps == 20
    assert reflowed.about["stages"] == "vae, flow, reflow"
    assert plain.hash != reflowed.hash
    assert (folder / "checkpoints/reflow/step-00000020").is_dir()
    same = zip(plain.velocity.parameters(), reflowed.velocity.parameters(), strict=True)
    assert not all(torch.equal(a, b) for a, b in same)
    same = zip(plain.vae.parameters(), reflowed.vae.parameters(), strict=True)
    assert all(torch.equal(a, b) for a, b in same)


def test_a_second_call_finds_the_model_done(trained, tiny_cells, capsys):
    trained_at = (trained[0] / "checkpoints/reflow/step-00000020").stat().st_mtime_ns
    assert train(trained[0], tiny_cells, **REFLOW) == 0
    summary = last_line(capsys.readouterr().out)
    assert summary["stages"]["model_hash"] == trained[1][1].hash
    assert (trained[0] / "checkpoints/reflow/step-00000020").stat().st_mtime_ns == trained_at


@pytest.mark.parametrize("change", [{"reflow.n_times": 2}, {"reflow.teacher.n_steps": 9}])
def test_other_settings_of_the_reflow_are_refused(trained, tiny_cells, capsys, change):
    assert train(trained[0], tiny_cells, **REFLOW, **change) == 2
    assert "made with other settings" in last_line(capsys.readouterr().out)["error"]


def test_one_euler_step_makes_cells(trained):
    model = save_dist.load(trained[0] / "model")
    made = model.generate(HELD_OUT, 20, solver=SolverConfig(method="euler", n_steps=1))
    assert made.X.sum() > 0


def test_a_dry_run_names_the_reflow(trained, tiny_cells, capsys):
    own = [p for p in settings(trained[0], tiny_cells, **REFLOW) if not p.startswith("ingest.")]
    assert run_job("train", CONFIGS / "train.yaml", own, dry_run=True) == 0
    plan = last_line(capsys.readouterr().out)["plan"]
    assert plan["reflow"] == {"n_steps": 20, "cells_per_step": 128, "cells_per_rank": 128}
