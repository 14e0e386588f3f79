"""How a store lies on disk, how fast it is read in shuffled order, and how fast a copy would be.

Nothing of the store is changed. The copy is of a few thousand cells, in a temporary folder.
"""

import json
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Int64
from numpy import ndarray

from save_dist.core.errors import DataError
from save_dist.core.seeding import generator
from save_dist.data import writer
from save_dist.data.csr import CsrCounts
from save_dist.data.packed import PackedReader
from save_dist.data.source import SomaSource, StoreLocator, is_remote

_MAX_SAMPLE_CELLS = 32_768
_MAX_SAMPLE_ENTRIES = 2**23
"""About 200 MB of Arrow, and a few seconds of reading and writing."""
_SHARE_PER_READ = 8
"""A read takes one in so many shuffle chunks: more of them would lie next to each other."""
_N_READS = 6


@dataclass(frozen=True)
class StoreFacts:
    """What the schema and the folder of a store say."""

    n_cells: int
    n_genes: int
    n_entries: int
    """Stored counts of the layer, of all its cells."""
    tile: tuple[int, int]
    """Cells and genes of a tile."""
    capacity: int
    """Entries that are decoded together."""
    count_type: str
    allows_duplicates: bool
    has_checksums: bool
    """Whether a changed byte of the counts is found when it is read."""
    n_fragments: int | None
    """None: not known of a remote store."""
    n_bytes: int | None

    @property
    def mean_entries(self) -> float:
        """Nonzero counts per cell."""
        return self.n_entries / max(1, self.n_cells)


class Pace(NamedTuple):
    """What reading shuffle chunks cost."""

    n_cells: int
    seconds: float
    cpu_s: float

    @property
    def per_second(self) -> float:
        """Cells per second of the clock."""
        return self.n_cells / max(self.seconds, 1e-9)

    @property
    def per_cpu_second(self) -> float:
        """Cells per second of CPU time."""
        return self.n_cells / max(self.cpu_s, 1e-9)


@dataclass(frozen=True)
class Comparison:
    """The same cells read from the store and from a copy in our layout."""

    n_sample_cells: int
    rows_per_chunk: int
    least_entries: int
    """Nonzero counts of the emptiest cell of the sample."""
    most_entries: int
    store: Pace
    copy: Pace
    copy_bytes_per_entry: float

    @property
    def gain(self) -> float:
        """How many times more cells per CPU-second the copy gives."""
        return self.copy.per_cpu_second / self.store.per_cpu_second


def store_facts(source: SomaSource) -> StoreFacts:
    """Read the schema; opens nothing else."""
    x = source.matrix
    options = x.schema_config_options()
    dims, attrs = json.loads(options.dims), json.loads(options.attrs)
    folder = None if is_remote(x.uri) else Path(x.uri.removeprefix("file://"))
    return StoreFacts(
        n_cells=source.n_obs,
        n_genes=source.n_genes,
        n_entries=int(x.nnz),
        tile=(int(dims["soma_dim_0"]["tile"]), int(dims["soma_dim_1"]["tile"])),
        capacity=int(options.capacity),
        count_type=str(x.schema.field("soma_data").type),
        allows_duplicates=bool(options.allows_duplicates),
        has_checksums=all(map(_has_checksum, (*dims.values(), *attrs.values()))),
        n_fragments=None if folder is None else sum(1 for _ in (folder / "__fragments").iterdir()),
        n_bytes=None if folder is None else _n_bytes(folder),
    )


def compare(
    source: SomaSource, facts: StoreFacts, *, rows_per_chunk: int, rows_per_tile: int
) -> Comparison:
    """Read neighbouring cells in shuffled order, from the store and from a copy of them.

    Args:
        source: open store; nobody else may read from it meanwhile.
        facts: of the store.
        rows_per_chunk: neighbouring cells read at once (training.stream.rows_per_chunk).
        rows_per_tile: cells of a tile of the copy (ingest.rows_per_tile).

    Raises:
        DataError: if the store has no cells, or holds something that is no count.
        InfrastructureError: if it cannot be read, or there is no room for the copy.
    """
    joinids = _sample(source.joinids, facts)
    rows_per_chunk = max(1, min(rows_per_chunk, joinids.size // _SHARE_PER_READ))
    csr = source.read_counts(joinids)
    pace = _measure(source, joinids, rows_per_chunk)
    with tempfile.TemporaryDirectory(prefix="save-dist-") as folder:
        uri = Path(folder) / "copy.soma"
        _write_copy(uri, csr, source.gene_ids, rows_per_tile)
        with SomaSource(StoreLocator(str(uri))) as copy:
            rows = np.arange(joinids.size, dtype=np.int64)
            copy_pace = _measure(copy, rows, rows_per_chunk)
            copy_facts = store_facts(copy)
    entries = np.diff(csr.indptr)
    assert copy_facts.n_bytes is not None  # it is a folder
    return Comparison(
        n_sample_cells=joinids.size,
        rows_per_chunk=rows_per_chunk,
        least_entries=int(entries.min()),
        most_entries=int(entries.max()),
        store=pace,
        copy=copy_pace,
        copy_bytes_per_entry=copy_facts.n_bytes / max(1, copy_facts.n_entries),
    )


def _sample(joinids: Int64[ndarray, " cell"], facts: StoreFacts) -> Int64[ndarray, " sampled"]:
    """Neighbouring cells from the middle of the store."""
    if joinids.size == 0:
        raise DataError("the store has no cells: nothing can be measured")
    n_cells = int(_MAX_SAMPLE_ENTRIES / max(1.0, facts.mean_entries))
    n_cells = max(1, min(n_cells, _MAX_SAMPLE_CELLS, joinids.size))
    start = (joinids.size - n_cells) // 2
    return joinids[start : start + n_cells]


def _measure(source: SomaSource, joinids: Int64[ndarray, " cell"], rows_per_chunk: int) -> Pace:
    """Read random shuffle chunks as a pool is read; the first read warms up and does not count."""
    reader = PackedReader(source, np.arange(source.n_genes))
    n_chunks = max(1, joinids.size // rows_per_chunk)
    n_cells, started, cpu_started = 0, 0.0, 0.0
    for turn in range(_N_READS + 1):
        order = generator(0, "layout", turn).permutation(n_chunks)
        chunks = np.sort(order[: max(1, n_chunks // _SHARE_PER_READ)])
        rows = (chunks[:, None] * rows_per_chunk + np.arange(rows_per_chunk)).ravel()
        cells = reader.read(joinids[rows])
        if turn == 0:
            started, cpu_started = time.perf_counter(), time.process_time()
        else:
            n_cells += cells.n_cells
    return Pace(n_cells, time.perf_counter() - started, time.process_time() - cpu_started)


def _write_copy(uri: Path, csr: CsrCounts, gene_ids: tuple[str, ...], rows_per_tile: int) -> None:
    largest = int(csr.counts.max(initial=0))
    count_type = "uint16" if largest < 2**16 else "uint32"
    layout = writer.StoreLayout(
        n_cells=csr.n_cells,
        gene_ids=gene_ids,
        count_type=count_type,
        obs_types={},
        rows_per_tile=rows_per_tile,
        mean_entries=csr.counts.size / csr.n_cells,
    )
    writer.create_store(uri, layout, {})
    writer.write_counts(uri, csr._replace(counts=csr.counts.astype(count_type)), 0)
    writer.mark_complete(uri, {})


def _has_checksum(column: dict[str, Any]) -> bool:
    return any(f["name"].startswith("CHECKSUM") for f in column["filters"])


def _n_bytes(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
