"""A matrix on disk, in HDF5 or Zarr: compressed rows, compressed columns or dense."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import scipy.sparse as sp

from save_dist.core.errors import DataError
from save_dist.data.readers import base
from save_dist.data.readers.frames import is_group


class StoredMatrix:
    """Counts of cells x genes.

    Args:
        item: array (dense), or folder with data, indices and indptr.
        shape: cells and genes that the file names.
        where: what it is, for messages.

    Raises:
        DataError: if it is no such matrix, or of another shape.
    """

    def __init__(self, item: Any, shape: tuple[int, int], where: str) -> None:
        self._item = item
        self._shape = shape
        self._where = where
        self._kind = self._find_kind()

    def blocks(self, n_rows: int) -> Iterator[sp.csr_array]:
        """All rows in order, `n_rows` at a time."""
        n_cells = self._shape[0]
        for start in range(0, n_cells, n_rows):
            try:
                yield self._rows(start, min(start + n_rows, n_cells))
            except ValueError as e:
                raise DataError(f"{self._where}, rows from {start}: torn matrix: {e}") from e

    def value_runs(self) -> Iterator[np.ndarray]:
        """All stored values in pieces."""
        is_dense = self._kind == "dense"
        values = self._item if is_dense else self._item["data"]
        step = max(1, base.ENTRIES_PER_RUN // max(1, self._shape[1] if is_dense else 1))
        for first in range(0, values.shape[0], step):
            yield np.asarray(values[first : first + step])

    def _rows(self, start: int, stop: int) -> sp.csr_array:
        if self._kind == "dense":
            return sp.csr_array(np.asarray(self._item[start:stop]))
        if self._kind == "csr":
            indptr = np.asarray(self._item["indptr"][start : stop + 1]).astype(np.int64)
            run = slice(int(indptr[0]), int(indptr[-1]))
            values, genes = (np.asarray(self._item[name][run]) for name in ("data", "indices"))
            shape = (stop - start, self._shape[1])
            if genes.size and (genes.min() < 0 or genes.max() >= shape[1]):
                raise ValueError(
                    f"it has genes {genes.min()} to {genes.max()}, expected 0 to {shape[1] - 1}"
                )
            return sp.csr_array((values, genes, indptr - indptr[0]), shape=shape)
        return self._rows_of_columns(start, stop)

    def _rows_of_columns(self, start: int, stop: int) -> sp.csr_array:
        """A row block out of compressed columns: one pass over all entries, bounded memory."""
        indptr = np.asarray(self._item["indptr"][:]).astype(np.int64)
        kept: list[tuple[np.ndarray, np.ndarray, np.ndarray]] = []
        for first in range(0, int(indptr[-1]), base.ENTRIES_PER_RUN):
            run = slice(first, first + base.ENTRIES_PER_RUN)
            cells = np.asarray(self._item["indices"][run])
            chosen = np.flatnonzero((cells >= start) & (cells < stop))
            genes = np.searchsorted(indptr, chosen + first, side="right") - 1
            values = np.asarray(self._item["data"][run])[chosen]
            kept.append((values, cells[chosen] - start, genes))
        shape = (stop - start, self._shape[1])
        if not kept:
            return sp.csr_array(shape, dtype=self._item["data"].dtype)
        data, cells, genes = (np.concatenate(parts) for parts in zip(*kept, strict=True))
        return sp.coo_array((data, (cells, genes)), shape=shape).tocsr()

    def _find_kind(self) -> str:
        """csr, csc or dense, checked against the number of cells and genes."""
        if not is_group(self._item):
            kind, shape = "dense", tuple(self._item.shape)
        else:
            attributes: dict[str, Any] = dict(self._item.attrs)
            named = attributes.get("encoding-type", attributes.get("h5sparse_format", "csr"))
            kind = str(named).removesuffix("_matrix")
            shape = tuple(attributes.get("shape", attributes.get("h5sparse_shape", ())))
            if absent := [n for n in ("data", "indices", "indptr") if n not in self._item]:
                raise DataError(f"{self._where} has no {', '.join(absent)}: it is no matrix")
            n_outer = {"csr": self._shape[0], "csc": self._shape[1]}.get(kind)
            if n_outer is None or self._item["indptr"].shape[0] != n_outer + 1:
                shape = (self._item["indptr"].shape[0] - 1,)
        if shape not in ((), self._shape):
            raise DataError(
                f"{self._where}: counts are a {kind} matrix of shape {shape}, expected csr, csc or "
                f"dense with {self._shape[0]} cells (obs) x {self._shape[1]} genes (var)"
            )
        return kind
