"""Integration of a velocity field from source (t=0) to data (t=1), SAVE eq. 11."""

from dataclasses import dataclass
from typing import Literal

import torch
import torchdiffeq
from jaxtyping import Float
from torch import Tensor

from save_dist.core.errors import ConfigError
from save_dist.flow.guidance import Field

Method = Literal["euler", "midpoint", "heun", "rk4", "dopri5"]
_TORCHDIFFEQ_NAMES = {"heun": "heun2"}
_ADAPTIVE = "dopri5"


@dataclass(frozen=True)
class Solution:
    """End of the path, and how often the field was evaluated to get there."""

    x_1: Float[Tensor, "cell latent"]
    n_evaluations: int
    """Of the field by the solver; of the networks in it, where generation counts them."""


def integrate(
    velocity: Field,
    x_0: Float[Tensor, "cell latent"],
    *,
    method: Method,
    n_steps: int,
    tolerance: float,
) -> Solution:
    """Carry `x_0` from t=0 to t=1 along `velocity`.

    Args:
        velocity: field v(t, x).
        x_0: source points.
        method: euler (1 evaluation a step), midpoint and heun (2), rk4 (4), dopri5 (adaptive).
        n_steps: equal steps of a fixed-step method; dopri5 does not use it.
        tolerance: relative and absolute tolerance of dopri5; its error norm runs over the whole
            minibatch, so its steps depend on which cells share one.

    Raises:
        ConfigError: if dopri5 cannot reach the tolerance in the dtype of `x_0`, or the field is
            not finite.
    """
    n_evaluations = 0

    def counted(t: Tensor, x: Tensor) -> Tensor:
        nonlocal n_evaluations
        n_evaluations += 1
        return velocity(t, x)

    # a fixed-step method steps exactly from one given time to the next: no rounded step size
    n_times = 2 if method == _ADAPTIVE else n_steps + 1
    times = torch.linspace(0, 1, n_times, dtype=x_0.dtype, device=x_0.device)
    name = _TORCHDIFFEQ_NAMES.get(method, method)
    try:
        path = torchdiffeq.odeint(counted, x_0, times, method=name, rtol=tolerance, atol=tolerance)
    except AssertionError as e:  # how torchdiffeq 0.2 says that its step became too small
        raise ConfigError(
            f"{method} failed with solver.tolerance={tolerance} after {n_evaluations} "
            f"evaluations ({str(e)[:80]}); raise the tolerance or use method: midpoint"
        ) from e
    x_1: Tensor = path[-1]
    return Solution(x_1, n_evaluations)


def backwards(velocity: Field) -> Field:
    """The field that leads from t=1 to t=0 along the same lines; its own time runs from 0 to 1."""

    def field(
        t: Float[Tensor, ""], x: Float[Tensor, "cell latent"]
    ) -> Float[Tensor, "cell latent"]:
        return -velocity(1 - t, x)

    return field
