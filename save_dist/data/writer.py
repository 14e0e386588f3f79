"""Lays out and fills a SOMA experiment of raw counts. The layout is what makes reading fast.

A tile spans all genes, so rows in order are already in TileDB's global order: writing skips the
sort, and a read without an asked order comes back row by row.
"""

import json
import shutil
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import tiledbsoma

from save_dist.core.errors import InfrastructureError
from save_dist.data.csr import CsrCounts
from save_dist.data.damage import COMPLETE_KEY, DIGESTS_KEY, description_digests
from save_dist.data.source import ORIGIN_KEY, StoreLocator

_PRESORTED = tiledbsoma.TileDBWriteOptions(sort_coords=False)
# Last, over compressed bytes: a tenth of what it costs over numbers. Codecs alone let a quarter of
# flipped bits pass as other counts or genes (ADR 0001).
_CHECKED_ZSTD = [{"_type": "ZstdFilter", "level": 3}, "ChecksumMD5Filter"]
# Delta and bit-width filters give the same size and decode 1.6 times slower.
_SHUFFLE_ZSTD = ["ByteShuffleFilter", *_CHECKED_ZSTD]


@dataclass(frozen=True)
class StoreLayout:
    """Everything that is fixed when a store is created."""

    n_cells: int
    gene_ids: tuple[str, ...]
    count_type: str
    """Arrow type of a count: uint16 or uint32."""
    obs_types: Mapping[str, str]
    """obs column -> string, int64, float64 or bool; cell_id, input, n_counts come on top."""
    rows_per_tile: int
    mean_entries: float
    """Nonzero counts per cell, on average."""

    @property
    def capacity(self) -> int:
        """Entries decoded together: one tile of rows, the unit of a random read."""
        return max(256, int(self.rows_per_tile * self.mean_entries))


def create_store(uri: Path, layout: StoreLayout, about: Mapping[str, str]) -> None:
    """Publish an empty store at `uri`, genes written, marked incomplete.

    Args:
        uri: folder to create; nothing may stand there.
        layout: its shape.
        about: metadata of the experiment, text by key.

    Raises:
        InfrastructureError: if the folder cannot be written.
    """
    aside = uri.with_name(f".{uri.name}.part")
    shutil.rmtree(aside, ignore_errors=True)
    try:
        with tiledbsoma.Experiment.create(str(aside)) as experiment:
            experiment.metadata.update({**about, COMPLETE_KEY: "false"})
            _add_obs(experiment, layout)
            rna = experiment.add_new_collection("ms").add_new_collection(
                StoreLocator.measurement, kind=tiledbsoma.Measurement
            )
            _add_var(rna, layout.gene_ids)
            rna.add_new_collection("X").add_new_sparse_ndarray(
                StoreLocator.layer,
                type=pa.type_for_alias(layout.count_type),
                shape=(layout.n_cells, len(layout.gene_ids)),
                platform_config=_matrix_options(layout),
            )
        aside.rename(uri)
    except (OSError, tiledbsoma.SOMAError) as e:
        raise InfrastructureError(f"could not create the store {uri}: {e}") from e


def obs_table(frame: pd.DataFrame, types: Mapping[str, str], start: int) -> pa.Table:
    """Obs rows `start` onwards: cell_id, input, n_counts and the columns of `types`."""
    fields = {"cell_id": "large_string", "input": "string", **types, "n_counts": "int64"}
    arrays = [pa.array(np.arange(start, start + len(frame)), pa.int64())]
    arrays += [_arrow(frame[name], kind) for name, kind in fields.items()]
    return pa.Table.from_arrays(arrays, names=["soma_joinid", *fields])


def write_obs(uri: Path, tables: Iterable[pa.Table]) -> None:
    """Write rows of obs. One process alone: new text values change the schema of obs."""
    for table in tables:
        with tiledbsoma.Experiment.open(str(uri), "w") as experiment:
            experiment.obs.write(table)


def write_cells(
    uri: Path, csr: CsrCounts, frame: pd.DataFrame, types: Mapping[str, str], start: int
) -> None:
    """Write counts and obs of rows `start` onwards; again over what a killed writer left.

    Raises:
        InfrastructureError: if the store cannot be written.
    """
    try:
        write_counts(uri, csr, start)
        write_obs(uri, [obs_table(frame, types, start)])
    except (OSError, tiledbsoma.SOMAError) as e:
        raise InfrastructureError(
            f"could not write rows {start}.. of {uri}: {e}; free space or fix permissions, then "
            "run again"
        ) from e


