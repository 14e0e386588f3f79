"""A packed copy of an index's cells on the node's own disk, 4 bytes an entry, mapped into memory.

It is only ever a copy: delete it at any time and readers go back to the store. Built once per
(store, cells, genes) under a file lock, written aside and renamed when whole.
"""

import contextlib
import fcntl
import hashlib
import logging
import math
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Int64
from numpy import ndarray

from save_dist.core.durable import MANIFEST, digest, publish_folder, read_json
from save_dist.core.errors import CheckpointError, InfrastructureError
from save_dist.data.packed import PackedCells, PackedReader
from save_dist.data.scan import scan
from save_dist.data.source import SomaSource, StoreLocator
from save_dist.data.splits import CellIndex

logger = logging.getLogger(__name__)

_FORMAT = 1
_INDPTR, _ENTRIES = "indptr.npy", "entries.npy"
# 4 MB read per file, whatever its size.
_N_WINDOWS, _WINDOW_BYTES = 64, 2**16
_N_SAMPLES, _ROWS_PER_SAMPLE = 16, 128


def cache_key(
    locator: StoreLocator, index: CellIndex, gene_positions: Int64[ndarray, " gene"]
) -> str:
    """Digest of the store, the cells and the genes that a cache is good for.

    A locator without a timestamp means whatever stands at its uri; pin the timestamp of a store
    that is written again.
    """
    about = {
        "format": _FORMAT,
        "store": [locator.uri, locator.timestamp, locator.measurement, locator.layer],
        "cells": _array_digest(index.joinids),
        "genes": _array_digest(gene_positions),
    }
    return digest(about)


def ensure_cache(
    source: SomaSource,
    index: CellIndex,
    gene_positions: Int64[ndarray, " gene"],
    folder: Path,
    limit_bytes: int,
) -> Path | None:
    """The cache of these cells below `folder`, built if it is not there; for `CellStream`.

    Processes that ask at the same time wait for the one that builds.

    Args:
        source: open store.
        index: cells to hold.
        gene_positions: store columns of the vocabulary genes.
        folder: place for caches on the node's own disk.
        limit_bytes: most bytes that all caches in `folder` may take together; 0: no cache.

    Returns:
        The folder of the cache; None, and one log line, when it would not fit or cannot be
        written: cells then come from the store.

    Raises:
        DataError: if the store holds something that is no count.
        InfrastructureError: if the store cannot be read.
    """
    if limit_bytes == 0:
        return None
    key = cache_key(source.locator, index, gene_positions)
    target = folder / f"cells-{key[:16]}"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with _locked(folder / ".lock"):
            if not _is_current(target, key, source):
                _build(_Job(source, index, gene_positions, key), target, limit_bytes)
    except (_DoesNotFitError, OSError) as e:
        logger.warning("event=cache_skipped folder=%s reason=%s", folder, e)
        return None
    return target


def open_cache(path: Path, key: str) -> PackedCells | None:
    """Map a cache; None, and one log line, if it is gone, damaged or for other cells.

    Checked are sizes and, per file, the digest of 64 windows of 64 KiB spread over it. That finds
    truncated, swapped and zeroed files within milliseconds, but not every flipped bit;
    `core.durable.verify_folder` reads all bytes.

    Args:
        path: folder from `ensure_cache`.
        key: from `cache_key`.
    """
    try:
        _check(path, key)
        arrays = (
            np.load(path / name, mmap_mode="r", allow_pickle=False) for name in (_INDPTR, _ENTRIES)
        )
        return PackedCells(*(np.asarray(array) for array in arrays))
    except (CheckpointError, OSError, ValueError, KeyError) as e:
        logger.warning("event=cache_unusable path=%s reason=%s", path, e)
        return None


class _DoesNotFitError(Exception):
    """The cache would exceed what it may take."""


class _TooWideError(Exception):
    """A count exceeds 16 bits."""


@dataclass(frozen=True)
class _Job:
    """What a cache is made of."""

    source: SomaSource
    index: CellIndex
    gene_positions: ndarray
    key: str


def _is_current(target: Path, key: str, source: SomaSource) -> bool:
    """Whether a sound cache stands there, of a store that was not written since."""
    if not (target / MANIFEST).is_file() or open_cache(target, key) is None:
        return False
    return bool(read_json(target / MANIFEST).get("store_version") == source.version)


def _check(path: Path, key: str) -> None:
    manifest = read_json(path / MANIFEST)
    if manifest["key"] != key:
        raise CheckpointError(f"made for {manifest['key']}, expected {key}")
    for name, expected in manifest["samples"].items():
        if (found := _sampled_digest(path / name)) != expected:
            raise CheckpointError(f"{name} has sampled digest {found}, expected {expected}")


