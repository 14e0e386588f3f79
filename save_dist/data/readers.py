"""Reads h5ad files block by block, so that memory does not grow with the file.

Understands compressed rows, compressed columns and dense counts, and files from before AnnData
wrote encoding attributes. Knows nothing of stores, labels or conditions.
"""

from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple, no_type_check

import h5py
import numba
import numpy as np
import pandas as pd
import scipy.sparse as sp

from save_dist.core.errors import DataError
from save_dist.core.paths import PACKAGE_PREFIX, in_package

# Stored values looked at together where a whole matrix is scanned: 64 MiB of float32.
_ENTRIES_PER_SCAN = 2**24
_INDEX_NAMES = ("_index", "index")


class CountFacts(NamedTuple):
    """What a scan over all stored values of a file found."""

    nnz: int
    max_count: int


def resolve(path: str) -> Path:
    """The file an input path means; `package:NAME/PATH` looks inside an installed package.

    The package is found without importing it.

    Raises:
        DataError: if the package or the file does not exist.
    """
    found = in_package(path)
    if found is None and path.startswith(PACKAGE_PREFIX):
        name = path.removeprefix(PACKAGE_PREFIX).partition("/")[0]
        raise DataError(
            f"input {path} is inside Python package {name!r}, which is not installed; "
            "install it or give a file path"
        )
    found = found or Path(path)
    if not found.is_file():
        raise DataError(
            f"input file {found} does not exist (working folder: {Path.cwd()}); "
            "correct ingest.inputs"
        )
    return found


