"""The error tree. Every user mistake is one of these, and each names its exit code.

A message says what is wrong, the offending value, what was expected and what to do about it.
"""

from collections.abc import Iterable
from typing import ClassVar


class SaveDistError(Exception):
    """Base of everything save_dist raises on purpose; `exit_code` is what a job ends with."""

    exit_code: ClassVar[int] = 5


class ConfigError(SaveDistError, ValueError):
    """A configuration that cannot be carried out as written."""

    exit_code = 2


class DataError(SaveDistError, ValueError):
    """Input cells that do not hold what they promise."""

    exit_code = 3


class VocabMismatchError(DataError):
    """Genes, conditions or blocks differ from those a store or model was made with."""


class CheckpointError(SaveDistError):
    """A checkpoint or bundle that is torn, altered or made by another configuration."""

    exit_code = 3


class AtlasError(SaveDistError):
    """An atlas that belongs to another plan, or whose parts do not verify."""

    exit_code = 3


class PartialError(SaveDistError):
    """Work that ended with less than its plan asked for."""

    exit_code = 4


class DivergedError(SaveDistError):
    """Training met a non-finite loss or gradient and stopped before the optimiser step."""

    exit_code = 3


class InfrastructureError(SaveDistError):
    """A cluster, disk or server failed; the same command is worth running again."""

    exit_code = 5


class StoppedError(SaveDistError):
    """Training was asked to end early and has saved its state; the same command continues."""

    exit_code = 130


def listed(values: Iterable[object], n_shown: int = 20) -> str:
    """Values for a message: the first few by name, the rest as a number.

    >>> listed(["a", "b", "c"], n_shown=2)
    'a, b and 1 more'
    """
    texts = [str(value) for value in values]
    more = f" and {len(texts) - n_shown} more" if len(texts) > n_shown else ""
    return ", ".join(texts[:n_shown]) + more
