"""The place of a process among those that train, and what they do together."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.distributed as dist

_NOTHING = -1
"""Fills up what ranks send, which must be equally long."""


@dataclass(frozen=True)
class Ranks:
    """Place of this process among the training processes."""

    rank: int = 0
    world_size: int = 1

    @property
    def is_first(self) -> bool:
        """Whether this rank writes what all ranks share."""
        return self.rank == 0


def barrier(ranks: Ranks) -> None:
    """Wait for all ranks."""
    if ranks.world_size > 1:
        dist.barrier()


def smallest(value: int, ranks: Ranks) -> int:
    """The smallest of the numbers that the ranks hold."""
    if ranks.world_size == 1:
        return value
    shared = _tensor(value)
    dist.all_reduce(shared, op=dist.ReduceOp.MIN)
    return int(shared)


def of_first(value: int, ranks: Ranks) -> int:
    """The number that rank 0 holds."""
    if ranks.world_size == 1:
        return value
    shared = _tensor(value)
    dist.broadcast(shared, src=0)
    return int(shared)


def of_all(values: Sequence[int], n: int, ranks: Ranks) -> list[int]:
    """The first `n` non-negative numbers of every rank, rank after rank; the same on all."""
    mine = list(values[:n])
    if ranks.world_size == 1:
        return mine
    padded = _tensor([*mine, *[_NOTHING] * (n - len(mine))])
    gathered = [torch.empty_like(padded) for _ in range(ranks.world_size)]
    dist.all_gather(gathered, padded)
    return [value for value in torch.cat(gathered).tolist() if value != _NOTHING]


def _tensor(value: int | list[int]) -> torch.Tensor:
    device = "cuda" if dist.get_backend() == "nccl" else "cpu"
    return torch.tensor(value, dtype=torch.int64, device=device)
