"""A Matrix Market file of features x cells, read as text piece by piece, cell after cell.

Format: https://math.nist.gov/MatrixMarket/formats.html (coordinate).
"""

import gzip
import zlib
from collections.abc import Iterator
from io import TextIOWrapper
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
import scipy.sparse as sp

from save_dist.core.errors import DataError
from save_dist.data.readers import base

_COLUMNS = {"feature": np.int64, "cell": np.int64, "count": np.float64}


class Entries(NamedTuple):
    """Consecutive entries of the file; cells ascend, both numbers count from 0."""

    features: np.ndarray
    cells: np.ndarray
    counts: np.ndarray


class MarketFile:
    """The matrix of a 10x folder.

    Args:
        path: the file, plain or .gz.
        gene_of_feature: gene of each feature, -1 for one that is no gene.
        n_cells: cells that the folder names.

    Raises:
        DataError: if its header is another, or its shape not that of the folder.
    """

    def __init__(self, path: Path, gene_of_feature: np.ndarray, n_cells: int) -> None:
        self.path = path
        self._gene_of_feature = gene_of_feature
        self._shape = (gene_of_feature.size, n_cells)
        try:
            with self._open() as file:
                self._n_entries = self._read_header(file)
        except (OSError, EOFError, UnicodeDecodeError, zlib.error) as e:
            raise self._torn(e) from e

    def runs(self) -> Iterator[Entries]:
        """All entries in file order, a bounded number at a time.

        Raises:
            DataError: if a line is malformed, a number out of range, a cell out of order, or
                the number of entries not that of the header.
        """
        n_read = last_cell = 0
        try:
            with self._open() as file:
                self._read_header(file)
                for table in self._tables(file):
                    features, cells, counts = (table[name].to_numpy() for name in _COLUMNS)
                    run = Entries(features - 1, cells - 1, counts)
                    self._check(run, n_read, last_cell)
                    n_read, last_cell = n_read + cells.size, int(run.cells[-1])
                    yield run
        except (OSError, EOFError, ValueError, zlib.error) as e:
            if isinstance(e, DataError):
                raise
            raise self._torn(e) from e
        if n_read != self._n_entries:
            raise DataError(
                f"{self.path} holds {n_read} entries, its header promises {self._n_entries}; it "
                "was cut short or put together: write it again"
            )

    def blocks(self, n_rows: int, n_genes: int) -> Iterator[sp.csr_array]:
        """Rows of cells, `n_rows` at a time; holds one block and one run of entries."""
        n_cells = self._shape[1]
        start, waiting = 0, list[Entries]()
        for run in self.runs():
            while run.cells[-1] >= start + n_rows:
                cut = int(np.searchsorted(run.cells, start + n_rows))
                waiting.append(Entries(*(part[:cut] for part in run)))
                yield self._block(waiting, start, start + n_rows, n_genes)
                run = Entries(*(part[cut:] for part in run))
                start, waiting = start + n_rows, []
            waiting.append(run)
        for first in range(start, n_cells, n_rows):
            yield self._block(waiting, first, min(first + n_rows, n_cells), n_genes)
            waiting = []

    def _block(self, waiting: list[Entries], start: int, stop: int, n_genes: int) -> sp.csr_array:
        shape = (stop - start, n_genes)
        if not waiting:
            return sp.csr_array(shape, dtype=np.float64)
        features, cells, counts = (np.concatenate(parts) for parts in zip(*waiting, strict=True))
        genes = self._gene_of_feature[features]
        kept = genes >= 0
        edges = np.searchsorted(cells[kept], np.arange(start, stop + 1))
        return sp.csr_array((counts[kept], genes[kept], edges), shape=shape)

    def _tables(self, file: TextIOWrapper) -> Iterator[pd.DataFrame]:
        if self._n_entries:
            yield from pd.read_csv(
                file,
                sep=r"\s+",
                header=None,
                names=list(_COLUMNS),
                dtype=_COLUMNS,
                chunksize=base.ENTRIES_PER_RUN // 4,
            )

    def _check(self, run: Entries, n_before: int, last_cell: int) -> None:
        for name, numbers, n in (
            ("feature", run.features, self._shape[0]),
            ("cell", run.cells, self._shape[1]),
        ):
            if numbers.min() < 0 or numbers.max() >= n:
                place = int(np.flatnonzero((numbers < 0) | (numbers >= n))[0])
                raise DataError(
                    f"{self.path}: entry {n_before + place + 1} is of {name} "
                    f"{numbers[place] + 1}, expected 1 to {n}; write the file again"
                )
        steps = np.diff(run.cells, prepend=last_cell)
        if (steps < 0).any():
            place = int(np.argmax(steps < 0))
            raise DataError(
                f"{self.path}: entry {n_before + place + 1} is of cell {run.cells[place] + 1}, "
                "after one of a later cell; entries must stand cell by cell, as 10x writes them: "
                "sort them by their second number, or write the counts as h5ad"
            )

    def _open(self) -> TextIOWrapper:
        if self.path.suffix == ".gz":
            return gzip.open(self.path, "rt")
        return self.path.open()

    def _read_header(self, file: TextIOWrapper) -> int:
        """Check banner and shape; leaves the file at the first entry. Returns their number."""
        banner = file.readline().lower().split()
        if banner[:3] != ["%%matrixmarket", "matrix", "coordinate"] or banner[3:] not in (
            ["integer", "general"],
            ["real", "general"],
        ):
            raise DataError(
                f"{self.path} begins with {' '.join(banner) or 'nothing'!r}, expected "
                "'%%MatrixMarket matrix coordinate integer general'; write it again"
            )
        line = file.readline()
        while line.startswith("%") or line.isspace():
            line = file.readline()
        numbers = line.split()
        if len(numbers) != 3 or not all(n.isdigit() for n in numbers):
            raise DataError(
                f"{self.path}: the line of sizes is {line.strip()!r}, expected the numbers of "
                "features, cells and entries"
            )
        shape = (int(numbers[0]), int(numbers[1]))
        if shape != self._shape:
            turned = "; it is transposed" if shape == self._shape[::-1] else ""
            raise DataError(
                f"{self.path} is a matrix of {shape[0]} features x {shape[1]} cells{turned}, but "
                f"the folder names {self._shape[0]} features and {self._shape[1]} barcodes; put "
                "the files of one run into the folder"
            )
        return int(numbers[2])

    def _torn(self, error: Exception) -> DataError:
        return DataError(f"{self.path} is torn: {error}; write the folder again")
