"""Which rows of an atlas hold which cells. Arithmetic on a plan; no row is looked at."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import starmap
from typing import NamedTuple

import numpy as np
from jaxtyping import Int64
from numpy import ndarray

from save_dist.config.schema import GridConfig
from save_dist.core.errors import ConfigError
from save_dist.generation.amounts import Amounts, Uneven, count_cells
from save_dist.generation.combinations import (
    Combinations,
    Listed,
    Product,
    listing,
    numbers_within,
    resolve,
)
from save_dist.vocab.conditions import ConditionVocabulary
from save_dist.vocab.transports import Codes


class Segment(NamedTuple):
    """Neighbouring cells of one condition: its codes, and indices within the condition."""

    codes: Codes
    first: int
    n_cells: int


@dataclass(frozen=True)
class Stretch:
    """Conditions whose cells stand one after the other, from row `start` on."""

    start: int
    conditions: Combinations
    amounts: Amounts
    first: Int64[ndarray, " condition"] | None = None
    """Index of the first of these cells within each condition; None: all begin with their own."""

    @property
    def stop(self) -> int:
        """The row after the last."""
        return self.start + self.amounts.n_cells

    def segments(self, start: int, stop: int) -> list[Segment]:
        """Rows [start, stop) of the stretch, cut where the condition changes."""
        start, stop = start - self.start, stop - self.start
        amounts = self.amounts
        numbers = np.arange(amounts.at(start), amounts.at(stop - 1) + 1, dtype=np.int64)
        begins = amounts.ends(numbers) - amounts.of(numbers)
        first = np.maximum(start - begins, 0)
        last = np.minimum(stop - begins, amounts.of(numbers))
        index = first if self.first is None else first + self.first[numbers]
        rows = (tuple(row) for row in self.conditions.codes(numbers).tolist())
        parts = zip(rows, index.tolist(), (last - first).tolist(), strict=True)
        return list(starmap(Segment, parts))

    def ranges(self, wanted: Product) -> Int64[ndarray, "run 2"]:
        """First row and row after the last of every run of rows with the wanted conditions."""
        numbers = numbers_within(self.conditions, wanted)
        ends = self.amounts.ends(numbers) + self.start
        return merged(np.stack([ends - self.amounts.of(numbers), ends], axis=1))


@dataclass(frozen=True)
class RowMap:
    """All rows of an atlas: stretch after stretch, without gaps."""

    stretches: tuple[Stretch, ...]
    conditions: Combinations
    """Every condition that has cells."""

    @property
    def n_cells(self) -> int:
        """Rows."""
        return self.stretches[-1].stop

    def runs(self, start: int, stop: int) -> list[list[Segment]]:
        """Rows [start, stop): a run per stretch, cut where the condition changes."""
        ends = [(max(start, s.start), min(stop, s.stop), s) for s in self.stretches]
        return [stretch.segments(a, b) for a, b, stretch in ends if a < b]

    def ranges(self, wanted: Product) -> Int64[ndarray, "run 2"]:
        """Runs of rows with the wanted conditions, ascending."""
        return merged(np.concatenate([stretch.ranges(wanted) for stretch in self.stretches]))


def rows_of(grids: Sequence[GridConfig], vocabulary: ConditionVocabulary) -> RowMap:
    """Rows of the cells of a grid, and of what each later grid asks for in addition.

    Args:
        grids: settled, at least one.
        vocabulary: columns and values there are.

    Raises:
        ConfigError: for a grid that cannot be resolved against these conditions, or one that
            asks for less than the one before it.
    """
    before = count_cells(grids[0], resolve(grids[0], vocabulary), vocabulary)
    stretches = [Stretch(0, *before)]
    for grid in grids[1:]:
        after = count_cells(grid, resolve(grid, vocabulary), vocabulary)
        stretches.append(_added(stretches[-1].stop, before, after, vocabulary))
        before = after
    return RowMap(tuple(stretches), before[0])


def _added(
    start: int,
    before: tuple[Combinations, Amounts],
    after: tuple[Combinations, Amounts],
    vocabulary: ConditionVocabulary,
) -> Stretch:
    """What the later of two requests adds."""
    rows, old = listing(after[0]).rows, listing(before[0]).rows
    if (is_gone := after[0].find(old) < 0).any():
        name = vocabulary.decode_one(old[is_gone][0].tolist())
        raise ConfigError(f"{is_gone.sum()} conditions are no longer asked for, e.g. {name}")
    numbers = before[0].find(rows)
    had = np.where(numbers < 0, 0, before[1].of(np.maximum(numbers, 0)))
    gain = after[1].of(np.arange(len(rows), dtype=np.int64)) - had
    if (is_less := gain < 0).any():
        name = vocabulary.decode_one(rows[is_less][0].tolist())
        raise ConfigError(
            f"{is_less.sum()} conditions ask for fewer cells than before, e.g. {name}"
        )
    is_more = gain > 0
    return Stretch(start, Listed(rows[is_more]), Uneven(gain[is_more]), had[is_more])


def merged(ranges: Int64[ndarray, "range 2"]) -> Int64[ndarray, "run 2"]:
    """Ascending ranges, those that touch made one."""
    if not len(ranges):
        return ranges
    is_new = np.append(True, ranges[1:, 0] != ranges[:-1, 1])
    is_last = np.append(is_new[1:], True)
    return np.stack([ranges[is_new, 0], ranges[is_last, 1]], axis=1)
