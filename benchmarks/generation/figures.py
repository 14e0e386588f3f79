"""What the sections of benchmarks/generate.py share: lines of the table, seconds, names."""

import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import NamedTuple

from save_dist.vocab.conditions import ConditionVocabulary
from save_dist.vocab.genes import GeneVocabulary


class Line(NamedTuple):
    """One figure and what it has to be."""

    what: str
    value: str
    goal: str


class Cost(NamedTuple):
    """Seconds of one piece of work."""

    cpu: float
    wall: float


class Arguments(NamedTuple):
    """Of the command line, and a folder to work in."""

    size: float
    repeats: int
    model: Path | None
    folder: Path

    def cells(self, n: int, multiple: int = 1) -> int:
        """So many cells, scaled, as a multiple of something."""
        return max(1, round(n * self.size / multiple)) * multiple


def cost(work: Callable[[], object]) -> Cost:
    """CPU seconds of this process and wall seconds."""
    cpu, wall = time.process_time(), time.perf_counter()
    work()
    return Cost(time.process_time() - cpu, time.perf_counter() - wall)


def share(values: list[float]) -> str:
    """Median with its range."""
    return f"{median(values):.2f} ({min(values):.2f}-{max(values):.2f})"


def vocabulary(columns: tuple[str, ...], sizes: tuple[int, ...]) -> ConditionVocabulary:
    """So many values in each column: `column-0` and so on."""
    values = (tuple(f"{c}-{v}" for v in range(n)) for c, n in zip(columns, sizes, strict=True))
    return ConditionVocabulary(columns, tuple(values))


def gene_names(n: int) -> GeneVocabulary:
    """g0, g1, ..."""
    return GeneVocabulary(tuple(f"g{i}" for i in range(n)))
