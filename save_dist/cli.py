"""`save-dist VERB --config FILE [--set a.b=c ...] [--dry-run]`: parse, run, say how it ended.

The only place where logging is configured, signals are caught and exit codes are made.
"""

import contextlib
import dataclasses
import inspect
import logging
import os
import signal
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from save_dist.cluster import submit as submission
from save_dist.cluster.jobs import RayJobs
from save_dist.config import schema
from save_dist.config.load import JOBS, config_hash, dump_yaml, load, read_yaml, resolved
from save_dist.core import lease
from save_dist.core.durable import write_bytes, write_json
from save_dist.core.errors import ConfigError, InfrastructureError, PartialError, SaveDistError
from save_dist.core.paths import RunPaths
from save_dist.core.redaction import RedactingFormatter, redact
from save_dist.data.simulated_files import Form
from save_dist.data.truth import SimulationConfig
from save_dist.pipelines import data_doctor, schedule, verbs
from save_dist.pipelines import doctor as physician
from save_dist.pipelines import export as export_forms
from save_dist.pipelines import simulate as simulate_cells
from save_dist.pipelines import status as progress_of
from save_dist.pipelines.context import Context, Summary
from save_dist.pipelines.provenance import provenance
from save_dist.tracking.mlflow import Mirror
from save_dist.tracking.mlflow import sync as replay
from save_dist.tracking.progress import make_progress, print_summary, render_table
from save_dist.tracking.tracker import open_journal

logger = logging.getLogger(__name__)

