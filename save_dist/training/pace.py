"""How fast training goes: steps, cells, waiting for data, and the share of the machine it uses."""

import copy
import time
from collections.abc import Callable, Iterator
from typing import TypeVar

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

_CELLS_COUNTED = 32  # what a cell costs does not depend on how many there are
_REPEATS = 3
_SIDE = {"cpu": 512, "cuda": 4096}
"""Side of the square matrices whose product measures a device, long enough to time."""

Minibatch = TypeVar("Minibatch")


class Pace:
    """Rates since the last lap.

    Args:
        start: optimiser steps that were done before.
        cells_per_rank: cells this rank takes in a step.
        world_size: ranks.
    """

    def __init__(self, start: int, cells_per_rank: int, world_size: int) -> None:
        self._step = start
        self._cells_per_rank, self._world_size = cells_per_rank, world_size
        self._wait_s = 0.0
        self._full_cells_per_s: float | None = None
        self._start = time.perf_counter()

    def calibrate(self, flops_per_cell: float, flops_per_s: float) -> None:
        """What a cell costs, and what the device does in matrix products; restarts the clock."""
        if flops_per_cell > 0:
            self._full_cells_per_s = flops_per_s / flops_per_cell
        self._start = time.perf_counter()

    def timed(self, minibatches: Iterator[Minibatch]) -> Iterator[Minibatch]:
        """The same minibatches; the time until each is there counts as waiting."""
        while True:
            began = time.perf_counter()
            try:
                minibatch = next(minibatches)
            except StopIteration:
                return
            finally:
                self._wait_s += time.perf_counter() - began
            yield minibatch

    def lap(self, step: int) -> dict[str, float]:
        """Rates of the steps since the last lap, of which `step` is the last."""
        now = time.perf_counter()
        elapsed, n_steps = now - self._start, max(1, step - self._step)
        cells_per_s = n_steps * self._cells_per_rank / elapsed
        values = {
            "time/step_s": elapsed / n_steps,
            "time/data_wait_share": self._wait_s / elapsed,
            "data/cells_per_s": cells_per_s * self._world_size,
            "perf/world_size": self._world_size,
        }
        if self._full_cells_per_s is not None:
            values["perf/mfu"] = cells_per_s / self._full_cells_per_s
        self._start, self._wait_s, self._step = now, 0.0, step
        return values


def flops_per_cell(
    module: nn.Module, loss: Callable[[nn.Module, slice], Tensor], n_cells: int
) -> float:
    """Floating point operations of the matrix products of one cell, forward and backward.

    Counted by torch on a copy of the network, so that the real one takes no part.

    Args:
        module: network of the stage.
        loss: per-cell loss of some cells of a minibatch under a network.
        n_cells: cells of the minibatch.
    """
    counted = min(n_cells, _CELLS_COUNTED)
    with FlopCounterMode(display=False) as counter:
        total = loss(copy.deepcopy(module), slice(0, counted)).sum()
        total.backward()  # type: ignore[no-untyped-call]  # torch
    return float(counter.get_total_flops()) / counted


def matmul_flops_per_s(device: torch.device) -> float:
    """Measured rate of float32 matrix products on a device, the best of a few (some 10 ms)."""
    side = _SIDE.get(device.type, _SIDE["cuda"])
    a = torch.ones(side, side, device=device)
    best = float("inf")
    for _ in range(_REPEATS):
        began = time.perf_counter()
        product = a @ a
        product[0, 0].item()  # waits for the device
        best = min(best, time.perf_counter() - began)
    return 2.0 * side**3 / best
