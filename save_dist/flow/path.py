"""The path from source to data that the flow learns, and the law of the time it is learnt at.

Legend: N cells, D latent.
"""

from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor


# SAVE eq. 8-9
def straight_path(
    x_0: Float[Tensor, "cell latent"], x_1: Float[Tensor, "cell latent"], t: Float[Tensor, " cell"]
) -> tuple[Float[Tensor, "cell latent"], Float[Tensor, "cell latent"]]:
    """Point `x_t` and velocity `u_t` at time `t` (0 = source, 1 = data) on the line x_0 -> x_1."""
    t_N1 = t[:, None]
    return (1 - t_N1) * x_0 + t_N1 * x_1, x_1 - x_0


def sample_time(
    uniforms: Float[Tensor, " cell"], law: Literal["uniform", "logit_normal"]
) -> Float[Tensor, " cell"]:
    """Training times in [0, 1] from uniform numbers in [0, 1).

    `logit_normal` is the sigmoid of a standard normal: it trains the middle of the path more.
    """
    if law == "uniform":
        return uniforms
    return torch.sigmoid(torch.special.ndtri(uniforms))
