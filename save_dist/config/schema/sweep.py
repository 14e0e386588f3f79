"""Hyper-parameter sweeps: which settings of training are tried, and what a trial is judged by."""

import math
from typing import Any, Literal

from pydantic import Field, model_validator

from save_dist.config.schema.base import Positive, Section
from save_dist.config.schema.jobs import TrainJob

SWEPT = ("vae", "flow", "reflow", "transport", "training")
"""Sections whose settings a trial may change; what lies before training is shared by all."""


class RangeConfig(Section):
    """Numbers to draw from, both ends included."""

    low: float
    high: float
    log: bool = False
    """Draw the logarithm evenly: for rates and weights."""
    integer: bool = False
    """Round to whole numbers."""

    @model_validator(mode="after")
    def _is_an_interval(self) -> "RangeConfig":
        if not self.low < self.high:
            raise ValueError(f"low={self.low} is not below high={self.high}")
        if self.log and self.low <= 0:
            raise ValueError(f"low={self.low} has no logarithm; write a positive one or log: false")
        return self


class SweepConfig(Section):
    """Trials of one training job under different settings."""

    parameters: dict[str, list[Any] | RangeConfig] = Field(min_length=1)
    """Dotted setting -> values to try, e.g. {vae.optim.lr: [1e-3, 3e-3]}, or for `random` a range
    {low: 1e-4, high: 1e-2, log: true}."""
    method: Literal["grid", "random"] = "grid"
    """`grid`: every combination of the values. `random`: n_trials independent draws."""
    n_trials: Positive | None = None
    """Draws of `random`. More: better settings, at the same cost each."""
    stage: Literal["vae", "flow"] = "vae"
    """Stage whose validation judges a trial."""
    metric: str = Field("val/loss", pattern=r"^val/")
    """What is compared, a metric of validation cells (`val/...`): test cells are never asked.
    Compare what means the same in all trials: a loss changes with the weights in it."""
    goal: Literal["min", "max"] = "min"
    n_parallel: Positive = 1
    """Trials at once, each with `cluster.n_workers` workers."""

    @model_validator(mode="after")
    def _fits_its_method(self) -> "SweepConfig":
        for key, values in self.parameters.items():
            if key.partition(".")[0] not in SWEPT or "." not in key:
                raise ValueError(
                    f"sweep.parameters names {key!r}; only settings of {', '.join(SWEPT)} can be "
                    "swept, e.g. vae.optim.lr"
                )
            if isinstance(values, list) and not values:
                raise ValueError(f"sweep.parameters.{key} lists no values; name at least one")
            if isinstance(values, RangeConfig) and self.method == "grid":
                raise ValueError(
                    f"sweep.parameters.{key} is a range, and a grid needs values; list them or "
                    "use method: random"
                )
        if (self.n_trials is None) == (self.method == "random"):
            raise ValueError(
                "sweep.n_trials is the number of draws of method: random, and of it alone; the "
                f"grid of these values has {self.n_combinations} trials"
            )
        return self

    @property
    def n_combinations(self) -> int:
        """Trials of a grid."""
        return math.prod(len(v) for v in self.parameters.values() if isinstance(v, list))


class SweepJob(TrainJob):
    """A training job, tried under different settings."""

    sweep: SweepConfig

    @model_validator(mode="after")
    def _judges_a_stage_that_runs(self) -> "SweepJob":
        if self.sweep.stage not in self.training.stages:
            raise ValueError(
                f"sweep.stage={self.sweep.stage} is not among training.stages="
                f"[{', '.join(self.training.stages)}]"
            )
        return self
