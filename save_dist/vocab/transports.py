"""Which pairs of seen combinations show what a condition column does.

A pair agrees in every column but one, whose value is the reference in the first combination (the
control) and another in the second. Transports are trained on pairs, routes and shifts follow them.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

from save_dist.core.errors import ConfigError, DataError, listed
from save_dist.vocab.conditions import ConditionVocabulary

Codes = tuple[int, ...]


class Pair(NamedTuple):
    """Two seen combinations that differ in one column alone."""

    column: int
    """Position of the column among all condition columns."""
    control: Codes
    target: Codes

    @property
    def value(self) -> int:
        """Code of the column in the target."""
        return self.target[self.column]


def reference_codes(vocabulary: ConditionVocabulary, columns: Sequence[str]) -> dict[int, int]:
    """Position of each column -> code of its reference, in the order of the columns.

    Raises:
        ConfigError: for an unknown column or one without a reference.
    """
    out = {}
    for column in columns:
        if column not in vocabulary.columns:
            raise ConfigError(
                f"transport.columns: unknown condition column {column!r}; known: "
                f"{listed(vocabulary.columns)}"
            )
        if column not in vocabulary.reference:
            raise ConfigError(
                f"transport.columns: {column!r} has no reference value, and a transport starts at "
                f"control cells; name the control in conditions.reference "
                f"(known values: {listed(vocabulary.categories[vocabulary.columns.index(column)])})"
            )
        position = vocabulary.columns.index(column)
        out[position] = vocabulary.categories[position].index(vocabulary.reference[column])
    return out


def with_code(codes: Codes, column: int, code: int) -> Codes:
    """`codes` with one column changed."""
    return (*codes[:column], code, *codes[column + 1 :])


def control_pairs(support: Mapping[Codes, int], references: Mapping[int, int]) -> tuple[Pair, ...]:
    """Every pair among the combinations with training cells, in the order of columns and codes.

    Args:
        support: training cells per combination.
        references: position of a column -> code of its reference.
    """
    return tuple(
        Pair(column, control, codes)
        for column, reference in references.items()
        for codes in sorted(support)
        if codes[column] != reference
        and (control := with_code(codes, column, reference)) in support
    )


def check_pairs(
    vocabulary: ConditionVocabulary, pairs: Iterable[Pair], references: Mapping[int, int]
) -> None:
    """Every transport needs something to learn from.

    Raises:
        DataError: naming a column without a pair.
    """
    found = {pair.column for pair in pairs}
    for column in references:
        if column not in found:
            name = vocabulary.columns[column]
            raise DataError(
                f"no transport along {name!r} can be trained: no combination has training cells "
                f"both at {name}={vocabulary.reference[name]} and at another value of it; hold "
                "out less, or take the column out of transport.columns"
            )
