"""How far a run is, told from a run folder made by hand."""

import json
import os
import time
from dataclasses import asdict
from pathlib import Path

import pytest
from tiny_atlas import receipt_path, receipts_folder
from typer.testing import CliRunner

from save_dist import cli
from save_dist.config.load import dump_yaml, load
from save_dist.config.schema import PipelineJob
from save_dist.core.durable import write_json
from save_dist.core.errors import DataError
from save_dist.core.paths import RunPaths
from save_dist.pipelines.status import headline, status
from save_dist.stores.receipts import AtlasRecord
from save_dist.tracking.tracker import Journal, open_journal

TINY = Path(__file__).resolve().parents[3] / "configs" / "tiny"


@pytest.fixture
def paths(run_dir):
    """A pipeline of 60 vae and 60 flow steps that was started and has ingested."""
    paths = RunPaths(run_dir)
    config = load(PipelineJob, TINY / "pipeline.yaml", [f"run.dir={run_dir}"])
    paths.config.write_text(dump_yaml(config))
    open_journal(paths.metrics).start("hash")
    write_json(paths.stages / "ingest.json", {"key": "k", "summary": {}})
    write_json(paths.stages / "blocks.json", {"key": "k", "summary": {}})
    return paths


def checkpoint(paths, stage, step):
    (paths.checkpoints(stage) / f"step-{step:08d}").mkdir(parents=True)


def train_points(paths, stage, *steps):
    for step in steps:
        values = {"train/loss": 1.0, "data/cells_per_s": 640.0}
        Journal(paths.metrics, stage).metrics(values, step)


def atlas(paths, written):
    """An atlas of 5 parts, the last one short, with receipts written at the given times."""
    record = AtlasRecord("p", "m", 450, 10, 100, 50, ("X",), {}, {})
    write_json(receipts_folder(paths.atlas) / "plan.json", asdict(record))
    for part, time_s in enumerate(written):
        place = receipt_path(paths.atlas, part)
        place.write_text("{}")
        os.utime(place, (time_s, time_s))


def stages(paths):
    return {stage.stage: stage for stage in status(paths.root).stages}


def test_every_training_stage_is_shown_in_order(run_dir):
    paths = RunPaths(run_dir)
    stages_ = ["vae", "flow", "reflow", "transport"]
    more = [f"training.stages={stages_}", "transport.columns=[condition]"]
    config = load(PipelineJob, TINY / "pipeline.yaml", [f"run.dir={run_dir}", *more])
    paths.config.write_text(dump_yaml(config))
    open_journal(paths.metrics).start("hash")
    checkpoint(paths, "reflow", 20)
    found = stages(paths)
    assert [name for name in found if name in stages_] == stages_
    assert (found["reflow"].durable, found["reflow"].total) == (20, 40)


def test_fresh_run_has_stages_done_and_waiting(paths):
    found = status(paths.root)
    assert (found.state, found.attempt, found.n_failures) == ("running", 0, 0)
    states = {s.stage: s.state for s in found.stages}
    assert states == {
        "ingest": "done",
        "blocks": "done",
        "vae": "running",
        "flow": "waiting",
        "generate": "waiting",
        "evaluate": "waiting",
    }


def test_training_says_step_pace_and_time_left(paths):
    checkpoint(paths, "vae", 20)
    train_points(paths, "vae", 10, 20, 30)
    vae = stages(paths)["vae"]
    assert (vae.state, vae.done, vae.total, vae.durable) == ("running", 30, 60, 20)
    assert vae.cells_per_s == 640.0
    assert vae.eta_s == pytest.approx(30 * 64 / 640)  # steps left x cells per step / pace


def test_second_stage_runs_when_the_first_is_done(paths):
    checkpoint(paths, "vae", 60)
    train_points(paths, "flow", 10)
    found = stages(paths)
    assert (found["vae"].state, found["flow"].state, found["flow"].done) == ("done", "running", 10)


def test_atlas_says_parts_and_time_left(paths):
    now = 2_000_000_000.0  # after the start of the journal
    atlas(paths, [now, now + 10, now + 20])
    generate = stages(paths)["generate"]
    assert (generate.done, generate.total, generate.unit) == (3, 5, "parts")
    assert generate.cells_per_s == pytest.approx(10.0)
    assert generate.eta_s == pytest.approx(20.0)


