"""How the cells of a combination come about: with their own labels, or from a seen neighbour.

A combination without training cells starts at its control: the seen combination that differs in
one transported column alone, where it has the reference. Pure: a function of the combination, the
model's support and the transported columns. Masked columns agree with every value: the training
cells of a combination are those that agree with it in the columns it names.
"""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

from save_dist.core.errors import ConfigError
from save_dist.vocab.conditions import ConditionVocabulary
from save_dist.vocab.transports import Codes, control_pairs, reference_codes, with_code

DIRECT = "direct"
"""Name of the route of cells that are sampled with their own labels."""


class Route(NamedTuple):
    """The way of one combination."""

    number: int
    """Position among the names of all routes; 0 is direct."""
    start: Codes
    """Combination whose labels the flow is given."""
    column: int | None
    """Column along which cells are carried from there; None: they stay."""
    n_start_cells: int
    """Training cells of `start`."""

    @property
    def is_composed(self) -> bool:
        """Whether cells are carried."""
        return self.column is not None


@dataclass(frozen=True)
class Routes:
    """The routes of a model; each question costs O(columns), however large the grid.

    Args:
        vocabulary: conditions of the model.
        support: training cells per combination; absent: unseen.
        columns: columns with a transport; none: every combination goes direct.
        min_support: training cells that a control needs to be one.
    """

    vocabulary: ConditionVocabulary
    support: Mapping[Codes, int]
    columns: tuple[str, ...] = ()
    min_support: int = 1

    @cached_property
    def names(self) -> tuple[str, ...]:
        """Every route there can be, e.g. "direct", "condition: ctrl -> stim"."""
        return (DIRECT, *(self._name(column, code) for column, code in self._numbers))

    def of(self, codes: Codes) -> Route:
        """The route of one combination."""
        own = self.n_train_cells(codes)
        direct = Route(0, codes, None, own)
        return direct if own else max(self._ways(codes), key=_n_start_cells, default=direct)

    def between(self, start: Codes, target: Codes) -> Route | None:
        """The way from one combination to another, seen or not; None where no transport leads."""
        changed = [i for i, (a, b) in enumerate(zip(start, target, strict=True)) if a != b]
        if len(changed) != 1:
            return None
        column = changed[0]
        if start[column] != self._references.get(column):
            return None
        return self._way(start, column, target[column])

    def composed(self, masked: Sequence[int] = ()) -> Iterator[Codes]:
        """Every unseen combination that has a way, once each, with these fields masked."""
        reached, seen = set(), self.seen(masked)
        for column, code in sorted(self._trained):
            for codes, n_cells in seen.items():
                target = with_code(codes, column, code)
                if codes[column] != self._references[column] or n_cells < self.min_support:
                    continue
                if target not in seen and target not in reached:
                    reached.add(target)
                    yield target

    def n_train_cells(self, codes: Codes) -> int:
        """Training cells that agree with a combination in the columns it does not mask."""
        sizes = self.vocabulary.sizes
        masked = [i for i, (code, n) in enumerate(zip(codes, sizes, strict=True)) if code == n]
        return self.seen(masked).get(codes, 0)

    def seen(self, masked: Sequence[int] = ()) -> Mapping[Codes, int]:
        """Every seen combination with these fields masked, and its training cells."""
        fields = tuple(masked)
        if fields not in self._seen:
            found: Counter[Codes] = Counter()
            for codes, n_cells in self.support.items():
                shown = codes
                for field in fields:
                    shown = with_code(shown, field, self.vocabulary.sizes[field])
                found[shown] += n_cells
            self._seen[fields] = found
        return self._seen[fields]

    def _ways(self, codes: Codes) -> Iterator[Route]:
        for column, reference in self._references.items():
            start = with_code(codes, column, reference)
            if self.n_train_cells(start) < self.min_support:
                continue
            if (way := self._way(start, column, codes[column])) is not None:
                yield way

    def _way(self, start: Codes, column: int, code: int) -> Route | None:
        if (column, code) not in self._trained:
            return None
        number = 1 + self._numbers[column, code]
        return Route(number, start, column, self.n_train_cells(start))

    @cached_property
    def _seen(self) -> dict[tuple[int, ...], Mapping[Codes, int]]:
        return {(): self.support}

    @cached_property
    def _references(self) -> dict[int, int]:
        return reference_codes(self.vocabulary, self.columns)

    @cached_property
    def _trained(self) -> frozenset[tuple[int, int]]:
        """Columns and values that the transport has learned to carry cells to."""
        pairs = control_pairs(self.support, self._references)
        return frozenset((pair.column, pair.value) for pair in pairs)

    @cached_property
    def _numbers(self) -> dict[tuple[int, int], int]:
        values = (
            (column, code)
            for column, reference in self._references.items()
            for code in range(self.vocabulary.sizes[column])
            if code != reference
        )
        return {value: number for number, value in enumerate(values)}

    def _name(self, column: int, code: int) -> str:
        categories = self.vocabulary.categories[column]
        reference = categories[self._references[column]]
        return f"{self.vocabulary.columns[column]}: {reference} -> {categories[code]}"


def check_composable(transport_columns: Sequence[str], asked: str) -> None:
    """Composing needs a model with a transport.

    Raises:
        ConfigError: saying what to train.
    """
    if not transport_columns:
        raise ConfigError(
            f"{asked}, but the model has no transport; train one with training.stages: [vae, flow, "
            "transport] and transport.columns: [COLUMN], a condition column with a value in "
            "conditions.reference, or sample unseen combinations by their labels (unseen: direct)"
        )


def _n_start_cells(route: Route) -> int:
    return route.n_start_cells
