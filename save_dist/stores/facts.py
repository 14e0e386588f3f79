"""What planning has to know of a model: no weights, so that a plan needs no torch."""

from collections.abc import Mapping
from dataclasses import dataclass

from save_dist.vocab.conditions import ConditionVocabulary
from save_dist.vocab.genes import GeneVocabulary


@dataclass(frozen=True)
class ModelFacts:
    """The model of a plan."""

    hash: str
    conditions: ConditionVocabulary
    support: Mapping[tuple[int, ...], int]
    """Training cells per combination of codes; absent: unseen."""
    genes: GeneVocabulary
    transport_columns: tuple[str, ...] = ()
    """Columns along which the model can carry cells."""
    n_latent: int = 0
    """Length of z."""
