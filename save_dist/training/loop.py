"""The one training loop, for both stages, in one process or on every rank of a DDP group.

Knows neither Ray nor MLflow: it sees minibatches, a `Stage` that turns one into a loss, a
`CheckpointStore` and a `Reporter`. All randomness comes from the stage, keyed by step and lane,
so a resumed run and an undisturbed one take the same steps.
"""

import logging
import math
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Generic, Protocol, TypeVar, runtime_checkable

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim.swa_utils import AveragedModel

from save_dist.config.schema import OptimConfig, TrainingConfig
from save_dist.core.errors import DivergedError
from save_dist.stores.checkpoint import (
    CheckpointStore,
    flatten_optimizer,
    unflatten_optimizer,
)
from save_dist.training import optim as optim_parts

logger = logging.getLogger(__name__)

Minibatch_contra = TypeVar("Minibatch_contra", contravariant=True)
Minibatch = TypeVar("Minibatch")


@dataclass(frozen=True)
class Ranks:
    """Place of this process among the training processes."""

    rank: int = 0
    world_size: int = 1

    @property
    def is_first(self) -> bool:
        """Whether this rank writes what all ranks share."""
        return self.rank == 0


@runtime_checkable
class Reporter(Protocol):
    """What the loop tells the outside."""

    def metrics(self, stage: str, values: Mapping[str, float], step: int) -> None:
        """Record values after optimiser step `step` (called on every rank, written by one)."""


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
    data_wait_s: Callable[[], float]


def fit(
    inputs: FitInput[Minibatch],
    config: OptimConfig,
    training: TrainingConfig,
    checkpoints: CheckpointStore,
    reporter: Reporter,
    ranks: Ranks,
    about: Mapping[str, str],
) -> None:
    """Train one stage to its last step, resuming from the newest checkpoint if there is one.

    Args:
        inputs: stage and minibatches.
        config: optimiser settings; `n_steps` ends the stage.
        training: intervals of logging, validation and checkpoints.
        checkpoints: store of this stage; written by rank 0, read by all.
        reporter: receiver of metrics.
        ranks: place of this process.
        about: facts stored in every checkpoint, `config_hash` among them.

    Raises:
        DivergedError: before the optimiser step, on a non-finite loss or gradient.
    """
    state = _State.create(inputs.stage.module, config, ranks)
    start = state.restore(checkpoints, ranks)
    if start >= config.n_steps:
        return
    clock = _Clock(inputs.data_wait_s)
    for step, minibatch in enumerate(inputs.minibatches(start, config.n_steps), start=start + 1):
        loss = _step(state, inputs, minibatch, config, step)
        if step % training.log_every_steps == 0 or step == config.n_steps:
            cells = inputs.cells_per_rank * ranks.world_size
            values = _mean_over_ranks(loss, ranks) | clock.lap(step - start, cells)
            rate = float(state.schedule.get_last_lr()[0])
            values |= {"train/lr": rate, "train/grad_norm": state.norm}
            reporter.metrics(inputs.stage.name, values, step)
        due = step % training.validate_every_steps == 0 or step == config.n_steps
        if due and inputs.validation is not None:
            reporter.metrics(inputs.stage.name, inputs.validation(state.average.module), step)
        if step % training.checkpoint.every_steps == 0 or step == config.n_steps:
            state.save(checkpoints, step, ranks, about, is_last=step == config.n_steps)
    _barrier(ranks)


def _step(
    state: "_State",
    inputs: FitInput[Minibatch],
    minibatch: Minibatch,
    config: OptimConfig,
    step: int,
) -> Loss:
    """One optimiser step; returns the loss of the last part of the minibatch."""
    n_parts = config.n_accumulation
    n_cells = inputs.cells_per_rank // n_parts
    for number in range(n_parts):
        part = slice(number * n_cells, (number + 1) * n_cells)
        is_last = number == n_parts - 1
        with state.maybe_no_sync(is_last), _autocast(state.device, config.precision):
            loss = inputs.stage.loss(state.forward, minibatch, part)
        (loss.per_cell.mean() / n_parts).backward()  # type: ignore[no-untyped-call]  # torch
    norm = nn.utils.clip_grad_norm_(state.module.parameters(), config.clip_norm)
    state.norm = float(norm)
    if not math.isfinite(state.norm):
        # gradients are already averaged, so every rank sees this and none takes the step
        raise DivergedError(_divergence(inputs.stage.name, step, loss))
    state.optimizer.step()
    state.optimizer.zero_grad(set_to_none=True)
    state.schedule.step()
    state.average.update_parameters(state.module)
    return loss


