"""Which trials a sweep has, and how they are compared; that they run is tested with Ray."""

import json
import math

import pytest
from tiny_run import CONFIGS

from save_dist.config.load import config_hash, dump_yaml, merge, parse, parse_override, read_yaml
from save_dist.config.schema import RangeConfig, SweepJob
from save_dist.core.errors import ConfigError
from save_dist.pipelines.status import status
from save_dist.pipelines.sweep import outcome, plan_trials, ranked, table
from save_dist.tracking.progress import render_table
from save_dist.tracking.tracker import open_journal


def job(*pairs):
    """The tiny sweep; given parameters stand in place of its own."""
    values = read_yaml(CONFIGS / "sweep.yaml")
    if any(pair.startswith("sweep.parameters") for pair in pairs):
        del values["sweep"]["parameters"]
    for pair in pairs:
        values = merge(values, parse_override(pair))
    return parse(SweepJob, values, "sweep")


def test_a_grid_is_every_combination_and_nothing_else_differs():
    trials = plan_trials(job("run.dir=/runs/a"))
    found = [(t.config.vae.optim.lr, t.config.vae.width) for t in trials]
    assert found == [(3e-3, 8), (3e-3, 16), (3e-5, 8), (3e-5, 16)]
    assert len({t.name for t in trials}) == 4
    for trial in trials:
        assert trial.paths.root.as_posix() == f"/runs/a/trials/{trial.name}"
        assert trial.config.tracking.uri == "sqlite:////runs/a/mlflow.db"
        assert trial.config.training.stream.cache_dir.as_posix() == "/runs/a/scratch/cells"
        assert trial.config.vae.depth == 1 and trial.config.cluster.address == "auto"


def test_a_larger_sweep_has_the_trials_of_the_smaller_one():
    small = plan_trials(job())
    large = plan_trials(
        job("sweep.parameters={vae.optim.lr: [3e-5, 1e-4, 3e-3], vae.width: [8, 16]}")
    )
    assert {t.name for t in small} < {t.name for t in large}
    assert {config_hash(t.config) for t in small} < {config_hash(t.config) for t in large}


RANDOM = (
    "sweep.method=random",
    "sweep.parameters={vae.optim.lr: {low: 1e-4, high: 1e-2, log: true}, vae.depth: "
    "{low: 1, high: 3, integer: true}, vae.width: [8, 16]}",
)


def test_draws_depend_on_seed_and_number_alone():
    few, many = (plan_trials(job(*RANDOM, f"sweep.n_trials={n}")) for n in (5, 60))
    assert [t.parameters for t in few] == [t.parameters for t in many[:5]]
    other = plan_trials(job(*RANDOM, "sweep.n_trials=5", "run.seed=1"))
    assert not {t.name for t in other} & {t.name for t in few}
    rates = [t.config.vae.optim.lr for t in many]
    assert all(1e-4 <= rate <= 1e-2 for rate in rates)
    assert 0.3 < sum(rate < 1e-3 for rate in rates) / 60 < 0.7  # even in the logarithm
    assert {t.config.vae.depth for t in many} == {1, 2, 3}
    assert {t.config.vae.width for t in many} == {8, 16}


@pytest.mark.parametrize(
    ("pairs", "error"),
    [
        pytest.param(["sweep.parameters={}"], "at least 1 item", id="none"),
        pytest.param(["sweep.parameters={vae.width: []}"], "lists no values", id="empty"),
        pytest.param(
            ["sweep.parameters={run.dir: [a]}"], r"names 'run\.dir'; only settings of vae", id="run"
        ),
        pytest.param(
            ["sweep.parameters={vae.width: {low: 1, high: 2}}"],
            "is a range, and a grid",
            id="range",
        ),
        pytest.param(["sweep.n_trials=3"], "the grid of these values has 4", id="grid-of-n"),
        pytest.param(["sweep.method=random"], "number of draws", id="random-of-none"),
        pytest.param(["sweep.metric=test/loss"], "string_pattern|should match", id="test-cells"),
        pytest.param(["sweep.stage=flow"], r"not among training\.stages=\[vae\]", id="stage"),
        pytest.param(
            [RANDOM[0], "sweep.n_trials=1", "sweep.parameters={vae.width: {low: 3, high: 3}}"],
            r"low=3\.0 is not below high=3\.0",
            id="point",
        ),
        pytest.param(
            [
                RANDOM[0],
                "sweep.n_trials=1",
                "sweep.parameters={vae.kl_weight: {low: 0, high: 1, log: true}}",
            ],
            "has no logarithm",
            id="logarithm",
        ),
    ],
)
def test_a_sweep_that_cannot_be_is_refused(pairs, error):
    with pytest.raises(ConfigError, match=error):
        job(*pairs)


