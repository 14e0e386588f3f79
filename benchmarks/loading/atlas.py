"""One simulated atlas as other people keep it: our store, a store of default layout, an h5ad file.

Data sets stand one after the other, as atlases do. Each has 16 programs with gene rates of their
own; a cell draws its counts from one of them, so counts vary more than Poisson ones.
"""

import argparse
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import h5py
import numba
import numpy as np
import pandas as pd
import pyarrow as pa
import scipy.sparse as sp
import tiledbsoma
from anndata.io import sparse_dataset, write_elem

from save_dist.core.seeding import generator
from save_dist.data.csr import CsrCounts
from save_dist.data.source import StoreLocator
from save_dist.data.splits import CellIndex
from save_dist.data.writer import (
    StoreLayout,
    create_store,
    mark_complete,
    obs_table,
    write_counts,
    write_obs,
)

ROWS_PER_BLOCK = 16_384
N_PROGRAMS = 16
DEFAULT_TILE = 2048


class Shape(NamedTuple):
    """Size of the atlas."""

    n_cells: int
    n_genes: int
    n_datasets: int

    def datasets(self, joinids: np.ndarray) -> np.ndarray:
        """Data set of each cell."""
        found: np.ndarray = joinids * self.n_datasets // self.n_cells
        return found

    @classmethod
    def of(cls, args: argparse.Namespace) -> "Shape":
        """What the command line says."""
        return cls(args.cells, args.genes, args.datasets)


def blocks(shape: Shape) -> Iterator[tuple[int, CsrCounts]]:
    """First row and counts of 16,384 cells at a time; about 300 genes a cell."""
    cumulative = _cumulative_rates(shape)
    for start in range(0, shape.n_cells, ROWS_PER_BLOCK):
        rng = generator(0, "cells", start)
        joinids = np.arange(start, min(start + ROWS_PER_BLOCK, shape.n_cells))
        programs = shape.datasets(joinids) * N_PROGRAMS + rng.integers(
            N_PROGRAMS, size=joinids.size
        )
        totals = rng.lognormal(np.log(450), 0.35, size=joinids.size).astype(np.int64)
        yield start, CsrCounts(*_draw(cumulative, programs, totals, rng.integers(2**31)))


def our_store(uri: Path, shape: Shape) -> None:
    """Our layout, written as an ingest writes it."""
    genes = tuple(f"g{i}" for i in range(shape.n_genes))
    _, first = next(blocks(shape))
    create_store(uri, StoreLayout(shape.n_cells, genes, "uint16", {}, 64, _mean(first)), {})
    for start, block in blocks(shape):
        write_counts(uri, block, start)
        write_obs(uri, [obs_table(_obs(block, start), {}, start)])
    mark_complete(uri, {})


