"""What 10x Genomics Cell Ranger writes: h5 files and folders with a Matrix Market file.

Formats: https://www.10xgenomics.com/support/software/cell-ranger (feature-barcode matrices); of
version 3 on, and of version 2 (genes instead of features). Only features of type Gene Expression
are genes; antibodies, guides and peaks of the same file are left out.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pandas as pd
import scipy.sparse as sp

from save_dist.core.errors import DataError
from save_dist.data.readers import frames
from save_dist.data.readers.base import CellReader, CountFacts, count_facts
from save_dist.data.readers.market import MarketFile
from save_dist.data.readers.matrix import StoredMatrix

_GENE_TYPE = "Gene Expression"
_NAMES = ("id", "symbol")
_REMEDY = "10x files hold raw counts; write the file again"


class TenxH5Reader(CellReader):
    """An open 10x h5 file.

    Args:
        path: where it is, for messages.
        file: the open file.
        gene_column: `id` (None means the same) or `symbol`.

    Raises:
        DataError: if it holds several genomes, or its arrays disagree on their lengths.
    """

    def __init__(self, path: Path, file: h5py.File, gene_column: str | None) -> None:
        self.path = path
        group = _only_matrix(path, file)
        features = _features_of_h5(group)
        kept = _genes_among(features, path)
        self.cell_names = frames.packed_text([_as_text(group["barcodes"])])
        self.gene_ids = _gene_names(features, gene_column, path)[kept]
        shape = (self.n_obs, len(features))
        stored = tuple(int(n) for n in group["shape"][:])[::-1]
        if stored != shape:
            raise DataError(
                f"{path} says {stored[0]} cells x {stored[1]} features, but names {shape[0]} "
                f"barcodes and {shape[1]} features; write the file again"
            )
        self._kept = kept if kept.size < len(features) else None
        self._x = StoredMatrix(group, shape, str(path))

    @property
    def obs_columns(self) -> list[str]:
        """None: 10x files name their cells, nothing more."""
        return []

    def obs_column(self, name: str) -> "pd.Series[Any]":
        """There is none."""
        raise KeyError(name)

    def scan_counts(self) -> CountFacts:
        """Look at every stored value once."""
        return count_facts(self._x.value_runs(), str(self.path), _REMEDY)

    def blocks(self, n_rows: int) -> Iterator[sp.csr_array]:
        """All cells in file order, `n_rows` at a time."""
        for block in self._x.blocks(n_rows):
            yield block if self._kept is None else block[:, self._kept]


class TenxFolderReader(CellReader):
    """A 10x folder: matrix.mtx, barcodes.tsv and features.tsv (or genes.tsv), each plain or .gz.

    Args:
        path: the folder.
        gene_column: `id` (None means the same) or `symbol`.

    Raises:
        DataError: if a file is missing, or the three disagree on their lengths.
    """

    def __init__(self, path: Path, gene_column: str | None) -> None:
        self.path = path
        matrix, barcodes, genes = folder_files(path)
        features = _read_table(genes)
        kept = _genes_among(features, genes)
        self.cell_names = frames.packed_text([_read_table(barcodes)[0].to_numpy(dtype=object)])
        self.gene_ids = _gene_names(features, gene_column, genes)[kept]
        place = np.full(len(features), -1, dtype=np.int64)
        place[kept] = np.arange(kept.size)
        self._x = MarketFile(matrix, place, self.n_obs)

    @property
    def obs_columns(self) -> list[str]:
        """None: 10x folders name their cells, nothing more."""
        return []

    def obs_column(self, name: str) -> "pd.Series[Any]":
        """There is none."""
        raise KeyError(name)

    def scan_counts(self) -> CountFacts:
        """Look at every stored value once."""
        return count_facts((run.counts for run in self._x.runs()), str(self._x.path), _REMEDY)

    def blocks(self, n_rows: int) -> Iterator[sp.csr_array]:
        """All cells in file order, `n_rows` at a time."""
        return self._x.blocks(n_rows, self.n_vars)


def matrix_groups(file: h5py.File) -> list[str]:
    """Groups of an HDF5 file that are 10x matrices: `matrix`, or one per genome (version 2)."""
    return [n for n, g in file.items() if isinstance(g, h5py.Group) and "barcodes" in g]


def is_folder(path: Path) -> bool:
    """Whether a folder is meant to be 10x's."""
    return any(path.glob("matrix.mtx*"))


def folder_files(path: Path) -> tuple[Path, Path, Path]:
    """Matrix, barcodes and features of a 10x folder.

    Raises:
        DataError: if one is missing, or there twice.
    """
    wanted = (("matrix.mtx",), ("barcodes.tsv",), ("features.tsv", "genes.tsv"))
    found = []
    for names in wanted:
        there = [p for n in names for p in (path / n, path / f"{n}.gz") if p.is_file()]
        if len(there) != 1:
            have = " and ".join(p.name for p in there) or "none of them"
            raise DataError(
                f"10x folder {path} must hold one file {' or '.join(names)}, plain or .gz; it "
                f"has {have}"
            )
        found.append(there[0])
    return found[0], found[1], found[2]


def _only_matrix(path: Path, file: h5py.File) -> Any:
    groups = matrix_groups(file)
    if len(groups) != 1:
        raise DataError(
            f"{path} holds {len(groups)} genomes ({', '.join(groups)}), expected one; write each "
            "to a file of its own"
        )
    return file[groups[0]]


def _features_of_h5(group: Any) -> pd.DataFrame:
    if "features" in group:
        features = group["features"]
        stored = [features[name] for name in ("id", "name", "feature_type")]
    else:
        stored = [group[name] for name in ("genes", "gene_names")]
    return pd.DataFrame({i: _as_text(item) for i, item in enumerate(stored)})


def _read_table(path: Path) -> pd.DataFrame:
    """A table without header as text."""
    try:
        return pd.read_csv(path, sep="\t", header=None, dtype=str, na_filter=False, quoting=3)
    except (ValueError, OSError, EOFError) as e:
        raise DataError(f"{path} is not a readable table: {e}; write the folder again") from e


def _genes_among(features: pd.DataFrame, where: Path) -> np.ndarray:
    """Positions of the features that are genes; files without types hold genes alone."""
    if features.shape[1] < 3:
        return np.arange(len(features))
    kept = np.flatnonzero(features[2] == _GENE_TYPE)
    if not kept.size:
        raise DataError(
            f"{where} has no feature of type {_GENE_TYPE}; its types: "
            f"{', '.join(sorted(features[2].unique()))}; take it out of ingest.inputs"
        )
    return kept


def _gene_names(features: pd.DataFrame, gene_column: str | None, where: Path) -> np.ndarray:
    known = _NAMES[: features.shape[1]]
    name = gene_column or "id"
    if name not in known:
        raise DataError(
            f"{where} names genes by {' and '.join(known)}, not by {gene_column!r}; correct "
            "gene_column of the input"
        )
    return features[known.index(name)].to_numpy(dtype=object)


def _as_text(item: Any) -> np.ndarray:
    return np.array([str(value) for value in frames.values_of(item)], dtype=object)