STOPPED = 130
PARTIAL = PartialError.exit_code
app = typer.Typer(
    help="Train SAVE on single cells, generate atlases of virtual cells, and judge them.",
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


def _add_verb(verb: str) -> None:
    def command(config: ConfigOption, set_: SetOption = [], dry_run: DryRunOption = False) -> None:  # noqa: B006
        raise typer.Exit(run_job(verb, config, set_, dry_run=dry_run))

    app.command(verb, help=verbs.HELP[verb])(command)


for _verb in JOBS:
    _add_verb(_verb)


class _CellsFirst(TyperGroup):
    """`simulate FILE` means `simulate cells FILE`."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        if args and args[0] not in (*self.commands, "--help"):
            args = ["cells", *args]
        return super().parse_args(ctx, args)


simulation = typer.Typer(cls=_CellsFirst, no_args_is_help=True)
app.add_typer(
    simulation, name="simulate", help="Simulated cells whose truth is known: `simulate FILE`."
)

CellsArgument = Annotated[
    Path, typer.Argument(help="File to write: .h5ad, replaced if it is there, or .soma.")
]
FormOption = Annotated[
    Form | None, typer.Option("--format", help="Where the ending of the file does not say it.")
]


def _simulate_cells(output: CellsArgument, form: FormOption = None, **settings: Any) -> None:
    """Draw a data set; every combination has cells, `conditions.held_out` keeps some back."""

    def work() -> Summary:
        return simulate_cells.simulate(output, SimulationConfig(**settings), form)

    raise typer.Exit(_ending(work, {"verb": "simulate"}))


def _with_settings(command: Callable[..., None]) -> Callable[..., None]:
    """The command with an option for every setting of a simulation, `n_types` as `--types`."""
    own = list(inspect.signature(command).parameters.values())[:-1]
    options = [
        inspect.Parameter(
            field.name,
            inspect.Parameter.KEYWORD_ONLY,
            default=getattr(simulate_cells.QUICK, field.name),
            annotation=Annotated[
                field.type,
                typer.Option(
                    "--" + field.name.removeprefix("n_").replace("_", "-"),
                    help=field.metadata["meaning"],
                ),
            ],
        )
        for field in dataclasses.fields(SimulationConfig)
    ]
    command.__signature__ = inspect.Signature([*own, *options])  # type: ignore[attr-defined]
    return command


simulation.command("cells", help="Write a simulated data set. This is `simulate FILE`.")(
    _with_settings(_simulate_cells)
)


@simulation.command("truth", help="Write fresh cells of any combination of a simulated data set.")
def simulate_truth(
    output: CellsArgument,
    simulated: Annotated[
        Path, typer.Option("--from", help="Data set that `simulate` wrote; read for its settings.")
    ],
    condition: Annotated[
        list[str],
        typer.Option(help="column=value, repeatable; other columns vary as in the data set."),
    ] = [],  # noqa: B006
    cells: Annotated[int, typer.Option("--cells", "-n", help="Cells to draw.")] = 1000,
    seed: Annotated[int, typer.Option(help="Other seeds give other cells of one law.")] = 0,
    form: FormOption = None,
) -> None:
    """Cells from the true distribution, of combinations that were held out as well."""

    def work() -> Summary:
        asked = simulate_cells.parse_condition(condition)
        return simulate_cells.sample(output, simulated, asked, cells, seed, form)

    raise typer.Exit(_ending(work, {"verb": "simulate truth"}))


@app.command(help="Send MLflow what it missed while it was slow or down.")
def sync(run: Annotated[Path, typer.Argument(help="Run folder.")]) -> None:
    """Replay the journal of a run to the server its configuration names."""

    def work() -> Summary:
        paths = RunPaths(run)
        tracking = schema.TrackingConfig.model_validate(read_yaml(paths.config)["tracking"])
        return {"points": replay(paths.metrics, tracking.uri, tracking.experiment)}

    raise typer.Exit(_ending(work, {"verb": "sync"}))


@app.command(help="Check every byte of an atlas against its receipts and plan.")
def verify(
    atlas: Annotated[Path, typer.Argument(help="RUN/atlas.zarr")],
    mend: Annotated[bool, typer.Option(help="Make bad parts missing for `generate`.")] = False,
    resample: Annotated[int, typer.Option(help="Parts to sample again and compare.")] = 0,
    model: Annotated[
        Path | None, typer.Option(help="Model to sample with; default: `model` beside the atlas.")
    ] = None,
    seed: Annotated[int, typer.Option(help="Another seed chooses other parts.")] = 0,
) -> None:
    """Exit code 4 if a part is missing or altered, or comes out otherwise."""
    resampling = verbs.Resampling(resample, model, seed)
    work = partial(verbs.verify, atlas, mend=mend, resampling=resampling)
    raise typer.Exit(_ending(work, {"verb": "verify"}))


@app.command(help="Write an atlas in another form; goes on where it was killed.")
def export(
    atlas: Annotated[Path, typer.Argument(help="RUN/atlas.zarr")],
    output: Annotated[Path, typer.Argument(help="File or folder to write; never replaced.")],
    to: Annotated[str, typer.Option("--to", help=f"One of {', '.join(export_forms.FORMS)}.")],
) -> None:
    """One part in memory at a time."""
    work = partial(export_forms.export, atlas, output, to)
    raise typer.Exit(_ending(work, {"verb": "export"}))


@app.command(help="Run a job on a Ray cluster: start it, or join the same one if it runs.")
def submit(
    verb: Annotated[str, typer.Argument(help=f"One of {', '.join(JOBS)}.")],
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
        sent = submission.prepare(job, load(JOBS[job], config, set_), Path.cwd())
        client = RayJobs(address)
        started = submission.start(job, sent, client, driver_cpus=driver_cpus)
        summary.update(dataclasses.asdict(started), run_dir=str(sent.run.dir))
        if not wait:
            return {"status": "submitted"}
        result = submission.follow(client, started.submission_id, sys.stderr.write)
        summary.update(job=result.summary)
        submission.raise_failure(result, started.submission_id)
        return {}

    raise typer.Exit(_ending(work, summary))


@app.command("schedule-tick", help="Make the atlas of the present model and grid if it is missing.")
def schedule_tick(config: ConfigOption, set_: SetOption = []) -> None:  # noqa: B006
    """What a timer runs: safe at any time, and twice at once."""
    summary: Summary = {"verb": "schedule-tick"}

    def work() -> Summary:
        asked = load(schema.GenerateJob, config, set_)
        tick = schedule.look(asked)
        summary.update(run_dir=str(tick.paths.root), plan_hash=tick.plan_hash)
        if tick.atlas is not None:
            return {"did": "nothing: the atlas is complete", "atlas": str(tick.atlas)}
        with lease.hold(tick.lease) as is_ours:
            if not is_ours:
                return {"did": "nothing: another run makes this atlas"}
            schedule.take_model(tick, RunPaths(asked.run.dir).model)
            return {"did": "generated", "stages": _execute("generate", tick.config)}

    raise typer.Exit(_ending(work, summary, writes_result=True))


@app.command(help="The atlases that a run has made, and the newest complete one.")
def atlases(run: Annotated[Path, typer.Argument(help="Run folder.")]) -> None:
    """Every line of the run's catalogue, scheduled atlases too."""
    raise typer.Exit(_ending(partial(verbs.atlases, run), {"verb": "atlases"}))


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
        found = physician.doctor(config, verb, set_)
        sys.stdout.write(render_table(physician.table(found)))
        summary.update(checks=[dataclasses.asdict(check) for check in found])
        return physician.report(found)

    raise typer.Exit(_ending(work, summary))


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
        settings = dict(pair.partition("=")[::2] for pair in tiledb)
        source = schema.SourceConfig(uri=uri, measurement=measurement, layer=layer, tiledb=settings)
        found, facts = data_doctor.examine(source)
        sys.stdout.write(render_table(physician.table(found)))
        return {"checks": [dataclasses.asdict(check) for check in found], **facts}

    raise typer.Exit(_ending(work, {"verb": "doctor data"}))


@app.command(help="How far a run is; reads its files only, so it may be running.")
def status(run: Annotated[Path, typer.Argument(help="Run folder.")]) -> None:
    """Stages, steps, parts, pace and time left."""
    summary: Summary = {"verb": "status"}

    def work() -> Summary:
        found = progress_of.status(run)
        sys.stdout.write(f"{progress_of.headline(found)}\n")
        sys.stdout.write(render_table(progress_of.table(found)))
        return {"run": dataclasses.asdict(found)}

    raise typer.Exit(_ending(work, summary))


def _checked_verb(verb: str) -> str:
    if verb not in JOBS:
        raise ConfigError(f"{verb!r} is no job; choose one of {', '.join(JOBS)}")
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
            return {"status": "planned", "plan": verbs.PLANS[verb](config)}
        return {"stages": _execute(verb, config)}

    return _ending(work, summary, writes_result=not dry_run)


def _ending(work: Callable[[], Summary], summary: Summary, *, writes_result: bool = False) -> int:
    """Do the work and turn however it ends into a summary and an exit code."""
    _configure_logging()
    started = time.monotonic()
    code = 0
    summary["status"] = "done"
    try:
        summary |= work()
    except SaveDistError as e:
        code, text = e.exit_code, redact(str(e))
        summary |= {"status": "partial" if code == PARTIAL else "failed", "error": text}
        sys.stderr.write(f"error: {text}\n")
    except (KeyboardInterrupt, SystemExit):
        code = STOPPED
        summary |= {"status": "stopped", "error": "stopped by a signal; run again to continue"}
    except Exception as e:  # noqa: BLE001  # the last place that can say how the job ended
        code = InfrastructureError.exit_code
        summary |= {"status": "failed", "error": redact(f"unexpected {type(e).__name__}: {e}")}
        sys.stderr.write(redact(traceback.format_exc()))
    summary |= {"exit_code": code, "seconds": round(time.monotonic() - started, 1)}
    if writes_result and "run_dir" in summary:
        with contextlib.suppress(InfrastructureError):  # the summary is on stdout as well
            write_json(RunPaths(Path(summary["run_dir"])).result, summary)
    print_summary(summary)
    return code


def _execute(verb: str, config: schema.JobConfig) -> Summary:
    paths = RunPaths(config.run.dir)
    write_bytes(paths.config, dump_yaml(config).encode())  # fails now if the folder takes no files
    journal = open_journal(paths.metrics)
    context = Context(paths, journal, make_progress())
    identity = config_hash(config)
    with _terminate_as_interrupt(), _mirror(config, paths), journal.running(identity):
        journal.params(resolved(config))
        journal.tags({"verb": verb, "config_hash": identity} | provenance(paths))
        journal.artifact(paths.config)
        return verbs.RUN[verb](config, context)


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


def _configure_logging() -> None:
    level = os.environ.get("SAVE_DIST_LOG", "WARNING").upper()
    handler = logging.StreamHandler()
    handler.setFormatter(RedactingFormatter("%(asctime)s %(levelname)s %(name)s %(message)s"))
    logging.basicConfig(handlers=[handler])
    logging.getLogger("save_dist").setLevel(level)


if __name__ == "__main__":
    main()
