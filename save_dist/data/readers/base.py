"""What every kind of input offers, and the test that its values are counts."""

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple, Protocol, no_type_check, runtime_checkable

import numba
import numpy as np
import pandas as pd
import pyarrow as pa
import scipy.sparse as sp

from save_dist.core.errors import DataError

ENTRIES_PER_RUN = 2**22
"""Stored values looked at together where a whole file is passed over: 16 MiB of float32."""

_PROBLEMS = ("", "NaN or infinite", "negative", "not an integer", "too large")


class CountFacts(NamedTuple):
    """What a scan over all stored values of an input found."""

    nnz: int
    max_count: int


@runtime_checkable
class CellReader(Protocol):
    """An open input. Memory does not grow with it, but for the names of its cells."""

    path: Path
    gene_ids: np.ndarray
    """Names of its genes, as text, in the order of the columns of a block."""
    cell_names: pa.LargeStringArray
    """Names of its cells in file order."""

    @property
    def n_obs(self) -> int:
        """Cells in the input."""
        return len(self.cell_names)

    @property
    def n_vars(self) -> int:
        """Genes in the input."""
        return int(self.gene_ids.size)

    @property
    def obs_columns(self) -> list[str]:
        """Columns of obs, its index left out."""
        ...

    def obs_column(self, name: str) -> "pd.Series[Any]":
        """One column of obs in file order; missing values are NaN or None."""
        ...

    def scan_counts(self) -> CountFacts:
        """Look at every stored value once.

        Raises:
            DataError: at the first value that is not a count: NaN, negative, fractional, or too
                large for 32 bits; or where the file is torn.
        """
        ...

    def blocks(self, n_rows: int) -> Iterator[sp.csr_array]:
        """All cells in file order, `n_rows` at a time (the last block may be shorter).

        Every call passes over the file anew. Genes of a row may be unsorted.

        Raises:
            DataError: where the file is torn.
        """
        ...


def count_facts(runs: Iterable[np.ndarray], where: str, remedy: str) -> CountFacts:
    """Tally stored values.

    Args:
        runs: all of them, in pieces.
        where: what they are, for the message.
        remedy: what to do if they are no counts.

    Raises:
        DataError: at the first value that is not a count.
    """
    found = CountFacts(0, 0)
    for values in runs:
        problem, place, n, largest = _check_counts(values.ravel())
        if problem:
            raise DataError(
                f"{where} holds {values.ravel()[place]}, which is {_PROBLEMS[problem]}; expected "
                f"raw counts (integers from 0 to 2**32 - 1): {remedy}"
            )
        found = CountFacts(found.nnz + n, max(found.max_count, largest))
    return found


# no_type_check: numba cannot compile the wrapper that the shape checks of the tests put around
# annotated functions (jaxtyping 0.3).
@numba.njit(cache=True, nogil=True)
@no_type_check
def _check_counts(values: np.ndarray) -> tuple[int, int, int, int]:
    """(problem, its place, number of nonzero values, largest value); problem 0: all are counts."""
    nnz = 0
    largest = 0.0
    for i in range(values.size):
        value = np.float64(values[i])
        if not np.isfinite(value):
            return 1, i, nnz, 0
        if value < 0:
            return 2, i, nnz, 0
        if value != np.floor(value):
            return 3, i, nnz, 0
        if value > 4294967295.0:
            return 4, i, nnz, 0
        if value > 0:
            nnz += 1
            largest = max(largest, value)
    return 0, 0, nnz, int(largest)
