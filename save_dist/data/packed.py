"""Cells packed for minibatches: compressed rows of (gene, count) pairs, vocabulary genes only.

A store yields Arrow columns of 20 bytes an entry over all its genes; one pass over them leaves
4 bytes an entry. Pools in memory and the cache on disk share this form.
"""

from typing import NamedTuple, no_type_check

import numba
import numpy as np
from jaxtyping import Int32, Int64, UInt16, UInt32
from numpy import ndarray

from save_dist.core.errors import DataError
from save_dist.data.damage import stranger
from save_dist.data.source import Entries, SomaSource


class PackedCells(NamedTuple):
    """Counts of some cells over the vocabulary."""

    indptr: Int64[ndarray, " edge"]
    """Row i holds entries indptr[i] to indptr[i + 1]; one longer than the number of cells."""
    entries: UInt16[ndarray, "entry 2"] | UInt32[ndarray, "entry 2"]
    """Gene position and count; uint32 only if a position or a count exceeds 65,535."""

    @property
    def n_cells(self) -> int:
        """Rows, empty ones included."""
        return self.indptr.size - 1


def gather_map(
    gene_positions: Int64[ndarray, " gene"], n_store_genes: int
) -> Int32[ndarray, " store_gene"]:
    """Vocabulary position of every store column; -1 for columns outside the vocabulary."""
    place = np.full(n_store_genes, -1, dtype=np.int32)
    place[gene_positions] = np.arange(gene_positions.size, dtype=np.int32)
    return place


class PackedReader:
    """Reads and packs cells of one store for one vocabulary.

    Args:
        source: open store; this reader must be the only one that uses it.
        gene_positions: store columns of the vocabulary genes.
    """

    def __init__(self, source: SomaSource, gene_positions: Int64[ndarray, " gene"]) -> None:
        self._source = source
        self._place = gather_map(gene_positions, source.n_genes)
        self._n_expected = 0

    def read(self, joinids: Int64[ndarray, " cell"]) -> PackedCells:
        """Rows in the order given, from one read; cells without entries are empty rows.

        Args:
            joinids: strictly ascending.

        Raises:
            DataError: if an entry is no count, or a cell has two entries for one gene.
            InfrastructureError: if the store cannot be read.
        """
        packer = _Packer(self._source.locator.uri, joinids, self._place, self._n_expected)
        for entries in self._source.read_entries(joinids):
            packer.add(entries)
        cells = packer.finish()
        # The next read is mostly of the same size; memory beyond it costs nothing until touched.
        self._n_expected = int(1.1 * len(cells.entries))
        return cells


class _State:
    """Places in the state vector of `_pack`."""

    LAST_ID, ROW, LAST_COLUMN, IN_ORDER, N_ENTRIES, N_RUNS = range(6)


class _Packer:
    """Collects the Arrow batches of one read."""

    def __init__(
        self, uri: str, joinids: ndarray, place: Int32[ndarray, " store_gene"], n_expected: int
    ) -> None:
        self._uri, self._joinids, self._place = uri, joinids, place
        dtype = np.uint16 if place.max(initial=0) < 2**16 else np.uint32
        self._entries = np.empty((n_expected, 2), dtype=dtype)
        # A run is a stretch of entries of one cell: its row, and the entry it stops before.
        self._rows = np.empty(joinids.size, dtype=np.int32)
        self._stops = np.empty(joinids.size, dtype=np.int64)
        self._state = np.array([-1, -1, -1, 1, 0, 0], dtype=np.int64)

    def add(self, entries: Entries) -> None:
        """Pack what one Arrow batch holds; nothing of it is kept."""
        n = entries.joinids.size
        self._entries = _grown(self._entries, int(self._state[_State.N_ENTRIES]) + n)
        self._rows = _grown(self._rows, int(self._state[_State.N_RUNS]) + n)
        self._stops = _grown(self._stops, int(self._state[_State.N_RUNS]) + n)
        bad = self._pack(entries)
        if bad >= 0 and self._entries.dtype == np.uint16 and 2**16 <= entries.counts[bad] < 2**32:
            self._entries = self._entries.astype(np.uint32)
            bad = self._pack(entries)
        if bad >= 0:
            place = int(entries.joinids[bad]), int(entries.genes[bad])
            raise stranger(self._uri, *place, self._joinids, self._place.size) or DataError(
                f"cell {entries.joinids[bad]}, gene column {entries.genes[bad]} of {self._uri} "
                f"holds {entries.counts[bad]}, which is no count; name the layer of raw counts "
                "(whole numbers from 0 to 4294967295)"
            )

    def finish(self) -> PackedCells:
        """All rows; entries that arrived in row order stay where they are."""
        entries = self._entries[: self._state[_State.N_ENTRIES]]
        runs = slice(0, self._state[_State.N_RUNS])
        rows, stops = self._rows[runs], self._stops[runs]
        indptr = np.zeros(self._joinids.size + 1, dtype=np.int64)
        _count(rows, stops, indptr)
        np.cumsum(indptr, out=indptr)
        if not self._state[_State.IN_ORDER]:
            entries = _by_row(entries, rows, stops, indptr)
            self._refuse_repeats(indptr, entries)
        return PackedCells(indptr, entries)

    def _pack(self, entries: Entries) -> int:
        limit = np.iinfo(self._entries.dtype).max
        bad: int = _pack(
            *entries,
            self._joinids,
            self._place,
            limit,
            self._state,
            self._entries,
            self._rows,
            self._stops,
        )
        return bad

    def _refuse_repeats(self, indptr: ndarray, entries: ndarray) -> None:
        last_row = np.full(self._place.max(initial=0) + 1, -1, dtype=np.int64)
        row = _first_repeat(indptr, entries, last_row)
        if row >= 0:
            raise DataError(
                f"cell {self._joinids[row]} of {self._uri} has two entries for one gene; "
                "a sound store has one: write it again without duplicates"
            )