def test_parts_of_an_earlier_attempt_count_but_give_no_pace(paths):
    atlas(paths, [1000.0, 1001.0])
    generate = stages(paths)["generate"]
    assert (generate.done, generate.cells_per_s, generate.eta_s) == (2, 0.0, None)


def test_silence_is_that_of_the_newest_file(paths):
    now = 2_000_000_000.0
    atlas(paths, [now])
    assert status(paths.root, now + 42).silent_s == pytest.approx(42.0)


@pytest.mark.parametrize(
    ("ends", "state", "n_failures"),
    [
        pytest.param(["FINISHED"], "done", 0, id="finished"),
        pytest.param(["FAILED"], "failed", 1, id="failed"),
        pytest.param(["KILLED"], "stopped", 1, id="stopped"),
        pytest.param([None, "FINISHED"], "done", 1, id="killed-then-finished"),
        pytest.param([None, "FAILED", None], "running", 2, id="runs-after-two-failures"),
    ],
)
def test_attempts(run_dir, ends, state, n_failures):
    paths = RunPaths(run_dir)
    for end in ends:
        journal = open_journal(paths.metrics)
        journal.start("hash")
        if end:
            journal.end(end)
    found = status(run_dir)
    assert (found.state, found.n_failures) == (state, n_failures)
    assert found.attempt == len(ends) - 1


@pytest.mark.parametrize("begun", ["nothing", "metrics", "checkpoint"])
def test_a_run_without_a_start_says_so(run_dir, begun):
    paths = RunPaths(run_dir)
    config = load(PipelineJob, TINY / "pipeline.yaml", [f"run.dir={run_dir}"])
    paths.config.write_text(dump_yaml(config))
    if begun == "metrics":
        train_points(paths, "vae", 30)
    if begun == "checkpoint":
        checkpoint(paths, "vae", 20)
    found = status(run_dir)
    assert (found.state, found.n_failures) == ("new", 0)
    assert headline(found).startswith(f"{run_dir}: new, no job was started in it")
    vae = {stage.stage: stage.state for stage in found.stages}["vae"]
    assert vae == ("waiting" if begun == "nothing" else "stopped")


def test_failed_run_says_why(paths):
    open_journal(paths.metrics).end("FAILED")
    write_json(paths.result, {"error": "the disk is full"})
    train = status(paths.root)
    assert (train.state, train.error) == ("failed", "the disk is full")
    open_journal(paths.metrics).start("hash")
    assert status(paths.root).error == ""


def test_looking_changes_nothing(paths):
    atlas(paths, [1000.0])
    before = {p: p.stat().st_mtime_ns for p in paths.root.rglob("*")}
    status(paths.root)
    assert {p: p.stat().st_mtime_ns for p in paths.root.rglob("*")} == before


def test_another_folder_is_refused(tmp_path):
    with pytest.raises(DataError, match=r"no run folder.*give the run\.dir"):
        status(tmp_path)


def test_cli_prints_stages_and_json(paths):
    train_points(paths, "vae", 30)
    done = CliRunner().invoke(cli.app, ["status", str(paths.root)])
    assert done.exit_code == 0
    assert "30 of 60 steps" in done.stdout
    assert f"{paths.root}: running, attempt 1, last sign of life 0." in done.stdout
    summary = json.loads(done.stdout.splitlines()[-1])
    assert summary["run"]["state"] == "running"


def test_a_stage_that_validation_ended_is_done(paths):
    checkpoint(paths, "vae", 20)
    about = {"standing": {"best_loss": 1.0, "best_step": 10, "is_over": True}}
    write_json(paths.checkpoints("vae") / "step-00000020" / "about.json", about)
    vae = stages(paths)["vae"]
    assert (vae.state, vae.done, vae.durable) == ("done", 20, 20)


def test_the_load_of_the_machine_is_no_sign_of_life(paths):
    train_points(paths, "vae", 10)
    told = json.loads(paths.metrics.read_text().splitlines()[-1])["time_ms"] / 1000
    time.sleep(0.05)
    Journal(paths.metrics).metrics({"system/cpu_utilization_percentage": 1.0}, 15)
    assert status(paths.root, told + 42).silent_s == pytest.approx(42.0)
