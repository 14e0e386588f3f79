"""The empty atlas: every group and array of an AnnData-Zarr (v3) store at its final shape.

Written once, before the first cell, so that filling it needs no allocation and no lock: one shard
of X and one file of every obs array per part. Nothing in it says when or where it was written.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import zarr
from numpy import ndarray

from save_dist.core.durable import canonical_json

OWN_COLUMNS = ("seen", "n_train_cells", "route", "n_route_cells", "part", "cell_seed")
RESERVED_COLUMNS = ("_index", *OWN_COLUMNS)
"""obs columns that the atlas writes itself; no condition may have such a name."""
MASK = "MASK"
"""Category of a condition column that was not given to the model."""
PLAN = "uns/save_dist/plan"
"""Where an atlas keeps the plan it is filled from, as JSON, for readers without the receipts."""
COMPLETE = "uns/save_dist/complete"
"""Where an atlas says whether it is complete."""
CONFIG = {"write_empty_chunks": True}
"""All-zero chunks are written too: every part has the same files, a missing one is an error."""
SEEDS_PER_CHUNK = 128
"""Cell seeds that are read together, 1 kB; with fewer their index would outweigh them."""

_BYTES_PER_COUNT, _BYTES_PER_MEAN, _BYTES_OF_OBS = 0.1, 3.4, 16
"""Compressed, as measured on sparse counts; means are never exactly zero."""
_NUMBERS: dict[str, tuple[str, bool | int]] = {
    "seen": ("bool", False),
    "n_train_cells": ("int64", -1),
    "n_route_cells": ("int64", -1),
    "part": ("int32", -1),
    "cell_seed": ("uint64", 0),
}


@dataclass(frozen=True)
class AtlasLayout:
    """Everything that is fixed before the first cell is drawn."""

    n_cells: int
    cells_per_part: int
    cells_per_chunk: int
    gene_ids: tuple[str, ...]
    categories: Mapping[str, tuple[str, ...]]
    """Values of every condition column, in the order of their codes."""
    plan_hash: str
    model_hash: str
    plan: Mapping[str, Any]
    """The request, recorded for the workers; JSON-able."""
    routes: tuple[str, ...]
    """Ways in which cells of this plan come about."""
    about: Mapping[str, Any]
    """Goes to uns/save_dist: guidance, solver, origin of labels. Numbers, text, lists, dicts."""
    history: tuple[tuple[int, str], ...] = ()
    """Rows and hash of every plan that this one extends, in their order."""
    layers: tuple[str, ...] = ()
    """Matrices like X, float32."""
    n_latent: int = 0
    """Width of obsm X_save; 0: not stored."""

    @property
    def bytes_per_cell(self) -> float:
        """About what a cell takes, compressed."""
        per_gene = _BYTES_PER_COUNT + _BYTES_PER_MEAN * len(self.layers)
        return len(self.gene_ids) * per_gene + 4 * self.n_latent + _BYTES_OF_OBS


def lay_out(store: Path, layout: AtlasLayout, versions: Mapping[str, str]) -> tuple[str, ...]:
    """Create the store; returns the names of the arrays with one row per cell."""
    root = _describe(zarr.create_group(store), "anndata", "0.1.0")
    n_genes = len(layout.gene_ids)
    names = [_matrix(root, "X", layout, n_genes, "uint16")]
    for name in ("layers", "obsm", "obsp", "varm", "varp"):
        _describe(root.create_group(name), "dict", "0.1.0")
    names += [_matrix(root["layers"], name, layout, n_genes, "float32") for name in layout.layers]
    if layout.n_latent:
        names.append(_matrix(root["obsm"], "X_save", layout, layout.n_latent, "float32"))
    columns = _lay_out_obs(root.create_group("obs"), layout)
    var = _describe_frame(root.create_group("var"), [])
    _put(var, "_index", list(layout.gene_ids))
    uns = _describe(root.create_group("uns"), "dict", "0.1.0")
    identity = {"plan_hash": layout.plan_hash, "model_hash": layout.model_hash}
    own = {**identity, "versions": versions, "complete": False}
    own["plan"] = canonical_json(layout.plan)
    _put(uns, "save_dist", {**layout.about, **own})
    return (*names, *columns)


def _matrix(group: Any, name: str, layout: AtlasLayout, width: int, dtype: str) -> str:
    """One row per cell, one shard per part."""
    array = group.create_array(
        name,
        shape=(layout.n_cells, width),
        dtype=dtype,
        chunks=(layout.cells_per_chunk, width),
        shards=(layout.cells_per_part, width),
        compressors=zarr.codecs.BloscCodec(
            typesize=np.dtype(dtype).itemsize, cname="zstd", clevel=1, shuffle="bitshuffle"
        ),
        fill_value=0,
        attributes=_encoding("array", "0.2.0"),
    )
    return str(array.path)


def _lay_out_obs(obs: Any, layout: AtlasLayout) -> list[str]:
    categoricals = {**layout.categories, "route": layout.routes}
    order = [*layout.categories, *OWN_COLUMNS]
    _describe_frame(obs, order)
    names = [_per_cell(obs, "_index", layout, "string", "", "string-array")]
    for column in order:
        if column in categoricals:
            values = categoricals[column]
            group = _describe(obs.create_group(column), "categorical", "0.2.0", ordered=False)
            _put(group, "categories", list(values))
            dtype = "int8" if len(values) <= np.iinfo(np.int8).max else "int16"
            names.append(_per_cell(group, "codes", layout, dtype, -1))
        else:
            names.append(_per_cell(obs, column, layout, *_NUMBERS[column]))
    return names


def _per_cell(
    group: Any,
    name: str,
    layout: AtlasLayout,
    dtype: str,
    fill: bool | int | str,
    kind: str = "array",
) -> str:
    # seeds do not compress, so a reader of one condition should not have to read those of a part
    is_cut = name == "cell_seed" and not layout.cells_per_part % SEEDS_PER_CHUNK
    per_chunk = SEEDS_PER_CHUNK if is_cut else layout.cells_per_part
    array = group.create_array(
        name,
        shape=(layout.n_cells,),
        dtype=dtype,
        chunks=(per_chunk,),
        shards=(layout.cells_per_part,) if is_cut else None,
        fill_value=fill,
        attributes=_encoding(kind, "0.2.0"),
    )
    return str(array.path)


def _describe(group: Any, kind: str, version: str, **attributes: Any) -> Any:
    group.attrs.update({**_encoding(kind, version), **attributes})
    return group


def _describe_frame(group: Any, columns: list[str]) -> Any:
    order = {"column-order": columns, "_index": "_index"}
    return _describe(group, "dataframe", "0.2.0", **order)


def _encoding(kind: str, version: str) -> dict[str, str]:
    """How AnnData tells what an element is."""
    return {"encoding-type": kind, "encoding-version": version}


def _put(group: Any, name: str, value: Any) -> None:
    """One small element in AnnData's encoding; None is left out."""
    if isinstance(value, Mapping):
        own = _describe(group.create_group(name), "dict", "0.1.0")
        for key in sorted(value):
            _put(own, key, value[key])
    elif isinstance(value, str):
        _put_array(group, name, np.array(value, dtype=np.dtypes.StringDType()), "string")
    elif isinstance(value, bool | int | float):
        _put_array(group, name, np.array(value), "numeric-scalar")
    elif isinstance(value, list | tuple):
        is_text = not value or any(isinstance(v, str) for v in value)
        dtype = np.dtypes.StringDType() if is_text else None
        kind = "string-array" if is_text else "array"
        _put_array(group, name, np.array(value, dtype=dtype), kind)
    elif value is not None:
        raise TypeError(f"{name} is a {type(value).__name__}: an atlas notes JSON values only")


def _put_array(group: Any, name: str, values: ndarray, kind: str) -> None:
    array = group.create_array(
        name,
        shape=values.shape,
        dtype="string" if values.dtype.kind == "T" else values.dtype,
        chunks=tuple(max(1, n) for n in values.shape),
        attributes=_encoding(kind, "0.2.0"),
        config=CONFIG,
    )
    array[...] = values
