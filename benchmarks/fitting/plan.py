"""What it costs to know which cells a rank reads."""

from collections.abc import Iterator
from pathlib import Path

from generation.figures import Line, cost, share

from save_dist.data.partition import StreamPlan

N_CELLS, N_RANKS = 10**9, 1024


def plan(_: Path, n_repeats: int) -> Iterator[Line]:
    """One rank of many plans a whole epoch of very many cells."""
    found = StreamPlan(N_CELLS, 8192, 128, 64 * 1024, n_lanes=N_RANKS, seed=0)
    lanes = found.lanes_of(rank=7, world_size=N_RANKS)

    def epoch() -> None:
        for stretch in found.stretches(0, found.n_steps_per_epoch):
            found.rows_of(stretch, lanes)

    epoch()  # imports and the like
    seconds = [cost(epoch).cpu for _ in range(n_repeats)]
    yield Line("a rank of 1,024 plans 10^9 cells, CPU seconds", share(seconds), "<= 1")
