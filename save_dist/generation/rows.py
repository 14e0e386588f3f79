"""Which rows of an atlas hold which cells. Arithmetic on a plan; no row is looked at."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import starmap
from typing import NamedTuple

import numpy as np
from jaxtyping import Int64
from numpy import ndarray

from save_dist.generation.amounts import Amounts
from save_dist.generation.combinations import Combinations, Product, numbers_within
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
        rows = (tuple(row) for row in self.conditions.codes(numbers).tolist())
        parts = zip(rows, first.tolist(), (last - first).tolist(), strict=True)
        return list(starmap(Segment, parts))

    def ranges(self, wanted: Product) -> Int64[ndarray, "run 2"]:
        """First row and row after the last of every run of rows with the wanted conditions."""
        numbers = numbers_within(self.conditions, wanted)
        ends = self.amounts.ends(numbers) + self.start
        return merged(np.stack([ends - self.amounts.of(numbers), ends], axis=1))


def segments_of(stretches: Sequence[Stretch], start: int, stop: int) -> list[Segment]:
    """Rows [start, stop) of an atlas, cut where the condition changes."""
    found = []
    for stretch in stretches:
        first, last = max(start, stretch.start), min(stop, stretch.stop)
        if first < last:
            found += stretch.segments(first, last)
    return found


def ranges_of(stretches: Sequence[Stretch], wanted: Product) -> Int64[ndarray, "range 2"]:
    """Runs of rows with the wanted conditions, ascending."""
    return merged(np.concatenate([stretch.ranges(wanted) for stretch in stretches]))


def merged(ranges: Int64[ndarray, "range 2"]) -> Int64[ndarray, "run 2"]:
    """Ascending ranges, those that touch made one."""
    if not len(ranges):
        return ranges
    is_new = np.append(True, ranges[1:, 0] != ranges[:-1, 1])
    is_last = np.append(is_new[1:], True)
    return np.stack([ranges[is_new, 0], ranges[is_last, 1]], axis=1)
