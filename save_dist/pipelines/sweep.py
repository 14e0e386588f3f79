"""Sweep: one training job under different settings; which of them validates best.

Every trial is a training job with a folder of its own below the run, named by what it changes, so
a finished one is known again and a larger sweep adds to a smaller one. Store and vocabulary are
the run's. Trials are judged on validation cells; nothing here looks at test cells.
"""

import itertools
import math
import sys
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rich.table import Table

from save_dist.cluster.trials import TrialProcess, run_trials
from save_dist.config.load import config_hash, dump_yaml, merge, parse, resolved
from save_dist.config.schema import RangeConfig, SweepConfig, SweepJob, TrainJob
from save_dist.core import seeding
from save_dist.core.durable import digest, read_json, write_bytes, write_json
from save_dist.core.errors import ConfigError, PartialError, listed
from save_dist.core.paths import TRIALS, RunPaths
from save_dist.data.splits import VALIDATION
from save_dist.pipelines import train
from save_dist.pipelines.context import Context, Summary
from save_dist.pipelines.train import open_vocabulary
from save_dist.tracking.connection import default_uri
from save_dist.tracking.progress import render_table
from save_dist.tracking.tracker import read_records

RESULTS = "results.json"


@dataclass(frozen=True)
class Trial:
    """One training job of a sweep."""

    name: str
    """Digest of what it changes; also its folder."""
    parameters: dict[str, Any]
    config: TrainJob

    @property
    def paths(self) -> RunPaths:
        """Its run folder."""
        return RunPaths(self.config.run.dir)

    @property
    def is_finished(self) -> bool:
        """Whether it ran to its end with these very settings."""
        if not self.paths.result.is_file():
            return False
        result = read_json(self.paths.result)
        same = result.get("config_hash") == config_hash(self.config)
        return same and result["exit_code"] == 0


@dataclass(frozen=True)
class Outcome:
    """How one trial went."""

    name: str
    parameters: dict[str, Any]
    status: str
    """done, or how it ended instead."""
    value: float | None
    """The metric at the end of the stage; None if there is none."""
    step: int | None
    error: str


def sweep(config: SweepJob, context: Context) -> Summary:
    """Run the trials that are not finished, compare all of them."""
    trials = plan_trials(config)
    _check_validation(context)
    for trial in trials:
        _furnish(trial, context.paths)
    waiting = [trial for trial in trials if not trial.is_finished]
    run_trials(
        [TrialProcess(t.name, t.paths.root / "trial.yaml", t.paths.root) for t in waiting],
        config.sweep.n_parallel,
        config.cluster,
        context.progress,
    )

    outcomes = ranked([outcome(trial, config.sweep) for trial in trials], config.sweep)
    best = outcomes[0] if outcomes[0].value is not None else None
    found: Summary = {
        "stage": config.sweep.stage,
        "metric": config.sweep.metric,
        "goal": config.sweep.goal,
        "n_trials": len(outcomes),
        "n_run": len(waiting),
        "best": None if best is None else asdict(best),
    }
    results = context.paths.root / RESULTS
    write_json(results, {**found, "trials": [asdict(one) for one in outcomes]})
    sys.stdout.write(render_table(table(outcomes, config.sweep)))
    if best is not None and best.value is not None:
        context.journal.metrics({f"{config.sweep.stage}/{config.sweep.metric}": best.value}, 0)
        context.journal.tags({"best_trial": best.name})
    context.journal.artifact(results)
    for trial in trials:
        context.journal.child_journal(trial.paths.metrics)
    _require_all(outcomes)
    return found


def preview(config: SweepJob) -> Summary:
    """The trials, which of them are finished, and the training job that each is."""
    trials = plan_trials(config)
    return {
        "n_trials": len(trials),
        "n_finished": sum(trial.is_finished for trial in trials),
        "trials": {trial.name: trial.parameters for trial in trials},
        "each": train.preview(config),
    }


def plan_trials(config: SweepJob) -> list[Trial]:
    """Every trial with its whole configuration, all of them valid.

    Raises:
        ConfigError: naming the trial whose settings cannot be.
    """
    base = {key: value for key, value in resolved(config).items() if key != "sweep"}
    root = config.run.dir
    base["cluster"]["address"] = "auto"  # of the sweep's Ray
    base["tracking"]["uri"] = config.tracking.uri or default_uri(root)
    stream = base["training"]["stream"]
    stream["cache_dir"] = stream["cache_dir"] or str(RunPaths(root).scratch / "cells")
    trials: dict[str, Trial] = {}
    for chosen in _combinations(config.sweep, config.run.seed):
        values = base
        for key, value in chosen.items():
            values = merge(values, _nested(key, value))
        tried = parse(TrainJob, values, f"trial {chosen}")
        parameters = {key: _setting(tried, key) for key in chosen}  # 3e-5 is a text in YAML
        name = digest(parameters)[:12]
        run = tried.run.model_copy(update={"dir": root / TRIALS / name})
        trials[name] = Trial(name, parameters, tried.model_copy(update={"run": run}))
    return list(trials.values())


