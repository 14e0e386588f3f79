"""The conditions a grid asks for, as an ordered, numbered set.

A plain product is never listed: condition k follows from k by division. Only a grid with include
or exclude, or with cells per condition that differ, is listed, as int16 codes.
"""

import itertools
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import cached_property

import numpy as np
import pandas as pd
from jaxtyping import Bool, Int16, Int64
from numpy import ndarray

from save_dist.config.schema import CellTable, Condition, FromFile, GridConfig
from save_dist.core.errors import ConfigError, listed
from save_dist.vocab.conditions import ConditionVocabulary

MAX_CONDITIONS = 2**40
"""Conditions of a plain product at most; keeps every row number within 64 bits."""
MAX_LISTED = 20_000_000
"""Conditions at most where something makes listing them necessary."""


@dataclass(frozen=True)
class Product:
    """All combinations of the chosen codes, ascending, last column fastest."""

    choices: tuple[tuple[int, ...], ...]

    @cached_property
    def _arrays(self) -> list[Int16[ndarray, " code"]]:
        return [np.array(codes, np.int16) for codes in self.choices]

    @property
    def size(self) -> int:
        """Number of conditions."""
        return math.prod(len(codes) for codes in self.choices)

    def codes(self, numbers: Int64[ndarray, " condition"]) -> Int16[ndarray, "condition field"]:
        """Codes of the conditions with these numbers."""
        places = np.unravel_index(numbers, [codes.size for codes in self._arrays])
        return np.stack([c[p] for c, p in zip(self._arrays, places, strict=True)], axis=1)

    def find(self, rows: Int16[ndarray, "condition field"]) -> Int64[ndarray, " condition"]:
        """Numbers of conditions given by their codes; -1 for those that are not among these."""
        places = [
            pd.Index(codes).get_indexer(pd.Index(column))
            for codes, column in zip(self._arrays, rows.T, strict=True)
        ]
        is_here = np.logical_and.reduce([place >= 0 for place in places])
        numbers = np.full(len(rows), -1, np.int64)
        inside = tuple(place[is_here] for place in places)
        numbers[is_here] = np.ravel_multi_index(inside, [len(codes) for codes in self.choices])
        return numbers

    def n_within(self, codes: Iterable[tuple[int, ...]]) -> int:
        """How many of the given conditions, each named once, are among these."""
        chosen = [set(choice) for choice in self.choices]
        return sum(all(c in s for c, s in zip(key, chosen, strict=True)) for key in codes)


@dataclass(frozen=True)
class Listed:
    """Conditions one by one, ascending."""

    rows: Int16[ndarray, "condition field"]

    @property
    def size(self) -> int:
        """Number of conditions."""
        return len(self.rows)

    def codes(self, numbers: Int64[ndarray, " condition"]) -> Int16[ndarray, "condition field"]:
        """Codes of the conditions with these numbers."""
        rows: ndarray = self.rows[numbers]
        return rows

    def find(self, rows: Int16[ndarray, "condition field"]) -> Int64[ndarray, " condition"]:
        """Numbers of conditions given by their codes; -1 for those that are not among these."""
        return positions_in(self.rows, rows)

    def n_within(self, codes: Iterable[tuple[int, ...]]) -> int:
        """How many of the given conditions, each named once, are among these."""
        wanted = set(codes)
        return sum(tuple(row) in wanted for row in self.rows.tolist())


Combinations = Product | Listed


def resolve(grid: GridConfig, vocabulary: ConditionVocabulary) -> Combinations:
    """The product of the columns, less what matches `exclude`, plus all that `include` names.

    Raises:
        ConfigError: for an unknown column or value, an empty grid or one too large.
    """
    _check_names(grid, vocabulary)
    columns = {column: _as_list(values) for column, values in grid.columns.items()}
    product = matching(columns, vocabulary, "grid.columns", grid.masked)
    if not grid.include and not grid.exclude:
        _check_size(product.size, MAX_CONDITIONS)
        return product
    added = [matching(_values(p), vocabulary, "grid.include", grid.masked) for p in grid.include]
    _check_size(product.size + sum(a.size for a in added), MAX_LISTED)
    rows = all_codes(product)
    for pattern in grid.exclude:
        left_out = matching(_values(pattern), vocabulary, "grid.exclude", grid.masked)
        rows = rows[~rows_within(rows, left_out)]
    if not added:
        _check_size(len(rows), MAX_LISTED)
        return Listed(rows)
    return Listed(np.unique(np.concatenate([rows, *map(all_codes, added)]), axis=0))


def listing(conditions: Combinations) -> Listed:
    """The same conditions one by one.

    Raises:
        ConfigError: if there are too many.
    """
    if isinstance(conditions, Listed):
        return conditions
    _check_size(conditions.size, MAX_LISTED)
    return Listed(all_codes(conditions))