def write_counts(uri: Path, csr: CsrCounts, start: int) -> None:
    """Write matrix rows `start` onwards as one fragment; genes must ascend within each row.

    Several processes may write at the same time, each its own rows.
    """
    rows = np.arange(start, start + csr.n_cells, dtype=np.int64)
    columns = {
        "soma_dim_0": np.repeat(rows, np.diff(csr.indptr)),
        "soma_dim_1": csr.genes.astype(np.int64),
        "soma_data": csr.counts,
    }
    with _open_counts(uri) as x:
        if csr.genes.size:
            x.write(pa.table(columns), platform_config=_PRESORTED)


def mark_complete(uri: Path, label_origin: Mapping[str, str]) -> None:
    """Say in the store that all its cells are there."""
    rna = f"ms/{StoreLocator.measurement}"
    arrays = ("obs", f"{rna}/var", f"{rna}/X/{StoreLocator.layer}")
    with tiledbsoma.Experiment.open(str(uri), "w") as experiment:
        experiment.metadata[DIGESTS_KEY] = json.dumps(description_digests(uri, arrays))
        experiment.metadata[ORIGIN_KEY] = json.dumps(dict(label_origin))
        experiment.metadata[COMPLETE_KEY] = "true"


def _open_counts(uri: Path) -> Any:
    place = uri / "ms" / StoreLocator.measurement / "X" / StoreLocator.layer
    return tiledbsoma.SparseNDArray.open(str(place), "w")


def _add_obs(experiment: Any, layout: StoreLayout) -> None:
    types = {"cell_id": "large_string", "input": "string", **layout.obs_types, "n_counts": "int64"}
    fields = [pa.field(name, _column_type(kind)) for name, kind in types.items()]
    obs = experiment.add_new_dataframe(
        "obs",
        schema=pa.schema([pa.field("soma_joinid", pa.int64(), nullable=False), *fields]),
        index_column_names=["soma_joinid"],
        domain=[(0, layout.n_cells - 1)],
        platform_config=_frame_options(types),
    )
    obs.metadata["soma_dataframe_original_index_name"] = json.dumps("cell_id")


def _add_var(rna: Any, gene_ids: Sequence[str]) -> None:
    joinids = pa.array(np.arange(len(gene_ids)), pa.int64())
    table = pa.table({"soma_joinid": joinids, "gene_id": pa.array(gene_ids, pa.large_string())})
    var = rna.add_new_dataframe(
        "var",
        schema=table.schema,
        index_column_names=["soma_joinid"],
        domain=[(0, len(gene_ids) - 1)],
        platform_config=_frame_options(["gene_id"]),
    )
    var.metadata["soma_dataframe_original_index_name"] = json.dumps("gene_id")
    var.write(table)


def _matrix_options(layout: StoreLayout) -> Any:
    return tiledbsoma.TileDBCreateOptions(
        capacity=layout.capacity,
        tile_order="row-major",
        cell_order="row-major",
        dims={
            "soma_dim_0": {"tile": layout.rows_per_tile, "filters": _CHECKED_ZSTD},
            "soma_dim_1": {"tile": len(layout.gene_ids), "filters": _SHUFFLE_ZSTD},
        },
        attrs={"soma_data": {"filters": _SHUFFLE_ZSTD}},
    )


def _frame_options(columns: Iterable[str]) -> Any:
    """TileDB's own choices, each followed by a checksum."""
    return tiledbsoma.TileDBCreateOptions(
        dims={"soma_joinid": {"filters": _CHECKED_ZSTD}},
        attrs={name: {"filters": _CHECKED_ZSTD} for name in columns},
        offsets_filters=["DoubleDeltaFilter", "BitWidthReductionFilter", *_CHECKED_ZSTD],
        validity_filters=["RleFilter", "ChecksumMD5Filter"],
    )


def _column_type(kind: str) -> pa.DataType:
    """Arrow type of an obs column; text is stored as codes into its distinct values."""
    if kind == "string":
        return pa.dictionary(pa.int32(), pa.string())
    return pa.type_for_alias(kind)


def _arrow(values: "pd.Series[Any]", kind: str) -> pa.Array:
    if kind != "string":
        return pa.array(values.to_numpy(), _column_type(kind))
    text = values.astype(object).where(values.isna(), values.astype(str))
    return pa.array(text.astype("category")).cast(_column_type(kind))
