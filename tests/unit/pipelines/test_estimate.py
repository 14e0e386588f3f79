"""What `--dry-run` of generate says before anything is sampled."""

import json
import shutil
from pathlib import Path

import pytest
from typer.testing import CliRunner

from save_dist import cli
from save_dist.generation.worker import PartWorker
from save_dist.pipelines.generate import plan_for
from save_dist.stores import atlas


@pytest.fixture
def config(tmp_path, random_model):
    shutil.copytree(random_model, tmp_path / "run" / "model")
    path = tmp_path / "generate.yaml"
    settings = {
        "run": {"dir": str(tmp_path / "run")},
        "tracking": {"backend": "none"},
        "cluster": {"n_workers": 2},
        "grid": {"cells_per_condition": 20},
        "output": {"cells_per_part": 64, "cells_per_chunk": 16, "cells_per_minibatch": 16},
    }
    path.write_text(json.dumps(settings))
    return path


def dry_run(config):
    done = CliRunner().invoke(cli.app, ["generate", "--config", str(config), "--dry-run"])
    assert done.exit_code == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])["plan"]


def test_without_parts_a_minibatch_is_timed_and_nothing_touched(config):
    before = sorted(config.parent.rglob("*"))
    planned = dry_run(config)
    assert sorted(config.parent.rglob("*")) == before
    assert (planned["n_conditions"], planned["n_seen"], planned["n_parts"]) == (6, 5, 2)
    found = planned["estimate"]
    assert found["measured_on"].startswith("one minibatch of 16 cells on cpu")
    assert found["n_cells_left"] == 120 and found["n_workers"] == 2
    assert found["seconds"] == pytest.approx(120 / found["cells_per_worker_s"] / 2, abs=0.2)


def test_finished_parts_say_the_pace(config):
    asked = cli.load(cli.schema.GenerateJob, config, [])
    paths = cli.RunPaths(asked.run.dir)
    atlas.create_template(paths.atlas, plan_for(asked, paths).layout(), {})
    receipt = PartWorker(paths.model, Path(paths.atlas)).run(1)
    found = dry_run(config)["estimate"]
    assert found["measured_on"] == "1 finished parts"
    assert (found["n_cells_left"], found["n_workers"]) == (64, 1)
    assert found["cells_per_worker_s"] == pytest.approx(56 / max(receipt.seconds, 1e-9), rel=0.1)
