"""Which cells each lane takes in each step: pure functions of integers, no data and no host.

An epoch is one long order of cells: shuffle chunks (neighbouring cells of the index) permuted by
(seed, epoch). Pools are consecutive stretches of that order, and each lane owns an equal stretch
of every pool and shuffles the cells inside it. Ranks only share out lanes, so the cells of a
global step never depend on how many ranks there are. Nothing here grows with the number of cells.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple, no_type_check

import numba
import numpy as np
from jaxtyping import Int64
from numpy import ndarray

from save_dist.core.errors import ConfigError, DataError
from save_dist.core.seeding import cell_keys, counter_uniform, generator

# With four, neighbouring chunks still tend to stay neighbours; with eight a chi-square is flat.
_N_ROUNDS = 8


class Stretch(NamedTuple):
    """Consecutive steps of one pool."""

    step: int
    """First global step, counted from the start of training."""
    epoch: int
    pool: int
    """Pool within the epoch."""
    first: int
    """Place of the first step in the pool."""
    n_steps: int


@dataclass(frozen=True)
class StreamPlan:
    """The order of all cells for all epochs.

    Every cell comes once per epoch; fewer than `cells_per_step` of them come twice, to fill the
    last step.

    >>> plan = StreamPlan(1000, 64, rows_per_chunk=16, chunks_per_pool=8, n_lanes=4, seed=0)
    >>> plan.n_steps_per_epoch, plan.steps_per_pool, plan.pool_rows(0, 0, lane=3).shape
    (16, 2, (2, 16))

    Raises:
        DataError: if there are fewer cells than one step takes.
        ConfigError: if a step does not divide evenly over the lanes.
    """

    n_cells: int
    """Cells of the index that is shuffled."""
    cells_per_step: int
    """Cells of one optimiser step over all lanes."""
    rows_per_chunk: int
    """Neighbouring cells of one shuffle chunk."""
    chunks_per_pool: int
    """Shuffle chunks mixed at a time over all lanes."""
    n_lanes: int
    """Virtual readers; a multiple of any number of ranks that will share them."""
    seed: int

    def __post_init__(self) -> None:
        if self.cells_per_step % self.n_lanes:
            raise ConfigError(
                f"cells_per_step={self.cells_per_step} is not a multiple of "
                f"n_lanes={self.n_lanes}; change one of them"
            )
        if self.n_cells < self.cells_per_step:
            raise DataError(
                f"{self.n_cells} cells are fewer than cells_per_step={self.cells_per_step}; "
                f"lower optim.cells_per_step to at most {self.n_cells}"
            )

    @property
    def n_steps_per_epoch(self) -> int:
        """Steps until every cell has come once."""
        return math.ceil(self.n_cells / self.cells_per_step)

    @property
    def cells_per_lane(self) -> int:
        """Cells a lane gives to each step."""
        return self.cells_per_step // self.n_lanes

    @property
    def steps_per_pool(self) -> int:
        """Steps one pool lasts; the last pool of an epoch may be shorter."""
        in_pool = self.chunks_per_pool * self.rows_per_chunk // self.cells_per_step
        return min(max(in_pool, 1), self.n_steps_per_epoch)

    def stretches(self, start_step: int = 0, stop_step: int | None = None) -> Iterator[Stretch]:
        """Cut global steps start_step..stop_step where pools end; None goes on for ever."""
        step = start_step
        while stop_step is None or step < stop_step:
            epoch, step_in_epoch = divmod(step, self.n_steps_per_epoch)
            pool, first = divmod(step_in_epoch, self.steps_per_pool)
            n_steps = self._n_steps_in(pool) - first
            if stop_step is not None:
                n_steps = min(n_steps, stop_step - step)
            yield Stretch(step, epoch, pool, first, n_steps)
            step += n_steps

    def lanes_of(self, rank: int, world_size: int) -> tuple[int, ...]:
        """Lanes of one rank: rank, rank + world_size, ...

        Raises:
            ConfigError: if the lanes do not divide evenly over the ranks.
        """
        if self.n_lanes % world_size:
            raise ConfigError(
                f"n_lanes={self.n_lanes} is not a multiple of world_size={world_size}; "
                f"set training.stream.n_lanes to {4 * world_size}, or use another number of workers"
            )
        return tuple(range(rank, self.n_lanes, world_size))

    def rows_of(self, stretch: Stretch, lanes: Sequence[int]) -> Int64[ndarray, "step cell"]:
        """Positions in the index that `lanes` take in each step of a stretch, lane by lane."""
        steps = slice(stretch.first, stretch.first + stretch.n_steps)
        rows = [self.pool_rows(stretch.epoch, stretch.pool, lane)[steps] for lane in lanes]
        return np.concatenate(rows, axis=1)

    def pool_rows(self, epoch: int, pool: int, lane: int) -> Int64[ndarray, "step cell"]:
        """Positions in the index that `lane` takes in each step of a pool, already shuffled."""
        n_steps = self._n_steps_in(pool)
        n_mine = n_steps * self.cells_per_lane
        start = pool * self.steps_per_pool * self.cells_per_step + lane * n_mine
        shuffle = generator(self.seed, "pool", epoch, pool, lane).permutation(n_mine)
        positions = self._epoch_order(epoch, start, start + n_mine)[shuffle]
        return positions.reshape(n_steps, self.cells_per_lane)

    def _n_steps_in(self, pool: int) -> int:
        return min(self.steps_per_pool, self.n_steps_per_epoch - pool * self.steps_per_pool)

    def _epoch_order(self, epoch: int, start: int, stop: int) -> Int64[ndarray, " cell"]:
        """Cells at places start..stop of the epoch's order; past its end it begins again."""
        if start < self.n_cells < stop:
            end = self._stretch(epoch, start, self.n_cells)
            return np.concatenate([end, self._stretch(epoch, 0, stop - self.n_cells)])
        turn = self.n_cells if start >= self.n_cells else 0
        return self._stretch(epoch, start - turn, stop - turn)

    def _stretch(self, epoch: int, start: int, stop: int) -> Int64[ndarray, " cell"]:
        """Cells at places start..stop of the epoch's order, all below n_cells."""
        n_rows, n_others = self.rows_per_chunk, self._n_other_chunks
        n_last = self.n_cells - n_others * n_rows
        slot_of_last = int(generator(self.seed, "last_chunk", epoch).integers(n_others + 1))
        place = np.arange(start, stop, dtype=np.int64)
        # As if the last chunk were as long as the others: what follows it moves back.
        place[place >= slot_of_last * n_rows + n_last] += n_rows - n_last
        slot, row = np.divmod(place, n_rows)
        slots = np.arange(slot[0], slot[-1] + 1, dtype=np.int64)
        chunks = self._chunks(epoch, slots, slot_of_last)
        cells: np.ndarray = chunks[slot - slot[0]] * n_rows + row
        return cells

    def _chunks(
        self, epoch: int, slots: Int64[ndarray, " slot"], slot_of_last: int
    ) -> Int64[ndarray, " slot"]:
        """The shuffle chunk in each slot of the epoch's order.

        The last chunk may be short, so it is slotted in by itself and the others are permuted.
        """
        n_others = self._n_other_chunks
        others = np.minimum(slots - (slots > slot_of_last), max(n_others - 1, 0))
        permuted = permute(others, max(n_others, 1), self.seed, epoch)
        return np.where(slots == slot_of_last, n_others, permuted)

    @property
    def _n_other_chunks(self) -> int:
        """Chunks besides the last one."""
        return (self.n_cells - 1) // self.rows_per_chunk


