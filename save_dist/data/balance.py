"""Rare combinations more often: which cell is drawn at each place of an epoch.

An epoch stays as long as there are cells, so that steps, lanes and resume are those of the plan;
what changes is how often each cell stands in it. A combination of n cells gets a share of the
draws in proportion to n ** exponent, and deals its cells out in an endless row of passes, each a
new permutation of all of them; an epoch takes the next draws of that row. So, exactly:

- over a combination, draws per epoch have the expectation that its share says, and those since
  the start of training differ from theirs by less than one draw;
- over its cells, numbers of draws since the start of training differ by at most one: a common
  cell that is drawn in few epochs is never forgotten, a rare one never favoured.

Pure functions of integers; an epoch costs time and memory in proportion to the number of cells.
"""

from itertools import accumulate, pairwise

import numpy as np
from jaxtyping import Int, Int64
from numpy import ndarray

from save_dist.core.seeding import generator, stream_seed
from save_dist.data.partition import permute

_WEIGHT_UNITS = 2**20
"""Weights are integers, in parts of the weight of a combination of one cell."""
_CELLS_PER_ROUND = 128
"""A round of fewer cells is spread over the epoch: in one place, it would fill a minibatch."""
_CELLS_PER_RUN = 16
"""Neighbours that are dealt together: drawing one here and one there would cost a read each."""


class Balance:
    """Draws of all epochs over the cells of one index. One thread at a time may use it.

    Args:
        codes: condition codes by cell of the index.
        exponent: 0, every combination equally often, to 1, every cell once per epoch.
        seed: of the run.
    """

    def __init__(self, codes: Int[ndarray, "cell field"], exponent: float, seed: int) -> None:
        assert 0 <= exponent <= 1, "shares of a combination would exceed what passes can hold"
        combination = np.unique(codes, axis=0, return_inverse=True)[1].ravel()
        self._sizes: list[int] = np.bincount(combination).tolist()
        self._members = np.argsort(combination, kind="stable")
        self._seed = seed
        # Rounded down, a weight never exceeds the number of cells, so that every combination has
        # at least one draw per epoch.
        weights = [max(1, int(n**exponent * _WEIGHT_UNITS)) for n in self._sizes]
        self._bounds = [0, *accumulate(weights)]
        self._offset = int(generator(seed, "balance").integers(self._bounds[-1]))
        self._latest: tuple[int, ndarray] | None = None

    @property
    def n_cells(self) -> int:
        """Cells of the index, and draws of an epoch."""
        return int(self._members.size)

    def cells(self, epoch: int) -> Int64[ndarray, " draw"]:
        """The position in the index that each place of the epoch stands for.

        A round is every cell that is drawn, in order, then those that are drawn twice, and so on:
        neighbouring places are neighbouring cells, and the draws of one cell lie far apart. Late
        rounds, of few cells, are strewn evenly over the others.
        """
        if self._latest is None or self._latest[0] != epoch:
            self._latest = (epoch, _rounds(self.n_draws_of_cells(epoch)))
        return self._latest[1]

    def n_draws_of_cells(self, epoch: int) -> Int64[ndarray, " cell"]:
        """How often each cell of the index is drawn in an epoch; the sum is `n_cells`."""
        drawn = np.empty(self.n_cells, dtype=np.int64)
        before, after = self._n_draws_before(epoch), self._n_draws_before(epoch + 1)
        start = 0
        for number, n_cells in enumerate(self._sizes):
            members = self._members[start : start + n_cells]
            drawn[members] = self._dealt(number, after[number]) - self._dealt(
                number, before[number]
            )
            start += n_cells
        return drawn

    def _n_draws_before(self, epoch: int) -> list[int]:
        """Draws of every combination in all epochs before this one.

        Systematic sampling in two directions, over combinations and over epochs: all bounds move
        on by their share, and whole numbers are what lies between them.
        """
        total = self._bounds[-1]
        n = epoch * self.n_cells
        places = [(n * bound + self._offset) // total for bound in self._bounds]
        return [stop - start for start, stop in pairwise(places)]

    def _dealt(self, number: int, n_draws: int) -> Int64[ndarray, " member"]:
        """How often each cell of a combination is among its first `n_draws` draws."""
        n_cells = self._sizes[number]
        n_passes, n_more = divmod(n_draws, n_cells)
        dealt = np.full(n_cells, n_passes, dtype=np.int64)
        if n_more:
            dealt += self._pass_places(number, n_passes) < n_more
        return dealt

    def _pass_places(self, number: int, n_passes: int) -> Int64[ndarray, " member"]:
        """Place of each cell of a combination in one of its passes.

        Runs of neighbours are permuted; where runs begin is drawn anew, so every cell is as likely
        as any other to stand in the last run, which is short and stays behind.
        """
        n_cells = self._sizes[number]
        shift = int(generator(self._seed, "balance_shift", number, n_passes).integers(n_cells))
        places: ndarray = (np.arange(n_cells, dtype=np.int64) + shift) % n_cells
        n_runs = n_cells // _CELLS_PER_RUN
        if n_runs > 1:
            runs, within = np.divmod(places, _CELLS_PER_RUN)
            whole = runs < n_runs
            key = stream_seed(self._seed, "balance_pass", number, n_passes)
            moved = permute(runs[whole], n_runs, key, 0)
            places[whole] = moved * _CELLS_PER_RUN + within[whole]
        return places


def _rounds(drawn: Int64[ndarray, " cell"]) -> Int64[ndarray, " draw"]:
    """Cells drawn at least once, then at least twice, ..., short rounds strewn over the long ones.

    >>> _rounds(np.array([1, 0, 3, 2])).tolist()
    [0, 2, 2, 3, 3, 2]
    """
    left = np.flatnonzero(drawn)
    rounds = [left]
    while (left := left[drawn[left] > len(rounds)]).size:
        rounds.append(left)
    n_long = sum(len(r) for r in rounds[1:] if len(r) >= _CELLS_PER_ROUND) + len(rounds[0])
    order = np.concatenate(rounds)
    n_short = order.size - n_long
    is_short = np.zeros(order.size, dtype=np.bool_)
    is_short[(np.arange(n_short) * order.size + order.size // 2) // max(1, n_short)] = True
    out: ndarray = np.empty_like(order)
    out[is_short], out[~is_short] = order[n_long:], order[:n_long]
    return out
