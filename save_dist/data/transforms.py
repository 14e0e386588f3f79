"""Counts -> what the networks see, and back. One code path for training, evaluation, notebooks.

log_x = log1p(count / library * 1e4), with the library summed over the vocabulary genes.
"""

import math
import sys
from typing import NamedTuple, no_type_check

import numba
import numpy as np
from jaxtyping import Float, Float32, Int64
from numpy import ndarray

from save_dist.core.errors import DataError
from save_dist.data.packed import PackedCells

LIBRARY_SCALE = 1e4
"""Counts per cell that log-normalisation scales to."""

# Counts below this take their logarithm from a table per cell: most counts are 1, 2 or 3.
_TABLE_SIZE = 64


class DenseCells(NamedTuple):
    """Cells as matrices."""

    counts: Float32[ndarray, "cell gene"]
    log_x: Float32[ndarray, "cell gene"]
    library: Float32[ndarray, " cell"]
    """Counts of the cell over the vocabulary genes; 0 for a cell without any."""


class DenseBuffers:
    """Output matrices, handed out again once nobody else holds them.

    Fresh matrices of megabytes cost as much as filling them. A buffer is reused only when neither
    it nor a view or tensor on it is referenced any more, so results may be kept as long as wanted.
    """

    def __init__(self) -> None:
        self._buffers: list[DenseCells] = []
        probe = DenseCells(*(np.empty((0, 0), dtype=np.float32) for _ in range(3)))
        self._n_own_references = sys.getrefcount(probe.counts)

    def take(self, n_cells: int, n_genes: int) -> DenseCells:
        """Matrices of any content that only the caller uses."""
        for buffer in self._buffers:
            if buffer.counts.shape == (n_cells, n_genes) and self._is_free(buffer):
                return DenseCells(*buffer)
        counts, log_x = (np.empty((n_cells, n_genes), dtype=np.float32) for _ in range(2))
        fresh = DenseCells(counts, log_x, np.empty(n_cells, dtype=np.float32))
        self._buffers = [b for b in self._buffers if b.counts.shape == counts.shape]
        self._buffers = [*self._buffers[-3:], fresh]
        return DenseCells(*fresh)

    def _is_free(self, buffer: DenseCells) -> bool:
        n = self._n_own_references
        return (
            sys.getrefcount(buffer.counts) == n
            and sys.getrefcount(buffer.log_x) == n
            and sys.getrefcount(buffer.library) == n
        )


def densify(
    cells: PackedCells,
    rows: Int64[ndarray, " cell"],
    n_genes: int,
    buffers: DenseBuffers | None = None,
) -> DenseCells:
    """Chosen rows of packed cells as matrices.

    Args:
        cells: counts over `n_genes` genes.
        rows: rows of `cells`, in any order, repeats allowed.
        n_genes: genes of the vocabulary.
        buffers: where to take the matrices from; None allocates them.
    """
    dense = (buffers or DenseBuffers()).take(rows.size, n_genes)
    _densify(*cells, rows, *dense)
    return dense


def log_normalise(counts: Float[ndarray, "cell gene"]) -> Float32[ndarray, "cell gene"]:
    """log1p of counts scaled to 1e4 per cell; cells without counts stay 0.

    Gives the very numbers of `densify`.

    Raises:
        DataError: naming the first cell that holds a negative or non-finite count.
    """
    log_x = np.zeros(counts.shape, dtype=np.float32)
    bad = _log_normalise(counts, log_x)
    if bad >= 0:
        raise DataError(
            f"cell {bad} holds a negative or non-finite count; "
            "counts must be finite numbers of at least 0"
        )
    return log_x


def invert_log_normalise(
    log_x: Float[ndarray, "cell gene"], library: Float[ndarray, " cell"]
) -> Float32[ndarray, "cell gene"]:
    """Counts (not rounded) whose log-normalised value is `log_x`, for the given library sizes."""
    counts = np.expm1(log_x) * (library[:, None] / LIBRARY_SCALE)
    return np.asarray(counts, dtype=np.float32)


def scale_max_abs(
    log_x: Float[ndarray, "cell gene"], max_log: Float[ndarray, " gene"]
) -> Float32[ndarray, "cell gene"]:
    """Expression in [0, 1] for cells the maxima were taken over."""
    return np.asarray(log_x / max_log, dtype=np.float32)


def unscale_max_abs(
    scaled: Float[ndarray, "cell gene"], max_log: Float[ndarray, " gene"]
) -> Float32[ndarray, "cell gene"]:
    """Inverse of `scale_max_abs`."""
    return np.asarray(scaled * max_log, dtype=np.float32)


# no_type_check: numba cannot compile the wrapper that the shape checks of the tests put around
# annotated functions (jaxtyping 0.3).
@numba.njit(cache=True, nogil=True)
@no_type_check
def log_of(count: float, factor: float) -> float:
    """The one formula: log1p(count * factor) in double precision (for use in kernels)."""
    return math.log1p(count * factor)


@numba.njit(cache=True, nogil=True)
@no_type_check
def _densify(
    indptr: np.ndarray,
    entries: np.ndarray,
    rows: np.ndarray,
    counts: np.ndarray,
    log_x: np.ndarray,
    library: np.ndarray,
) -> None:
    """Counts first, then logarithms: a row of either is cleared and filled within the cache."""
    table = np.empty(_TABLE_SIZE, dtype=np.float32)
    for cell in range(rows.size):
        row = entries[indptr[rows[cell]] : indptr[rows[cell] + 1]]
        out = counts[cell]
        out[:] = 0
        total = 0
        for i in range(row.shape[0]):
            total += row[i, 1]
            out[row[i, 0]] = row[i, 1]
        library[cell] = total
        out = log_x[cell]
        out[:] = 0
        if total == 0:
            continue
        factor = LIBRARY_SCALE / total
        table[:] = 0
        for i in range(row.shape[0]):
            count = row[i, 1]
            if count >= _TABLE_SIZE:
                out[row[i, 0]] = np.float32(log_of(count, factor))
                continue
            value = table[count]
            if value == 0:
                value = np.float32(log_of(count, factor))
                table[count] = value
            out[row[i, 0]] = value


@numba.njit(cache=True, nogil=True)
@no_type_check
def _log_normalise(counts: np.ndarray, log_x: np.ndarray) -> int:
    """The first cell with a count that is none, or -1."""
    for cell in range(counts.shape[0]):
        total = 0.0
        for gene in range(counts.shape[1]):
            if not counts[cell, gene] >= 0 or counts[cell, gene] == np.inf:
                return cell
            total += counts[cell, gene]
        if total == 0:
            continue
        factor = LIBRARY_SCALE / total
        for gene in range(counts.shape[1]):
            if counts[cell, gene] > 0:
                log_x[cell, gene] = np.float32(log_of(counts[cell, gene], factor))
    return -1
