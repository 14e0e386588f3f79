"""A declared grid -> parts. Pure planning: reads nothing, writes nothing, lists no cells.

Rows of the atlas run condition by condition, in the order of their codes. Part p is rows
[p * cells_per_part, (p + 1) * cells_per_part), so where a cell lies follows from its row: by
division if all conditions have the same number of cells, by a search in cumulative sums if not.
An atlas grows by further grids, whose additional cells stand behind those that are there.
"""

import itertools
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np

from save_dist.config.load import resolved
from save_dist.config.schema import MAX_CHUNK, FromFile, GridConfig, OutputConfig
from save_dist.core.durable import digest
from save_dist.core.errors import AtlasError, ConfigError, listed
from save_dist.generation.combinations import Combinations
from save_dist.generation.routes import Routes, check_composable
from save_dist.generation.rows import RowMap, Segment, rows_of
from save_dist.stores.facts import ModelFacts
from save_dist.stores.template import MASK, RESERVED_COLUMNS, AtlasLayout
from save_dist.vocab.conditions import ConditionVocabulary

FORMAT = 3
"""Version of how a plan becomes cells; raised when the same plan would give other numbers."""


@dataclass(frozen=True)
class Part:
    """Rows [start, start + n_cells) of the atlas: one task, one shard file, one receipt."""

    index: int
    start: int
    n_cells: int
    runs: tuple[tuple[Segment, ...], ...]
    """Segments, a run for each stretch; minibatches end where a run ends."""

    @property
    def segments(self) -> tuple[Segment, ...]:
        """All segments in the order of their rows."""
        return tuple(itertools.chain.from_iterable(self.runs))


@dataclass(frozen=True)
class GridSummary:
    """What a plan amounts to."""

    n_conditions: int
    n_seen: int
    n_unseen: int
    n_composed: int
    """Unseen conditions that are carried from a control; the others go direct."""
    n_poorly_supported: int
    """Unseen conditions that go direct since no control has `compose.min_support` cells."""
    n_cells: int
    n_parts: int
    bytes_estimate: int


