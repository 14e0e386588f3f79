"""The ordered genes of a model: position in this list is the meaning of every gene axis."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from jaxtyping import Int64
from numpy import ndarray

from save_dist.core.durable import digest
from save_dist.core.errors import DataError, VocabMismatchError, listed

N_SHOWN = 5


@dataclass(frozen=True)
class GeneVocabulary:
    """Gene ids in model order.

    Args:
        ids: unique gene ids; position is the gene's index in the model.

    Raises:
        DataError: if there is no gene, or an id stands twice.
    """

    ids: tuple[str, ...]

    def __post_init__(self) -> None:
        if not self.ids:
            raise DataError("the gene vocabulary is empty; expected at least one gene")
        if repeated := _repeated(self.ids):
            raise DataError(
                f"the gene vocabulary lists {listed(repeated, N_SHOWN)} more than once; "
                "keep each gene once"
            )

    def __len__(self) -> int:
        return len(self.ids)

    @cached_property
    def hash(self) -> str:
        """sha256 over the ids in their order."""
        return digest(list(self.ids))

    def positions_in(self, ids: Sequence[str]) -> Int64[ndarray, " gene"]:
        """Where each gene of this vocabulary stands in `ids`.

        Args:
            ids: gene ids of a store or matrix, in its order; may hold further genes.

        Raises:
            VocabMismatchError: if genes are missing from `ids`, or stand there more than once.
        """
        place = {name: i for i, name in enumerate(ids)}
        if missing := [name for name in self.ids if name not in place]:
            raise VocabMismatchError(
                f"{len(missing)} of the {len(self)} vocabulary genes are missing from the "
                f"{len(ids)} genes given: {listed(missing, N_SHOWN)}; use data "
                "with the same gene ids, or build the vocabulary from these data"
            )
        if len(place) < len(ids) and (twice := sorted(set(_repeated(ids)) & set(self.ids))):
            raise VocabMismatchError(
                f"vocabulary genes stand more than once in the data: {listed(twice, N_SHOWN)}; "
                "make gene ids unique"
            )
        return np.fromiter((place[name] for name in self.ids), np.int64, len(self))

    def to_json(self) -> dict[str, Any]:
        """JSON-able form, read back by `from_json`."""
        return {"ids": list(self.ids)}

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> "GeneVocabulary":
        """The vocabulary that `to_json` wrote."""
        return cls(tuple(value["ids"]))


def _repeated(ids: Sequence[str]) -> list[str]:
    return [name for name, n in Counter(ids).items() if n > 1]
