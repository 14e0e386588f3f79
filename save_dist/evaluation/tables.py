"""Cells as evaluation sees them: counts over the vocabulary genes and one code per condition."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float32, Int16, Int64, UInt16
from numpy import ndarray

from save_dist.core.errors import DataError, VocabMismatchError

Codes = tuple[int, ...]
Counts = UInt16[ndarray, "_cell vocabulary_gene"] | Float32[ndarray, "_cell vocabulary_gene"]
"""Raw counts over all vocabulary genes, of any number of cells."""


@dataclass(frozen=True)
class CellTable:
    """Counts and condition codes of some cells.

    Args:
        counts: raw counts over the vocabulary genes, in their order.
        codes: code per condition column.
    """

    counts: UInt16[ndarray, "cell gene"] | Float32[ndarray, "cell gene"]
    codes: Int16[ndarray, "cell field"]

    @property
    def n_cells(self) -> int:
        """Number of cells."""
        return len(self.counts)

    def take(self, rows: Int64[ndarray, " row"]) -> "CellTable":
        """The cells at `rows`, copied."""
        return CellTable(self.counts[rows], self.codes[rows])

    def rows_by_combination(self) -> dict[Codes, Int64[ndarray, " row"]]:
        """Rows of every combination of codes, ordered by codes."""
        if self.n_cells == 0:
            return {}
        order = np.lexsort(self.codes.T[::-1])
        ordered = self.codes[order]
        starts = np.flatnonzero(np.any(ordered[1:] != ordered[:-1], axis=1)) + 1
        groups = np.split(order.astype(np.int64), starts)
        return {tuple(int(c) for c in self.codes[rows[0]]): np.sort(rows) for rows in groups}


def check_tables(tables: Mapping[str, CellTable], n_columns: int) -> None:
    """All tables hold the same genes and columns, and counts that are counts.

    Raises:
        VocabMismatchError: if numbers of genes or condition columns differ.
        DataError: if a count is negative or not finite.
    """
    n_genes = {name: table.counts.shape[1] for name, table in tables.items()}
    if len(set(n_genes.values())) > 1:
        raise VocabMismatchError(
            f"cells to compare have different numbers of genes: {n_genes}; read all of them "
            "over the genes of one vocabulary"
        )
    for name, table in tables.items():
        if table.codes.shape[1] != n_columns:
            raise VocabMismatchError(
                f"{name} cells have {table.codes.shape[1]} condition columns, the vocabulary has "
                f"{n_columns}; encode them with this vocabulary"
            )
        _check_counts(name, table)


def _check_counts(name: str, table: CellTable) -> None:
    if table.counts.dtype == np.uint16 or table.n_cells == 0:
        return
    low, high = float(table.counts.min()), float(table.counts.max())
    if not (low >= 0 and np.isfinite(high)):  # NaN fails the first comparison
        raise DataError(
            f"{name} cells hold counts from {low} to {high}; expected finite counts >= 0; "
            "give raw counts, not scaled or log values"
        )
