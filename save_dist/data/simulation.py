"""Settings of a simulated data set."""

import dataclasses
import math
from dataclasses import dataclass
from typing import Any, Literal

from save_dist.core.errors import ConfigError

Form = Literal["h5ad", "soma"]
"""Of the data set on disk."""


def _setting(default: int | float, low: int | float, meaning: str) -> Any:  # as dataclasses.field
    """Field of a configuration with its smallest allowed value."""
    return dataclasses.field(default=default, metadata={"low": low, "meaning": meaning})


@dataclass(frozen=True)
class SimulationConfig:
    """What is simulated. Standard deviations are in units of log rate.

    Raises:
        ConfigError: if a value is out of range.
    """

    n_cells: int = _setting(6000, 1, "cells over all combinations, at least two for each")
    n_genes: int = _setting(1000, 1, "genes")
    n_types: int = _setting(5, 1, "cell types; the first is twice as frequent as the last")
    n_conditions: int = _setting(3, 1, 'perturbations, the reference "ctrl" among them')
    n_donors: int = _setting(4, 1, "donors, each measured in one technical batch")
    n_batches: int = _setting(2, 1, "technical batches, at most one per donor")
    n_modules: int = _setting(12, 1, "gene modules; every gene belongs to one")
    n_programs: int = _setting(3, 0, "continuous programs along which cells of a type differ")
    interaction: float = _setting(
        0.0, 0.0, "size of type-specific condition responses relative to the shared one"
    )
    type_sd: float = _setting(1.0, 0.0, "module activity between types")
    condition_sd: float = _setting(0.7, 0.0, "module activity of a condition")
    donor_sd: float = _setting(0.05, 0.0, "gene-wise differences between donors")
    batch_sd: float = _setting(0.15, 0.0, "gene-wise differences between technical batches")
    program_sd: float = _setting(0.4, 0.0, "spread of cells along one program")
    library_median: float = _setting(1500.0, 1.0, "median counts of a cell")
    library_sd: float = _setting(0.35, 0.0, "spread of log library size within a type")
    inverse_dispersion: float = _setting(
        3.0, 0.01, "median over genes; variance is mean + mean^2 / inverse_dispersion"
    )
    seed: int = _setting(0, 0, "root of every random stream")

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            value, low = getattr(self, field.name), field.metadata["low"]
            if not math.isfinite(value) or value < low:
                raise ConfigError(f"simulation: {field.name}={value}, expected at least {low}")
        if self.n_batches > self.n_donors:
            raise ConfigError(
                f"simulation: n_batches={self.n_batches} exceeds n_donors={self.n_donors}, but "
                "each batch needs a donor; lower n_batches"
            )
        n_least = 2 * self.n_types * self.n_conditions * self.n_donors
        if self.n_cells < n_least:
            raise ConfigError(
                f"simulation: n_cells={self.n_cells} is below two for each combination of type, "
                f"condition and donor; use at least {n_least}"
            )


QUICK = SimulationConfig(n_cells=1200, n_genes=200, n_types=3, n_conditions=2, n_donors=2)
"""What the command draws unless told otherwise: enough for configs/tiny, drawn in a second."""
