"""SOMA stores whose counts say which cell and gene they belong to."""

from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import tiledbsoma

from save_dist.data.source import StoreLocator
from save_dist.data.splits import CellIndex

BIG = 1900
"""The largest count of `encoded_counts`, beyond every lookup table."""


class Layout(NamedTuple):
    """How the matrix lies on disk."""

    rows_per_tile: int = 64
    genes_per_tile: int | None = None
    capacity: int = 1024
    duplicates: bool = False
    type: str = "uint16"


OURS = Layout()
CENSUS = Layout(
    rows_per_tile=2048, genes_per_tile=32, capacity=700, duplicates=True, type="float32"
)
"""Tiles far narrower than the matrix: a row comes back in several runs (Census: 2048 x 2048)."""


def encoded_counts(joinids, n_genes):
    """Counts [cell gene] that are a function of (joinid, gene); every 11th cell has none."""
    joinids = np.asarray(joinids)
    counts = (joinids[:, None] * 31 + np.arange(n_genes)[None] * 17) % 97
    counts[counts >= 20] = 0
    counts[counts == 19] = BIG
    counts[joinids % 11 == 0] = 0
    return counts.astype(np.int64)


def gapped_joinids(n_cells, seed=0):
    """Ascending joinids with gaps, about two thirds of the rows of a store."""
    rng = np.random.default_rng(seed)
    return np.sort(rng.permutation(n_cells * 3 // 2)[:n_cells]).astype(np.int64)


def make_store(folder: Path, joinids, counts, layout=OURS) -> StoreLocator:
    """Write an experiment with these cells; genes are named g0, g1, ..."""
    n_genes = counts.shape[1]
    with tiledbsoma.Experiment.create(str(folder)) as experiment:
        _add_frame(experiment, "obs", joinids, {"cell_id": [f"c{i}" for i in joinids]})
        rna = experiment.add_new_collection("ms").add_new_collection(
            "RNA", kind=tiledbsoma.Measurement
        )
        _add_frame(rna, "var", np.arange(n_genes), {"gene_id": [f"g{i}" for i in range(n_genes)]})
        x = rna.add_new_collection("X").add_new_sparse_ndarray(
            "raw",
            type=pa.type_for_alias(layout.type),
            shape=(int(joinids[-1]) + 1, n_genes),
            platform_config=_options(layout, n_genes),
        )
        rows, genes = np.nonzero(counts)
        add_entries(x, joinids[rows], genes, counts[rows, genes].astype(layout.type))
    return StoreLocator(str(folder))


def add_entries(x, joinids, genes, counts):
    """Write entries into an open matrix."""
    columns = {"soma_dim_0": joinids, "soma_dim_1": genes.astype(np.int64), "soma_data": counts}
    x.write(pa.table({name: pa.array(values) for name, values in columns.items()}))


def index_of(joinids, n_fields=2) -> CellIndex:
    """An index of these cells whose codes are functions of the joinid."""
    codes = np.stack([(joinids * (i + 1)) % 7 for i in range(n_fields)], axis=1)
    return CellIndex(joinids, codes.astype(np.int16), np.zeros(joinids.size, dtype=np.uint8))


def _add_frame(parent, name, joinids, columns):
    table = pa.table({"soma_joinid": pa.array(np.asarray(joinids, dtype=np.int64)), **columns})
    frame = parent.add_new_dataframe(
        name,
        schema=table.schema,
        index_column_names=["soma_joinid"],
        domain=[(0, int(joinids[-1]))],
    )
    frame.write(table)


def _options(layout, n_genes):
    return tiledbsoma.TileDBCreateOptions(
        dims={
            "soma_dim_0": {"tile": layout.rows_per_tile},
            "soma_dim_1": {"tile": layout.genes_per_tile or n_genes},
        },
        capacity=layout.capacity,
        allows_duplicates=layout.duplicates,
    )


N_STORE_GENES = 90


class Cells(NamedTuple):
    """A store, an index of most of its cells, and a vocabulary that is out of store order."""

    locator: StoreLocator
    index: CellIndex
    gene_positions: np.ndarray

    def counts_of(self, joinids):
        """What the vocabulary counts of these cells must be."""
        return encoded_counts(joinids, N_STORE_GENES)[:, self.gene_positions]
