"""Guidance: how strongly the velocity field follows the condition (SAVE eq. 12).

Legend: N cells, D latent, C fields.
"""

from collections.abc import Callable, Sequence

import torch
from jaxtyping import Float, Int64
from torch import Tensor

ConditionalVelocity = Callable[[Tensor, Tensor, Tensor], Tensor]
"""v(x [cell, latent], t [cell], codes [cell, field]) -> [cell, latent]: a velocity network."""
Field = Callable[[Tensor, Tensor], Tensor]
"""v(t [], x [cell, latent]) -> [cell, latent]: what a solver integrates."""


def guided(
    velocity: ConditionalVelocity,
    codes: Int64[Tensor, "cell field"],
    mask_codes: Sequence[int],
    *,
    scale: float = 1.0,
    column_weights: Sequence[float] | None = None,
    interval: tuple[float, float] = (0.0, 1.0),
) -> Field:
    """The field of `codes`, pushed away from the unconditional one.

    Args:
        velocity: the network; called once per evaluation where nothing has to be guided.
        codes: condition of each cell; masked columns stay masked.
        mask_codes: MASK code of each column.
        scale: w in (1 - w) v_null + w v_cond. 1 is the plain conditional field.
        column_weights: one w_a per column for v_null + sum_a w_a (v_a - v_null), where v_a knows
            column a alone; replaces `scale`. A column of weight 0 costs no evaluation.
        interval: times (both ends included) within which guidance applies; outside, the plain
            conditional field.
    """
    assert column_weights is None or len(column_weights) == codes.shape[1]
    mask_C = torch.as_tensor(mask_codes, dtype=codes.dtype, device=codes.device)
    null = mask_C.expand_as(codes)
    if column_weights is None:
        terms = [(1 - scale, null), (scale, codes)]
    else:
        terms = [(1 - sum(column_weights), null)]
        terms += [(w, _only(codes, null, a)) for a, w in enumerate(column_weights)]
    terms = [(w, c) for w, c in terms if w != 0]
    always = interval == (0.0, 1.0)  # asking for the value of t would stall a GPU

    def field(
        t: Float[Tensor, ""], x: Float[Tensor, "cell latent"]
    ) -> Float[Tensor, "cell latent"]:
        t_N = t.expand(len(x))
        if not always and not interval[0] <= float(t) <= interval[1]:
            return velocity(x, t_N, codes)
        (w, c), *rest = terms
        v = velocity(x, t_N, c) if w == 1 else w * velocity(x, t_N, c)
        for w, c in rest:
            v = v + w * velocity(x, t_N, c)
        return v

    return field


def _only(
    codes: Int64[Tensor, "cell field"], null: Int64[Tensor, "cell field"], column: int
) -> Int64[Tensor, "cell field"]:
    """`codes` with every column but one masked."""
    alone = null.clone()
    alone[:, column] = codes[:, column]
    return alone
