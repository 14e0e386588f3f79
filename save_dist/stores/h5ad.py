"""One h5ad file from blocks of cells that follow each other; one block in memory at a time."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import anndata
import h5py
import numpy as np
import pandas as pd
import scipy.sparse as sp
from numpy import ndarray

_STORED = {"compression": "gzip", "compression_opts": 1, "shuffle": True}
_ROWS_PER_CHUNK = 8192
_ENTRIES_PER_CHUNK = 1 << 20


def write_h5ad(path: Path, blocks: Iterable[anndata.AnnData], n_obs: int) -> None:
    """Write blocks of cells as one AnnData file: X as compressed rows, the rest dense.

    Args:
        path: file to write; replaced if it exists.
        blocks: cells with the same columns, categories, genes, layers and latents; X is CSR.
        n_obs: cells in all blocks together.
    """
    row = 0
    with h5py.File(path, "w") as file:
        for block in blocks:
            if row == 0:
                _lay_out(file, block, n_obs)
            _append(file, block, row)
            row += block.n_obs
    assert row == n_obs, (row, n_obs)


def _lay_out(file: Any, block: anndata.AnnData, n_obs: int) -> None:
    _describe(file, "anndata", "0.1.0")
    _lay_out_counts(file.create_group("X"), block.X, n_obs)
    obs = _describe(file.create_group("obs"), "dataframe", "0.2.0")
    obs.attrs["column-order"] = np.array(list(block.obs), dtype=h5py.string_dtype())
    obs.attrs["_index"] = "_index"
    _text(obs, "_index", n_obs)
    for name, column in block.obs.items():
        if isinstance(column.dtype, pd.CategoricalDtype):
            group = _describe(obs.create_group(str(name)), "categorical", "0.2.0")
            group.attrs["ordered"] = False
            anndata.io.write_elem(group, "categories", column.cat.categories.to_numpy(object))
            _dense(group, "codes", column.cat.codes.to_numpy(), n_obs)
        else:
            _dense(obs, str(name), column.to_numpy(), n_obs)
    for kind in ("layers", "obsm"):
        group = _describe(file.create_group(kind), "dict", "0.1.0")
        for name, values in getattr(block, kind).items():
            _dense(group, name, np.asarray(values), n_obs)
    for kind in ("obsp", "varm", "varp"):
        _describe(file.create_group(kind), "dict", "0.1.0")
    anndata.io.write_elem(file, "var", block.var)
    anndata.io.write_elem(file, "uns", dict(block.uns))


def _lay_out_counts(group: Any, x: sp.csr_matrix, n_obs: int) -> None:
    _describe(group, "csr_matrix", "0.1.0")
    group.attrs["shape"] = (n_obs, x.shape[1])
    for name, dtype in (("data", x.dtype), ("indices", np.dtype(np.int32))):
        chunks = (_ENTRIES_PER_CHUNK,)
        group.create_dataset(name, (0,), dtype, maxshape=(None,), chunks=chunks, **_STORED)
    group.create_dataset("indptr", (n_obs + 1,), np.int64, **_STORED)


def _append(file: Any, block: anndata.AnnData, row: int) -> None:
    stop = row + block.n_obs
    _append_counts(file["X"], block.X, row)
    obs = file["obs"]
    obs["_index"][row:stop] = block.obs_names.to_numpy(object)
    for name, column in block.obs.items():
        if isinstance(column.dtype, pd.CategoricalDtype):
            obs[name]["codes"][row:stop] = column.cat.codes.to_numpy()
        else:
            obs[name][row:stop] = column.to_numpy()
    for kind in ("layers", "obsm"):
        for name, values in getattr(block, kind).items():
            file[kind][name][row:stop] = np.asarray(values)


def _append_counts(group: Any, x: sp.csr_matrix, row: int) -> None:
    n_before = group["data"].shape[0]
    for name, values in (("data", x.data), ("indices", x.indices)):
        group[name].resize((n_before + x.nnz,))
        group[name][n_before:] = values
    group["indptr"][row : row + x.shape[0] + 1] = x.indptr.astype(np.int64) + n_before


def _dense(group: Any, name: str, values: ndarray, n_obs: int) -> None:
    shape = (n_obs, *values.shape[1:])
    chunks = (min(n_obs, _ROWS_PER_CHUNK if values.ndim == 1 else 64), *values.shape[1:])
    array = group.create_dataset(name, shape, values.dtype, chunks=chunks, **_STORED)
    _describe(array, "array", "0.2.0")


def _text(group: Any, name: str, n_obs: int) -> None:
    chunks = (min(n_obs, _ROWS_PER_CHUNK),)
    array = group.create_dataset(name, (n_obs,), h5py.string_dtype(), chunks=chunks)
    _describe(array, "string-array", "0.2.0")


def _describe(element: Any, kind: str, version: str) -> Any:
    """How AnnData tells what an element is."""
    element.attrs["encoding-type"] = kind
    element.attrs["encoding-version"] = version
    return element
