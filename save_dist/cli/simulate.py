"""`save-dist simulate`: cells whose truth is known, and fresh cells from that truth."""

import dataclasses
import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from save_dist.cli.endings import ending
from save_dist.data.simulation import QUICK, Form, SimulationConfig
from save_dist.pipelines.context import Summary


class _CellsFirst(TyperGroup):
    """`simulate FILE` means `simulate cells FILE`."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        if args and args[0] not in (*self.commands, "--help"):
            args = ["cells", *args]
        return super().parse_args(ctx, args)


simulation = typer.Typer(cls=_CellsFirst, no_args_is_help=True)

CellsArgument = Annotated[
    Path, typer.Argument(help="File to write: .h5ad, replaced if it is there, or .soma.")
]
FormOption = Annotated[
    Form | None, typer.Option("--format", help="Where the ending of the file does not say it.")
]


def _simulate_cells(output: CellsArgument, form: FormOption = None, **settings: Any) -> None:
    """Draw a data set; every combination has cells, `conditions.held_out` keeps some back."""

    def work() -> Summary:
        from save_dist.pipelines.simulate import simulate

        return simulate(output, SimulationConfig(**settings), form)

    raise typer.Exit(ending(work, {"verb": "simulate"}))


def _with_settings(command: Callable[..., None]) -> Callable[..., None]:
    """The command with an option for every setting of a simulation, `n_types` as `--types`."""
    own = list(inspect.signature(command).parameters.values())[:-1]
    options = [
        inspect.Parameter(
            field.name,
            inspect.Parameter.KEYWORD_ONLY,
            default=getattr(QUICK, field.name),
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
        from save_dist.pipelines.simulate import parse_condition, sample

        asked = parse_condition(condition)
        return sample(output, simulated, asked, cells, seed, form)

    raise typer.Exit(ending(work, {"verb": "simulate truth"}))