@pytest.mark.parametrize(
    ("parameters", "error"),
    [
        pytest.param(
            "{vae.optim.rate: [1]}", r"trial \{'vae\.optim\.rate': 1\}.*unknown key", id="key"
        ),
        pytest.param(
            "{vae.width: [8, 9]}", r"vae\.width=9 is not a multiple of vae\.n_heads", id="value"
        ),
    ],
)
def test_every_trial_is_checked_before_the_first_runs(parameters, error):
    with pytest.raises(ConfigError, match=f"(?s){error}"):
        plan_trials(job(f"sweep.parameters={parameters}"))


def ended(trial, *, exit_code=0, points=(), error=""):
    journal = open_journal(trial.paths.metrics).child("vae")
    for step, value in points:
        journal.metrics({"val/reconstruction": value, "train/loss": -1.0}, step)
    status = {0: "done", 3: "failed", 130: "stopped"}[exit_code]
    result = {"exit_code": exit_code, "status": status, "config_hash": config_hash(trial.config)}
    trial.paths.result.write_text(json.dumps({**result, "error": error}))


def test_outcomes_are_ranked_and_what_failed_comes_last(tmp_path):
    config = job(f"run.dir={tmp_path}")
    trials = plan_trials(config)
    ended(trials[0], points=[(20, 5.0), (40, 7.0)])  # the last weights are exported
    ended(trials[1], exit_code=3, points=[(20, 1.0)], error="diverged")
    ended(trials[2], points=[(20, 9.0), (40, 6.0), (60, math.nan)])
    found = ranked([outcome(t, config.sweep) for t in trials], config.sweep)
    assert [(o.status, o.value, o.step) for o in found] == [
        ("done", 6.0, 40),
        ("done", 7.0, 40),
        ("failed", None, None),
        ("failed", None, None),
    ]
    assert [o.error for o in found[2:]] == ["diverged", "ended without a result"]
    largest = ranked(found, config.sweep.model_copy(update={"goal": "max"}))
    assert [o.value for o in largest] == [7.0, 6.0, None, None]
    text = render_table(table(found, config.sweep))
    assert text.count("best") == 1 and "vae.optim.lr" in text and "3e-05" in text


def test_with_the_best_weights_exported_the_lowest_value_counts(tmp_path):
    config = job(f"run.dir={tmp_path}", "training.stopping={export: best}")
    (trial, *_) = plan_trials(config)
    ended(trial, points=[(20, 5.0), (40, 7.0)])
    assert (outcome(trial, config.sweep).value, outcome(trial, config.sweep).step) == (5.0, 20)


def test_a_trial_of_other_settings_is_not_taken_for_finished(tmp_path):
    (trial, *_) = plan_trials(job(f"run.dir={tmp_path}"))
    ended(trial)
    assert trial.is_finished
    (changed, *_) = plan_trials(job(f"run.dir={tmp_path}", "vae.depth=2"))
    assert changed.name == trial.name and not changed.is_finished


def test_a_range_of_whole_numbers_holds_both_ends():
    with pytest.raises(ValueError, match="is not below"):
        RangeConfig(low=2, high=1)


def test_status_counts_the_trials_of_a_sweep(tmp_path):
    config = job(f"run.dir={tmp_path}")
    (tmp_path / "config.resolved.yaml").write_text(dump_yaml(config))
    trials = plan_trials(config)
    for trial in trials:
        trial.paths.root.mkdir(parents=True)
    ended(trials[0])
    ended(trials[1], exit_code=3)
    (stage,) = status(tmp_path).stages
    assert (stage.stage, stage.done, stage.total, stage.unit) == ("sweep", 1, 4, "trials")