def _build(job: _Job, target: Path, limit_bytes: int) -> None:
    """Build under the lock, with 16-bit numbers if they suffice."""
    for debris in target.parent.glob(f".{target.name}.*.part"):
        shutil.rmtree(debris, ignore_errors=True)
    others = sum(_folder_bytes(p) for p in target.parent.glob("cells-*") if p != target)
    room = min(limit_bytes - others, shutil.disk_usage(target.parent).free)
    _refuse_above(room, _estimate_bytes(job))
    try:
        _write(job, target, room, np.uint16 if job.gene_positions.size <= 2**16 else np.uint32)
    except _TooWideError:
        _write(job, target, room, np.uint32)
    logger.info("event=cache_built path=%s bytes=%d", target, _folder_bytes(target))


def _write(job: _Job, target: Path, room: int, dtype: type) -> None:
    """Pack all cells into files aside, then publish them.

    Raises:
        _DoesNotFitError: if the files outgrow `room`, or the disk refuses.
        _TooWideError: if a number does not fit `dtype`.
    """
    about: dict[str, Any] = {"key": job.key, "store_version": job.source.version}
    try:
        with publish_folder(target, about) as aside:
            _write_arrays(job, aside, room, dtype)
            about["samples"] = {n: _sampled_digest(aside / n) for n in (_INDPTR, _ENTRIES)}
    except InfrastructureError as e:
        if isinstance(e.__cause__, OSError):
            raise _DoesNotFitError(str(e)) from e
        raise


def _write_arrays(job: _Job, folder: Path, room: int, dtype: type) -> None:
    with (
        _GrowingArray(folder / _INDPTR, np.dtype(np.int64), ()) as indptr,
        _GrowingArray(folder / _ENTRIES, np.dtype(dtype), (2,)) as entries,
        contextlib.closing(scan(job.source, job.index, job.gene_positions)) as blocks,
    ):
        indptr.append(np.zeros(1, dtype=np.int64))
        for block in blocks:
            if block.cells.entries.dtype.itemsize > entries.dtype.itemsize:
                raise _TooWideError
            indptr.append(block.cells.indptr[1:] + entries.n_rows)
            entries.append(block.cells.entries)
            _refuse_above(room, indptr.n_bytes + entries.n_bytes)


def _estimate_bytes(job: _Job) -> int:
    """Size of the cache, from a few stretches of cells spread over the index."""
    n_cells = job.index.n_cells
    starts = np.linspace(0, max(n_cells - _ROWS_PER_SAMPLE, 0), _N_SAMPLES).astype(np.int64)
    sample = np.unique(starts[:, None] + np.arange(min(_ROWS_PER_SAMPLE, n_cells)))
    cells = PackedReader(job.source, job.gene_positions).read(np.asarray(job.index.joinids[sample]))
    return int(cells.entries.nbytes / max(sample.size, 1) * n_cells) + 8 * n_cells


def _refuse_above(room: int, n_bytes: int) -> None:
    if n_bytes > room:
        raise _DoesNotFitError(
            f"needs about {n_bytes} bytes and {max(room, 0)} are left of stream.cache_bytes or "
            "of the disk; cells come from the store"
        )


class _GrowingArray:
    """An .npy file whose first axis is known at the end; NumPy leaves room in the header."""

    def __init__(self, path: Path, dtype: np.dtype[Any], row_shape: tuple[int, ...]) -> None:
        self.dtype, self._row_shape = dtype, row_shape
        self.n_rows = self.n_bytes = 0
        self._file = path.open("wb")
        self._write_header()

    def __enter__(self) -> "_GrowingArray":
        return self

    def __exit__(self, *_: object) -> None:
        with self._file:
            self._file.seek(0)
            self._write_header()

    def append(self, rows: ndarray) -> None:
        """Write rows behind those already there."""
        self._file.write(np.ascontiguousarray(rows, dtype=self.dtype).data)
        self.n_rows += len(rows)
        self.n_bytes += len(rows) * self.dtype.itemsize * math.prod(self._row_shape)

    def _write_header(self) -> None:
        about = {
            "descr": np.lib.format.dtype_to_descr(self.dtype),
            "fortran_order": False,
            "shape": (self.n_rows, *self._row_shape),
        }
        np.lib.format.write_array_header_1_0(self._file, about)


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Hold the lock file; the system frees it should the process die."""
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _sampled_digest(path: Path) -> str:
    """sha256 of a file's size and of windows spread evenly over it, both ends included."""
    size = path.stat().st_size
    found = hashlib.sha256(str(size).encode())
    with path.open("rb") as file:
        for start in np.linspace(0, max(size - _WINDOW_BYTES, 0), _N_WINDOWS).astype(int):
            file.seek(start)
            found.update(file.read(_WINDOW_BYTES))
    return found.hexdigest()


def _array_digest(array: ndarray) -> str:
    return hashlib.sha256(np.ascontiguousarray(array, dtype=np.int64).data).hexdigest()


def _folder_bytes(folder: Path) -> int:
    return sum(p.stat().st_size for p in folder.iterdir())
