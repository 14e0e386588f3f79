"""Simulate: settings -> cells on disk; and cells on disk -> fresh cells from their true law."""

from pathlib import Path

from save_dist.core.errors import ConfigError
from save_dist.data.simulate import sample_truth
from save_dist.data.simulate import simulate as draw
from save_dist.data.simulated_files import check_output, form_of, read_settings, write_cells
from save_dist.data.simulation import Form, SimulationConfig
from save_dist.pipelines.context import Summary


def simulate(output: Path, config: SimulationConfig, form: Form | None = None) -> Summary:
    """A simulated data set on disk.

    Raises:
        ConfigError: if the format cannot be told, or the output exists and is no file.
    """
    form = form_of(output, form)
    check_output(output, form)
    adata = draw(config)
    write_cells(adata, output, form)
    return {"output": str(output), "n_cells": adata.n_obs, "n_genes": adata.n_vars}


def sample(
    output: Path,
    simulated: Path,
    condition: dict[str, str],
    n_cells: int,
    seed: int,
    form: Form | None = None,
) -> Summary:
    """Fresh cells of one condition of a simulated data set, whether it holds such cells or not.

    Raises:
        ConfigError: as `simulate`, or if `simulated` is no simulated data set, or the condition
            names an unknown column or value.
    """
    form = form_of(output, form)
    check_output(output, form)
    config = read_settings(simulated)
    adata = sample_truth(config, condition, n_cells, seed)
    write_cells(adata, output, form)
    facts = {"output": str(output), "n_cells": adata.n_obs, "n_genes": adata.n_vars}
    return facts | {"condition": condition}


def parse_condition(pairs: list[str]) -> dict[str, str]:
    """`column=value` pairs as a condition.

    >>> parse_condition(["cell_type=type-0", "condition=stim-1"])
    {'cell_type': 'type-0', 'condition': 'stim-1'}

    Raises:
        ConfigError: if a pair is none, or a column is given twice.
    """
    condition: dict[str, str] = {}
    for pair in pairs:
        column, sign, value = pair.partition("=")
        if not sign or not column or not value:
            raise ConfigError(f"--condition {pair!r} is not of the form column=value")
        if column in condition:
            raise ConfigError(
                f"--condition names {column} twice, as {condition[column]!r} and {value!r}; "
                "keep one, or make one file for each"
            )
        condition[column] = value
    return condition
