"""The whole path on configs/tiny: every real component, two training processes, one machine."""

import hashlib
import json
import shutil

import anndata
import numpy as np
import pytest
import tiledbsoma
import tiledbsoma.io
import zarr
from tiny_run import CONFIGS, last_line, settings, steps_of
from typer.testing import CliRunner

import save_dist
from save_dist.cli import app, run_job
from save_dist.core.paths import RunPaths
from save_dist.data.opening import SAFE_READS
from save_dist.stores.atlas import verify
from save_dist.tracking.registry import Registry
from save_dist.tracking.tracker import read_records

pytestmark = pytest.mark.slow

CONTRACT = [
    "config.resolved.yaml",
    "result.json",
    "metrics.jsonl",
    "store.soma",
    "vocab",
    "checkpoints/vae",
    "checkpoints/flow",
    "model/manifest.json",
    "atlas.zarr/zarr.json",
    "atlas.zarr.receipts/plan.json",
    "report/index.html",
    "report/metrics.json",
]


@pytest.mark.parametrize("name", CONTRACT)
def test_run_folder_holds_what_the_contract_names(tiny_run, name):
    assert (tiny_run / name).exists()


def test_result_tells_how_it_ended(tiny_run):
    result = json.loads((tiny_run / "result.json").read_text())
    assert (result["status"], result["exit_code"]) == ("done", 0)
    assert set(result["stages"]) == {"ingest", "blocks", "train", "generate", "evaluate"}
    assert result["stages"]["generate"]["n_cells"] == 6 * 60


def test_store_opens_in_soma_and_equals_the_input(tiny_run, tiny_cells):
    real = anndata.read_h5ad(tiny_cells)
    context = tiledbsoma.SOMATileDBContext(tiledb_config=SAFE_READS)
    with tiledbsoma.open(str(tiny_run / "store.soma"), context=context) as store:
        back = tiledbsoma.io.to_anndata(store, "RNA", X_layer_name="raw")
    assert back.shape == real.shape
    assert np.array_equal(back.X.toarray(), real.X.toarray())
    assert back.obs["cell_type"].astype(str).tolist() == real.obs["cell_type"].tolist()


def test_held_out_cells_touch_nothing_that_is_fitted(tiny_run):
    model = save_dist.load(tiny_run / "model")
    held_out = model.bundle.conditions.encode_one({"condition": "stim-1", "cell_type": "type-0"})
    assert held_out not in model.bundle.support
    assert len(model.bundle.support) == 5


def test_atlas_opens_everywhere_and_says_what_its_cells_are(tiny_run):
    atlas = anndata.read_zarr(tiny_run / "atlas.zarr")
    assert atlas.shape == (360, 100)
    assert atlas.X.dtype == np.uint16
    assert zarr.open_group(tiny_run / "atlas.zarr", mode="r")["X"].shape == (360, 100)
    per_condition = atlas.obs.groupby(["condition", "cell_type"], observed=True).size()
    assert (per_condition == 60).all() and len(per_condition) == 6
    unseen = atlas.obs[~atlas.obs["seen"]]
    assert set(zip(unseen["condition"], unseen["cell_type"], strict=True)) == {("stim-1", "type-0")}
    assert (unseen["n_train_cells"] == 0).all()
    assert atlas.uns["save_dist"]["complete"]
    assert verify(tiny_run / "atlas.zarr").is_sound


def test_training_learned_something(tiny_run):
    losses = [
        record.values["train/loss"]
        for record in read_records(RunPaths(tiny_run).metrics, run="vae", kind="metrics")
        if "train/loss" in record.values
    ]
    assert losses[-1] < 0.98 * losses[0]


def test_second_call_finds_everything_done(tiny_copy, tiny_cells, capsys):
    before, steps = _bytes_of(tiny_copy / "atlas.zarr"), steps_of(tiny_copy)
    arguments = settings(tiny_copy, tiny_cells, **{"tracking.backend": "mlflow"})
    assert run_job("pipeline", CONFIGS / "pipeline.yaml", arguments) == 0
    assert last_line(capsys.readouterr().out)["status"] == "done"
    assert steps_of(tiny_copy) == steps
    assert _bytes_of(tiny_copy / "atlas.zarr") == before


