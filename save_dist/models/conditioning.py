"""Condition codes on their way into the networks: embedding, additive mean, masking.

A column with n categories has codes 0..n-1 and the MASK code n, which owns the last row of that
column's embedding. Legend: N cells, C fields, E embedding width, D latent.
"""

from collections.abc import Sequence

import torch
from jaxtyping import Float, Int, Int64
from torch import Tensor, nn

from save_dist.config.schema import MaskConfig

_SHARE_WHOLE, _SHARE_HIDDEN = 0.25, 0.25  # of the cells under the `mixture` scheme


class ConditionEmbedding(nn.Module):
    """Sum over columns of one learned vector per category, MASK included.

    Args:
        sizes: categories per column of the codes.
        width: length of the vectors.
        columns: columns that are seen; None: all. Without any, the embedding is zero.
    """

    offsets: Tensor
    columns: Tensor
    zero: Tensor

    def __init__(
        self, sizes: Sequence[int], width: int, columns: Sequence[int] | None = None
    ) -> None:
        super().__init__()
        chosen = list(range(len(sizes))) if columns is None else list(columns)
        n_rows, offsets = category_rows([sizes[c] for c in chosen])
        self.register_buffer("offsets", offsets, persistent=False)
        self.register_buffer("columns", torch.tensor(chosen, dtype=torch.int64), persistent=False)
        self.register_buffer("zero", torch.zeros(width), persistent=False)
        self.table = nn.Embedding(n_rows, width) if chosen else None

    def forward(self, codes: Int64[Tensor, "cell field"]) -> Float[Tensor, "cell width"]:
        """Embedding e of each cell's condition."""
        if self.table is None:
            return self.zero.expand(len(codes), -1)
        rows_NC = codes.index_select(1, self.columns) + self.offsets
        e: Tensor = self.table(rows_NC).sum(1)
        return e


class AdditiveMean(nn.Module):
    """m(c): the sum over columns of a fixed vector per category; that of MASK is zero.

    Zero until `set_effects`; not trained, and part of the state that is saved.

    Args:
        sizes: categories per column of the codes.
        dim: length of the vectors.
    """

    offsets: Tensor
    effects: Tensor

    def __init__(self, sizes: Sequence[int], dim: int) -> None:
        super().__init__()
        n_rows, offsets = category_rows(sizes)
        self.register_buffer("offsets", offsets, persistent=False)
        self.register_buffer("effects", torch.zeros(n_rows, dim))

    def set_effects(self, effects: Float[Tensor, "category latent"]) -> None:
        """Take the vectors of all categories, rows as in `category_rows`."""
        self.effects.copy_(effects)

    def forward(self, codes: Int64[Tensor, "cell field"]) -> Float[Tensor, "cell latent"]:
        """Mean of each cell's condition, as far as it is given."""
        m_ND: Tensor = self.effects[codes + self.offsets].sum(1)
        return m_ND


def category_rows(sizes: Sequence[int]) -> tuple[int, Int64[Tensor, " field"]]:
    """Rows of a table of one row per category, column after column, and each column's first row.

    The last row of every column is that of MASK.
    """
    n_rows_C = torch.tensor([size + 1 for size in sizes], dtype=torch.int64)
    return int(n_rows_C.sum()), n_rows_C.cumsum(0) - n_rows_C


# SAVE eq. 13
def mask_codes(
    codes: Int64[Tensor, "cell field"],
    uniforms: Float[Tensor, "cell 1+field"],
    mask_codes: Int64[Tensor, " field"],
    config: MaskConfig,
) -> Int64[Tensor, "cell field"]:
    """Hide condition columns, independently per cell and per column.

    Args:
        codes: conditions.
        uniforms: numbers in [0, 1): the first of a cell decides about the cell (used by `mixture`
            alone), the others about one column each.
        mask_codes: MASK code of each column.
        config: `fixed` hides every column with probability p. `mixture` leaves a quarter of the
            cells whole, hides everything of another quarter, and gives each other cell its own p,
            uniform in [0, 1).
    """
    if config.scheme == "fixed":
        hidden = uniforms[:, 1:] < config.p
    else:
        # below 0 for the whole cells, at least 1 for the hidden ones, spread over [0, 1) between
        p_N1 = (uniforms[:, :1] - _SHARE_WHOLE) / (1 - _SHARE_WHOLE - _SHARE_HIDDEN)
        hidden = uniforms[:, 1:] < p_N1
    return torch.where(hidden, mask_codes, codes)


def share_unmasked(codes: Int[Tensor, "cell field"], mask_codes: Int[Tensor, " field"]) -> float:
    """Share of the cells whose condition is shown in full: what generation relies on."""
    return float((codes != mask_codes).all(1).float().mean())
