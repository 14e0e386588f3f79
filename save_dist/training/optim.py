"""AdamW, warm-up then cosine, and averaged weights, all from torch."""

import math
from collections.abc import Iterable

import torch
from torch import nn
from torch.optim.lr_scheduler import LambdaLR
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from save_dist.config.schema import OptimConfig


def make_optimizer(
    parameters: Iterable[nn.Parameter], config: OptimConfig
) -> torch.optim.Optimizer:
    """AdamW at the peak rate; the schedule scales it."""
    return torch.optim.AdamW(parameters, lr=config.lr, weight_decay=config.weight_decay, fused=True)


def make_schedule(optimizer: torch.optim.Optimizer, config: OptimConfig) -> LambdaLR:
    """Learning rate over the steps of a run, a pure function of the step."""
    return LambdaLR(optimizer, lambda step: rate_share(step, config))


def rate_share(step: int, config: OptimConfig) -> float:
    """Share of the peak rate at optimiser step `step`: linear warm-up, then cosine.

    >>> rate_share(99, OptimConfig(n_steps=200, warmup_share=0.5))
    1.0
    """
    n_warmup = round(config.n_steps * config.warmup_share)
    if step < n_warmup:
        return (step + 1) / n_warmup
    done = (step - n_warmup) / max(1, config.n_steps - n_warmup)
    cosine = 0.5 * (1 + math.cos(math.pi * min(1.0, done)))
    return config.final_lr_share + (1 - config.final_lr_share) * cosine


def make_average(module: nn.Module, config: OptimConfig) -> AveragedModel:
    """Exponential moving average of the weights; the first update copies them."""
    average = get_ema_multi_avg_fn(config.ema_decay)  # type: ignore[no-untyped-call]  # torch
    return AveragedModel(module, multi_avg_fn=average)
