"""Compressed rows of counts: the in-memory form between files, stores and minibatches."""

from typing import NamedTuple, no_type_check

import numba
import numpy as np
from jaxtyping import Float32, Int32, Int64, UInt16, UInt32
from numpy import ndarray


class CsrCounts(NamedTuple):
    """Raw counts of some cells as compressed rows; genes ascend within a row."""

    indptr: Int64[ndarray, " edge"]
    """Row i holds entries indptr[i] to indptr[i + 1]; one longer than the number of cells."""
    genes: UInt16[ndarray, " entry"] | Int32[ndarray, " entry"]
    """Column of each entry in the store; uint16 when the store has at most 65,536 genes."""
    counts: UInt16[ndarray, " entry"] | UInt32[ndarray, " entry"] | Float32[ndarray, " entry"]
    """Read from a store: uint16 when the store says so, float32 otherwise; uint32 on the way in."""

    @property
    def n_cells(self) -> int:
        """Rows, empty ones included."""
        return self.indptr.size - 1


class CsrPiece(NamedTuple):
    """Entries in arrival order."""

    rows: np.ndarray
    genes: np.ndarray
    counts: np.ndarray


def assemble(pieces: list[CsrPiece], n_rows: int, gene_dtype: type, count_dtype: type) -> CsrCounts:
    """Entries in any order -> compressed rows, by counting; each piece is let go once placed."""
    indptr = np.zeros(n_rows + 1, dtype=np.int64)
    for piece in pieces:
        indptr[1:] += np.bincount(piece.rows, minlength=n_rows)
    np.cumsum(indptr, out=indptr)
    genes = np.empty(indptr[-1], dtype=gene_dtype)
    counts = np.empty(indptr[-1], dtype=count_dtype)
    cursor = indptr[:-1].copy()
    while pieces:
        _place(*pieces.pop(0), cursor, genes, counts)
    return CsrCounts(indptr, genes, counts)


# no_type_check: numba cannot compile the wrapper that the shape checks of the tests put around
# annotated functions (jaxtyping 0.3).
@numba.njit(cache=True, nogil=True)
@no_type_check
def rows_of(ids: np.ndarray, joinids: np.ndarray) -> np.ndarray:
    """Position of each id in `joinids`; neighbouring entries mostly share their cell."""
    rows = np.empty(ids.size, dtype=np.int32)
    row = 0
    for i in range(ids.size):
        if joinids[row] != ids[i]:
            if row + 1 < joinids.size and joinids[row + 1] == ids[i]:
                row += 1
            else:
                row = np.searchsorted(joinids, ids[i])
        rows[i] = row
    return rows


@numba.njit(cache=True, nogil=True)
@no_type_check
def _place(
    rows: np.ndarray,
    piece_genes: np.ndarray,
    piece_counts: np.ndarray,
    cursor: np.ndarray,
    genes: np.ndarray,
    counts: np.ndarray,
) -> None:
    for i in range(rows.size):
        place = cursor[rows[i]]
        genes[place] = piece_genes[i]
        counts[place] = piece_counts[i]
        cursor[rows[i]] = place + 1


@numba.njit(cache=True, nogil=True)
@no_type_check
def sort_rows(indptr: np.ndarray, genes: np.ndarray, counts: np.ndarray) -> int:
    """Sort genes within rows that need it; the first row with a gene twice, or -1.

    Stores with tiles narrower than the matrix return a row in several runs.
    """
    for row in range(indptr.size - 1):
        start, end = indptr[row], indptr[row + 1]
        is_sorted = True
        for i in range(start + 1, end):
            if genes[i] <= genes[i - 1]:
                is_sorted = False
                break
        if is_sorted:
            continue
        order = np.argsort(genes[start:end], kind="mergesort")
        genes[start:end] = genes[start:end][order]
        counts[start:end] = counts[start:end][order]
        for i in range(start + 1, end):
            if genes[i] == genes[i - 1]:
                return row
    return -1
