"""Cells of an atlas back as arrays. Opens what any AnnData-Zarr reader opens, nothing private."""

from typing import NamedTuple

import numpy as np
import zarr
from jaxtyping import Int16, Int64, UInt16
from numpy import ndarray

from save_dist.core.errors import AtlasError
from save_dist.data.subsample import combination_codes, combination_numbers, sample_rows
from save_dist.stores.storage import Where, storage_of
from save_dist.stores.template import MASK
from save_dist.vocab.conditions import ConditionVocabulary
from save_dist.vocab.genes import GeneVocabulary


class AtlasCells(NamedTuple):
    """Chosen rows of an atlas; their counts are read when asked for."""

    store: zarr.Group
    rows: Int64[ndarray, " cell"]
    """Combination by combination, ascending within one."""
    codes: Int16[ndarray, "cell field"]

    @property
    def n_genes(self) -> int:
        """Columns of the atlas."""
        return int(self.store["X"].shape[1])

    def read(self, rows: Int64[ndarray, " row"]) -> UInt16[ndarray, "row gene"]:
        """Counts of rows of the atlas."""
        counts: ndarray = self.store["X"].oindex[rows, :]
        return counts


def choose_cells(
    path: Where,
    conditions: ConditionVocabulary,
    genes: GeneVocabulary,
    n_cells: int,
    seed: int,
) -> AtlasCells:
    """At most `n_cells` of every condition.

    Raises:
        AtlasError: if there is no atlas at `path`, or it has other conditions, masked ones, or
            other genes.
    """
    try:
        store = zarr.open_group(storage_of(path).zarr, mode="r")
    except FileNotFoundError as e:
        raise AtlasError(f"{path} holds no atlas; generate one first") from e
    if tuple(store["var/_index"][:].tolist()) != genes.ids:
        raise AtlasError(
            f"{path} holds {store['X'].shape[1]} genes, expected the {len(genes)} of the run; an "
            "atlas of some genes (output.genes) or of another model cannot be evaluated here"
        )
    columns = [_codes(store, path, conditions, column) for column in conditions.columns]
    n_codes = [len(categories) for categories in conditions.categories]

    def combinations(stretch: slice) -> Int64[ndarray, " cell"]:
        codes = np.stack([column[stretch] for column in columns], axis=1)
        return combination_numbers(codes, n_codes)

    rows, numbers = sample_rows(columns[0].shape[0], combinations, n_cells, seed)
    return AtlasCells(store, rows, combination_codes(numbers, n_codes))


def _codes(
    store: zarr.Group, path: Where, conditions: ConditionVocabulary, column: str
) -> zarr.Array:
    found = store[f"obs/{column}"]
    categories = tuple(str(value) for value in found["categories"][:])
    known = conditions.categories[conditions.columns.index(column)]
    if categories == (*known, MASK):
        raise AtlasError(
            f"{path} leaves {column!r} masked, so its cells have no full condition to be compared "
            "under; generate without grid.masked into another run folder, and evaluate that atlas"
        )
    if categories != known:
        raise AtlasError(
            f"obs column {column!r} of {path} has categories {categories[:8]}, expected "
            f"{known[:8]}: the atlas belongs to another model; use the model it was made with"
        )
    return found["codes"]
