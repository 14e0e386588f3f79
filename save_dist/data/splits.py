"""Which cells are for training, validation and test, and which combinations are held out.

The split is a function of cell ids, condition codes and a seed, never of order or host.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Int16, Int64, UInt8, UInt64
from numpy import ndarray

from save_dist.config.schema import SplitConfig
from save_dist.core.durable import MANIFEST, publish_folder, read_json
from save_dist.core.errors import CheckpointError
from save_dist.vocab.conditions import ConditionVocabulary

TRAIN, VALIDATION, TEST, HELD_OUT = 0, 1, 2, 3
"""Values of `CellIndex.split`."""

_FILES = ("joinids", "codes", "split")


@dataclass(frozen=True)
class CellIndex:
    """The cells of a store: where they are, their condition, their split. 11 bytes a cell and up.

    Positions in an index, not joinids, are what shuffling and latents count by.
    """

    joinids: Int64[ndarray, " cell"]
    """Rows of the store, strictly ascending."""
    codes: Int16[ndarray, "cell field"]
    """Condition codes by column."""
    split: UInt8[ndarray, " cell"]
    """TRAIN, VALIDATION, TEST or HELD_OUT."""

    @property
    def n_cells(self) -> int:
        """Cells in the index."""
        return int(self.joinids.size)

    def where(self, split: int) -> "CellIndex":
        """The cells of one split, in the same order."""
        return self.take(np.flatnonzero(self.split == split))

    def take(self, positions: Int64[ndarray, " chosen"]) -> "CellIndex":
        """The cells at the given positions, which must ascend strictly."""
        assert np.all(positions[1:] > positions[:-1]), "positions must ascend strictly"
        return CellIndex(self.joinids[positions], self.codes[positions], self.split[positions])

    def support(self) -> dict[tuple[int, ...], int]:
        """Training cells of every combination that has any."""
        codes = self.codes[self.split == TRAIN]
        combinations, counts = np.unique(codes, axis=0, return_counts=True)
        return {tuple(c): n for c, n in zip(combinations.tolist(), counts.tolist(), strict=True)}

    def save(self, folder: Path) -> None:
        """Publish the index as `folder`, which holds nothing else: it is replaced as a whole."""
        with publish_folder(folder, {"n_cells": self.n_cells}) as aside:
            for name in _FILES:
                np.save(aside / f"{name}.npy", getattr(self, name), allow_pickle=False)

    @classmethod
    def load(cls, folder: Path, *, mmap: bool = True) -> "CellIndex":
        """Open a saved index; with `mmap` its arrays stay on disk.

        Raises:
            CheckpointError: if it was never completed, or its arrays disagree on their length.
        """
        if not (folder / MANIFEST).is_file():
            raise CheckpointError(f"{folder} is not a complete cell index; run the blocks job")
        joinids, codes, split = (
            np.load(folder / f"{name}.npy", mmap_mode="r" if mmap else None, allow_pickle=False)
            for name in _FILES
        )
        n_cells = read_json(folder / MANIFEST)["n_cells"]
        lengths = [len(joinids), len(codes), len(split)]
        if lengths != [n_cells] * len(_FILES):
            raise CheckpointError(
                f"{folder} holds arrays of {lengths} cells, expected {n_cells} in each; "
                "remove it and run the blocks job again"
            )
        return cls(joinids, codes, split)


def assign_splits(
    cell_ids: Sequence[str],
    codes: Int16[ndarray, "cell field"],
    vocabulary: ConditionVocabulary,
    config: SplitConfig,
    seed: int,
) -> UInt8[ndarray, " cell"]:
    """Split of every cell: exact shares within each seen combination, drawn by a hash of the id.

    Cells of a combination are ranked by hash; the first `test` share is TEST, the next
    `validation` share VALIDATION, the rest TRAIN. Held-out combinations are HELD_OUT entirely.
    """
    _, group = np.unique(codes, axis=0, return_inverse=True)
    rank, size = _rank_within(group.ravel(), _hashes(cell_ids, seed))
    n_test = np.floor(config.test * size + 0.5)
    n_validation = np.floor(config.validation * size + 0.5)
    split = np.full(len(cell_ids), TRAIN, dtype=np.uint8)
    split[rank < n_test + n_validation] = VALIDATION
    split[rank < n_test] = TEST
    split[vocabulary.is_held_out(codes)] = HELD_OUT
    return split


def _hashes(cell_ids: Sequence[str], seed: int) -> UInt64[ndarray, " cell"]:
    key = seed.to_bytes(8, "big")
    digests = (hashlib.blake2b(i.encode(), digest_size=8, key=key).digest() for i in cell_ids)
    return np.frombuffer(b"".join(digests), dtype=">u8").astype(np.uint64)


def _rank_within(
    group: Int64[ndarray, " cell"], value: UInt64[ndarray, " cell"]
) -> tuple[Int64[ndarray, " cell"], Int64[ndarray, " cell"]]:
    """Rank of each cell's value within its group, and the size of that group."""
    sizes = np.bincount(group)
    starts = np.cumsum(sizes) - sizes
    rank = np.empty(group.size, dtype=np.int64)
    order = np.lexsort((value, group))
    rank[order] = np.arange(group.size) - starts[group[order]]
    return rank, sizes[group]
