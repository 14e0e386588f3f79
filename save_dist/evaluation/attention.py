"""Attention of cell types and conditions over gene blocks (SAVE appendix C)."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float64, Int16, Int64
from numpy import ndarray

from save_dist.core import seeding
from save_dist.evaluation.space import log_normalised
from save_dist.evaluation.tables import CellTable
from save_dist.models.attention import block_attention, has_block_attention
from save_dist.models.vae import Vae
from save_dist.vocab.conditions import ConditionVocabulary

MAX_CELLS = 4000
"""Cells looked at, as many of each combination as can be."""
_CELLS_AT_ONCE = 256


@dataclass(frozen=True)
class AttentionMap:
    """Mean share of attention that each gene block gets from the cells of each condition value.

    Args:
        rows: column and value.
        n_cells: cells behind each row.
        encoder: shares in the encoder's last layer, each row sums to 1.
        decoder: the same of the decoder, which the condition steers.
    """

    rows: tuple[tuple[str, str], ...]
    n_cells: Int64[ndarray, " value"]
    encoder: Float64[ndarray, "value gene_block"]
    decoder: Float64[ndarray, "value gene_block"]

    def lines(self) -> Iterator[str]:
        """Tab-separated, with a header."""
        blocks = range(self.encoder.shape[1])
        yield "\t".join(["network", "column", "value", "n_cells", *(f"block_{b}" for b in blocks)])
        for name, shares in (("encoder", self.encoder), ("decoder", self.decoder)):
            for (column, value), n, row in zip(self.rows, self.n_cells, shares, strict=True):
                yield "\t".join([name, column, value, str(n), *(f"{share:.5g}" for share in row)])


def attention_map(
    vae: Vae, cells: CellTable, conditions: ConditionVocabulary, seed: int
) -> AttentionMap | None:
    """Attention over real cells, averaged per condition value; None if the VAE has dense layers.

    Every combination counts the same, by as many of its cells as there is room for.

    Args:
        vae: the model, in evaluation mode.
        cells: real cells over the vocabulary's genes.
        conditions: what the codes mean.
        seed: of the choice of cells.
    """
    chosen = _chosen(cells, seed)
    if not has_block_attention(vae) or not chosen.size:
        return None
    parts = [
        block_attention(
            vae,
            torch.from_numpy(log_normalised(cells.read(rows))),
            torch.from_numpy(cells.codes[rows].astype(np.int64)),
        )
        for rows in np.array_split(chosen, -(-chosen.size // _CELLS_AT_ONCE))
    ]
    encoder, decoder = (torch.cat(side).numpy() for side in zip(*parts, strict=True))
    codes = cells.codes[chosen]
    found = list(_values(codes, conditions))
    return AttentionMap(
        rows=tuple((column, value) for column, value, _ in found),
        n_cells=np.array([rows.size for *_, rows in found], dtype=np.int64),
        encoder=np.stack([_mean(encoder, codes, rows) for *_, rows in found]),
        decoder=np.stack([_mean(decoder, codes, rows) for *_, rows in found]),
    )


def _chosen(cells: CellTable, seed: int) -> Int64[ndarray, " row"]:
    """Equally many rows of every combination, in ascending order."""
    rng = seeding.generator(seed, "attention_cells")
    combinations = [rng.permutation(rows) for rows in cells.rows_by_combination().values()]
    kept = [combinations[i] for i in rng.permutation(len(combinations))[:MAX_CELLS]]
    each = MAX_CELLS // max(len(kept), 1)
    return np.sort(np.concatenate([np.empty(0, dtype=np.int64), *(r[:each] for r in kept)]))


def _values(
    codes: Int16[ndarray, "cell field"], conditions: ConditionVocabulary
) -> Iterator[tuple[str, str, Int64[ndarray, " row"]]]:
    """Every value that has cells: its column, its name, its rows."""
    for i, (column, categories) in enumerate(
        zip(conditions.columns, conditions.categories, strict=True)
    ):
        for code, value in enumerate(categories):
            rows = np.flatnonzero(codes[:, i] == code)
            if rows.size:
                yield column, value, rows


def _mean(
    shares: ndarray, codes: Int16[ndarray, "cell field"], rows: Int64[ndarray, " row"]
) -> Float64[ndarray, " gene_block"]:
    """Mean over combinations of the mean over their cells."""
    _, place = np.unique(codes[rows], axis=0, return_inverse=True)
    sums = np.zeros((place.max() + 1, shares.shape[1]))
    np.add.at(sums, place, shares[rows])
    out: ndarray = (sums / np.bincount(place)[:, None]).mean(axis=0)
    return out
