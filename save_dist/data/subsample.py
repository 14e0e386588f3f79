"""Fewer cells than there are, chosen by seed alone: for what need not see every cell.

Every row has a number that follows from the seed and the row; within a group the smallest win. So
one pass over stretches of rows chooses them, whatever the length of the stretches, and memory
holds one stretch and the chosen rows.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Int, Int16, Int64, UInt64
from numpy import ndarray

from save_dist.core.seeding import cell_keys
from save_dist.data.splits import CellIndex
from save_dist.vocab.conditions import ConditionVocabulary

ROWS_AT_ONCE = 2**20
NO_GROUP = -1
"""Group of rows that are not to be chosen."""

Rows = Int64[ndarray, " row"]


class Sampled(NamedTuple):
    """Chosen rows, group by group, ascending within one."""

    rows: Rows
    groups: Int64[ndarray, " row"]


def sample_rows(
    n_rows: int,
    groups_of: Callable[[slice], Int64[ndarray, " row"]],
    n_cells: int,
    seed: int,
    rows_at_once: int = ROWS_AT_ONCE,
) -> Sampled:
    """At most `n_cells` rows of every group.

    Args:
        n_rows: rows in all.
        groups_of: group of every row of a stretch, or `NO_GROUP`.
        n_cells: chosen per group at most.
        seed: of the choice.
        rows_at_once: length of a stretch; it changes nothing.
    """
    chosen: dict[int, _Chosen] = {}
    for start in range(0, n_rows, rows_at_once):
        groups = groups_of(slice(start, min(start + rows_at_once, n_rows)))
        for group, places in _runs(groups):
            rows = places + start
            keys = cell_keys(seed, "subsample", 0, rows)
            chosen.setdefault(group, _Chosen()).add(rows, keys, n_cells)
    ascending = [(group, np.sort(chosen[group].rows)) for group in sorted(chosen)]
    nothing = np.empty(0, dtype=np.int64)
    return Sampled(
        rows=np.concatenate([nothing, *(rows for _, rows in ascending)]),
        groups=np.concatenate([nothing, *(np.full(len(rows), g) for g, rows in ascending)]),
    )


def sample_split(index: CellIndex, split: int, n_cells: int, seed: int) -> CellIndex:
    """At most `n_cells` cells of one split."""

    def groups(stretch: slice) -> Int64[ndarray, " row"]:
        return np.where(index.split[stretch] == split, 0, NO_GROUP)

    return index.take(sample_rows(index.n_cells, groups, n_cells, seed).rows)


def sample_combinations(
    index: CellIndex, split: int, conditions: ConditionVocabulary, n_cells: int, seed: int
) -> CellIndex:
    """At most `n_cells` cells of every combination of one split."""
    n_codes = [len(categories) + 1 for categories in conditions.categories]  # one more for MASK

    def groups(stretch: slice) -> Int64[ndarray, " row"]:
        numbers = combination_numbers(index.codes[stretch], n_codes)
        return np.where(index.split[stretch] == split, numbers, NO_GROUP)

    return index.take(np.sort(sample_rows(index.n_cells, groups, n_cells, seed).rows))


def combination_numbers(
    codes: Int[ndarray, "cell field"], n_codes: Sequence[int]
) -> Int64[ndarray, " cell"]:
    """One number per combination of codes, in the order of the codes.

    Args:
        codes: from 0 on.
        n_codes: how many codes every column has.
    """
    out: ndarray = np.ravel_multi_index(tuple(codes.T.astype(np.int64)), tuple(n_codes))
    return out.astype(np.int64)


def combination_codes(
    numbers: Int64[ndarray, " cell"], n_codes: Sequence[int]
) -> Int16[ndarray, "cell field"]:
    """The codes behind `combination_numbers`."""
    return np.stack(np.unravel_index(numbers, tuple(n_codes)), axis=1).astype(np.int16)


class _Chosen:
    """Rows of one group with the smallest numbers so far."""

    def __init__(self) -> None:
        self.rows: Rows = np.empty(0, dtype=np.int64)
        self._keys: UInt64[ndarray, " row"] = np.empty(0, dtype=np.uint64)

    def add(self, rows: Rows, keys: UInt64[ndarray, " row"], n_cells: int) -> None:
        self.rows = np.concatenate([self.rows, rows])
        self._keys = np.concatenate([self._keys, keys])
        if len(self.rows) > n_cells:
            best = np.argpartition(self._keys, n_cells)[:n_cells]
            self.rows, self._keys = self.rows[best], self._keys[best]


def _runs(groups: Int64[ndarray, " row"]) -> Iterator[tuple[int, Rows]]:
    """Places of every group."""
    wanted = np.flatnonzero(groups != NO_GROUP)
    order = wanted[np.argsort(groups[wanted], kind="stable")]
    starts = np.flatnonzero(np.diff(groups[order])) + 1
    for places in np.split(order, starts) if order.size else ():
        yield int(groups[places[0]]), places