def permute(
    items: Int64[ndarray, " item"], n_items: int, seed: int, epoch: int
) -> Int64[ndarray, " item"]:
    """Images of `items` under a keyed permutation of 0..n_items-1, without storing it.

    A Feistel network on the two digits of a number in base ~sqrt(n_items); images that fall
    outside are sent through again (cycle walking), which fewer than one in sqrt(n_items) needs.
    """
    base = math.isqrt(n_items - 1) + 1
    high_base = math.ceil(n_items / base)
    round_keys = cell_keys(seed, "chunk_order", epoch, np.arange(_N_ROUNDS))
    images = np.empty(items.size, dtype=np.int64)
    _permute(items, n_items, base, high_base, round_keys, images)
    return images


@numba.njit(cache=True, nogil=True)
@no_type_check
def _permute(
    items: ndarray, n_items: int, base: int, high_base: int, round_keys: ndarray, images: ndarray
) -> None:
    """Add to either digit in turn a hash of the other one."""
    for i in range(items.size):
        image = items[i]
        while True:
            high, low = image // base, image % base
            for j in range(0, round_keys.size, 2):
                shift = counter_uniform(round_keys[j], np.uint64(low)) * high_base
                high = (high + np.int64(shift)) % high_base
                shift = counter_uniform(round_keys[j + 1], np.uint64(high)) * base
                low = (low + np.int64(shift)) % base
            image = high * base + low
            if image < n_items:
                break
        images[i] = image