def default_store(uri: Path, shape: Shape) -> None:
    """The layout tiledbsoma gives if it is not told otherwise (tiles of 2048 x 2048, float32).

    Entries are sorted by tile here, else TileDB's own sort takes most of the time.
    """
    with tiledbsoma.Experiment.create(str(uri)) as experiment:
        _frame(experiment, "obs", {"obs_id": pa.array([f"c{i}" for i in range(shape.n_cells)])})
        rna = experiment.add_new_collection("ms").add_new_collection(
            "RNA", kind=tiledbsoma.Measurement
        )
        _frame(rna, "var", {"var_id": pa.array([f"g{i}" for i in range(shape.n_genes)])})
        x = rna.add_new_collection("X").add_new_sparse_ndarray(
            "raw", type=pa.float32(), shape=(shape.n_cells, shape.n_genes)
        )
        presorted = tiledbsoma.TileDBWriteOptions(sort_coords=False)
        for start, block in blocks(shape):
            rows = np.repeat(np.arange(start, start + block.n_cells), np.diff(block.indptr))
            n_across = -(-shape.n_genes // DEFAULT_TILE)
            tiles = rows // DEFAULT_TILE * n_across + block.genes // DEFAULT_TILE
            order = np.argsort(tiles, kind="stable")
            columns = {
                "soma_dim_0": rows[order],
                "soma_dim_1": block.genes[order].astype(np.int64),
                "soma_data": block.counts[order].astype(np.float32),
            }
            x.write(pa.table(columns), platform_config=presorted)


def h5ad(path: Path, shape: Shape) -> None:
    """An uncompressed file of float32 counts, as tools write it."""
    with h5py.File(path, "w") as file:
        file.attrs.update({"encoding-type": "anndata", "encoding-version": "0.1.0"})
        datasets = pd.Categorical(shape.datasets(np.arange(shape.n_cells)).astype(str))
        names = [f"c{i}" for i in range(shape.n_cells)]
        write_elem(file, "obs", pd.DataFrame({"dataset": datasets}, index=names))
        write_elem(file, "var", pd.DataFrame(index=[f"g{i}" for i in range(shape.n_genes)]))
        for start, block in blocks(shape):
            data = (block.counts.astype(np.float32), block.genes.astype(np.int32), block.indptr)
            matrix = sp.csr_matrix(data, shape=(block.n_cells, shape.n_genes))
            if start == 0:
                write_elem(file, "X", matrix)
            else:
                sparse_dataset(file["X"]).append(matrix)


def index_of(shape: Shape) -> CellIndex:
    """All cells, of one condition."""
    joinids = np.arange(shape.n_cells, dtype=np.int64)
    codes = np.zeros((joinids.size, 1), dtype=np.int16)
    return CellIndex(joinids, codes, np.zeros(joinids.size, dtype=np.uint8))


def locator_of(uri: Path) -> StoreLocator:
    """The store at a place."""
    return StoreLocator(str(uri))


def _obs(block: CsrCounts, start: int) -> pd.DataFrame:
    names = [f"c{i}" for i in range(start, start + block.n_cells)]
    totals = np.add.reduceat(block.counts, block.indptr[:-1], dtype=np.int64)
    return pd.DataFrame({"cell_id": names, "input": "simulated", "n_counts": totals})


def _frame(parent: tiledbsoma.Collection, name: str, columns: dict[str, pa.Array]) -> None:
    n = len(next(iter(columns.values())))
    table = pa.table({"soma_joinid": pa.array(np.arange(n)), **columns})
    parent.add_new_dataframe(
        name, schema=table.schema, index_column_names=["soma_joinid"], domain=[(0, n - 1)]
    ).write(table)


def _mean(block: CsrCounts) -> float:
    return block.genes.size / block.n_cells


def _cumulative_rates(shape: Shape) -> np.ndarray:
    """Cumulative gene rates [program gene]."""
    base = generator(0, "genes").gamma(0.25, size=shape.n_genes)
    rates = [
        base * generator(0, "dataset", d).gamma(2, size=base.size) * program
        for d in range(shape.n_datasets)
        for program in generator(0, "programs", d).gamma(2, size=(N_PROGRAMS, base.size))
    ]
    cumulative = np.cumsum(rates, axis=1)
    scaled: np.ndarray = cumulative / cumulative[:, -1:]
    return scaled


@numba.njit(cache=True)
def _draw(
    cumulative: np.ndarray, programs: np.ndarray, totals: np.ndarray, seed: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Edges, genes and counts of cells that draw so many transcripts each."""
    np.random.seed(seed)
    indptr = np.zeros(programs.size + 1, dtype=np.int64)
    genes = np.empty(totals.sum(), dtype=np.uint16)
    counts = np.empty(totals.sum(), dtype=np.uint16)
    row = np.zeros(cumulative.shape[1], dtype=np.uint16)
    n = 0
    for cell in range(programs.size):
        rates = cumulative[programs[cell]]
        for _ in range(totals[cell]):
            row[min(np.searchsorted(rates, np.random.random()), row.size - 1)] += 1
        for gene in range(row.size):
            if row[gene] > 0:
                genes[n], counts[n] = gene, row[gene]
                row[gene] = 0
                n += 1
        indptr[cell + 1] = n
    return indptr, genes[:n].copy(), counts[:n].copy()
