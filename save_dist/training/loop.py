"""The one training loop, for all stages, in one process or on every rank of a DDP group.

Knows neither Ray nor MLflow: it sees minibatches, a `Stage` that turns one into a loss, a
`CheckpointStore`, a `Reporter` and a `Supervisor`. All randomness comes from the stage, keyed by
step and lane, so a resumed run and an undisturbed one take the same steps.
"""

import contextlib
import enum
import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Generic, Protocol, TypeVar, runtime_checkable

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn

from save_dist.config.schema import OptimConfig, TrainingConfig
from save_dist.core.errors import DivergedError, StoppedError
from save_dist.stores.checkpoint import CheckpointStore
from save_dist.training.pace import Pace, flops_per_cell, matmul_flops_per_s
from save_dist.training.ranks import Ranks, barrier, of_all, of_first
from save_dist.training.standing import is_finished
from save_dist.training.state import State

Minibatch_contra = TypeVar("Minibatch_contra", contravariant=True)
Minibatch = TypeVar("Minibatch")

_N_NAMED = 10
"""Cells of every rank that an error names."""


@runtime_checkable
class Reporter(Protocol):
    """What the loop tells the outside."""

    def metrics(self, stage: str, values: Mapping[str, float], step: int) -> None:
        """Record values after optimiser step `step` (called on every rank, written by one)."""


Watch = Callable[[int, str], None]
"""Told the optimiser step, and what a rank begins to do in it."""


@runtime_checkable
class Supervisor(Protocol):
    """What the outside tells the loop, and how it sees that a rank hangs."""

    def asked_to_stop(self) -> str:
        """Why training should end now, empty to go on; asked on rank 0 after every step."""

    def watch(self, stage: str) -> AbstractContextManager[Watch]:
        """Held on every rank for the duration of a stage."""


class Alone:
    """Supervises a process that nobody stops and nobody waits for."""

    def asked_to_stop(self) -> str:
        """Never."""
        return ""

    def watch(self, stage: str) -> AbstractContextManager[Watch]:
        """Nobody looks."""
        return contextlib.nullcontext(lambda step, activity: None)


ALONE = Alone()


@dataclass(frozen=True)
class Loss:
    """One minibatch: per-cell loss (for the mean and for naming bad cells) and its parts."""

    per_cell: Tensor
    parts: Mapping[str, Tensor]
    joinids: np.ndarray


@runtime_checkable
class Stage(Protocol[Minibatch_contra]):
    """A network and how one minibatch trains it."""

    name: str
    module: nn.Module

    def loss(self, forward: nn.Module, minibatch: Minibatch_contra, part: slice) -> Loss:
        """Loss of the cells in `part` of the minibatch; `forward` is the (DDP-wrapped) module."""


@dataclass
class FitInput(Generic[Minibatch]):
    """What one stage trains from; `minibatches` starts at any global step."""

    stage: Stage[Minibatch]
    minibatches: Callable[[int, int], Iterator[Minibatch]]
    cells_per_rank: int
    validation: Callable[[nn.Module], Mapping[str, float]] | None
    """Run on rank 0; the lowest `val/loss` of a stage is its best."""


class _Ending(enum.IntEnum):
    """What follows a step, the same on all ranks."""

    NONE = 0
    FINISHED = 1
    STOPPED = 2


