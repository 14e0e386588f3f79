"""`save-dist VERB --config FILE [--set a.b=c ...] [--dry-run]`: the commands and what they do.

Signals are caught here; how a command ends is in `endings`. What a command alone needs is imported
inside it, so that help, mistakes and looking do not wait for torch.
"""

import contextlib
import dataclasses
import signal
import sys
from collections.abc import Callable, Iterator
from functools import partial
from importlib.metadata import version as version_of
from pathlib import Path
from typing import Annotated

import typer
from typer.core import TyperGroup

from save_dist.cli.endings import ending
from save_dist.cli.simulate import simulation
from save_dist.cli.track import tracking
from save_dist.cluster import submit as submission
from save_dist.cluster.jobs import RayJobs
from save_dist.config import schema
from save_dist.config.load import JOBS, SUBMITTED, TICK, config_hash, dump_yaml, load, resolved
from save_dist.core import lease
from save_dist.core.durable import write_bytes
from save_dist.core.errors import ConfigError
from save_dist.core.paths import RunPaths
from save_dist.pipelines import status as progress_of
from save_dist.pipelines import verbs
from save_dist.pipelines.atlases import atlases as atlases_of
from save_dist.pipelines.context import Context, Summary
from save_dist.pipelines.provenance import provenance
from save_dist.stores.storage import place_of
from save_dist.tracking.mlflow import Mirror
from save_dist.tracking.progress import make_progress, render_table
from save_dist.tracking.system import sampled
from save_dist.tracking.tracker import open_journal

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)

ConfigOption = Annotated[Path, typer.Option("--config", help="YAML configuration of the job.")]
SetOption = Annotated[
    list[str], typer.Option("--set", help="Override one setting, e.g. vae.optim.lr=1e-3.")
]
DryRunOption = Annotated[
    bool, typer.Option("--dry-run", help="Validate everything, print the plan, touch nothing.")
]


def _print_version(asked: bool) -> bool:
    if asked:
        sys.stdout.write(f"save-dist {version_of('save-dist')}\n")
        raise typer.Exit
    return asked


@app.callback()
def save_dist(
    version: Annotated[
        bool,
        typer.Option(
            "--version", callback=_print_version, is_eager=True, help="Print the version."
        ),
    ] = False,
) -> None:
    """Train SAVE on single cells, generate atlases of virtual cells, and judge them."""


def _add_verb(verb: str) -> None:
    def command(config: ConfigOption, set_: SetOption = [], dry_run: DryRunOption = False) -> None:  # noqa: B006
        raise typer.Exit(run_job(verb, config, set_, dry_run=dry_run))

    app.command(verb, help=verbs.HELP[verb])(command)


for _verb in JOBS:
    _add_verb(_verb)


app.add_typer(
    simulation, name="simulate", help="Simulated cells whose truth is known: `simulate FILE`."
)


app.add_typer(tracking, name="track", help="MLflow: what it missed, its models, the champion.")


@app.command(help="Check every byte of an atlas against its receipts and plan.")
def verify(
    atlas: Annotated[str, typer.Argument(help="RUN/atlas.zarr, or s3://BUCKET/NAME.zarr")],
    mend: Annotated[bool, typer.Option(help="Make bad parts missing for `generate`.")] = False,
    resample: Annotated[int, typer.Option(help="Parts to sample again and compare.")] = 0,
    model: Annotated[
        Path | None, typer.Option(help="Model to sample with; default: `model` beside the atlas.")
    ] = None,
    seed: Annotated[int, typer.Option(help="Another seed chooses other parts.")] = 0,
) -> None:
    """Exit code 4 if a part is missing or altered, or comes out otherwise."""

    def work() -> Summary:
        from save_dist.pipelines.verify import Resampling
        from save_dist.pipelines.verify import verify as check

        return check(place_of(atlas), mend=mend, resampling=Resampling(resample, model, seed))

    raise typer.Exit(ending(work, {"verb": "verify"}))


@app.command(help="Write an atlas in another form; goes on where it was killed.")
def export(
    atlas: Annotated[str, typer.Argument(help="RUN/atlas.zarr, or s3://BUCKET/NAME.zarr")],
    output: Annotated[Path, typer.Argument(help="File or folder to write; never replaced.")],
    to: Annotated[str, typer.Option("--to", help="h5ad, h5ad-per-condition, soma or collection.")],
) -> None:
    """One part in memory at a time."""

    def work() -> Summary:
        from save_dist.pipelines.export import export as export_to

        return export_to(place_of(atlas), output, to)

    raise typer.Exit(ending(work, {"verb": "export"}))


