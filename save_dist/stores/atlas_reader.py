"""Cells of an atlas back as arrays. Opens what any AnnData-Zarr reader opens, nothing private."""

from pathlib import Path

import numpy as np
import zarr
from jaxtyping import Int16, UInt16
from numpy import ndarray

from save_dist.core.errors import AtlasError
from save_dist.data.subsample import rows_per_combination
from save_dist.stores.template import MASK
from save_dist.vocab.conditions import ConditionVocabulary
from save_dist.vocab.genes import GeneVocabulary


def read_cells(
    path: Path,
    conditions: ConditionVocabulary,
    genes: GeneVocabulary,
    n_cells: int,
    seed: int,
) -> tuple[UInt16[ndarray, "cell gene"], Int16[ndarray, "cell field"]]:
    """At most `n_cells` of every condition: counts and condition codes.

    Raises:
        AtlasError: if there is no atlas at `path`, or it has other conditions, masked ones, or
            other genes.
    """
    try:
        store = zarr.open_group(path, mode="r")
    except FileNotFoundError as e:
        raise AtlasError(f"{path} holds no atlas; generate one first") from e
    if tuple(store["var/_index"][:].tolist()) != genes.ids:
        raise AtlasError(
            f"{path} holds {store['X'].shape[1]} genes, expected the {len(genes)} of the run; an "
            "atlas of some genes (output.genes) or of another model cannot be evaluated here"
        )
    codes = np.stack([_codes(store, path, conditions, c) for c in conditions.columns], axis=1)
    rows = rows_per_combination(codes, n_cells, seed)
    counts: ndarray = store["X"].oindex[rows, :]
    return counts, codes[rows]


def _codes(
    store: zarr.Group, path: Path, conditions: ConditionVocabulary, column: str
) -> Int16[ndarray, " cell"]:
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
    codes: ndarray = found["codes"][:].astype(np.int16)
    return codes
