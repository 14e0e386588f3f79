"""A store of others, found, checked and pinned, so that its cells are used where they are."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from save_dist.config.schema import SourceConfig
from save_dist.core.errors import DataError
from save_dist.data import census
from save_dist.data.source import SomaSource, StoreLocator, is_remote

PRIMARY_COLUMN = "is_primary_data"
"""obs column of the CELLxGENE schema: false for a cell that stands in several data sets."""


class Attached(NamedTuple):
    """What was found."""

    locator: StoreLocator
    """Everything that decides which cells are meant: place, time, filter."""
    n_cells: int
    n_genes: int


def attach(config: SourceConfig, columns: Sequence[str], now: int) -> Attached:
    """Open the store, see that it holds what is asked for, and pin it.

    Args:
        config: the store and the cells of it.
        columns: condition columns, which obs must have.
        now: milliseconds since 1970, the time to pin if the configuration names none.

    Raises:
        ConfigError, InfrastructureError: see `census.locate`.
        DataError: if there is no such store, measurement, layer or column, if genes have no
            unique names, or the filter is malformed or matches no cell.
    """
    locator = locate(config)
    if locator.timestamp is None:
        locator = dataclasses.replace(locator, timestamp=now)
    with SomaSource(locator) as source:
        known = source.obs_columns
        n_genes = len(source.gene_ids)
    names = [*columns, *([config.cell_column] if config.cell_column else [])]
    if missing := [c for c in names if c not in known]:
        raise DataError(
            f"obs of {locator.uri} has no column {', '.join(missing)}; it has: {', '.join(known)}; "
            "correct conditions.columns or source.cell_column"
        )
    locator = dataclasses.replace(locator, value_filter=_filter(config, known))
    with SomaSource(locator) as source:
        n_cells = source.n_obs
    if n_cells == 0:
        raise DataError(
            f"no cell of {locator.uri} matches {locator.value_filter or 'anything: it is empty'}; "
            "correct source.value_filter, or set source.primary_only: false"
        )
    return Attached(locator, n_cells, n_genes)


def locate(config: SourceConfig) -> StoreLocator:
    """Where the store is, and which parts of it are meant; all its cells, nothing opened.

    Raises:
        ConfigError, DataError, InfrastructureError: see `census.locate`.
    """
    uri, settings = _place(config)
    return StoreLocator(
        uri,
        timestamp=config.timestamp,
        measurement=config.measurement,
        layer=config.layer,
        gene_column=config.gene_column,
        cell_column=config.cell_column,
        tiledb=tuple(sorted((settings | config.tiledb).items())),
    )


def _place(config: SourceConfig) -> tuple[str, dict[str, str]]:
    if config.uri is None:
        assert config.census is not None  # checked by the schema
        return census.locate(config.census, config.organism)
    return config.uri if is_remote(config.uri) else str(Path(config.uri).absolute()), {}


def _filter(config: SourceConfig, known: Sequence[str]) -> str | None:
    parts = [f"({config.value_filter})"] if config.value_filter else []
    if config.primary_only and PRIMARY_COLUMN in known:
        parts.append(f"({PRIMARY_COLUMN} == True)")
    return " and ".join(parts) or None