def _grown(array: ndarray, n_rows: int) -> ndarray:
    """`array` itself, or a copy of at least twice its length if it has fewer than `n_rows`."""
    if len(array) >= n_rows:
        return array
    larger = np.empty((max(2 * len(array), n_rows), *array.shape[1:]), dtype=array.dtype)
    larger[: len(array)] = array
    return larger


@numba.njit(cache=True, nogil=True)
@no_type_check
def _pack(
    ids: ndarray,
    columns: ndarray,
    values: ndarray,
    joinids: ndarray,
    place: ndarray,
    limit: int,
    state: ndarray,
    out: ndarray,
    rows: ndarray,
    stops: ndarray,
) -> int:
    """Append the entries of vocabulary genes to `out`, and their runs to `rows` and `stops`.

    Returns -1, or the first entry that is no count up to `limit`, or of a cell or gene that was
    not asked for; `state` is then as before.
    """
    last_id, row, last_column, in_order, n_entries, n_runs = state
    for i in range(ids.size):
        if ids[i] != last_id:
            if n_runs > 0:
                stops[n_runs - 1] = n_entries
            last_id, last_column, before = ids[i], -1, row
            row += 1
            if row >= joinids.size or joinids[row] != last_id:
                row = np.searchsorted(joinids, last_id)
                if row == joinids.size or joinids[row] != last_id:
                    return i
            if row < before:
                in_order = 0
            rows[n_runs] = row
            n_runs += 1
        column = columns[i]
        if column < 0 or column >= place.size:
            return i
        if column <= last_column:
            in_order = 0
        last_column = column
        value = values[i]
        if not (value >= 0 and value <= limit):
            return i
        count = np.int64(value)
        if count != value:
            return i
        gene = place[column]
        out[n_entries, 0] = gene
        out[n_entries, 1] = count
        n_entries += gene >= 0
    if n_runs > 0:
        stops[n_runs - 1] = n_entries
    state[:] = (last_id, row, last_column, in_order, n_entries, n_runs)
    return -1


@numba.njit(cache=True, nogil=True)
@no_type_check
def _count(rows: ndarray, stops: ndarray, indptr: ndarray) -> None:
    """Add the length of every run to its row, one place further on."""
    start = 0
    for i in range(rows.size):
        indptr[rows[i] + 1] += stops[i] - start
        start = stops[i]


@numba.njit(cache=True, nogil=True)
@no_type_check
def _by_row(entries: ndarray, rows: ndarray, stops: ndarray, indptr: ndarray) -> ndarray:
    """The entries again, every run behind what its row already has."""
    out = np.empty_like(entries)
    cursor = indptr[:-1].copy()
    start = 0
    for i in range(rows.size):
        n = stops[i] - start
        at = cursor[rows[i]]
        out[at : at + n] = entries[start : start + n]
        cursor[rows[i]] = at + n
        start = stops[i]
    return out


@numba.njit(cache=True, nogil=True)
@no_type_check
def _first_repeat(indptr: ndarray, entries: ndarray, last_row: ndarray) -> int:
    """The first row that holds a gene twice, or -1."""
    for row in range(indptr.size - 1):
        for i in range(indptr[row], indptr[row + 1]):
            gene = entries[i, 0]
            if last_row[gene] == row:
                return row
            last_row[gene] = row
    return -1