@dataclass(frozen=True)
class GridPlan:
    """Which cell stands in which row; every question costs O(1), or O(cells asked about)."""

    grids: tuple[GridConfig, ...]
    """Settled: they hold no file, and no number that follows from the training cells. Each asks
    for at least what the one before it asks for."""
    output: OutputConfig
    model: ModelFacts
    rows: RowMap
    routes: Routes

    @property
    def grid(self) -> GridConfig:
        """The latest grid; the others differ from it in conditions and numbers of cells alone."""
        return self.grids[-1]

    @property
    def conditions(self) -> Combinations:
        """Conditions of the grid, numbered."""
        return self.rows.conditions

    @property
    def n_conditions(self) -> int:
        """Conditions of the grid."""
        return self.conditions.size

    @property
    def n_cells(self) -> int:
        """Rows of the atlas."""
        return self.rows.n_cells

    @property
    def n_parts(self) -> int:
        """Parts; the last may be short."""
        return -(-self.n_cells // self.output.cells_per_part)

    @property
    def cells_per_chunk(self) -> int:
        """As set, or by the cells of a mean condition of the first grid: growing changes no chunk.

        A condition of n cells lies in chunks of at most n + 2 * size rows; their index in the file
        of a part takes 16 bytes a chunk, hence the lower bound.
        """
        if self.output.cells_per_chunk is not None:
            return self.output.cells_per_chunk
        first = self.rows.stretches[0]
        per_condition = first.amounts.n_cells / first.conditions.size
        sizes = (MAX_CHUNK, MAX_CHUNK // 2)
        return next((size for size in sizes if 2 * size <= per_condition), MAX_CHUNK // 4)

    @cached_property
    def hash(self) -> str:
        """Identity of every cell of the atlas and of its place."""
        return self._hash(len(self.grids))

    @property
    def history(self) -> tuple[tuple[int, str], ...]:
        """Rows and hash of the plan before each later grid was added."""
        stretches = self.rows.stretches
        return tuple((stretches[i - 1].stop, self._hash(i)) for i in range(1, len(stretches)))

    def _hash(self, n_grids: int) -> str:
        """Vocabulary and grids fix the ordered conditions, so these are not listed."""
        return digest(
            {
                "format": FORMAT,
                "model": self.model.hash,
                "vocabulary": self.model.conditions.hash,
                "routes": list(self.routes.names),
                "grids": [resolved(grid) for grid in self.grids[:n_grids]],
                "output": resolved(self.output),
            }
        )

    @property
    def gene_ids(self) -> tuple[str, ...]:
        """Genes that are stored, in the order of the model."""
        chosen = self.output.genes
        assert not isinstance(chosen, FromFile), "files are read before planning"
        return self.model.genes.ids if chosen is None else tuple(chosen)

    def part(self, index: int) -> Part:
        """Rows of one part, cut where the condition changes."""
        assert 0 <= index < self.n_parts, (index, self.n_parts)
        start = index * self.output.cells_per_part
        stop = min(start + self.output.cells_per_part, self.n_cells)
        runs = tuple(tuple(run) for run in self.rows.runs(start, stop))
        return Part(index, start, stop - start, runs)

    def n_cells_in(self, parts: Iterable[int]) -> int:
        """Cells of these parts together."""
        size = self.output.cells_per_part
        return sum(min(size, self.n_cells - part * size) for part in parts)

    def layout(self) -> AtlasLayout:
        """The empty atlas that this plan fills."""
        return AtlasLayout(
            n_cells=self.n_cells,
            cells_per_part=self.output.cells_per_part,
            cells_per_chunk=self.cells_per_chunk,
            gene_ids=self.gene_ids,
            layers=tuple(self.output.layers),
            n_latent=self.model.n_latent if self.output.latents else 0,
            categories=self._categories(),
            plan_hash=self.hash,
            model_hash=self.model.hash,
            plan=self.to_json(),
            history=self.history,
            routes=self.routes.names,
            about={
                "guidance": resolved(self.grid.guidance),
                "solver": resolved(self.grid.solver),
                "unseen": self.grid.unseen,
                "compose": resolved(self.grid.compose),
                "masked": list(self.grid.masked),
                "seed": self.grid.seed,
                "n_conditions": self.n_conditions,
                "cells_per_minibatch": self.output.cells_per_minibatch,
                "label_origin": dict(self.model.conditions.notes),
            },
        )

    def summary(self) -> GridSummary:
        """Figures for people, before anything is sampled."""
        n_seen = self.n_seen
        n_composed = self.conditions.n_within(self.routes.composed(self._masked))
        any_control = replace(self.routes, min_support=1)
        n_carried = self.conditions.n_within(any_control.composed(self._masked))
        return GridSummary(
            n_conditions=self.n_conditions,
            n_seen=n_seen,
            n_unseen=self.n_conditions - n_seen,
            n_composed=n_composed,
            n_poorly_supported=n_carried - n_composed,
            n_cells=self.n_cells,
            n_parts=self.n_parts,
            bytes_estimate=round(self.n_cells * self.layout().bytes_per_cell),
        )

    @property
    def n_seen(self) -> int:
        """Conditions with training cells; masked columns agree with all of them."""
        return self.conditions.n_within(self.routes.seen(self._masked))

    def to_json(self) -> dict[str, Any]:
        """The request, from which `from_json` plans again; never a list of cells."""
        return {
            "format": FORMAT,
            "hash": self.hash,
            "model_hash": self.model.hash,
            "grids": [resolved(grid) for grid in self.grids],
            "output": resolved(self.output),
        }

    @classmethod
    def from_json(cls, value: Mapping[str, Any], model: ModelFacts) -> "GridPlan":
        """Plan again what `to_json` wrote.

        Raises:
            AtlasError: if the outcome has another hash, as under another model or version.
        """
        grids = [GridConfig.model_validate(grid) for grid in value["grids"]]
        plan = plan_grids(grids, OutputConfig.model_validate(value["output"]), model)
        if plan.hash != value["hash"]:
            raise AtlasError(
                f"the recorded plan has hash {value['hash']} (format {value['format']}), planned "
                f"again it has {plan.hash} (format {FORMAT}): the atlas was begun with another "
                "model or version; finish it with that one, or remove it"
            )
        return plan

    @property
    def _masked(self) -> tuple[int, ...]:
        columns = self.model.conditions.columns
        return tuple(i for i, column in enumerate(columns) if column in self.grid.masked)

    def _categories(self) -> dict[str, tuple[str, ...]]:
        """Values of every column in the order of their codes; the code after them is MASK."""
        known = self.model.conditions
        return {
            column: (*values, MASK) if column in self.grid.masked else values
            for column, values in zip(known.columns, known.categories, strict=True)
        }


def plan_grid(grid: GridConfig, output: OutputConfig, model: ModelFacts) -> GridPlan:
    """The plan of one grid; see `plan_grids`."""
    return plan_grids([grid], output, model)


def plan_grids(grids: Sequence[GridConfig], output: OutputConfig, model: ModelFacts) -> GridPlan:
    """Resolve settled grids (see `tables.settle`) against a model's conditions.

    Args:
        grids: product, include, exclude, cells per condition; each adds to the one before it.
        output: cells per part.
        model: conditions it knows, training cells, transports.

    Raises:
        ConfigError: for an unknown column or value, an empty grid, one too large, a condition
            without a number of cells, an unseen combination where these are refused, composing
            with a model that has no transport, a column that an atlas cannot hold, or a grid that
            asks for less than the one before it.
    """
    grid = grids[-1]
    check_columns(model.conditions, grid.masked)
    rows = rows_of(grids, model.conditions)
    if grid.unseen == "compose":
        check_composable(model.transport_columns, "grid.unseen=compose")
    columns = model.transport_columns if grid.unseen == "compose" else ()
    routes = Routes(model.conditions, model.support, columns, grid.compose.min_support)
    plan = GridPlan(tuple(grids), output, model, rows, routes)
    if grid.unseen == "refuse":
        _refuse_unseen(plan)
    return plan


def check_columns(vocabulary: ConditionVocabulary, masked: Sequence[str]) -> None:
    """Condition columns must be able to stand in an atlas.

    Raises:
        ConfigError: naming one that cannot.
    """
    if kept := [c for c in vocabulary.columns if c in RESERVED_COLUMNS or "/" in c]:
        raise ConfigError(
            f"condition column {kept[0]!r} cannot be a column of an atlas: it holds '/' or is one "
            f"of {listed(RESERVED_COLUMNS)}; rename it in conditions.columns and train again"
        )
    for column, values in zip(vocabulary.columns, vocabulary.categories, strict=True):
        if column in masked and MASK in values:
            raise ConfigError(
                f"{column!r} is to be masked and has a value {MASK!r} of its own, so the "
                "atlas could not tell them apart; rename the value and train again"
            )


def _refuse_unseen(plan: GridPlan) -> None:
    n_unseen = plan.n_conditions - plan.n_seen
    if n_unseen == 0:
        return
    # at most len(support) conditions are seen, so these hold five unseen ones if there are five
    n_first = min(plan.n_conditions, len(plan.model.support) + 5)
    rows = (tuple(row) for row in plan.conditions.codes(np.arange(n_first)).tolist())
    unseen = itertools.islice((row for row in rows if not plan.routes.n_train_cells(row)), 5)
    named = "; ".join(str(plan.model.conditions.decode_one(row)) for row in unseen)
    raise ConfigError(
        f"{n_unseen} of {plan.n_conditions} combinations were never trained on and grid.unseen is "
        f"'refuse': {named}{' ...' if n_unseen > 5 else ''}; exclude them, or set "
        "grid.unseen=direct or compose"
    )