def fit(
    inputs: FitInput[Minibatch],
    config: OptimConfig,
    training: TrainingConfig,
    checkpoints: CheckpointStore,
    reporter: Reporter,
    ranks: Ranks,
    about: Mapping[str, str],
    supervisor: Supervisor = ALONE,
) -> None:
    """Train one stage to its end, resuming from the newest checkpoint if there is one.

    Args:
        inputs: stage and minibatches.
        config: optimiser settings; a stage ends after `n_steps`, or before if validation says so.
        training: intervals of logging, validation and checkpoints, and when to end early.
        checkpoints: store of this stage; written by rank 0, read by all.
        reporter: receiver of metrics.
        ranks: place of this process.
        about: facts stored in every checkpoint, `config_hash` among them.
        supervisor: who may ask for an end, and is told what this rank does.

    Raises:
        DivergedError: before the optimiser step, on a non-finite loss or gradient.
        StoppedError: on all ranks, after saving, if the supervisor asked for an end.
    """
    state = State.create(inputs.stage.module, config, ranks)
    start = state.restore(checkpoints, ranks)
    if is_finished(start, state.about(), config.n_steps):
        return
    fitting = _Fitting(
        inputs, config, training, checkpoints, reporter, ranks, about, supervisor, state
    )
    with supervisor.watch(inputs.stage.name) as watch:
        fitting.run(start, watch)
        watch(config.n_steps, "waiting for the other ranks")
        barrier(ranks)
    if fitting.stopped:
        raise StoppedError(fitting.stopped)


@dataclass
class _Fitting(Generic[Minibatch]):
    """The steps of one stage in this process."""

    inputs: FitInput[Minibatch]
    config: OptimConfig
    training: TrainingConfig
    checkpoints: CheckpointStore
    reporter: Reporter
    ranks: Ranks
    about: Mapping[str, str]
    supervisor: Supervisor
    state: State
    stopped: str = ""
    """What to say if an end was asked for."""

    def run(self, start: int, watch: Watch) -> None:
        """All steps after `start`, until one is the last."""
        pace = Pace(start, self.inputs.cells_per_rank, self.ranks.world_size)
        minibatches = pace.timed(self.inputs.minibatches(start, self.config.n_steps))
        for step, minibatch in enumerate(minibatches, start=start + 1):
            watch(step, "computing")
            if step == start + 1 and self.ranks.is_first:
                pace.calibrate(*self.costs(minibatch))
            loss = self.take(minibatch, step)
            if step % self.training.log_every_steps == 0 or step == self.config.n_steps:
                self.report(loss, pace.lap(step), step)
            watch(step, "validating")
            is_best = self.validate(step)
            watch(step, "agreeing with the other ranks")
            ending = self.agree(step)
            is_due = is_best or step % self.training.checkpoint.every_steps == 0
            if is_due or ending is not _Ending.NONE:
                watch(step, "saving")
                self.save(step, wait=ending is not _Ending.NONE)
            if ending is not _Ending.NONE:
                return
            watch(step + 1, "reading its minibatch")

    def costs(self, minibatch: Minibatch) -> tuple[float, float]:
        """Operations per cell, and operations per second of the device."""
        stage = self.inputs.stage
        per_cell = flops_per_cell(
            stage.module,
            lambda module, part: stage.loss(module, minibatch, part).per_cell,
            self.inputs.cells_per_rank,
        )
        return per_cell, matmul_flops_per_s(self.state.device)

    def take(self, minibatch: Minibatch, step: int) -> Loss:
        """One step; an unexpected failure says which one it was."""
        try:
            return _step(self.state, self.inputs, minibatch, self.config, step, self.ranks)
        except RuntimeError as e:
            e.add_note(f"in step {step} of the stage {self.inputs.stage.name}")
            raise

    def report(self, loss: Loss, rates: dict[str, float], step: int) -> None:
        """Loss, rates and what the optimiser did."""
        values = _mean_over_ranks(loss, self.ranks) | rates
        rate = float(self.state.schedule.get_last_lr()[0])
        values |= {"train/lr": rate, "train/grad_norm": self.state.norm}
        self.reporter.metrics(self.inputs.stage.name, values, step)

    def validate(self, step: int) -> bool:
        """Validate if it is time to; whether these weights are now the best and to be kept."""
        is_due = step % self.training.validate_every_steps == 0 or step == self.config.n_steps
        if not is_due or self.inputs.validation is None:
            return False
        values = self.inputs.validation(self.state.average.module)
        self.reporter.metrics(self.inputs.stage.name, values, step)
        if "val/loss" not in values:
            return False
        stopping = self.training.stopping
        self.state.standing = self.state.standing.after(step, values["val/loss"], stopping)
        return stopping.export == "best" and self.state.standing.best_step == step

    def agree(self, step: int) -> _Ending:
        """What rank 0 decides; it alone validates and hears the supervisor."""
        if step == self.config.n_steps:
            return _Ending.FINISHED
        asked = self.supervisor.asked_to_stop() if self.ranks.is_first else ""
        ending = _Ending.STOPPED if asked else _Ending.NONE
        if self.state.standing.is_over:
            ending = _Ending.FINISHED
        agreed = _Ending(of_first(ending, self.ranks))
        if agreed is _Ending.STOPPED:
            self.stopped = (
                f"{self.inputs.stage.name} stopped after step {step} of {self.config.n_steps}: "
                f"{asked or 'rank 0 was asked to'}; the state is saved, run the same command to "
                "continue"
            )
        return agreed

    def save(self, step: int, *, wait: bool) -> None:
        """Hand the state to the writer thread of rank 0; wait for it if it is the last."""
        if not self.ranks.is_first:
            return
        kept = self.state.standing.best_step if self.training.stopping.export == "best" else None
        about = {**self.about, **self.state.about()}
        self.checkpoints.save_async(step, self.state.tensors(), about, keep_step=kept)
        if wait:
            self.checkpoints.wait()


