"""Which real cell, under which target, stands in which row of a transferred store. Pure.

Rows run target by target; within one, cells follow each other as in the run's index. Parts are
rows [p * cells_per_part, ...), as those of an atlas, and minibatches end where a target ends.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Int64
from numpy import ndarray

from save_dist.config.load import resolved
from save_dist.config.schema import MAX_CHUNK, TransferConfig
from save_dist.core.durable import canonical_json, digest
from save_dist.core.errors import AtlasError, ConfigError
from save_dist.data.splits import CellIndex
from save_dist.generation.grid import check_columns
from save_dist.stores.facts import ModelFacts
from save_dist.stores.template import MASK, AtlasLayout
from save_dist.transfer.recast import Aim
from save_dist.vocab.conditions import ConditionVocabulary

FORMAT = 1
"""Version of how a plan becomes cells; raised when the same plan would give other numbers."""
KIND = "transfer"
"""What its recorded plan says it is a plan of."""
SOURCE = "source_"
"""Before the name of a column that changes: obs column with the value the cell came with."""


class Stretch(NamedTuple):
    """Consecutive rows of one target."""

    target: int
    first: int
    """Number of the first cell among the chosen ones."""
    stop: int


@dataclass(frozen=True)
class TransferPlan:
    """A settled request; every question costs O(targets) or less.

    Args:
        config: its method is not `auto`.
        seed: of the drawn counts.
        n_chosen: cells that match `config.source`.
        model: what the model is.
        vocabulary_hash: which cells there are.
    """

    config: TransferConfig
    seed: int
    n_chosen: int
    model: ModelFacts
    vocabulary_hash: str

    @property
    def n_cells(self) -> int:
        """Rows of the store."""
        return self.n_chosen * len(self.aims)

    @property
    def n_parts(self) -> int:
        """Parts; the last may be short."""
        return -(-self.n_cells // self.config.cells_per_part)

    @cached_property
    def aims(self) -> tuple[Aim, ...]:
        """What cells shall become, one after the other."""
        return aims_of(self.config)

    @cached_property
    def hash(self) -> str:
        """Identity of every cell of the store and of its place."""
        facts = self.to_json()
        del facts["hash"]
        return digest(facts)

    @property
    def changed(self) -> tuple[str, ...]:
        """Columns whose value is not the one that cells came with, in vocabulary order."""
        named = {c for aim in self.aims for c in (*aim.target, *aim.erased)}
        return tuple(c for c in self.model.conditions.columns if c in named)

    def stretches(self, part: int) -> list[Stretch]:
        """Rows of a part, cut where the target changes."""
        start = part * self.config.cells_per_part
        stop = min(start + self.config.cells_per_part, self.n_cells)
        found = []
        while start < stop:
            target, first = divmod(start, self.n_chosen)
            end = min(self.n_chosen, first + stop - start)
            found.append(Stretch(target, first, end))
            start += end - first
        return found

    def n_cells_in(self, parts: Iterable[int]) -> int:
        """Cells of these parts together."""
        size = self.config.cells_per_part
        return sum(min(size, self.n_cells - part * size) for part in parts)

    def layout(self) -> AtlasLayout:
        """The empty store that this plan fills."""
        config = self.config
        return AtlasLayout(
            n_cells=self.n_cells,
            cells_per_part=config.cells_per_part,
            cells_per_chunk=config.cells_per_chunk or MAX_CHUNK,
            gene_ids=self.model.genes.ids,
            layers=("mean",) if config.means else (),
            n_latent=self.model.n_latent,
            categories=self._categories(),
            plan_hash=self.hash,
            model_hash=self.model.hash,
            plan=self.to_json(),
            routes=(config.method,),
            about={
                "method": config.method,
                "targets": [canonical_json(dict(aim.target)) for aim in self.aims],
                "masked": list(config.masked),
                "averaged": list(config.averaged),
                "source": dict(config.source),
                "solver": resolved(config.solver),
                "compose": resolved(config.compose),
                "seed": self.seed,
                "label_origin": dict(self.model.conditions.notes),
            },
        )

    def _categories(self) -> dict[str, tuple[str, ...]]:
        known = dict(
            zip(self.model.conditions.columns, self.model.conditions.categories, strict=True)
        )
        erased = {*self.config.masked, *self.config.averaged}
        shown = {c: (*values, MASK) if c in erased else values for c, values in known.items()}
        return shown | {f"{SOURCE}{c}": known[c] for c in self.changed}

    def to_json(self) -> dict[str, Any]:
        """The request, from which `from_json` plans again; never a list of cells."""
        facts = {
            "kind": KIND,
            "format": FORMAT,
            "model_hash": self.model.hash,
            "vocabulary": self.vocabulary_hash,
            # where the store lies changes no cell
            "config": {k: v for k, v in resolved(self.config).items() if k != "output"},
            "seed": self.seed,
            "n_chosen": self.n_chosen,
        }
        return {**facts, "hash": digest(facts)}

    @classmethod
    def from_json(
        cls, value: Mapping[str, Any], model: ModelFacts, vocabulary_hash: str
    ) -> "TransferPlan":
        """Plan again what `to_json` wrote.

        Raises:
            AtlasError: if the outcome has another hash, as under other cells or another version.
        """
        config = TransferConfig.model_validate(value["config"])
        plan = cls(config, value["seed"], value["n_chosen"], model, vocabulary_hash)
        if plan.hash != value["hash"]:
            raise AtlasError(
                f"the recorded plan has hash {value['hash']} (format {value['format']}), planned "
                f"again it has {plan.hash} (format {FORMAT}): the store was begun with another "
                "model, vocabulary or version; finish it with that one, or remove it"
            )
        return plan


def plan_transfer(
    config: TransferConfig, index: CellIndex, model: ModelFacts, vocabulary_hash: str, seed: int
) -> TransferPlan:
    """The plan of a settled request for the cells of a run.

    Raises:
        ConfigError: if no cell matches `source`, or a column has a name that the store keeps.
    """
    check_columns(model.conditions, (*config.masked, *config.averaged))
    n_chosen = len(chosen_cells(index, model.conditions, config))
    return TransferPlan(config, seed, n_chosen, model, vocabulary_hash)


def chosen_cells(
    index: CellIndex, conditions: ConditionVocabulary, config: TransferConfig
) -> Int64[ndarray, " cell"]:
    """Positions in the index of the cells whose condition has all values of `source`.

    Raises:
        ConfigError: if there is none.
    """
    if not config.source:
        return np.arange(index.n_cells, dtype=np.int64)
    codes = conditions.encode_one(config.source)
    chosen = np.ones(index.n_cells, dtype=bool)
    for number, column in enumerate(conditions.columns):
        if column in config.source:
            chosen &= index.codes[:, number] == codes[number]
    if not chosen.any():
        raise ConfigError(
            f"transfer.source={config.source} matches no cell of the store; check the combination"
        )
    return np.flatnonzero(chosen)


def aims_of(config: TransferConfig) -> tuple[Aim, ...]:
    """One aim per target."""
    targets = config.target if isinstance(config.target, list) else [config.target]
    return tuple(Aim(target, tuple(config.masked), tuple(config.averaged)) for target in targets)
