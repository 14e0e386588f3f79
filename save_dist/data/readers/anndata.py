"""AnnData on disk, as h5ad or as a Zarr store of either format, from AnnData 0.6 on."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pandas as pd
import scipy.sparse as sp

from save_dist.core.errors import DataError
from save_dist.data.readers import frames
from save_dist.data.readers.base import CellReader, CountFacts, count_facts
from save_dist.data.readers.matrix import StoredMatrix


class AnndataReader(CellReader):
    """An open AnnData file.

    Args:
        path: where it is, for messages.
        root: its open root group.
        layer: layer of raw counts; None: X. `raw` also finds AnnData's `raw.X`, with its genes.
        gene_column: column of var that names the genes; None: its index.

    Raises:
        DataError: if this is no AnnData, or it has no such layer or column.
    """

    def __init__(self, path: Path, root: Any, layer: str | None, gene_column: str | None) -> None:
        self.path = path
        self._root = root
        self._check_frames()
        x, var = self._find_counts(layer)
        self._obs = root["obs"]
        self.gene_ids = self._genes_of(var, gene_column)
        self.cell_names = frames.packed_index_of(self._obs, f"{path}: obs")
        self._x_name = x.name
        self._x = StoredMatrix(x, (self.n_obs, self.n_vars), str(path))

    @property
    def obs_columns(self) -> list[str]:
        """Columns of obs, its index left out."""
        return frames.column_names(self._obs)

    def obs_column(self, name: str) -> "pd.Series[Any]":
        """One column of obs in file order; missing values are NaN or None."""
        return pd.Series(frames.column(self._obs, name))

    def scan_counts(self) -> CountFacts:
        """Look at every stored value once."""
        remedy = "set ingest.layer to the layer of raw counts"
        return count_facts(self._x.value_runs(), f"{self.path}: {self._x_name}", remedy)

    def blocks(self, n_rows: int) -> Iterator[sp.csr_array]:
        """All cells in file order, `n_rows` at a time."""
        return self._x.blocks(n_rows)

    def _check_frames(self) -> None:
        if absent := [name for name in ("obs", "var") if name not in self._root]:
            raise DataError(
                f"{self.path} has no {' and no '.join(absent)}; write it with AnnData "
                "(write_h5ad, write_zarr)"
            )

    def _find_counts(self, layer: str | None) -> tuple[Any, Any]:
        """The count matrix and the var that names its genes."""
        root = self._root
        layers = root.get("layers", {})
        has_raw = "raw" in root and frames.is_group(root["raw"])  # Zarr: a null array if absent
        if layer is None and "X" in root:
            return root["X"], root["var"]
        if layer is not None and layer in layers:
            return layers[layer], root["var"]
        if layer == "raw" and has_raw:
            return root["raw"]["X"], root["raw"]["var"]
        known = ["X"] * ("X" in root) + sorted(layers)
        raise DataError(
            f"{self.path} has no {'X' if layer is None else f'layer {layer!r}'}; it has: "
            f"{', '.join(known + ['raw'] * has_raw) or 'no counts at all'}; "
            "correct ingest.layer"
        )

    def _genes_of(self, var: Any, gene_column: str | None) -> Any:
        if gene_column is None:
            return frames.index_of(var, f"{self.path}: var")
        if gene_column not in (known := frames.column_names(var)):
            raise DataError(
                f"{self.path}: var has no column {gene_column!r}; it has: "
                f"{', '.join(known) or 'its index alone'}; correct gene_column of the input, or "
                "leave it out to use the index"
            )
        return frames.text_of(var, gene_column)