def _step(
    state: State,
    inputs: FitInput[Minibatch],
    minibatch: Minibatch,
    config: OptimConfig,
    step: int,
    ranks: Ranks,
) -> Loss:
    """One optimiser step; returns the loss of the last part of the minibatch."""
    n_parts = config.n_accumulation
    n_cells = inputs.cells_per_rank // n_parts
    losses = []
    for number in range(n_parts):
        part = slice(number * n_cells, (number + 1) * n_cells)
        is_last = number == n_parts - 1
        with state.maybe_no_sync(is_last), _autocast(state.device, config.precision):
            loss = inputs.stage.loss(state.forward, minibatch, part)
        _seen_by_all(loss.per_cell.mean() / n_parts).backward()  # type: ignore[no-untyped-call]
        losses.append((loss.per_cell.detach(), loss.joinids))
    norm = nn.utils.clip_grad_norm_(state.module.parameters(), config.clip_norm)
    state.norm = float(norm)
    if not math.isfinite(state.norm):
        # gradients are already averaged, so every rank sees this and none takes the step
        bad = of_all([cell for part in losses for cell in _bad_cells(*part)], _N_NAMED, ranks)
        raise DivergedError(_divergence(inputs.stage.name, step, bad))
    state.optimizer.step()
    state.optimizer.zero_grad(set_to_none=True)
    state.schedule.step()
    state.average.update_parameters(state.module)
    return loss


def _autocast(device: torch.device, precision: str) -> torch.autocast:
    return torch.autocast(device.type, dtype=torch.bfloat16, enabled=precision == "bf16")


def _mean_over_ranks(loss: Loss, ranks: Ranks) -> dict[str, float]:
    names = ["loss", *loss.parts]
    values = torch.stack(
        [loss.per_cell.detach().mean(), *(v.detach().float().mean() for v in loss.parts.values())]
    )
    if ranks.world_size > 1:
        dist.all_reduce(values)
        values /= ranks.world_size
    return {f"train/{name}": float(v) for name, v in zip(names, values, strict=True)}


def _seen_by_all(loss: Tensor) -> Tensor:
    """The loss; where it is not finite, neither are its gradients, and those reach every rank."""
    return loss * (1 + 0 * loss.detach())


def _bad_cells(per_cell: Tensor, joinids: np.ndarray) -> list[int]:
    found: list[int] = joinids[~torch.isfinite(per_cell).cpu().numpy()].tolist()
    return found


def _divergence(stage: str, step: int, bad: list[int]) -> str:
    cells = f"the cells with soma_joinid {bad}" if bad else "no cell"
    return (
        f"{stage} met a non-finite loss or gradient at step {step} ({cells} had a non-finite "
        f"loss); nothing was updated. Lower {stage}.optim.lr, or look at these cells, and run "
        "again: training continues from the last checkpoint"
    )
