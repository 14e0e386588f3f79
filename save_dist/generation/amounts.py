"""How many cells each condition gets, and which rows they take: one condition after the other."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from jaxtyping import Int16, Int64
from numpy import ndarray

from save_dist.config.schema import CellTable, ConditionCells, FromFile, GridConfig
from save_dist.core.errors import ConfigError
from save_dist.generation.combinations import (
    Combinations,
    listing,
    matching,
    positions_in,
    rows_within,
)
from save_dist.generation.tables import cells_of, codes_of
from save_dist.vocab.conditions import ConditionVocabulary

Numbers = Int64[ndarray, " condition"]


@dataclass(frozen=True)
class Even:
    """The same number of cells for every condition; every answer is arithmetic."""

    n_conditions: int
    n: int

    @property
    def n_cells(self) -> int:
        """Cells of all conditions."""
        return self.n_conditions * self.n

    def at(self, row: int) -> int:
        """Number of the condition that a row belongs to."""
        return row // self.n

    def ends(self, numbers: Numbers) -> Numbers:
        """The row after the last of each condition."""
        return (numbers + 1) * self.n

    def of(self, numbers: Numbers) -> Numbers:
        """Cells of each condition."""
        return np.full(numbers.size, self.n, np.int64)


@dataclass(frozen=True)
class Uneven:
    """A number of cells per condition, by cumulative sums."""

    cells: Int64[ndarray, " condition"]

    @cached_property
    def _ends(self) -> Int64[ndarray, " condition"]:
        return np.cumsum(self.cells, dtype=np.int64)

    @property
    def n_cells(self) -> int:
        """Cells of all conditions."""
        return int(self._ends[-1]) if self.cells.size else 0

    def at(self, row: int) -> int:
        """Number of the condition that a row belongs to."""
        return int(np.searchsorted(self._ends, row, side="right"))

    def ends(self, numbers: Numbers) -> Numbers:
        """The row after the last of each condition."""
        found: ndarray = self._ends[numbers]
        return found

    def of(self, numbers: Numbers) -> Numbers:
        """Cells of each condition."""
        found: ndarray = self.cells[numbers]
        return found


Amounts = Even | Uneven


def count_cells(
    grid: GridConfig, conditions: Combinations, vocabulary: ConditionVocabulary
) -> tuple[Combinations, Amounts]:
    """The conditions, listed if they have to be, and how many cells each gets.

    Args:
        grid: settled, so that it holds no file and no `as_many_as_real`.
        conditions: of the grid.
        vocabulary: columns and values there are.

    Raises:
        ConfigError: if a list or table names no condition of the grid, or leaves one without a
            number.
    """
    wanted = grid.cells_per_condition
    if isinstance(wanted, int):
        return conditions, Even(conditions.size, wanted)
    assert not isinstance(wanted, str | FromFile), "a settled grid holds neither"
    rows = listing(conditions)
    if isinstance(wanted, CellTable):
        cells = _by_table(wanted, rows.rows, vocabulary, grid.masked)
    else:
        cells = _by_list(wanted, rows.rows, vocabulary, grid.masked)
    if not cells.all():
        if grid.cells_otherwise is None:
            _refuse(rows.rows[cells == 0], vocabulary)
        cells[cells == 0] = grid.cells_otherwise
    return rows, Uneven(cells)


def _by_list(
    entries: Sequence[ConditionCells],
    rows: Int16[ndarray, "condition field"],
    vocabulary: ConditionVocabulary,
    masked: Sequence[str],
) -> Int64[ndarray, " condition"]:
    """Cells by the last entry that matches; 0 where none does."""
    cells = np.zeros(len(rows), np.int64)
    for entry in entries:
        values = {column: [value] for column, value in entry.condition.items()}
        pattern = matching(values, vocabulary, "grid.cells_per_condition", masked)
        inside = rows_within(rows, pattern)
        if not inside.any():
            raise ConfigError(
                f"grid.cells_per_condition names {entry.condition}, which matches no condition of "
                "the grid; correct it or take it out"
            )
        cells[inside] = entry.n
    return cells


def _by_table(
    table: CellTable,
    rows: Int16[ndarray, "condition field"],
    vocabulary: ConditionVocabulary,
    masked: Sequence[str],
) -> Int64[ndarray, " condition"]:
    """Cells by the row that names the condition; 0 where none does."""
    if hidden := sorted(set(table.columns) & set(masked)):
        raise ConfigError(
            f"the table of grid.cells_per_condition has a column {hidden[0]!r}, which grid.masked "
            "leaves without a value; take it out of one of them"
        )
    named = codes_of(table, vocabulary)
    fields = [vocabulary.columns.index(column) for column in table.columns]
    places = positions_in(named, rows[:, fields])
    is_used = np.zeros(len(named), np.bool_)
    is_used[places[places >= 0]] = True
    if not is_used.all():
        first = int(np.flatnonzero(~is_used)[0])
        row = zip(table.columns, fields, named[first].tolist(), strict=True)
        condition = {column: vocabulary.categories[field][code] for column, field, code in row}
        raise ConfigError(
            f"{(~is_used).sum()} rows of the table of grid.cells_per_condition name no condition "
            f"of the grid, e.g. {condition}; take them out, or ask for these conditions"
        )
    cells = np.zeros(len(rows), np.int64)
    cells[places >= 0] = cells_of(table)[places[places >= 0]]
    return cells


def _refuse(rows: Int16[ndarray, "condition field"], vocabulary: ConditionVocabulary) -> None:
    shown = "; ".join(str(vocabulary.decode_one(row)) for row in rows[:3].tolist())
    raise ConfigError(
        f"grid.cells_per_condition gives no number of cells to {len(rows)} conditions: {shown}"
        f"{' ...' if len(rows) > 3 else ''}; exclude them, or set grid.cells_otherwise"
    )
