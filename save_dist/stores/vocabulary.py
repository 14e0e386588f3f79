"""The vocabulary folder: everything that must be fixed before the first gradient.

Genes, conditions, blocks, scale factors, and the index that says which cell of the store belongs
to which combination and split. Fitted on training cells only; read by every worker and saved with
the model.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Float32, Int64
from numpy import ndarray

from save_dist.core.durable import digest, publish_folder, read_json, verify_folder, write_json
from save_dist.data.source import StoreLocator
from save_dist.data.splits import CellIndex
from save_dist.vocab.blocks import GeneBlocks
from save_dist.vocab.conditions import ConditionVocabulary
from save_dist.vocab.genes import GeneVocabulary


@dataclass(frozen=True)
class RunVocabulary:
    """What the numbers of a run mean."""

    genes: GeneVocabulary
    conditions: ConditionVocabulary
    blocks: GeneBlocks
    index: CellIndex
    """Every cell of the run, by soma_joinid."""
    gene_positions: Int64[ndarray, " gene"]
    """Column of each gene in the store."""
    scale: Float32[ndarray, " gene"]
    """Largest log1p expression of each gene among the training cells; 1 for silent genes."""
    fraction: Float32[ndarray, " gene"]
    """Share of each gene in all counted molecules of the training cells."""
    store: StoreLocator
    """The store these numbers were fitted on, timestamp pinned."""
    hash: str
    """Digest of the folder's manifest."""


_ARRAYS = ("gene_positions", "scale", "fraction")


def save_vocabulary(folder: Path, vocabulary: RunVocabulary) -> RunVocabulary:
    """Publish the folder; returns the vocabulary with its hash filled in."""
    with publish_folder(folder, {"kind": "vocabulary"}) as aside:
        write_json(aside / "genes.json", vocabulary.genes.to_json())
        write_json(aside / "conditions.json", vocabulary.conditions.to_json())
        write_json(aside / "blocks.json", vocabulary.blocks.to_json())
        write_json(aside / "store.json", vocabulary.store.to_json(folder.parent))
        for name in _ARRAYS:
            np.save(aside / f"{name}.npy", getattr(vocabulary, name), allow_pickle=False)
        vocabulary.index.save(aside / "cells")
    return load_vocabulary(folder)


def load_vocabulary(folder: Path) -> RunVocabulary:
    """Read a published folder, checking every file against its digest.

    Raises:
        CheckpointError: if the folder is incomplete or altered.
    """
    manifest = verify_folder(folder)
    arrays = {n: np.load(folder / f"{n}.npy", allow_pickle=False) for n in _ARRAYS}
    return RunVocabulary(
        genes=GeneVocabulary.from_json(read_json(folder / "genes.json")),
        conditions=ConditionVocabulary.from_json(read_json(folder / "conditions.json")),
        blocks=GeneBlocks.from_json(read_json(folder / "blocks.json")),
        index=CellIndex.load(folder / "cells"),
        store=StoreLocator.from_json(read_json(folder / "store.json"), folder.parent),
        hash=digest(manifest["files"]),
        **arrays,
    )
