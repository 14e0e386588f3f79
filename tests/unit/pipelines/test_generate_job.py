"""`save-dist generate` on a run folder, its parts sampled in this process."""

import json
import shutil
from pathlib import Path

import pytest
from tiny_model import save_tiny_model
from typer.testing import CliRunner

import save_dist
from save_dist import cli
from save_dist.cluster.generate import PartOutcome
from save_dist.core.errors import InfrastructureError, PartialError
from save_dist.generation.worker import PartWorker
from save_dist.pipelines import generate
from save_dist.pipelines.parts import require_all
from save_dist.stores import storage


@pytest.fixture
def sampled(monkeypatch):
    """Parts are sampled here instead of on a cluster; the list says which."""
    parts_done = []

    def sample(parts, cells, bundle, atlas, config, progress):
        worker = PartWorker(Path(bundle), Path(atlas), device="cpu")
        parts_done.append((list(parts), cells))
        for part in parts:
            worker.run(part)
        return [PartOutcome(part, 1, 0.1, 1, "") for part in parts]

    monkeypatch.setattr(generate.cluster_generate, "generate", sample)
    return parts_done


@pytest.fixture
def config(tmp_path, random_model):
    shutil.copytree(random_model, tmp_path / "run" / "model")
    path = tmp_path / "generate.yaml"
    settings = {
        "run": {"dir": str(tmp_path / "run")},
        "tracking": {"backend": "none"},
        "grid": {"columns": {"cell_type": ["B"]}, "cells_per_condition": 20},
        "output": {"cells_per_part": 32, "cells_per_chunk": 16, "cells_per_minibatch": 16},
    }
    path.write_text(json.dumps(settings))
    return path


def run(config, *pairs, options=()):
    arguments = ["generate", "--config", str(config), *options]
    done = CliRunner().invoke(cli.app, [*arguments, *(w for p in pairs for w in ("--set", p))])
    return json.loads(done.stdout.splitlines()[-1])


def test_a_larger_grid_extends_and_another_is_refused(config, sampled):
    first = run(config)
    assert (first["exit_code"], sampled) == (0, [([0, 1], 40)])
    planned = run(config, "grid.columns.cell_type=all", options=["--dry-run"])["plan"]
    assert planned["n_cells"] == 120 and planned["estimate"]["n_cells_left"] == 88
    second = run(config, "grid.columns.cell_type=all")
    assert (second["exit_code"], sampled[1]) == (0, ([1, 2, 3], 88))
    again = run(config, "grid.columns.cell_type=all")
    assert (again["exit_code"], len(sampled)) == (0, 2)
    assert again["stages"]["plan_hash"] == second["stages"]["plan_hash"]
    refused = run(config, "grid.seed=1")
    assert refused["exit_code"] == 3
    assert second["stages"]["plan_hash"] in refused["error"]
    assert "grid.seed changed" in refused["error"]
    found = save_dist.open_atlas(config.parent / "run" / "atlas.zarr")
    assert found.select(cell_type="T").n_obs == 40


def test_another_model_does_not_extend(config, sampled):
    run(config)
    other = save_tiny_model(config.parent / "run" / "model", seed=5)
    refused = run(config)
    assert refused["exit_code"] == 3 and other in refused["error"]
    assert "was made with model" in refused["error"]


@pytest.mark.parametrize(("share", "code"), [(0.4, 5), (0.6, 0), (1.1, 0)])
def test_cells_that_cannot_fit_are_not_begun(config, sampled, monkeypatch, caplog, share, code):
    needed = run(config, options=["--dry-run"])["plan"]["bytes_estimate"]
    monkeypatch.setattr(storage.Folder, "free_bytes", lambda _: round(needed * share))
    found = run(config)
    assert (found["exit_code"], len(sampled)) == (code, 1 if code == 0 else 0)
    said = found.get("error", "") + caplog.text
    assert (f"take about {needed} bytes" in said) == (share < 1), said


REFUSED = PartOutcome(1, 0, 0.0, 0, "InfrastructureError: No space left on device", is_refused=True)
POISONED = PartOutcome(2, 0, 0.0, 0, "RuntimeError: no")


@pytest.mark.parametrize(
    ("outcomes", "missing", "kind"),
    [
        pytest.param([REFUSED], [1], InfrastructureError, id="full disk"),
        pytest.param([REFUSED, POISONED], [1, 2], PartialError, id="one is poisoned"),
        pytest.param([POISONED], [2], PartialError, id="poisoned"),
        pytest.param([REFUSED], [1, 3], PartialError, id="one was never heard of"),
    ],
)
def test_missing_parts_end_the_job_by_their_reason(outcomes, missing, kind):
    text = rf"{len(missing)} of 4 parts are missing.*part {missing[0]}: {outcomes[0].error}"
    with pytest.raises(kind, match=text):
        require_all(4, outcomes, missing)
    require_all(4, outcomes, [])