def test_other_settings_in_the_same_folder_are_refused(tiny_copy, tiny_cells, capsys):
    arguments = settings(tiny_copy, tiny_cells, **{"genes.n_top": 50})
    assert run_job("pipeline", CONFIGS / "pipeline.yaml", arguments) == 2
    assert "made with other settings" in last_line(capsys.readouterr().out)["error"]


def test_another_grid_does_not_touch_the_atlas(tiny_copy, capsys):
    before = _bytes_of(tiny_copy / "atlas.zarr")
    pairs = [f"run.dir={tiny_copy}", "grid.cells_per_condition=30"]
    assert run_job("generate", CONFIGS / "generate.yaml", pairs) == 3
    assert "holds an atlas of plan" in last_line(capsys.readouterr().out)["error"]
    assert _bytes_of(tiny_copy / "atlas.zarr") == before


def test_one_worker_and_two_write_the_same_bytes(tiny_run, ray_session, tmp_path):
    copy = tmp_path / "one"
    copy.mkdir()
    for name in ("model", "vocab"):
        (copy / name).symlink_to(tiny_run / name)
    pairs = [f"run.dir={copy}", "cluster.n_workers=1"]
    assert run_job("generate", CONFIGS / "generate.yaml", pairs) == 0
    assert _bytes_of(copy / "atlas.zarr") == _bytes_of(tiny_run / "atlas.zarr")


