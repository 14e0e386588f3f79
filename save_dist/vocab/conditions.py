"""Condition columns and their codes, the only numbers by which the model knows a condition.

Code c of a column is its c-th category; the code after the last is MASK (value not given).
"""

import hashlib
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
import pandas as pd
from jaxtyping import Bool, Int, Int16
from numpy import ndarray

from save_dist.config.schema import ConditionsConfig
from save_dist.core.durable import canonical_json, digest
from save_dist.core.errors import ConfigError, DataError, VocabMismatchError, listed

logger = logging.getLogger(__name__)

MAX_CATEGORIES = np.iinfo(np.int16).max - 1  # one code is left for MASK


@dataclass(frozen=True)
class ConditionVocabulary:
    """What every condition code means.

    Args:
        columns: condition columns in the order of every condition tuple.
        categories: values of each column, sorted; position is the code.
        reference: reference value (the control) of the columns that have one.
        held_out: combinations never fitted on; a partial one holds out all it matches.
        notes: origin of the labels per column, where it is not the data set itself.
    """

    columns: tuple[str, ...]
    categories: tuple[tuple[str, ...], ...]
    reference: Mapping[str, str] = field(default_factory=dict)
    held_out: tuple[Mapping[str, str], ...] = ()
    notes: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for column, n in zip(self.columns, self.sizes, strict=True):
            if n > MAX_CATEGORIES:
                raise DataError(
                    f"condition column {column!r} has {n} values, expected at most "
                    f"{MAX_CATEGORIES}; is it a cell id or a number?"
                )

    @cached_property
    def hash(self) -> str:
        """sha256 over everything this vocabulary says."""
        return digest(self.to_json())

    @property
    def sizes(self) -> tuple[int, ...]:
        """Number of categories per column, MASK not counted."""
        return tuple(len(values) for values in self.categories)

    @property
    def mask_codes(self) -> tuple[int, ...]:
        """Code of MASK per column."""
        return self.sizes

    def encode(self, frame: pd.DataFrame) -> Int16[ndarray, "cell field"]:
        """Codes of every row.

        Args:
            frame: obs with all condition columns; further columns are ignored.

        Raises:
            DataError: if a column is missing, a value is empty or is no category.
        """
        _check_columns(frame, self.columns)
        codes = np.empty((len(frame), len(self.columns)), dtype=np.int16)
        for i, (column, known) in enumerate(zip(self.columns, self.categories, strict=True)):
            row_codes, values = _factorised(frame, column)
            places = pd.Index(known).get_indexer(pd.Index(values))
            if unknown := [v for v, place in zip(values, places, strict=True) if place < 0]:
                raise DataError(
                    f"column {column!r} holds unknown values {listed(unknown)}; known: "
                    f"{listed(known)}; build the vocabulary anew or leave these cells out"
                )
            codes[:, i] = places.astype(np.int16)[row_codes]
        return codes

    def encode_one(self, condition: Mapping[str, str]) -> tuple[int, ...]:
        """Codes of one condition; a column it does not name is masked.

        Raises:
            ConfigError: if a column or value is unknown.
        """
        _check_condition(
            condition, dict(zip(self.columns, self.categories, strict=True)), "condition"
        )
        return tuple(
            known.index(condition[column]) if column in condition else len(known)
            for column, known in zip(self.columns, self.categories, strict=True)
        )

    def decode_one(self, codes: Sequence[int]) -> dict[str, str]:
        """The condition behind `codes`; masked columns are absent.

        Raises:
            VocabMismatchError: if the codes cannot come from this vocabulary.
        """
        fits = len(codes) == len(self.columns) and all(
            0 <= code <= n for code, n in zip(codes, self.sizes, strict=True)
        )
        if not fits:
            raise VocabMismatchError(
                f"condition codes {tuple(int(c) for c in codes)} do not fit columns "
                f"{self.columns} with {self.sizes} values; use the vocabulary they came from"
            )
        named = zip(self.columns, self.categories, codes, strict=True)
        return {column: known[code] for column, known, code in named if code < len(known)}

    def identity(self, codes: Sequence[int]) -> int:
        """64-bit identity of a condition.

        Made from names and values, not from codes, so it stays when categories or columns that
        the condition does not name are added or moved.
        """
        text = canonical_json(self.decode_one(codes))
        return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big")

    def is_held_out(self, codes: Int[ndarray, "cell field"]) -> Bool[ndarray, " cell"]:
        """Which rows belong to a held-out combination."""
        held_out = np.zeros(len(codes), dtype=np.bool_)
        for pattern in self.held_out:
            wanted = self.encode_one(pattern)
            named = [i for i, column in enumerate(self.columns) if column in pattern]
            held_out |= np.all(codes[:, named] == np.array(wanted)[named], axis=1)
        return held_out

    def combinations(self, codes: Int[ndarray, "cell field"]) -> dict[tuple[int, ...], int]:
        """Number of rows per combination of codes, ordered by codes."""
        counts = pd.DataFrame(codes).value_counts(sort=False)
        found = {
            tuple(int(code) for code in key): int(n)
            for key, n in zip(counts.index, counts.to_numpy(), strict=True)
        }
        return dict(sorted(found.items()))

    def to_json(self) -> dict[str, Any]:
        """JSON-able form, read back by `from_json`."""
        return {
            "columns": list(self.columns),
            "categories": [list(values) for values in self.categories],
            "reference": dict(self.reference),
            "held_out": [dict(pattern) for pattern in self.held_out],
            "notes": dict(self.notes),
        }

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> "ConditionVocabulary":
        """The vocabulary that `to_json` wrote."""
        return cls(
            columns=tuple(value["columns"]),
            categories=tuple(tuple(values) for values in value["categories"]),
            reference=dict(value["reference"]),
            held_out=tuple(dict(pattern) for pattern in value["held_out"]),
            notes=dict(value["notes"]),
        )

    @classmethod
    def from_frame(
        cls,
        frame: pd.DataFrame,
        config: ConditionsConfig,
        notes: Mapping[str, str] | None = None,
    ) -> "ConditionVocabulary":
        """Vocabulary of the cells in `frame` that `config.exclude` leaves.

        Args:
            frame: obs of all cells, held-out ones too.
            config: columns, reference and held-out combinations.
            notes: column -> origin of its labels, e.g. "marker-derived".

        Raises:
            DataError: if a column is missing, has empty values, or no cell is left.
            ConfigError: if a reference or held-out value occurs in no cell, or a value occurs
                in held-out combinations alone.
        """
        _check_columns(frame, config.columns)
        excluded = np.zeros(len(frame), dtype=np.bool_)
        for pattern in config.exclude:
            excluded |= _agrees(frame, pattern)
        kept = frame.loc[~excluded, config.columns]
        if kept.empty:
            raise DataError(
                f"no cell is left of {len(frame)} after conditions.exclude={config.exclude}; "
                "give input cells or exclude less"
            )
        categories = {c: tuple(sorted(set(_factorised(kept, c)[1]))) for c in config.columns}
        _check_condition(config.reference, categories, "conditions.reference")
        for pattern in config.held_out:
            _check_condition(pattern, categories, "conditions.held_out")
        vocabulary = cls(
            columns=tuple(config.columns),
            categories=tuple(categories.values()),
            reference=dict(config.reference),
            held_out=tuple(dict(pattern) for pattern in config.held_out),
            notes=dict(notes or {}),
        )
        _check_all_seen(vocabulary, vocabulary.encode(kept))
        return vocabulary


