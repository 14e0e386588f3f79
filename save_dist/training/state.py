"""Everything an optimiser step changes: how it is made, saved, and found again."""

import logging
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim.swa_utils import AveragedModel

from save_dist.config.schema import OptimConfig
from save_dist.stores.checkpoint import (
    CheckpointStore,
    flatten_optimizer,
    unflatten_optimizer,
)
from save_dist.training import optim as optim_parts
from save_dist.training.ranks import Ranks, smallest
from save_dist.training.standing import Standing, standing_of

logger = logging.getLogger(__name__)


@dataclass
class State:
    """Everything a step changes."""

    module: nn.Module
    forward: nn.Module
    optimizer: torch.optim.Optimizer
    schedule: torch.optim.lr_scheduler.LambdaLR
    average: AveragedModel
    device: torch.device
    norm: float = 0.0
    standing: Standing = field(default_factory=Standing)

    @classmethod
    def create(cls, module: nn.Module, config: OptimConfig, ranks: Ranks) -> "State":
        """The state before the first step; DDP-wrapped if there is more than one rank."""
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

    def tensors(self) -> dict[str, Tensor]:
        """Network, averaged weights and optimiser under names of their own."""
        tensors = {f"module.{k}": v for k, v in self.module.state_dict().items()}
        tensors |= {f"average.{k}": v for k, v in self.average.state_dict().items()}
        optimizer, _ = flatten_optimizer(self.optimizer.state_dict())
        return tensors | {f"optimizer.{k}": v for k, v in optimizer.items()}

    def about(self) -> dict[str, Any]:
        """The JSON-able rest of the state."""
        _, groups = flatten_optimizer(self.optimizer.state_dict())
        return {"optimizer": groups, "standing": self.standing.facts()}

    def restore(self, checkpoints: CheckpointStore, ranks: Ranks) -> int:
        """Load the newest whole checkpoint, the same on every rank; returns its step or 0."""
        found = checkpoints.newest()
        step = smallest(0 if found is None else found.step, ranks)
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
        self.standing = standing_of(found.about)
        logger.info("event=resumed step=%d", step)
        return step


def _under(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}