@dataclass
class _State:
    """Everything a step changes."""

    module: nn.Module
    forward: nn.Module
    optimizer: torch.optim.Optimizer
    schedule: torch.optim.lr_scheduler.LambdaLR
    average: AveragedModel
    device: torch.device
    norm: float = 0.0

    @classmethod
    def create(cls, module: nn.Module, config: OptimConfig, ranks: Ranks) -> "_State":
        device = next(module.parameters()).device
        average = optim_parts.make_average(module, config)
        if config.compile:
            module.compile()
        forward = module
        if ranks.world_size > 1:
            ids = [device.index] if device.type == "cuda" else None
            forward = DistributedDataParallel(
                module, device_ids=ids, gradient_as_bucket_view=True, broadcast_buffers=False
            )
        optimizer = optim_parts.make_optimizer(module.parameters(), config)
        schedule = optim_parts.make_schedule(optimizer, config)
        return cls(module, forward, optimizer, schedule, average, device)

    def maybe_no_sync(self, is_last: bool):  # type: ignore[no-untyped-def]  # two context types
        """Gradients travel between ranks once per step, with the last part."""
        if isinstance(self.forward, DistributedDataParallel) and not is_last:
            return self.forward.no_sync()
        return torch.enable_grad()

    def save(
        self,
        checkpoints: CheckpointStore,
        step: int,
        ranks: Ranks,
        about: Mapping[str, str],
        *,
        is_last: bool,
    ) -> None:
        """Hand the state to the writer thread of rank 0; the last one is waited for."""
        if not ranks.is_first:
            return
        tensors = {f"module.{k}": v for k, v in self.module.state_dict().items()}
        tensors |= {f"average.{k}": v for k, v in self.average.state_dict().items()}
        optimizer, groups = flatten_optimizer(self.optimizer.state_dict())
        tensors |= {f"optimizer.{k}": v for k, v in optimizer.items()}
        checkpoints.save_async(step, tensors, {**about, "optimizer": groups})
        if is_last:
            checkpoints.wait()

    def restore(self, checkpoints: CheckpointStore, ranks: Ranks) -> int:
        """Load the newest whole checkpoint, the same on every rank; returns its step or 0."""
        found = checkpoints.newest()
        step = _agree_on_step(0 if found is None else found.step, ranks)
        if step == 0:
            return 0
        if found is None or found.step != step:
            found = checkpoints.load(step)
        self.module.load_state_dict(_under(found.tensors, "module."))
        self.average.load_state_dict(_under(found.tensors, "average."))
        flat = _under(found.tensors, "optimizer.")
        self.optimizer.load_state_dict(unflatten_optimizer(flat, found.about["optimizer"]))
        rates = [group["lr"] for group in self.optimizer.param_groups]
        at = {"last_epoch": step, "_last_lr": rates}
        self.schedule.load_state_dict(self.schedule.state_dict() | at)
        logger.info("event=resumed step=%d", step)
        return step


class _Clock:
    """Rates since the last lap."""

    def __init__(self, data_wait_s: Callable[[], float]) -> None:
        self._data_wait_s = data_wait_s
        self._start = time.perf_counter()
        self._wait = data_wait_s()
        self._step = 0

    def lap(self, step: int, cells_per_step: int) -> dict[str, float]:
        now, wait = time.perf_counter(), self._data_wait_s()
        elapsed, n_steps = now - self._start, max(1, step - self._step)
        values = {
            "time/step_s": elapsed / n_steps,
            "time/data_wait_share": (wait - self._wait) / elapsed,
            "data/cells_per_s": n_steps * cells_per_step / elapsed,
        }
        self._start, self._wait, self._step = now, wait, step
        return values


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


def _divergence(stage: str, step: int, loss: Loss) -> str:
    bad = loss.joinids[~torch.isfinite(loss.per_cell.detach()).cpu().numpy()]
    cells = f"cells with soma_joinid {bad[:10].tolist()}" if bad.size else "no cell of this rank"
    return (
        f"{stage} met a non-finite loss or gradient at step {step} ({cells} had a non-finite "
        f"loss); nothing was updated. Lower {stage}.optim.lr, or look at these cells, and run "
        "again: training continues from the last checkpoint"
    )


def _agree_on_step(step: int, ranks: Ranks) -> int:
    """The smallest step every rank can see: storage may show a new file to some ranks first."""
    if ranks.world_size == 1:
        return step
    device = "cuda" if dist.get_backend() == "nccl" else "cpu"
    value = torch.tensor(step, dtype=torch.int64, device=device)
    dist.all_reduce(value, op=dist.ReduceOp.MIN)
    return int(value)


def _barrier(ranks: Ranks) -> None:
    if ranks.world_size > 1:
        dist.barrier()


def _under(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}
