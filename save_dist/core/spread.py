"""How work on independent items is spread: here in order, or by means a caller brings along.

Code that has such work takes a `Spread` and knows nothing of processes or clusters.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import Protocol, TypeVar, runtime_checkable

Item = TypeVar("Item")
Result = TypeVar("Result")


@runtime_checkable
class Spread(Protocol):
    """`map` by some means; the first error ends it, and a single item stays in this process."""

    def __call__(self, work: Callable[[Item], Result], items: Sequence[Item]) -> Iterator[Result]:
        """Results in the order of the items; work and items may travel to other processes."""
        ...


def in_order(work: Callable[[Item], Result], items: Sequence[Item]) -> Iterator[Result]:
    """One item after the other, in this process."""
    return map(work, items)
