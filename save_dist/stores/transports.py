"""The optional part of a model that carries cells from a reference value to another one."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Int64

from save_dist.config.schema import TransportConfig
from save_dist.models.velocity import Velocity
from save_dist.stores.profiles import Profiles
from save_dist.vocab.conditions import ConditionVocabulary
from save_dist.vocab.transports import Pair, control_pairs, reference_codes

WEIGHTS, PROFILES = "transport.safetensors", "profiles.safetensors"


@dataclass(frozen=True)
class Transport:
    """Trained transports along the columns of `config`, and what decoding their cells needs."""

    config: TransportConfig
    velocity: Velocity
    """Sees codes over the transported columns alone; all but the changed one are MASK."""
    profiles: Profiles
    temperatures: Mapping[str, float]
    """Of the similarity-weighted shift, per column."""
    conditions: ConditionVocabulary

    @cached_property
    def references(self) -> Mapping[int, int]:
        """Position of each transported column -> code of its reference."""
        return reference_codes(self.conditions, self.config.columns)

    @cached_property
    def pairs(self) -> tuple[Pair, ...]:
        """Every pair of combinations that the transport was trained on."""
        return control_pairs(self.profiles.rows, self.references)

    def told(self, column: int, value: int) -> tuple[int, ...]:
        """What the velocity network is told of a cell that is carried to `value` of `column`."""
        return _told(self.conditions, list(self.references), column, value)

    def facts(self) -> dict[str, Any]:
        """The part of it that is JSON."""
        return {
            "config": self.config.model_dump(mode="json"),
            "temperatures": dict(self.temperatures),
        }


def make_transport_velocity(
    latent_dim: int, conditions: ConditionVocabulary, config: TransportConfig
) -> Velocity:
    """A fresh network of the right shape."""
    sizes = [conditions.sizes[c] for c in reference_codes(conditions, config.columns)]
    return Velocity(latent_dim + 1, sizes, config)


def pair_codes(
    conditions: ConditionVocabulary, columns: Sequence[str], pairs: Sequence[Pair]
) -> Int64[torch.Tensor, "pair field"]:
    """What the velocity network is told of the cells of each pair."""
    positions = list(reference_codes(conditions, columns))
    return torch.tensor([_told(conditions, positions, p.column, p.value) for p in pairs])


def _told(
    conditions: ConditionVocabulary, positions: Sequence[int], column: int, value: int
) -> tuple[int, ...]:
    """Codes over the transported columns: MASK but for the one that changes."""
    return tuple(value if p == column else conditions.sizes[p] for p in positions)


def read_transport(
    folder: Path, facts: Mapping[str, Any], latent_dim: int, conditions: ConditionVocabulary
) -> Transport:
    """The transport of a model folder, without weights (see `WEIGHTS`)."""
    config = TransportConfig.model_validate(facts["config"])
    return Transport(
        config=config,
        velocity=make_transport_velocity(latent_dim, conditions, config),
        profiles=Profiles.load(folder / PROFILES),
        temperatures=facts["temperatures"],
        conditions=conditions,
    )
