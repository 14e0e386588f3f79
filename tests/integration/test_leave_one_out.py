"""Every type held out in turn on configs/tiny: two folds side by side, resumed, tracked."""

import json

import pytest
from tiny_run import CONFIGS, last_line, settings
from typer.testing import CliRunner

from save_dist.cli import app
from save_dist.pipelines.leave_one_out import means, winners
from save_dist.tracking.tracker import read_records

pytestmark = pytest.mark.slow

SHORT = {
    "conditions.exclude": '[{"cell_type": "type-2"}]',
    "conditions.held_out": "[]",
    "training.stages": "[vae, flow, transport]",
    "transport.columns": "[condition]",
    "transport.width": 16,
    "transport.optim.n_steps": 20,
    "transport.optim.cells_per_step": 64,
    "vae.optim.n_steps": 30,
    "flow.optim.n_steps": 30,
    "evaluate.n_max": 20,
    "evaluate.responders": "[gene-00001, ABSENT]",
    "tracking.backend": "mlflow",
}
WAYS = {
    "composed", "composed, mean not matched", "from labels", "controls carried",
    "controls carried, mean not matched", "controls re-decoded", "controls inverted",
    "controls, latent shift",
}  # fmt: skip


def leave_out(run, cells, *more):
    pairs = settings(run, cells, **SHORT)
    arguments = ["--config", str(CONFIGS / "pipeline.yaml"), "--each", "cell_type"]
    arguments += ["--condition", "condition=stim-1", *more]
    arguments += [word for pair in pairs for word in ("--set", pair)]
    return CliRunner().invoke(app, ["leave-one-out", *arguments])


@pytest.fixture(scope="module")
def done(tmp_path_factory, tiny_cells, ray_session):
    run = tmp_path_factory.mktemp("loo") / "run"
    result = leave_out(run, tiny_cells)
    assert result.exit_code == 0, result.output
    return run, result


def records(run):
    return json.loads((run / "leave_one_out.json").read_text())["folds"]


def test_every_way_and_baseline_is_in_the_table(done):
    run, result = done
    found = records(run)
    assert [r["name"] for r in found] == ["type-0", "type-1"]
    for record in found:
        assert set(record["ways"]) == WAYS
        assert {"control", "additive_shift", "similarity_shift", "floor"} <= set(
            record["baselines"]
        )
        assert all("energy" in values for values in record["ways"].values())
    assert found[0]["model"] != found[1]["model"]
    text = (run / "leave_one_out.txt").read_text()
    assert text in result.output
    for words in (*WAYS, "additive shift", "type-1 (", "R2 top 100", "*", "gene-00001"):
        assert words in text


def test_winners_and_means_follow_from_the_records(done):
    run, result = done
    found = records(run)
    assert last_line(result.stdout)["winners"] == winners(found)
    expected = sum(r["ways"]["composed"]["energy"] for r in found) / 2
    assert means(found, "energy")["composed"] == pytest.approx(expected)
    assert "mean_r2" in found[0]["ways"]["from labels"]


def test_each_fold_is_a_run_of_its_own_in_the_journal(done):
    run, _ = done
    started = {r.run for r in read_records(run / "metrics.jsonl", kind="start")}
    assert {"held-out type-0", "held-out type-1"} <= started
    metrics = list(read_records(run / "metrics.jsonl", run="held-out type-1", kind="metrics"))
    names = {name for record in metrics for name in record.values}
    assert {"vae/train/loss", "flow/train/loss", "composed/mean_r2"} <= names


def test_finished_folds_are_kept_and_other_settings_refused(done, tiny_cells):
    run, first = done
    before = {p: p.stat().st_mtime_ns for p in run.glob("folds/*/fold.json")}
    assert len(before) == 2
    again = leave_out(run, tiny_cells)
    assert again.exit_code == 0, again.output
    assert {p: p.stat().st_mtime_ns for p in before} == before
    assert last_line(again.stdout)["winners"] == last_line(first.stdout)["winners"]
    other = leave_out(run, tiny_cells, "--set", "evaluate.seeds=[1]")
    assert other.exit_code == 2
    assert "a fold made with other settings" in other.output


@pytest.mark.parametrize(
    ("each", "condition", "message"),
    [
        pytest.param("tissue", "condition=stim-1", "cannot hold out each 'tissue'", id="column"),
        pytest.param("cell_type", "cell_type=B", "name different columns", id="the same column"),
        pytest.param("cell_type", "condition=no", "two values are needed", id="no cells"),
    ],
)
def test_mistakes_are_named(done, tiny_cells, each, condition, message):
    run, _ = done
    pairs = settings(run, tiny_cells, **{**SHORT, "tracking.backend": "none"})
    arguments = ["--config", str(CONFIGS / "pipeline.yaml"), "--each", each]
    arguments += ["--condition", condition, *(w for p in pairs for w in ("--set", p))]
    result = CliRunner().invoke(app, ["leave-one-out", *arguments])
    assert result.exit_code in (2, 3)
    assert message in result.output