def matches(frame: pd.DataFrame, patterns: Sequence[Mapping[str, str]]) -> Bool[ndarray, " cell"]:
    """Rows that agree with at least one pattern in every column the pattern names.

    A pattern that matches no row is logged as a warning: it is likely misspelt.

    Raises:
        DataError: if a named column is missing.
    """
    _check_columns(frame, sorted({column for pattern in patterns for column in pattern}))
    found = np.zeros(len(frame), dtype=np.bool_)
    for pattern in patterns:
        rows = _agrees(frame, pattern)
        if not rows.any():
            logger.warning("event=pattern_matches_no_cell pattern=%s", dict(pattern))
        found |= rows
    return found


def _agrees(frame: pd.DataFrame, pattern: Mapping[str, str]) -> Bool[ndarray, " cell"]:
    rows = np.ones(len(frame), dtype=np.bool_)
    for column, value in pattern.items():
        row_codes, values = _factorised(frame, column)
        rows &= np.array([v == value for v in values], dtype=np.bool_)[row_codes]
    return rows


def _factorised(frame: pd.DataFrame, column: str) -> tuple[ndarray, list[str]]:
    """Row codes and the distinct values behind them, as text.

    Raises:
        DataError: if a value is missing or empty.
    """
    row_codes, found = pd.factorize(frame[column])
    values = [str(v) for v in found]
    n_empty = int((row_codes < 0).sum())
    if "" in values:
        n_empty += int((row_codes == values.index("")).sum())
    if n_empty:
        raise DataError(
            f"condition column {column!r} is empty (NaN or no text) in {n_empty} of "
            f"{len(frame)} cells; label these cells or leave them out"
        )
    return row_codes, values


def _check_columns(frame: pd.DataFrame, columns: Sequence[str]) -> None:
    if missing := [c for c in columns if c not in frame.columns]:
        raise DataError(
            f"condition columns {listed(missing)} are missing; the cells have "
            f"{listed(frame.columns)}; correct conditions.columns or the data"
        )


def _check_condition(
    condition: Mapping[str, str], categories: Mapping[str, Sequence[str]], where: str
) -> None:
    for column, value in condition.items():
        if column not in categories:
            raise ConfigError(
                f"{where}: unknown condition column {column!r}; known: {listed(categories)}"
            )
        if value not in categories[column]:
            raise ConfigError(
                f"{where}: no cell has {column}={value!r}; known values: "
                f"{listed(categories[column])}"
            )


def _check_all_seen(vocabulary: ConditionVocabulary, codes: Int16[ndarray, "cell field"]) -> None:
    """A value whose every cell is held out could never be learned."""
    seen = codes[~vocabulary.is_held_out(codes)]
    for i, (column, known) in enumerate(
        zip(vocabulary.columns, vocabulary.categories, strict=True)
    ):
        absent = np.setdiff1d(np.arange(len(known)), seen[:, i])
        if absent.size:
            raise ConfigError(
                f"conditions.held_out leaves no cell with {column} in "
                f"{listed(known[code] for code in absent)}; each value must be seen in some "
                "combination that is not held out: hold out less, or exclude these cells"
            )