def test_flipped_byte_is_found_and_only_its_part_written_anew(tiny_copy, ray_session, capsys):
    whole = _bytes_of(tiny_copy / "atlas.zarr")
    shard = tiny_copy / "atlas.zarr" / "X" / "c" / "1" / "0"
    data = bytearray(shard.read_bytes())
    data[len(data) // 2] ^= 1
    shard.write_bytes(bytes(data))
    assert CliRunner().invoke(app, ["verify", str(tiny_copy / "atlas.zarr")]).exit_code == 4
    arguments = ["verify", str(tiny_copy / "atlas.zarr"), "--mend"]
    assert CliRunner().invoke(app, arguments).exit_code == 4
    assert run_job("generate", CONFIGS / "generate.yaml", [f"run.dir={tiny_copy}"]) == 0
    assert _bytes_of(tiny_copy / "atlas.zarr") == whole


def test_part_that_the_disk_refuses_is_named_and_ends_with_5(tiny_copy, ray_session, capsys):
    whole = _bytes_of(tiny_copy / "atlas.zarr")
    shard = tiny_copy / "atlas.zarr" / "X" / "c" / "1" / "0"
    shard.unlink()
    (shard / "in the way").mkdir(parents=True)
    arguments = [f"run.dir={tiny_copy}"]
    assert run_job("generate", CONFIGS / "generate.yaml", arguments) == 5
    summary = last_line(capsys.readouterr().out)
    assert (summary["status"], summary["exit_code"]) == ("failed", 5)
    assert "1 of 3 parts are missing after two tries (part 1: " in summary["error"]
    shutil.rmtree(shard)
    assert run_job("generate", CONFIGS / "generate.yaml", arguments) == 0
    assert _bytes_of(tiny_copy / "atlas.zarr") == whole


def test_dry_run_plans_and_touches_nothing(tiny_run, tiny_cells, tmp_path, capsys):
    run = tmp_path / "untouched"
    arguments = settings(run, tiny_cells)
    assert run_job("pipeline", CONFIGS / "pipeline.yaml", arguments, dry_run=True) == 0
    plan = last_line(capsys.readouterr().out)["plan"]
    assert plan["ingest"]["n_cells"] == 1200 and plan["train"]["vae"]["cells_per_rank"] == 32
    assert not run.exists()
    pairs = [f"run.dir={tiny_run}"]
    assert run_job("generate", CONFIGS / "generate.yaml", pairs, dry_run=True) == 0
    plan = last_line(capsys.readouterr().out)["plan"]
    assert (plan["n_seen"], plan["n_unseen"], plan["n_cells"]) == (5, 1, 360)


def test_transfer_keeps_the_cells_and_changes_the_condition(tiny_copy, ray_session):
    assert run_job("transfer", CONFIGS / "transfer.yaml", [f"run.dir={tiny_copy}"]) == 0
    moved = anndata.read_zarr(tiny_copy / "transfer.zarr")
    assert set(moved.obs["condition"]) == {"stim-1"} and set(moved.obs["cell_type"]) == {"type-0"}
    assert moved.obs_names.str.startswith("cells:").all()
    assert moved.X.sum() > 0


def test_mlflow_has_the_run_and_its_stages(tiny_run):
    import mlflow

    client = mlflow.MlflowClient(f"sqlite:///{tiny_run / 'mlflow.db'}")
    experiment = client.get_experiment_by_name("save")
    assert experiment.tags["mlflow.experimentKind"] == "custom_model_development"
    found = client.search_runs([experiment.experiment_id])
    parent = next(run for run in found if "mlflow.parentRunId" not in run.data.tags)
    children = {r.info.run_name: r for r in found if r.info.run_id != parent.info.run_id}
    assert parent.data.tags["git_commit"] and parent.data.tags["config_hash"]
    assert parent.data.params["vae.width"] == "16"
    assert set(children) == {"ingest", "vae", "flow", "generate", "evaluate"}
    assert {r.data.tags["mlflow.parentRunId"] for r in children.values()} == {parent.info.run_id}
    history = client.get_metric_history(children["vae"].info.run_id, "train/loss")
    assert [point.step for point in history] == [10, 20, 30, 40, 50, 60]
    for stage in ("vae", "flow"):
        (used,) = children[stage].inputs.dataset_inputs
        assert used.dataset.source_type == "soma" and "store.soma" in used.dataset.source
        (checkpoint, *_) = children[stage].outputs.model_outputs
        logged = client.get_logged_model(checkpoint.model_id)
        assert "train/loss" in {metric.key for metric in logged.metrics}


def test_mlflow_has_the_model_and_what_it_scored(tiny_run):
    stages = json.loads((tiny_run / "result.json").read_text())["stages"]
    (version,) = Registry(f"sqlite:///{tiny_run / 'mlflow.db'}", "save").versions()
    assert version.model_hash == stages["train"]["model_hash"]
    assert version.aliases == ("candidate",) and "seen/generated/energy" in version.scores


def test_every_number_says_what_it_stands_for(tiny_run):
    import mlflow

    report = json.loads((tiny_run / "report" / "metrics.json").read_text())
    stages = json.loads((tiny_run / "result.json").read_text())["stages"]
    stamp = report["provenance"]
    assert stamp["protocol"] == report["scores"]["protocol"] == 1
    assert stamp["atlas"] == stages["generate"]["atlas_digest"]
    assert len(stamp["store"]) == len(stamp["vocabulary"]) == 64
    client = mlflow.MlflowClient(f"sqlite:///{tiny_run / 'mlflow.db'}")
    experiment = client.get_experiment_by_name("save")
    (run,) = client.search_runs([experiment.experiment_id], "tags.stage = 'evaluate'")
    for key in ("protocol", "n_max", "seeds", "store", "vocabulary", "atlas", "model", "plan"):
        assert run.data.params[key] == str(stamp[key])
    assert run.data.params["versions.scipy"] == stamp["versions"]["scipy"]
    average = report["scores"]["seen"]["metrics"]["generated"]["energy"]
    assert run.data.metrics["seen/generated/energy"] == pytest.approx(average["mean"])
    assert run.data.metrics["seen/generated/energy.n"] == average["n_combinations"]


def _bytes_of(folder) -> dict[str, str]:
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }
