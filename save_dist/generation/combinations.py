"""The conditions a grid asks for, as an ordered, numbered set.

A plain product is never listed: condition k follows from k by division. Only a grid with include
or exclude is listed, as int16 codes.
"""

import itertools
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Int16, Int64
from numpy import ndarray

from save_dist.config.schema import Condition, GridConfig
from save_dist.core.errors import ConfigError, listed
from save_dist.vocab.conditions import ConditionVocabulary

MAX_CONDITIONS = 2**40
"""Conditions of a plain product at most; keeps every row number within 64 bits."""
MAX_LISTED = 20_000_000
"""Conditions at most where include or exclude makes listing them necessary."""


@dataclass(frozen=True)
class Product:
    """All combinations of the chosen codes, ascending, last column fastest."""

    choices: tuple[tuple[int, ...], ...]

    @property
    def size(self) -> int:
        """Number of conditions."""
        return math.prod(len(codes) for codes in self.choices)

    def codes(self, numbers: Int64[ndarray, " condition"]) -> Int16[ndarray, "condition field"]:
        """Codes of the conditions with these numbers."""
        places = np.unravel_index(numbers, [len(codes) for codes in self.choices])
        chosen = zip(self.choices, places, strict=True)
        return np.stack([np.array(codes, np.int16)[p] for codes, p in chosen], axis=1)

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
    product = _chosen(grid.columns, vocabulary, "grid.columns")
    if not grid.include and not grid.exclude:
        _check_size(product.size, MAX_CONDITIONS)
        return product
    added = [_chosen(_values(p), vocabulary, "grid.include") for p in grid.include]
    _check_size(product.size + sum(a.size for a in added), MAX_LISTED)
    rows = _all_codes(product)
    for pattern in grid.exclude:
        rows = rows[~_matches(rows, _chosen(_values(pattern), vocabulary, "grid.exclude"))]
    if not added:
        _check_size(len(rows), MAX_LISTED)
        return Listed(rows)
    return Listed(np.unique(np.concatenate([rows, *map(_all_codes, added)]), axis=0))


def _chosen(
    columns: Mapping[str, str | Sequence[str]], vocabulary: ConditionVocabulary, where: str
) -> Product:
    """Product of the values per column; a column not named takes all its values."""
    choices = []
    for column, known in zip(vocabulary.columns, vocabulary.categories, strict=True):
        code = {value: i for i, value in enumerate(known)}
        values = columns.get(column, "all")
        wanted = known if isinstance(values, str) else values
        if unknown := [value for value in wanted if value not in code]:
            raise ConfigError(
                f"{where}: the model knows no {column} {listed(unknown, 5)!r}; known values: "
                f"{listed(known)}"
            )
        choices.append(tuple(sorted({code[value] for value in wanted})))
    return Product(tuple(choices))


def _values(pattern: Condition) -> dict[str, list[str]]:
    return {column: [value] for column, value in pattern.items()}


def _all_codes(product: Product) -> Int16[ndarray, "condition field"]:
    return product.codes(np.arange(product.size, dtype=np.int64))


def _matches(
    rows: Int16[ndarray, "condition field"], pattern: Product
) -> Bool[ndarray, " condition"]:
    inside = [np.isin(rows[:, i], codes) for i, codes in enumerate(pattern.choices)]
    found: ndarray = np.logical_and.reduce(inside)
    return found


def _check_names(grid: GridConfig, vocabulary: ConditionVocabulary) -> None:
    places: dict[str, Iterable[str]] = {
        "grid.columns": grid.columns,
        "grid.include": itertools.chain.from_iterable(grid.include),
        "grid.exclude": itertools.chain.from_iterable(grid.exclude),
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
            f"({MAX_LISTED} with include or exclude); name fewer values in grid.columns"
        )
