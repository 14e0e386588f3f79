"""A declared grid -> parts. Pure planning: reads nothing, writes nothing, lists no cells.

Rows of the atlas run condition by condition, `cells_per_condition` each, conditions in the order
of their codes. Part p is rows [p * cells_per_part, (p + 1) * cells_per_part), so where a cell
lies follows from its row by division.
"""

import itertools
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np

from save_dist.config.load import resolved
from save_dist.config.schema import GridConfig, OutputConfig
from save_dist.core.durable import digest
from save_dist.core.errors import AtlasError, ConfigError, listed
from save_dist.generation.combinations import Combinations, resolve
from save_dist.generation.routes import Routes, check_composable
from save_dist.stores.template import RESERVED_COLUMNS, AtlasLayout
from save_dist.vocab.conditions import ConditionVocabulary
from save_dist.vocab.genes import GeneVocabulary

FORMAT = 2
"""Version of how a plan becomes cells; raised when the same plan would give other numbers."""
BYTES_PER_VALUE = 0.1
"""Compressed bytes per cell and gene, as measured on sparse counts; for estimates."""


class Segment(NamedTuple):
    """Neighbouring cells of one condition: its number, and indices within the condition."""

    condition: int
    first: int
    n_cells: int


@dataclass(frozen=True)
class Part:
    """Rows [start, start + n_cells) of the atlas: one task, one shard file, one receipt."""

    index: int
    start: int
    n_cells: int
    segments: tuple[Segment, ...]


@dataclass(frozen=True)
class GridSummary:
    """What a plan amounts to."""

    n_conditions: int
    n_seen: int
    n_unseen: int
    n_composed: int
    """Unseen conditions that are carried from a control; the others go direct."""
    n_cells: int
    n_parts: int
    bytes_estimate: int


