"""`save-dist track`: what MLflow missed, the models it has, and which of them is the champion."""

import dataclasses
import sys
from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table

from save_dist.cli.endings import ending
from save_dist.config.load import parse, read_yaml
from save_dist.config.schema import TrackingConfig
from save_dist.core.errors import ConfigError
from save_dist.core.paths import TRIALS, RunPaths
from save_dist.pipelines import promotion
from save_dist.pipelines.context import Summary
from save_dist.tracking.mlflow import sync as replay
from save_dist.tracking.progress import render_table

tracking = typer.Typer(no_args_is_help=True)

RunArgument = Annotated[
    Path, typer.Argument(help="Run folder; its configuration names server and experiment.")
]


@tracking.command(help="Send MLflow what it missed while it was slow or down.")
def sync(run: RunArgument) -> None:
    """Replay the journal of a run; doing it again sends nothing."""

    def work() -> Summary:
        trials = sorted(p for p in (run / TRIALS).glob("*") if RunPaths(p).config.is_file())
        folders = [*trials, run]  # in this order: a sweep names trials that were sent
        points = 0
        for folder in folders:
            settings = _settings(folder)
            points += replay(RunPaths(folder).metrics, settings.uri, settings.experiment)
        return {"points": points}

    raise typer.Exit(ending(work, {"verb": "track sync"}))


@tracking.command(help="The registered models of a run's experiment.")
def models(run: RunArgument) -> None:
    """One line per version, newest first."""

    def work() -> Summary:
        found = promotion.registry(_settings(run), run).versions()
        drawn = Table("version", "model hash", "aliases", "scores")
        for v in found:
            drawn.add_row(
                str(v.number), v.model_hash[:16], ", ".join(v.aliases), str(len(v.scores))
            )
        sys.stdout.write(render_table(drawn))
        return {"versions": [dataclasses.asdict(version) for version in found]}

    raise typer.Exit(ending(work, {"verb": "track models"}))


@tracking.command(
    help="Make a registered model the champion, which `schedule-tick` generates with."
)
def promote(
    run: RunArgument,
    version: Annotated[int | None, typer.Option(help="Version; judged by you alone.")] = None,
    require: Annotated[
        list[str],
        typer.Option(
            help="METRIC<=NUMBER; the newest model whose evaluation reaches all of them is taken. "
            "See `track models` for the metrics."
        ),
    ] = [],  # noqa: B006
) -> None:
    """Without a model that is newer than the champion and good enough, the champion stays."""
    work = lambda: promotion.promote(_settings(run), run, version, require)  # noqa: E731
    raise typer.Exit(ending(work, {"verb": "track promote"}))


def _settings(run: Path) -> TrackingConfig:
    place = RunPaths(run).config
    settings = parse(TrackingConfig, read_yaml(place).get("tracking", {}), str(place))
    if settings.backend == "none":
        raise ConfigError(
            f"{place} says tracking.backend: none, so the run names no MLflow; set "
            "tracking.backend: mlflow and run the job again (what is finished is kept)"
        )
    return settings
