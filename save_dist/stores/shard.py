"""One shard of a Zarr v3 array of rows, encoded here: zarr's own bytes for a fraction of its work.

zarr-python spends about a millisecond of CPU per chunk on tasks and buffers, more than compressing
it takes. The format is that of the Zarr specification (sharding-indexed, index at the end): the
compressed chunks one after the other, then (offset, length) of each, then a CRC-32C of those.
"""

from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import google_crc32c
import numcodecs
import numpy as np
import zarr
from numpy import ndarray

from save_dist.core.errors import AtlasError

_ABSENT = np.uint64(2**64 - 1)
"""Offset and length of a chunk that lies beyond the array."""


def encode_shard(array: Any, values: ndarray, n_threads: int = 1) -> Iterator[bytes]:
    """The file of one shard, in pieces.

    Args:
        array: zarr array of shape (rows, width); chunks and shards are as wide as the array, its
            codec is Blosc.
        values: rows of the shard; fewer than it has only if the array ends there.
        n_threads: threads that compress; the bytes are the same for any number.

    Raises:
        AtlasError: if the array is laid out otherwise.
    """
    codec = _codec(array)
    n_rows, n_chunks = array.chunks[0], array.shards[0] // array.chunks[0]
    values = np.ascontiguousarray(values, array.dtype.newbyteorder("<"))
    index = np.full((n_chunks, 2), _ABSENT, "<u8")
    offset = 0

    def encode(start: int) -> bytes:
        rows = values[start : start + n_rows]
        return bytes(codec.encode(_filled(rows, n_rows, array.fill_value)))

    starts = range(0, len(values), n_rows)
    for chunk, data in enumerate(_each(encode, starts, n_threads)):
        index[chunk] = offset, len(data)
        offset += len(data)
        yield data
    yield index.tobytes()
    yield google_crc32c.value(index.tobytes()).to_bytes(4, "little")


def _each(work: Callable[[int], bytes], items: Iterable[int], n_threads: int) -> Iterator[bytes]:
    """Results in the order of the items."""
    if n_threads == 1:
        yield from map(work, items)
        return
    with ThreadPoolExecutor(n_threads, "encode") as pool:
        yield from pool.map(work, items)


def _filled(rows: ndarray, n_rows: int, fill_value: object) -> ndarray:
    """Chunks are stored whole: rows beyond the array hold the fill value."""
    if len(rows) == n_rows:
        return rows
    whole = np.full((n_rows, rows.shape[1]), fill_value, rows.dtype)
    whole[: len(rows)] = rows
    return whole


def _codec(array: Any) -> numcodecs.Blosc:
    """What compresses a chunk of the array.

    zarr sets Blosc to one thread per call, without which its bytes could differ.
    """
    codecs = array.compressors
    width = array.shape[1]
    is_ours = (
        len(codecs) == 1
        and isinstance(codecs[0], zarr.codecs.BloscCodec)
        and array.shards is not None
        and (array.chunks[1], array.shards[1]) == (width, width)
    )
    if not is_ours:
        raise AtlasError(
            f"{array.path} has chunks {array.chunks}, shards {array.shards} and codecs {codecs}; "
            "expected whole rows, sharded, compressed by Blosc alone: remove the atlas and its "
            "receipts"
        )
    found = codecs[0]
    shuffle = {"noshuffle": 0, "shuffle": 1, "bitshuffle": 2}[found.shuffle.value]
    return numcodecs.Blosc(
        found.cname.value, found.clevel, shuffle, found.blocksize, found.typesize
    )