@app.command(help="Run a job on a Ray cluster: start it, or join the same one if it runs.")
def submit(
    verb: Annotated[str, typer.Argument(help=f"One of {', '.join(SUBMITTED)}.")],
    config: ConfigOption,
    set_: SetOption = [],  # noqa: B006
    address: Annotated[
        str | None, typer.Option(help="Dashboard, http://HEAD:8265; default: RAY_ADDRESS.")
    ] = None,
    wait: Annotated[bool, typer.Option(help="Follow the job and end with its exit code.")] = True,
    driver_cpus: Annotated[
        float, typer.Option(help="CPUs the driver reserves on any node; 0: it runs on the head.")
    ] = 0.0,
) -> None:
    """The job's log goes to stderr; stdout carries the summary alone."""
    summary: Summary = {"verb": "submit"}

    def work() -> Summary:
        job = _checked_verb(verb)
        sent = submission.prepare(job, load(SUBMITTED[job], config, set_), Path.cwd())
        client = RayJobs(address)
        started = submission.start(job, sent, client, driver_cpus=driver_cpus)
        summary.update(dataclasses.asdict(started), run_dir=str(sent.run.dir))
        if not wait:
            return {"status": "submitted"}
        result = submission.follow(client, started.submission_id, sys.stderr.write)
        summary.update(job=result.summary)
        submission.raise_failure(result, started.submission_id)
        return {}

    raise typer.Exit(ending(work, summary))


@app.command(TICK, help="Make the atlas of the present model and grid if it is missing.")
def schedule_tick(config: ConfigOption, set_: SetOption = []) -> None:  # noqa: B006
    """What a timer runs: safe at any time, and twice at once."""
    summary: Summary = {"verb": TICK}

    def work() -> Summary:
        asked = load(schema.GenerateJob, config, set_)
        from save_dist.pipelines import schedule

        tick = schedule.look(asked, schedule.present_model(asked))
        summary.update(
            run_dir=str(tick.paths.root), plan_hash=tick.plan_hash, model=str(tick.model)
        )
        if tick.atlas is not None:
            return {"did": "nothing: the atlas is complete", "atlas": str(tick.atlas)}
        with lease.hold(tick.lease) as is_ours:
            if not is_ours:
                return {"did": "nothing: another run makes this atlas"}
            schedule.take_model(tick)
            return {"did": "generated", "stages": _execute("generate", tick.config)}

    raise typer.Exit(ending(work, summary, writes_result=True))


@app.command("leave-one-out", help="Hold out every value of a column in turn; who makes it best?")
def leave_out(
    config: ConfigOption,
    each: Annotated[str, typer.Option(help="Column whose values are held out one by one.")],
    condition: Annotated[
        list[str], typer.Option(help="What held-out cells have besides, e.g. condition=stim.")
    ],
    set_: SetOption = [],  # noqa: B006
) -> None:
    """One model per value, `cluster.n_workers` at a time; run again to continue."""
    summary: Summary = {"verb": "leave-one-out"}

    def work() -> Summary:
        asked = load(schema.PipelineJob, config, set_)
        from save_dist.pipelines.leave_one_out import leave_one_out

        pairs = dict(pair.partition("=")[::2] for pair in condition)
        summary.update(run_dir=str(asked.run.dir), config_hash=config_hash(asked))
        found = _carry_out(
            "leave-one-out", asked, lambda context: leave_one_out(asked, context, each, pairs)
        )
        sys.stdout.write(found.pop("table"))
        return found

    raise typer.Exit(ending(work, summary, writes_result=True))


@app.command(help="The atlases that a run has made, and the newest complete one.")
def atlases(run: Annotated[Path, typer.Argument(help="Run folder.")]) -> None:
    """Every line of the run's catalogue, scheduled atlases too."""
    raise typer.Exit(ending(partial(atlases_of, run), {"verb": "atlases"}))


class _Doctors(TyperGroup):
    """A command of its own that also has a subcommand."""

    context_class = typer.Context  # what `doctor` is typed to get


doctors = typer.Typer(invoke_without_command=True, cls=_Doctors)
app.add_typer(doctors, name="doctor")


@doctors.callback(help="Check machine, cluster and configuration before a job runs on them.")
def doctor(
    context: typer.Context,
    config: Annotated[Path | None, typer.Option(help="Configuration of the job.")] = None,
    set_: SetOption = [],  # noqa: B006
    verb: Annotated[
        str | None, typer.Option(help="Job of the configuration; default: the name of the file.")
    ] = None,
) -> None:
    """One line per check, with the remedy; exit code 5 if one forbids starting."""
    if context.invoked_subcommand is not None:
        return
    summary: Summary = {"verb": "doctor"}

    def work() -> Summary:
        from save_dist.pipelines import doctor as physician
        from save_dist.pipelines.checks import table

        found = physician.doctor(config, verb, set_)
        sys.stdout.write(render_table(table(found)))
        summary.update(checks=[dataclasses.asdict(check) for check in found])
        return physician.report(found)

    raise typer.Exit(ending(work, summary))


