"""Columns of an obs or var on disk, in HDF5 or Zarr, whichever AnnData version wrote them."""

from collections.abc import Iterable
from typing import Any

import h5py
import numpy as np
import pandas as pd
import pyarrow as pa
import zarr

from save_dist.core.errors import DataError

_INDEX_NAMES = ("_index", "index")
_INTERNAL = "__categories"
_ALL = slice(None)
_ROWS_AT_ONCE = 2**16


def is_group(item: Any) -> bool:
    """Whether this is a folder of arrays rather than an array."""
    return isinstance(item, h5py.Group | zarr.Group)


def column_names(frame: Any) -> list[str]:
    """Columns, the index left out."""
    hidden = {_INTERNAL, _index_name(frame)}
    return [name for name in _names(frame) if name not in hidden]


def index_of(frame: Any, where: str) -> np.ndarray:
    """Names of the rows as text.

    Raises:
        DataError: if there are none.
    """
    return text_of(frame, _index_of(frame, where))


def packed_index_of(frame: Any, where: str) -> pa.LargeStringArray:
    """The same in a fourth of the memory, also while it is read."""
    name = _index_of(frame, where)
    n_rows = int(frame.shape[0] if isinstance(frame, h5py.Dataset) else _length(frame[name]))
    return packed_text(
        text_of(frame, name, slice(start, start + _ROWS_AT_ONCE))
        for start in range(0, n_rows, _ROWS_AT_ONCE)
    )


def packed_text(pieces: Iterable[np.ndarray]) -> pa.LargeStringArray:
    """Pieces of text, one behind the other."""
    arrays = [pa.array(piece, pa.large_string()) for piece in pieces]
    return pa.concat_arrays([pa.array([], pa.large_string()), *arrays])


def text_of(frame: Any, name: str, rows: slice = _ALL) -> np.ndarray:
    """One column, or some rows of it, as text."""
    return np.array([str(value) for value in column(frame, name, rows)], dtype=object)


def column(frame: Any, name: str, rows: slice = _ALL) -> Any:
    """One column, or some rows of it; missing values are NaN or None."""
    item: Any = frame[name]
    if is_group(item) and "categories" in item:
        return _categorical(item["codes"][rows], item["categories"])
    if is_group(item):  # nullable: values and a mask of missing ones
        return pd.Series(values_of(item["values"], rows)).mask(item["mask"][rows])
    if isinstance(item, h5py.Dataset) and "categories" in item.attrs:  # AnnData 0.7
        return _categorical(item[rows], frame.file[item.attrs["categories"]])
    if isinstance(frame, h5py.Dataset) and f"uns/{name}_categories" in frame.file:  # AnnData 0.6
        return _categorical(item[rows], frame.file[f"uns/{name}_categories"])
    return values_of(item, rows)


def values_of(item: Any, rows: slice = _ALL) -> np.ndarray:
    """Values of an array on disk or a field of a compound one; bytes become text."""
    values = np.asarray(item[rows])
    if values.dtype.kind in "ST" or (values.dtype == object and values.size):
        return np.array([v.decode() if isinstance(v, bytes) else v for v in values], dtype=object)
    return values


def _names(frame: Any) -> list[str]:
    return list(frame.dtype.names if isinstance(frame, h5py.Dataset) else frame.keys())


def _length(item: Any) -> int:
    """Rows of a column, however it is stored."""
    if is_group(item):
        item = item["codes"] if "categories" in item else item["values"]
    return int(item.shape[0])


def _index_of(frame: Any, where: str) -> str:
    name = _index_name(frame)
    if name is None:
        raise DataError(f"{where} has no index (names of its rows); write the file with AnnData")
    return name


def _index_name(frame: Any) -> str | None:
    """Name of the column that is the index."""
    stored = frame.attrs.get("_index")
    known = _names(frame)
    names = [stored] if stored is not None else [n for n in _INDEX_NAMES if n in known]
    return str(names[0]) if names else None


def _categorical(codes: Any, categories: Any) -> Any:
    return pd.Categorical.from_codes(codes, pd.Index(values_of(categories)))
