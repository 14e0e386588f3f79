"""Where the obs columns of an input come from: constants, label table, markers, its own obs."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import pandas as pd
from jaxtyping import Bool
from numpy import ndarray

from save_dist.config.schema import ConditionsConfig, IngestConfig, InputConfig
from save_dist.core.errors import ConfigError, DataError
from save_dist.data.annotate import MARKER_ORIGIN, join_labels, read_labels
from save_dist.data.readers import CellReader

_RESERVED = ("cell_id", "n_counts")


@dataclass(frozen=True)
class ObsRules:
    """Which columns obs gets, and where to look for them."""

    conditions: tuple[str, ...]
    others: tuple[str, ...]
    table: pd.DataFrame | None
    table_key: str
    marker_column: str | None
    """Column that markers will fill; not looked for in the files."""

    @property
    def columns(self) -> tuple[str, ...]:
        """All columns to write, each once: conditions, others, the one markers fill."""
        marked = (self.marker_column,) if self.marker_column else ()
        return tuple(dict.fromkeys((*self.conditions, *self.others, *marked)))

    @classmethod
    def of(cls, config: IngestConfig, conditions: ConditionsConfig) -> "ObsRules":
        """The rules a configuration asks for; reads the label table.

        Raises:
            ConfigError: if a column is asked for whose name the store uses itself.
            DataError: if the label table is missing or has no key column.
        """
        marked = [config.markers.column] if config.markers else []
        columns = [*conditions.columns, *config.obs_columns, *marked]
        if own := [c for c in columns if c in _RESERVED or c.startswith("soma_")]:
            raise ConfigError(
                f"columns {', '.join(own)} are written by the ingest itself; leave them out of "
                "conditions.columns, ingest.obs_columns and ingest.markers.column, or rename them"
            )
        for item in config.inputs:
            if unread := [ours for ours in item.rename.values() if ours not in columns]:
                raise ConfigError(
                    f"input {item.path} renames columns to {', '.join(unread)}, which nobody "
                    f"reads; columns read: {', '.join(columns)}: correct rename, or add them to "
                    "ingest.obs_columns"
                )
        table = read_labels(config.labels, config.labels_key) if config.labels else None
        marker_column = config.markers.column if config.markers and table is None else None
        return cls(
            conditions=tuple(c for c in conditions.columns if c != "input"),
            others=tuple(c for c in config.obs_columns if c != "input"),
            table=table,
            table_key=config.labels_key,
            marker_column=marker_column,
        )

    def label_origin(self, config: IngestConfig) -> dict[str, str]:
        """Origin of the labels that are not in the input files."""
        if self.marker_column:
            return {self.marker_column: MARKER_ORIGIN}
        if self.table is None or config.labels is None:
            return {}
        constant = {c for item in config.inputs for c in item.obs}
        taken = [c for c in self.columns if c in self.table.columns and c not in constant]
        return dict.fromkeys(taken, f"label table {config.labels.name}")


def input_obs(
    reader: CellReader, item: InputConfig, rules: ObsRules
) -> tuple[pd.DataFrame, Bool[ndarray, " cell"]]:
    """The obs columns of one file, and which of its cells have every condition.

    A column comes from the constants of the input, else the label table, else the file's obs,
    under the name that the input gives it. The column that markers will fill is left out.

    Raises:
        DataError: naming a column that is nowhere, and what there is.
    """
    constants, stored = item.obs, _stored_names(reader, item.rename)
    joined = None
    if rules.table is not None:
        joined = join_labels(
            rules.table, rules.table_key, reader.cell_names, constants, str(reader.path)
        )
    frame = pd.DataFrame(index=pd.RangeIndex(reader.n_obs))
    for column in rules.columns:
        if column in constants:
            frame[column] = constants[column]
        elif joined is not None and column in joined:
            frame[column] = joined[column]
        elif column in stored and column != rules.marker_column:
            frame[column] = reader.obs_column(stored[column])
        elif column != rules.marker_column:
            raise DataError(_no_column(column, reader, constants, rules))
    known = [c for c in rules.conditions if c in frame]
    kept = (frame[known].notna() & (frame[known] != "")).all(axis=1)
    return frame, kept.to_numpy(dtype=np.bool_)


def _stored_names(reader: CellReader, rename: Mapping[str, str]) -> dict[str, str]:
    """Our name -> the file's own, for every column of its obs."""
    known = reader.obs_columns
    if missing := [theirs for theirs in rename if theirs not in known]:
        raise DataError(
            f"{reader.path}: obs has no column {', '.join(missing)} to rename; it has: "
            f"{', '.join(known) or 'no columns'}; correct rename of the input"
        )
    kept = {name: name for name in known if name not in rename}
    return kept | {ours: theirs for theirs, ours in rename.items()}


def _no_column(
    column: str, reader: CellReader, constants: Mapping[str, str], rules: ObsRules
) -> str:
    table = (
        "there is none"
        if rules.table is None
        else f"has {', '.join(map(str, rules.table.columns))}"
    )
    asked = "conditions.columns" if column in rules.conditions else "ingest.obs_columns"
    return (
        f"{reader.path}: column {column!r} of {asked} is nowhere: obs of the file has "
        f"{', '.join(reader.obs_columns) or 'no columns'}; the input's constants are "
        f"{', '.join(constants) or 'none'}; the label table {table}; correct the name, or "
        "give a constant, a rename, a label table or markers"
    )
