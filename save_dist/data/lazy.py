"""Counts of chosen cells as a dask array: rows are read when they are asked for."""

import secrets
from collections.abc import Callable, Sequence

import dask.array as da
import numpy as np
from jaxtyping import Float32, Int64, UInt16
from numpy import ndarray

from save_dist.data.packed import PackedReader
from save_dist.data.source import SomaSource
from save_dist.data.transforms import densify

Read = Callable[
    [Int64[ndarray, " row"]], Float32[ndarray, "row gene"] | UInt16[ndarray, "row gene"]
]


def lazy_rows(
    read: Read, rows: Int64[ndarray, " row"], sizes: Sequence[int], n_genes: int, dtype: type
) -> da.Array:
    """Array whose row i is what `read` gives for `rows[i]`.

    Args:
        read: counts of rows in the order given; called by one thread at a time if the array is
            computed with dask's synchronous scheduler.
        rows: rows of the store behind it.
        sizes: rows that are read together, from the first on.
        n_genes: columns.
        dtype: of the counts.
    """
    if rows.size == 0:
        return da.zeros((0, n_genes), dtype=dtype)
    return da.map_blocks(
        lambda block: read(block[:, 0]),
        da.from_array(rows[:, None], chunks=(tuple(sizes), 1)),
        chunks=(tuple(sizes), (n_genes,)),
        dtype=dtype,
        meta=np.empty((0, 0), dtype=dtype),
        name=f"cells-{secrets.token_hex(8)}",
    )


def soma_reader(source: SomaSource, gene_positions: Int64[ndarray, " gene"]) -> Read:
    """Reads dense counts of cells of an open store by soma_joinid, in any order.

    Args:
        source: nobody else may read from it.
        gene_positions: store columns of the vocabulary genes.
    """
    packed = PackedReader(source, gene_positions)

    def read(joinids: Int64[ndarray, " row"]) -> Float32[ndarray, "row gene"]:
        order = np.argsort(joinids)
        cells = packed.read(joinids[order])
        return densify(cells, np.argsort(order), gene_positions.size).counts

    return read
