"""The third training stage in its pipeline, in one process and without Ray."""

import json

import numpy as np
import pytest
import torch
from tiny_run import CONFIGS, last_line, settings

import save_dist
from save_dist.cli import run_job
from save_dist.pipelines import train as train_pipeline
from save_dist.stores.bundle import load_bundle
from save_dist.stores.vocabulary import load_vocabulary
from save_dist.training.ranks import Ranks
from save_dist.training.run import run_stages

pytestmark = pytest.mark.slow

HELD_OUT = {"condition": "stim-1", "cell_type": "type-0"}
BASE = {"cluster.n_workers": 1, "transport.optim.n_steps": 20}
THREE = {**BASE, "training.stages": "[vae, flow, transport]", "transport.columns": "[condition]"}


class Silent:
    def metrics(self, stage, values, step):
        pass


def here(plan, config, journal, progress):
    """Stands in for the process group."""
    run_stages(plan, Ranks(), Silent(), torch.device("cpu"))


def run(verb, folder, cells, **changes):
    own = settings(folder, cells, **changes)
    if verb in ("train", "generate"):
        own = [pair for pair in own if not pair.startswith("ingest.")]
    return run_job(verb, CONFIGS / f"{verb}.yaml", own)


@pytest.fixture(scope="module")
def trained(tmp_path_factory, tiny_cells):
    """A run folder whose model was trained without a transport, then given one."""
    folder = tmp_path_factory.mktemp("composed") / "run"
    hashes = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(train_pipeline.cluster_train, "fit", here)
        assert run_job("ingest", CONFIGS / "ingest.yaml", settings(folder, tiny_cells)) == 0
        assert run_job("blocks", CONFIGS / "blocks.yaml", [f"run.dir={folder}"]) == 0
        for changes in (BASE, THREE):
            assert run("train", folder, tiny_cells, **changes) == 0
            hashes.append(load_bundle(folder / "model").hash)
    return folder, hashes


def test_a_transport_is_added_to_a_trained_model(trained):
    folder, hashes = trained
    assert hashes[0] != hashes[1]
    bundle = load_bundle(folder / "model")
    assert bundle.transport_columns == ("condition",)
    assert bundle.transport.temperatures["condition"] > 0
    assert (folder / "checkpoints/transport/step-00000020").is_dir()


def test_profiles_are_those_of_the_training_cells(trained):
    profiles = load_bundle(trained[0] / "model").transport.profiles
    support = load_vocabulary(trained[0] / "vocab").index.support()
    assert dict(zip(profiles.codes, profiles.n_cells.tolist(), strict=True)) == support
    assert len(support) == 5
    assert np.isfinite(profiles.mean_log).all() and (profiles.mean_log >= 0).all()
    library = profiles.mean_count.sum(1)
    assert (library > 100).all()


def test_a_second_call_finds_the_model_done(trained, tiny_cells, capsys):
    trained_at = (trained[0] / "checkpoints/transport/step-00000020").stat().st_mtime_ns
    assert run("train", trained[0], tiny_cells, **THREE) == 0
    summary = last_line(capsys.readouterr().out)
    assert summary["stages"]["model_hash"] == trained[1][1]
    assert (trained[0] / "checkpoints/transport/step-00000020").stat().st_mtime_ns == trained_at


def test_other_settings_of_the_transport_are_refused(trained, tiny_cells, capsys):
    changes = {**THREE, "transport.noise": 0.3}
    assert run("train", trained[0], tiny_cells, **changes) == 2
    assert "made with other settings" in last_line(capsys.readouterr().out)["error"]


@pytest.mark.parametrize(
    ("column", "message"),
    [("cell_type", "has no reference value"), ("donor", "unknown condition column 'donor'")],
)
def test_columns_are_checked_before_training(trained, tiny_cells, capsys, column, message):
    changes = {**THREE, "transport.columns": json.dumps([column])}
    assert run("train", trained[0], tiny_cells, **changes) == 2
    assert message in last_line(capsys.readouterr().out)["error"]


def test_the_model_composes_and_carries(trained):
    model = save_dist.load(trained[0] / "model")
    made = model.generate(HELD_OUT, 20)
    assert set(made.obs["route"]) == {"condition: ctrl -> stim-1"}
    control = model.generate({**HELD_OUT, "condition": "ctrl"}, 10)
    moved = model.transfer(control, {"condition": "stim-1"}, method="transport")
    assert moved.X.sum() > 0


def test_a_dry_run_says_how_unseen_conditions_come_about(trained, tiny_cells, capsys):
    pairs = [f"run.dir={trained[0]}", "grid.unseen=compose"]
    assert run_job("generate", CONFIGS / "generate.yaml", pairs, dry_run=True) == 0
    plan = last_line(capsys.readouterr().out)["plan"]
    assert (plan["n_unseen"], plan["n_composed"]) == (1, 1)