def outcome(trial: Trial, config: SweepConfig) -> Outcome:
    """What the files of a trial say."""
    result = read_json(trial.paths.result) if trial.paths.result.is_file() else {}
    status = "done" if trial.is_finished else str(result.get("status", "failed"))
    value, step = None, None
    if status == "done":
        value, step = _judged(trial, config)
    error = "" if status == "done" else str(result.get("error", "ended without a result"))
    return Outcome(trial.name, trial.parameters, status, value, step, error)


def ranked(outcomes: list[Outcome], config: SweepConfig) -> list[Outcome]:
    """Best first; what has no value comes last."""
    sign = 1 if config.goal == "min" else -1
    return sorted(outcomes, key=lambda o: math.inf if o.value is None else sign * o.value)


def table(outcomes: list[Outcome], config: SweepConfig) -> Table:
    """One row per trial, in the order given."""
    names = list(outcomes[0].parameters)
    drawn = Table("", "trial", *names, f"{config.stage} {config.metric}", "step", "status")
    for place, one in enumerate(outcomes):
        mark = "best" if place == 0 and one.value is not None else ""
        value = "" if one.value is None else f"{one.value:.5g}"
        step = "" if one.step is None else str(one.step)
        shown = [_shown(one.parameters[name]) for name in names]
        drawn.add_row(mark, one.name, *shown, value, step, one.status)
    return drawn


def _combinations(config: SweepConfig, seed: int) -> Iterator[dict[str, Any]]:
    """Settings of every trial; the draws of `random` depend on seed and number alone."""
    names = list(config.parameters)
    if config.n_trials is None:
        choices = [v for v in config.parameters.values() if isinstance(v, list)]
        yield from (dict(zip(names, c, strict=True)) for c in itertools.product(*choices))
        return
    for number in range(config.n_trials):
        rng = seeding.generator(seed, "sweep", number)
        yield {name: _draw(config.parameters[name], float(rng.random())) for name in names}


def _draw(choice: list[Any] | RangeConfig, u: float) -> Any:
    """The value at `u` in [0, 1)."""
    if isinstance(choice, list):
        return choice[int(u * len(choice))]
    low, high = (choice.low, choice.high)
    if choice.log:
        value = math.exp(math.log(low) + u * (math.log(high) - math.log(low)))
    else:
        value = low + u * (high - low)
    return round(value) if choice.integer else float(f"{value:.6g}")


def _nested(key: str, value: Any) -> dict[str, Any]:
    for name in reversed(key.split(".")):
        value = {name: value}
    return dict(value)


def _setting(config: TrainJob, key: str) -> Any:
    value: Any = resolved(config)
    for name in key.split("."):
        value = value[name]
    return value


def _check_validation(context: Context) -> None:
    if not open_vocabulary(context).index.where(VALIDATION).n_cells:
        raise ConfigError(
            "a sweep compares losses on validation cells, and split.validation left none; make it "
            "larger in a new run.dir"
        )


def _furnish(trial: Trial, paths: RunPaths) -> None:
    """Give a trial its configuration, and the run's store and vocabulary."""
    write_bytes(trial.paths.root / "trial.yaml", dump_yaml(trial.config).encode())
    for shared in (paths.store, paths.vocab):
        link = trial.paths.root / shared.name
        if shared.exists() and not link.exists():
            link.symlink_to(Path("..") / ".." / shared.name)


def _judged(trial: Trial, config: SweepConfig) -> tuple[float | None, int | None]:
    """The metric of the weights that were exported, and their step."""
    points = {
        record.step: float(record.values[config.metric])
        for record in read_records(trial.paths.metrics, run=config.stage, kind="metrics")
        if config.metric in record.values and record.step is not None
    }
    points = {step: value for step, value in points.items() if math.isfinite(value)}
    if not points:
        return None, None
    is_best_kept = trial.config.training.stopping.export == "best"
    losses: Mapping[int, float] = points if is_best_kept else {max(points): points[max(points)]}
    step = min(losses, key=lambda step: losses[step])
    return points[step], step


def _shown(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)


def _require_all(outcomes: list[Outcome]) -> None:
    bad = [one for one in outcomes if one.value is None]
    if bad:
        reasons = listed((f"{one.name}: {one.error or 'no such metric'}" for one in bad), 3)
        raise PartialError(
            f"{len(bad)} of {len(outcomes)} trials have no result ({reasons}); the others are "
            f"kept, see {RESULTS}. Run the same command to try these again"
        )
