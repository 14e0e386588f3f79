"""Random numbers of training, keyed by (seed, step, lane) so that no rank matters.

A rank that owns lanes 0 and 2 draws exactly what two ranks would draw between them.
"""

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from save_dist.core import seeding


def lane_normals(
    seed: int, purpose: str, step: int, lanes: tuple[int, ...], cells_per_lane: int, n: int
) -> Float[Tensor, "cell n"]:
    """Standard normals for the cells of `lanes`, in lane order."""
    drawn = [
        seeding.generator(seed, purpose, step, lane).standard_normal(
            (cells_per_lane, n), dtype=np.float32
        )
        for lane in lanes
    ]
    return torch.from_numpy(np.concatenate(drawn))


def lane_uniforms(
    seed: int, purpose: str, step: int, lanes: tuple[int, ...], cells_per_lane: int, n: int
) -> Float[Tensor, "cell n"]:
    """Uniform numbers in [0, 1) for the cells of `lanes`, in lane order."""
    drawn = [
        seeding.generator(seed, purpose, step, lane).random((cells_per_lane, n), dtype=np.float32)
        for lane in lanes
    ]
    return torch.from_numpy(np.concatenate(drawn))