@dataclass(frozen=True)
class GridPlan:
    """Which cell stands in which row; every question costs O(1), or O(cells asked about)."""

    grid: GridConfig
    output: OutputConfig
    vocabulary: ConditionVocabulary
    support: Mapping[tuple[int, ...], int]
    """Training cells per combination of codes; absent: unseen."""
    genes: GeneVocabulary
    model_hash: str
    conditions: Combinations
    routes: Routes

    @property
    def n_conditions(self) -> int:
        """Conditions of the grid."""
        return self.conditions.size

    @property
    def n_cells(self) -> int:
        """Rows of the atlas."""
        return self.n_conditions * self.grid.cells_per_condition

    @property
    def n_parts(self) -> int:
        """Parts; the last may be short."""
        return -(-self.n_cells // self.output.cells_per_part)

    @cached_property
    def hash(self) -> str:
        """Identity of every cell of the atlas and of its place.

        Vocabulary and grid fix the ordered conditions, so these are not listed.
        """
        return digest(
            {
                "format": FORMAT,
                "model": self.model_hash,
                "vocabulary": self.vocabulary.hash,
                "routes": list(self.routes.names),
                "grid": resolved(self.grid),
                "output": resolved(self.output),
            }
        )

    def part(self, index: int) -> Part:
        """Rows of one part, cut where the condition changes."""
        assert 0 <= index < self.n_parts, (index, self.n_parts)
        size, per_condition = self.output.cells_per_part, self.grid.cells_per_condition
        start = index * size
        stop = min(start + size, self.n_cells)
        segments = []
        for condition in range(start // per_condition, (stop - 1) // per_condition + 1):
            first = max(start - condition * per_condition, 0)
            last = min(stop - condition * per_condition, per_condition)
            segments.append(Segment(condition, first, last - first))
        return Part(index, start, stop - start, tuple(segments))

    def n_cells_in(self, parts: Iterable[int]) -> int:
        """Cells of these parts together."""
        size = self.output.cells_per_part
        return sum(min(size, self.n_cells - part * size) for part in parts)

    def layout(self) -> AtlasLayout:
        """The empty atlas that this plan fills."""
        return AtlasLayout(
            n_cells=self.n_cells,
            cells_per_part=self.output.cells_per_part,
            cells_per_chunk=self.output.cells_per_chunk,
            gene_ids=self.genes.ids,
            categories=dict(zip(self.vocabulary.columns, self.vocabulary.categories, strict=True)),
            plan_hash=self.hash,
            model_hash=self.model_hash,
            plan=self.to_json(),
            routes=self.routes.names,
            about={
                "guidance": resolved(self.grid.guidance),
                "solver": resolved(self.grid.solver),
                "unseen": self.grid.unseen,
                "compose": resolved(self.grid.compose),
                "seed": self.grid.seed,
                "cells_per_condition": self.grid.cells_per_condition,
                "cells_per_minibatch": self.output.cells_per_minibatch,
                "label_origin": dict(self.vocabulary.notes),
            },
        )

    def summary(self) -> GridSummary:
        """Figures for people, before anything is sampled."""
        n_seen = self.conditions.n_within(self.support)
        return GridSummary(
            n_conditions=self.n_conditions,
            n_seen=n_seen,
            n_unseen=self.n_conditions - n_seen,
            n_composed=self.conditions.n_within(self.routes.composed()),
            n_cells=self.n_cells,
            n_parts=self.n_parts,
            bytes_estimate=round(self.n_cells * (len(self.genes) * BYTES_PER_VALUE + 16)),
        )

    def to_json(self) -> dict[str, Any]:
        """The request, from which `from_json` plans again; never a list of conditions or cells."""
        return {
            "format": FORMAT,
            "hash": self.hash,
            "model_hash": self.model_hash,
            "grid": resolved(self.grid),
            "output": resolved(self.output),
        }

    @classmethod
    def from_json(
        cls,
        value: Mapping[str, Any],
        vocabulary: ConditionVocabulary,
        support: Mapping[tuple[int, ...], int],
        genes: GeneVocabulary,
        transport_columns: Sequence[str] = (),
    ) -> "GridPlan":
        """Plan again what `to_json` wrote, with the conditions and support of the same model.

        Raises:
            AtlasError: if the outcome has another hash, as under another model or version.
        """
        grid = GridConfig.model_validate(value["grid"])
        output = OutputConfig.model_validate(value["output"])
        plan = plan_grid(
            grid, output, vocabulary, support, value["model_hash"], genes, transport_columns
        )
        if plan.hash != value["hash"]:
            raise AtlasError(
                f"the recorded plan has hash {value['hash']} (format {value['format']}), planned "
                f"again it has {plan.hash} (format {FORMAT}): the atlas was begun with another "
                "model or version; finish it with that one, or remove it"
            )
        return plan


def plan_grid(
    grid: GridConfig,
    output: OutputConfig,
    vocabulary: ConditionVocabulary,
    support: Mapping[tuple[int, ...], int],
    model_hash: str,
    genes: GeneVocabulary,
    transport_columns: Sequence[str] = (),
) -> GridPlan:
    """Resolve a grid against a model's conditions.

    Args:
        grid: product, include, exclude, cells per condition.
        output: cells per part.
        vocabulary: conditions the model knows.
        support: training cells per combination of codes.
        model_hash: identity of the model.
        genes: genes of the model.
        transport_columns: columns along which the model can carry cells.

    Raises:
        ConfigError: for an unknown column or value, an empty grid, one too large, an unseen
            combination where these are refused, composing with a model that has no transport, or
            a column name the atlas keeps for itself.
    """
    if kept := [c for c in vocabulary.columns if c in RESERVED_COLUMNS or "/" in c]:
        raise ConfigError(
            f"condition column {kept[0]!r} cannot be a column of an atlas: it holds '/' or is one "
            f"of {listed(RESERVED_COLUMNS)}; rename it in conditions.columns and train again"
        )
    conditions = resolve(grid, vocabulary)
    if grid.unseen == "compose":
        check_composable(transport_columns, "grid.unseen=compose")
    columns = transport_columns if grid.unseen == "compose" else ()
    routes = Routes(vocabulary, support, tuple(columns))
    plan = GridPlan(grid, output, vocabulary, support, genes, model_hash, conditions, routes)
    if grid.unseen == "refuse":
        _refuse_unseen(plan)
    return plan


def _refuse_unseen(plan: GridPlan) -> None:
    n_unseen = plan.n_conditions - plan.conditions.n_within(plan.support)
    if n_unseen == 0:
        return
    # at most len(support) conditions are seen, so these hold five unseen ones if there are five
    numbers = np.arange(min(plan.n_conditions, len(plan.support) + 5), dtype=np.int64)
    rows = (tuple(row) for row in plan.conditions.codes(numbers).tolist())
    unseen = itertools.islice((row for row in rows if row not in plan.support), 5)
    named = "; ".join(str(plan.vocabulary.decode_one(row)) for row in unseen)
    raise ConfigError(
        f"{n_unseen} of {plan.n_conditions} combinations were never trained on and grid.unseen is "
        f"'refuse': {named}{' ...' if n_unseen > 5 else ''}; exclude them, or set "
        "grid.unseen=direct or compose"
    )