@doctors.command("data", help="How a SOMA store lies, how fast it is read, what a copy would gain.")
def doctor_data(
    uri: Annotated[str, typer.Argument(help="Folder or URI of the experiment.")],
    measurement: Annotated[str, typer.Option(help="Measurement.")] = "RNA",
    layer: Annotated[str, typer.Option(help="Layer of raw counts.")] = "raw",
    tiledb: Annotated[
        list[str], typer.Option(help="Setting of TileDB, e.g. vfs.s3.region=us-west-2.")
    ] = [],  # noqa: B006
) -> None:
    """Reads a few thousand cells; changes nothing."""

    def work() -> Summary:
        from save_dist.pipelines import data_doctor
        from save_dist.pipelines.checks import table

        settings = dict(pair.partition("=")[::2] for pair in tiledb)
        source = schema.SourceConfig(uri=uri, measurement=measurement, layer=layer, tiledb=settings)
        found, facts = data_doctor.examine(source)
        sys.stdout.write(render_table(table(found)))
        return {"checks": [dataclasses.asdict(check) for check in found], **facts}

    raise typer.Exit(ending(work, {"verb": "doctor data"}))


@app.command(help="How far a run is; reads its files only, so it may be running.")
def status(run: Annotated[Path, typer.Argument(help="Run folder.")]) -> None:
    """Stages, steps, parts, pace and time left."""
    summary: Summary = {"verb": "status"}

    def work() -> Summary:
        found = progress_of.status(run)
        sys.stdout.write(f"{progress_of.headline(found)}\n")
        sys.stdout.write(render_table(progress_of.table(found)))
        return {"run": dataclasses.asdict(found)}

    raise typer.Exit(ending(work, summary))


def _checked_verb(verb: str) -> str:
    if verb not in SUBMITTED:
        raise ConfigError(f"{verb!r} is no job; choose one of {', '.join(SUBMITTED)}")
    return verb


def main() -> None:
    """Entry point of the `save-dist` command."""
    app()


def job_main(verb: str) -> None:
    """Entry point of `jobs/VERB.py`: the same arguments without the verb."""
    sys.argv.insert(1, verb)
    main()


def run_job(verb: str, path: Path, overrides: list[str], *, dry_run: bool = False) -> int:
    """Run one job; returns its exit code. The last line on stdout is a JSON summary."""
    summary: Summary = {"verb": verb}

    def work() -> Summary:
        config = load(JOBS[verb], path, overrides)
        summary.update(run_dir=str(config.run.dir), config_hash=config_hash(config))
        if dry_run:
            return {"status": "planned", "plan": verbs.preview(verb, config)}
        return {"stages": _execute(verb, config)}

    return ending(work, summary, writes_result=not dry_run)


def _execute(verb: str, config: schema.JobConfig) -> Summary:
    return _carry_out(verb, config, lambda context: verbs.run(verb, config, context))


def _carry_out(verb: str, config: schema.JobConfig, job: Callable[[Context], Summary]) -> Summary:
    """A job within its run folder, journal and tracking."""
    paths = RunPaths(config.run.dir, config.run.atlas)
    write_bytes(paths.config, dump_yaml(config).encode())  # fails now if the folder takes no files
    journal = open_journal(paths.metrics)
    context = Context(paths, journal, make_progress())
    identity = config_hash(config)
    with (
        _terminate_as_interrupt(),
        _mirror(config, paths),
        journal.running(identity),
        sampled(journal),
    ):
        journal.params(resolved(config))
        journal.tags({"verb": verb, "config_hash": identity} | provenance(paths))
        journal.artifact(paths.config)
        return job(context)


@contextlib.contextmanager
def _mirror(config: schema.JobConfig, paths: RunPaths) -> Iterator[None]:
    if config.tracking.backend == "none":
        yield
        return
    with Mirror(paths.metrics, config.tracking.uri, config.tracking.experiment):
        yield


@contextlib.contextmanager
def _terminate_as_interrupt() -> Iterator[None]:
    """SIGTERM (a scheduler stopping the job) ends it like Ctrl-C: cleanly, exit code 130."""

    def interrupt(number: int, frame: object) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
