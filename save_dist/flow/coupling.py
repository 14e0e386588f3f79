"""Pairing of source and data points by optimal transport within a minibatch.

Pairing across conditions ties the source to the condition, so that the source of one condition is
no longer the law that generation draws from; `groups` keeps the pairing inside each condition.
"""

import numpy as np
import torch
from jaxtyping import Float, Float64, Int, Int64
from numpy import ndarray
from torch import Tensor


def pair(
    x_0: Float[Tensor, "cell latent"],
    x_1: Float[Tensor, "cell latent"],
    groups: Int[Tensor, " cell"] | None = None,
) -> Int64[Tensor, " cell"]:
    """Permutation p for which x_0[p] -> x_1 has the smallest total squared distance.

    Runs on the CPU in O(n^3) per group; meant for minibatches of at most some thousand cells.

    Args:
        x_0: source points; row i belongs to the group of row i of `x_1`.
        x_1: data points.
        groups: group of each row; rows are exchanged inside a group only. None: one group.
    """
    source, data = (x.detach().to("cpu", torch.float64).numpy() for x in (x_0, x_1))
    labels = np.zeros(len(data), np.int64) if groups is None else groups.cpu().numpy()
    permutation = np.arange(len(data))
    for label in np.unique(labels):
        rows = np.flatnonzero(labels == label)
        permutation[rows] = rows[_assignment(source[rows], data[rows])]
    return torch.from_numpy(permutation).to(x_0.device)


def _assignment(
    source: Float64[ndarray, "cell latent"], data: Float64[ndarray, "cell latent"]
) -> Int64[ndarray, " cell"]:
    """Row of `source` that goes to each row of `data`; exact, since all masses are equal."""
    import ot  # slow to import, and only training with a coupling needs it

    n = len(data)
    if n == 1:
        return np.zeros(1, np.int64)
    mass = np.ones(n)
    plan: Float64[ndarray, "cell cell"] = ot.emd(mass, mass, ot.dist(data, source))
    rows: Int64[ndarray, " cell"] = plan.argmax(axis=1)
    return rows
