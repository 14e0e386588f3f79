"""Cells as evaluation sees them: counts over the vocabulary genes and one code per condition."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import dask
import dask.array as da
import numpy as np
from jaxtyping import Float32, Int16, Int64, Shaped, UInt16
from numpy import ndarray

from save_dist.core.errors import DataError, VocabMismatchError
from save_dist.data.lazy import Read, lazy_rows

Codes = tuple[int, ...]
Counts = UInt16[ndarray, "_cell vocabulary_gene"] | Float32[ndarray, "_cell vocabulary_gene"]
"""Raw counts over all vocabulary genes, of any number of cells."""


ROWS_PER_READ = 2048
"""Cells that are read together at most."""


@dataclass(frozen=True)
class CellTable:
    """Condition codes of some cells, and their counts, which may be read when asked for.

    Args:
        counts: raw counts over the vocabulary genes, in their order; an array in memory, or one
            of dask.
        codes: code per condition column.
        name: whose cells these are, for messages.
    """

    counts: (
        UInt16[ndarray, "cell gene"] | Float32[ndarray, "cell gene"] | Shaped[da.Array, "cell gene"]
    )
    codes: Int16[ndarray, "cell field"]
    name: str = "given"

    @classmethod
    def lazy(
        cls,
        read: Read,
        rows: Int64[ndarray, " cell"],
        codes: Int16[ndarray, "cell field"],
        n_genes: int,
        dtype: type,
    ) -> "CellTable":
        """Cells in the order of their codes; `read` gives the counts of rows of some store."""
        portions = _portions(codes)
        order = np.concatenate([*portions, np.empty(0, dtype=np.int64)])
        counts = lazy_rows(read, rows[order], [len(p) for p in portions], n_genes, dtype)
        return cls(counts, codes[order])

    @property
    def n_cells(self) -> int:
        """Number of cells."""
        return len(self.codes)

    def read(self, rows: Int64[ndarray, " row"]) -> Counts:
        """Counts of the cells at `rows`, in their order.

        Raises:
            DataError: if a count is negative or not finite.
        """
        ascending, place = np.unique(rows, return_inverse=True)
        with dask.config.set(scheduler="synchronous"):  # a store is read by one thread at a time
            counts: ndarray = np.asarray(self.counts[ascending])[place]
        _check_counts(self.name, counts)
        return counts

    def take(self, rows: Int64[ndarray, " row"]) -> "CellTable":
        """The cells at `rows`, in memory."""
        return CellTable(self.read(rows), self.codes[rows], self.name)

    def portions(self) -> Iterator[Int64[ndarray, " row"]]:
        """Rows of all cells, combination by combination, as many at once as are read together."""
        yield from _portions(self.codes)

    def rows_by_combination(self) -> dict[Codes, Int64[ndarray, " row"]]:
        """Rows of every combination of codes, ordered by codes."""
        if self.n_cells == 0:
            return {}
        order = np.lexsort(self.codes.T[::-1])
        ordered = self.codes[order]
        starts = np.flatnonzero(np.any(ordered[1:] != ordered[:-1], axis=1)) + 1
        groups = np.split(order.astype(np.int64), starts)
        return {tuple(int(c) for c in self.codes[rows[0]]): np.sort(rows) for rows in groups}


def _portions(codes: Int16[ndarray, "cell field"]) -> list[Int64[ndarray, " row"]]:
    """Rows in the order of their codes, cut where a combination ends if it can be helped.

    So the cells of a combination are found by one or two reads.
    """
    order = np.lexsort(codes.T[::-1]).astype(np.int64)
    ordered = codes[order]
    ends = np.append(np.flatnonzero(np.any(ordered[1:] != ordered[:-1], axis=1)) + 1, len(order))
    cuts = [0]
    for start, end in zip([0, *ends[:-1].tolist()], ends.tolist(), strict=True):
        if end - cuts[-1] > ROWS_PER_READ and start > cuts[-1]:
            cuts.append(start)
        while end - cuts[-1] > ROWS_PER_READ:
            cuts.append(cuts[-1] + ROWS_PER_READ)
    return [part for part in np.split(order, cuts[1:]) if part.size]


def check_tables(tables: Sequence[CellTable], n_columns: int) -> None:
    """All tables hold the same genes and columns.

    Raises:
        VocabMismatchError: if numbers of genes or condition columns differ.
    """
    n_genes = {table.name: table.counts.shape[1] for table in tables}
    if len(set(n_genes.values())) > 1:
        raise VocabMismatchError(
            f"cells to compare have different numbers of genes: {n_genes}; read all of them "
            "over the genes of one vocabulary"
        )
    for table in tables:
        if table.codes.shape[1] != n_columns:
            raise VocabMismatchError(
                f"{table.name} cells have {table.codes.shape[1]} condition columns, the "
                f"vocabulary has {n_columns}; encode them with this vocabulary"
            )


def _check_counts(name: str, counts: Counts) -> None:
    if counts.dtype == np.uint16 or not counts.size:
        return
    low, high = float(counts.min()), float(counts.max())
    if not (low >= 0 and np.isfinite(high)):  # NaN fails the first comparison
        raise DataError(
            f"{name} cells hold counts from {low} to {high}; expected finite counts >= 0; "
            "give raw counts, not scaled or log values"
        )
