"""Averages over the training cells of every seen combination, and the shifts between them.

They say what decoded control cells should look like, and how much a condition changes the mean of
cells like these.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float32, Float64, Int64
from numpy import ndarray
from safetensors.torch import load_file, save_file

from save_dist.vocab import similarity
from save_dist.vocab.transports import Codes, Pair

MIN_CELLS = 10
"""Training cells that a combination needs for its mean to count as evidence of a shift."""


@dataclass(frozen=True)
class Profiles:
    """Averages per combination; row i belongs to `codes[i]`."""

    codes: tuple[Codes, ...]
    n_cells: Int64[ndarray, " combination"]
    mean_log: Float32[ndarray, "combination gene"]
    """Mean of log1p(count / library * 1e4)."""
    mean_count: Float32[ndarray, "combination gene"]
    mean_log_library: Float32[ndarray, " combination"]
    """Mean of the log counts per cell."""

    @cached_property
    def rows(self) -> Mapping[Codes, int]:
        """Row of every combination."""
        return {codes: row for row, codes in enumerate(self.codes)}

    def log_of(self, codes: Codes) -> Float64[ndarray, " gene"]:
        """Mean log profile of a seen combination."""
        mean: ndarray = self.mean_log[self.rows[codes]].astype(np.float64)
        return mean

    def total_counts(self, codes: Codes) -> Float64[ndarray, " gene"]:
        """Counts of every gene over all training cells of a seen combination."""
        row = self.rows[codes]
        total: ndarray = self.mean_count[row].astype(np.float64) * int(self.n_cells[row])
        return total

    def is_known(self, codes: Codes) -> bool:
        """Whether the combination has enough training cells to be believed."""
        return codes in self.rows and int(self.n_cells[self.rows[codes]]) >= MIN_CELLS

    def save(self, path: Path) -> None:
        """Write everything as safetensors."""
        arrays = {
            "codes": np.array(self.codes, dtype=np.int64),
            "n_cells": self.n_cells,
            "mean_log": self.mean_log,
            "mean_count": self.mean_count,
            "mean_log_library": self.mean_log_library,
        }
        save_file({k: torch.from_numpy(np.ascontiguousarray(v)) for k, v in arrays.items()}, path)

    @classmethod
    def load(cls, path: Path) -> "Profiles":
        """Read what `save` wrote."""
        arrays = {name: tensor.numpy() for name, tensor in load_file(path).items()}
        codes = tuple(tuple(row) for row in arrays.pop("codes").tolist())
        return cls(codes, **arrays)


def evidence(profiles: Profiles, pairs: Sequence[Pair], column: int, value: int) -> list[Pair]:
    """Pairs that show the change of `column` to `value` with enough cells on both sides."""
    return [
        pair
        for pair in pairs
        if (pair.column, pair.value) == (column, value)
        and profiles.is_known(pair.control)
        and profiles.is_known(pair.target)
    ]


class Shift(NamedTuple):
    """How much a change of one condition column should move cells."""

    log_profile: Float64[ndarray, " gene"]
    """Of the mean log profile."""
    log_library: float
    """Of the mean log library size."""


def similarity_shift(
    profiles: Profiles, pairs: Sequence[Pair], control: Codes, temperature: float
) -> Shift:
    """Change that `control` should show under the value of `pairs`.

    Args:
        profiles: averages of the training cells.
        pairs: at least one; all of one column and value (see `evidence`).
        control: seen combination whose profile decides how much each pair weighs.
        temperature: of the softmax over negative distances, in units of their mean.
    """
    controls, changes = _controls_and_changes(profiles, pairs)
    weights = similarity.weights(profiles.log_of(control), controls, temperature)
    libraries = [
        float(profiles.mean_log_library[profiles.rows[pair.target]])
        - float(profiles.mean_log_library[profiles.rows[pair.control]])
        for pair in pairs
    ]
    return Shift(weights @ changes, float(weights @ np.array(libraries)))


def best_temperature(profiles: Profiles, pairs: Sequence[Pair]) -> float:
    """The temperature under which every pair is predicted best from the other ones.

    Args:
        profiles: averages of the training cells.
        pairs: of one column, any values; each value is judged by its own pairs.
    """
    asked = sorted({(pair.column, pair.value) for pair in pairs})
    known = [evidence(profiles, pairs, column, value) for column, value in asked]
    return similarity.best_temperature([_controls_and_changes(profiles, k) for k in known if k])


def _controls_and_changes(
    profiles: Profiles, pairs: Sequence[Pair]
) -> tuple[Float64[ndarray, "pair gene"], Float64[ndarray, "pair gene"]]:
    controls = np.stack([profiles.log_of(pair.control) for pair in pairs])
    targets = np.stack([profiles.log_of(pair.target) for pair in pairs])
    return controls, targets - controls