class H5adReader:
    """An open h5ad file. Context manager.

    Args:
        path: the file.
        layer: layer of raw counts; None: X. `raw` also finds AnnData's `raw.X`, with its genes.

    Raises:
        DataError: if the file is not h5ad or has no such layer.
    """

    def __init__(self, path: Path, layer: str | None) -> None:
        self.path = path
        try:
            self._file: Any = h5py.File(path, "r")
        except OSError as e:
            raise DataError(f"{path} is not a readable h5ad (HDF5) file: {e}") from e
        try:
            self._check_frames()
            self._x, var = self._find_counts(layer)
            self._obs = self._file["obs"]
            self.gene_ids = _index_of(var, f"{path}: var")
            self.cell_names = _index_of(self._obs, f"{path}: obs")
            self._format = self._find_format()
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> "H5adReader":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Release the file; harmless when repeated."""
        self._file.close()

    @property
    def n_obs(self) -> int:
        """Cells in the file."""
        return int(self.cell_names.size)

    @property
    def n_vars(self) -> int:
        """Genes in the file."""
        return int(self.gene_ids.size)

    @property
    def obs_columns(self) -> list[str]:
        """Columns of obs, its index left out."""
        names = self._obs.dtype.names if isinstance(self._obs, h5py.Dataset) else self._obs.keys()
        hidden = {"__categories", _index_name(self._obs)}
        return [n for n in names if n not in hidden]

    def obs_column(self, name: str) -> "pd.Series[Any]":
        """One column of obs in file order; missing values are NaN or None."""
        return pd.Series(_column(self._obs, name))

    def scan_counts(self) -> CountFacts:
        """Look at every stored value once.

        Raises:
            DataError: at the first value that is not a count: NaN, negative, fractional, or too
                large for 32 bits.
        """
        found = CountFacts(0, 0)
        for values in self._value_runs():
            problem, place, n, largest = _check_counts(values.ravel())
            if problem:
                raise DataError(self._not_counts(problem, values.ravel()[place]))
            found = CountFacts(found.nnz + n, max(found.max_count, largest))
        return found

    def rows(self, start: int, stop: int) -> sp.csr_array:
        """Counts of the cells `start` to `stop` in file order; genes of a row may be unsorted."""
        if self._format == "dense":
            return sp.csr_array(self._x[start:stop])
        if self._format == "csr":
            indptr = self._x["indptr"][start : stop + 1].astype(np.int64)
            run = slice(indptr[0], indptr[-1])
            parts = (self._x["data"][run], self._x["indices"][run], indptr - indptr[0])
            return sp.csr_array(parts, shape=(stop - start, self.n_vars))
        return self._rows_of_columns(start, stop)

    def _rows_of_columns(self, start: int, stop: int) -> sp.csr_array:
        """A row block out of compressed columns: one pass over all entries, bounded memory."""
        indptr = self._x["indptr"][:].astype(np.int64)
        kept: list[tuple[np.ndarray, np.ndarray, np.ndarray]] = []
        for first in range(0, int(indptr[-1]), _ENTRIES_PER_SCAN):
            run = slice(first, first + _ENTRIES_PER_SCAN)
            cells = self._x["indices"][run]
            chosen = np.flatnonzero((cells >= start) & (cells < stop))
            genes = np.searchsorted(indptr, chosen + first, side="right") - 1
            kept.append((self._x["data"][run][chosen], cells[chosen] - start, genes))
        shape = (stop - start, self.n_vars)
        if not kept:
            return sp.csr_array(shape, dtype=self._x["data"].dtype)
        data, cells, genes = (np.concatenate(parts) for parts in zip(*kept, strict=True))
        return sp.coo_array((data, (cells, genes)), shape=shape).tocsr()

    def _value_runs(self) -> Iterator[np.ndarray]:
        values = self._x if self._format == "dense" else self._x["data"]
        width = self.n_vars if self._format == "dense" else 1
        step = max(1, _ENTRIES_PER_SCAN // max(1, width))
        for first in range(0, values.shape[0], step):
            yield values[first : first + step]

    def _check_frames(self) -> None:
        if absent := [name for name in ("obs", "var") if name not in self._file]:
            raise DataError(
                f"{self.path} has no {' and no '.join(absent)}; write it with AnnData (write_h5ad)"
            )

    def _find_counts(self, layer: str | None) -> tuple[Any, Any]:
        """The count matrix and the var that names its genes."""
        if layer is None and "X" in self._file:
            return self._file["X"], self._file["var"]
        if layer is not None and layer in self._file.get("layers", {}):
            return self._file["layers"][layer], self._file["var"]
        if layer == "raw" and "raw" in self._file:
            return self._file["raw"]["X"], self._file["raw"]["var"]
        known = ["X"] * ("X" in self._file) + sorted(self._file.get("layers", {}))
        raise DataError(
            f"{self.path} has no {'X' if layer is None else f'layer {layer!r}'}; it has: "
            f"{', '.join(known + ['raw'] * ('raw' in self._file)) or 'no counts at all'}; "
            "correct ingest.layer"
        )

    def _find_format(self) -> str:
        """csr, csc or dense, checked against the number of cells and genes."""
        if isinstance(self._x, h5py.Dataset):
            kind, shape = "dense", tuple(self._x.shape)
        else:
            attributes: dict[str, Any] = dict(self._x.attrs)
            named = attributes.get("encoding-type", attributes.get("h5sparse_format", "csr"))
            kind = str(named).removesuffix("_matrix")
            shape = tuple(attributes.get("shape", attributes.get("h5sparse_shape", ())))
            n_outer = {"csr": self.n_obs, "csc": self.n_vars}.get(kind)
            if n_outer is None or self._x["indptr"].shape[0] != n_outer + 1:
                shape = (self._x["indptr"].shape[0] - 1,)
        if shape not in ((), (self.n_obs, self.n_vars)):
            raise DataError(
                f"{self.path}: counts are a {kind} matrix of shape {shape}, expected csr, csc or "
                f"dense with {self.n_obs} cells (obs) x {self.n_vars} genes (var)"
            )
        return kind

    def _not_counts(self, problem: int, value: Any) -> str:
        kind = ("", "NaN or infinite", "negative", "not an integer", "too large")[problem]
        return (
            f"{self.path}: {self._x.name} holds {value}, which is {kind}; expected raw counts "
            "(integers from 0 to 2**32 - 1): set ingest.layer to the layer of raw counts"
        )


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


def _index_name(frame: Any) -> str | None:
    """Name of the column that is the index of an obs or var on disk."""
    known = frame.dtype.names if isinstance(frame, h5py.Dataset) else frame.keys()
    stored = frame.attrs.get("_index")
    names = [stored] if stored is not None else [n for n in _INDEX_NAMES if n in known]
    return str(names[0]) if names else None


def _index_of(frame: Any, where: str) -> np.ndarray:
    name = _index_name(frame)
    if name is None:
        raise DataError(f"{where} has no index (names of its rows); write the file with AnnData")
    return np.array([str(v) for v in _column(frame, name)], dtype=object)


def _column(frame: Any, name: str) -> Any:
    """One column of an obs or var on disk, whichever AnnData version wrote it."""
    item: Any = frame[name]
    if isinstance(item, h5py.Group) and "categories" in item:
        return _categorical(item["codes"][:], item["categories"])
    if isinstance(item, h5py.Group):  # nullable: values and a mask of missing ones
        return pd.Series(_values(item["values"])).mask(item["mask"][:])
    if isinstance(item, h5py.Dataset) and "categories" in item.attrs:  # AnnData 0.7
        return _categorical(item[:], frame.file[item.attrs["categories"]])
    if f"uns/{name}_categories" in frame.file:  # AnnData 0.6
        return _categorical(item, frame.file[f"uns/{name}_categories"])
    return _values(item)


def _categorical(codes: Any, categories: Any) -> Any:
    return pd.Categorical.from_codes(codes, pd.Index(_values(categories)))


def _values(item: Any) -> np.ndarray:
    """Values of a dataset or a field of a compound one; bytes become text."""
    values = np.asarray(item[:] if isinstance(item, h5py.Dataset) else item)
    if values.dtype.kind == "S" or (values.dtype == object and values.size):
        return np.array([v.decode() if isinstance(v, bytes) else v for v in values], dtype=object)
    return values