def matching(
    columns: Mapping[str, Sequence[str] | None],
    vocabulary: ConditionVocabulary,
    where: str,
    masked: Sequence[str] = (),
) -> Product:
    """Product of the values per column; a column not named takes all its values.

    Args:
        columns: values or patterns (`CD*`) per column; None: all. A value that looks like a
            pattern is itself.
        vocabulary: columns and values there are.
        where: setting, for messages.
        masked: columns that have the code of MASK alone.

    Raises:
        ConfigError: for a masked column, or values and patterns that match nothing.
    """
    if hidden := sorted(set(columns) & set(masked)):
        raise ConfigError(
            f"{where} names {hidden[0]!r}, which grid.masked leaves without a value; take it out "
            "of one of them"
        )
    choices: list[tuple[int, ...]] = []
    for column, known in zip(vocabulary.columns, vocabulary.categories, strict=True):
        if column in masked:
            choices.append((len(known),))
            continue
        values = columns.get(column)
        wanted = range(len(known)) if values is None else codes_for(column, values, known, where)
        choices.append(tuple(wanted))
    return Product(tuple(choices))


def all_codes(conditions: Combinations) -> Int16[ndarray, "condition field"]:
    """Codes of all conditions, in their order."""
    return conditions.codes(np.arange(conditions.size, dtype=np.int64))


def rows_within(
    rows: Int16[ndarray, "condition field"], pattern: Product
) -> Bool[ndarray, " condition"]:
    """Which conditions a product holds."""
    inside = [np.isin(rows[:, i], codes) for i, codes in enumerate(pattern.choices)]
    found: ndarray = np.logical_and.reduce(inside)
    return found


def numbers_within(conditions: Combinations, wanted: Product) -> Int64[ndarray, " condition"]:
    """Numbers, ascending, of the conditions that a product holds."""
    if isinstance(conditions, Listed):
        return np.flatnonzero(rows_within(conditions.rows, wanted))
    places = [
        np.flatnonzero(np.isin(own, asked))
        for own, asked in zip(conditions.choices, wanted.choices, strict=True)
    ]
    shape = [len(codes) for codes in conditions.choices]
    found: ndarray = np.ravel_multi_index(np.ix_(*places), shape).ravel()
    return found.astype(np.int64)


def positions_in(
    table: Int16[ndarray, "row field"], rows: Int16[ndarray, "condition field"]
) -> Int64[ndarray, " condition"]:
    """Where each condition stands in a table of distinct conditions; -1 where it does not."""
    index = pd.MultiIndex.from_arrays(list(table.T))
    found: ndarray = index.get_indexer(pd.MultiIndex.from_arrays(list(rows.T)))
    return found.astype(np.int64)


def codes_for(
    column: str, values: Sequence[str], known: Sequence[str], where: str
) -> Sequence[int]:
    """Codes that the values and patterns stand for, ascending."""
    code = {value: i for i, value in enumerate(known)}
    found: set[int] = set()
    unknown = []
    for value in values:
        hits = (
            [code[value]]
            if value in code
            else [i for i, name in enumerate(known) if fnmatchcase(name, value)]
        )
        found.update(hits)
        if not hits:
            unknown.append(value)
    if unknown:
        raise ConfigError(
            f"{where}: the model knows no {column} {listed(unknown, 5)!r}; known values: "
            f"{listed(known)}"
        )
    return sorted(found)


def _as_list(values: str | list[str] | FromFile) -> list[str] | None:
    assert not isinstance(values, FromFile), "files are read before planning"
    if isinstance(values, str):
        return None if values == "all" else [values]
    return values


def _values(pattern: Condition) -> dict[str, list[str]]:
    return {column: [value] for column, value in pattern.items()}


def _check_names(grid: GridConfig, vocabulary: ConditionVocabulary) -> None:
    cells = grid.cells_per_condition
    named: Iterable[str] = ()
    if isinstance(cells, CellTable):
        named = cells.columns
    elif isinstance(cells, list):
        named = itertools.chain.from_iterable(entry.condition for entry in cells)
    places: dict[str, Iterable[str]] = {
        "grid.columns": grid.columns,
        "grid.include": itertools.chain.from_iterable(grid.include),
        "grid.exclude": itertools.chain.from_iterable(grid.exclude),
        "grid.masked": grid.masked,
        "grid.cells_per_condition": named,
        "grid.guidance.columns": grid.guidance.columns,
    }
    for where, names in places.items():
        if unknown := sorted(set(names) - set(vocabulary.columns)):
            raise ConfigError(
                f"{where}: unknown condition column {listed(unknown, 5)!r}; the model knows "
                f"{listed(vocabulary.columns)}"
            )


def _check_size(n_conditions: int, limit: int) -> None:
    if n_conditions == 0:
        raise ConfigError(
            "the grid is empty: grid.columns and grid.exclude leave no combination and "
            "grid.include adds none; name at least one"
        )
    if n_conditions > limit:
        raise ConfigError(
            f"the grid asks for {n_conditions} combinations, at most {limit} are possible "
            f"({MAX_LISTED} with include, exclude or cells per condition that differ); name fewer "
            "values in grid.columns"
        )
