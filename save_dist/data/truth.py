"""What simulated cells are drawn from: the parameters that follow from the settings.

Gene modules give types, conditions and programs their directions. The log rate of a gene is

    base + type + condition + interaction * (condition in type) + donor + batch + programs

and counts are negative binomial around library * softmax(log rate). Without interaction the
condition effects are log-additive over types. Cells are drawn in `simulate`.
"""

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from jaxtyping import Float64, Int64
from numpy import ndarray

from save_dist.core.errors import ConfigError, listed
from save_dist.core.seeding import generator
from save_dist.data.simulation import SimulationConfig

REFERENCE = "ctrl"
GENE_NOISE = 0.2  # gene-wise deviation from the module, as a share of the module's spread
LIBRARY_TYPE_SD = 0.2


@dataclass(frozen=True, eq=False)
class Truth:
    """The parameters that cells are drawn from."""

    base: Float64[ndarray, " gene"]
    cell_type: Float64[ndarray, "cell_type gene"]
    condition: Float64[ndarray, "condition gene"]
    response: Float64[ndarray, "cell_type condition gene"]
    """Type-specific part of a condition's effect; 0 without interaction."""
    donor: Float64[ndarray, "donor gene"]
    """Donor and technical batch together."""
    programs: Float64[ndarray, "program gene"]
    program_scale: Float64[ndarray, "cell_type program"]
    """Spread of a type's cells along each program."""
    module: Int64[ndarray, " gene"]
    inverse_dispersion: Float64[ndarray, " gene"]
    log_library: Float64[ndarray, " cell_type"]

    def log_rate(self, labels: "Labels") -> Float64[ndarray, "cell gene"]:
        """Log rate of every cell's genes, up to a constant per cell and without programs."""
        kind, condition = labels.cell_type, labels.condition
        shared = self.base + self.cell_type[kind] + self.condition[condition]
        rate: np.ndarray = shared + self.response[kind, condition] + self.donor[labels.donor]
        return rate

    def rates(
        self, labels: "Labels", scores: Float64[ndarray, "cell program"]
    ) -> Float64[ndarray, "cell gene"]:
        """Rates of every cell's genes, up to a factor per cell; at most 1.

        Args:
            labels: of the cells.
            scores: place of each cell along the programs, in standard deviations of its type.
        """
        scores = scores * self.program_scale[labels.cell_type]
        log_rate = self.log_rate(labels) + scores @ self.programs
        rates: np.ndarray = np.exp(log_rate - log_rate.max(axis=1, keepdims=True))
        return rates


class Labels(NamedTuple):
    """Positions of every cell's labels in the name lists of `label_names`."""

    cell_type: Int64[ndarray, " cell"]
    condition: Int64[ndarray, " cell"]
    donor: Int64[ndarray, " cell"]


def label_names(config: SimulationConfig) -> dict[str, list[str]]:
    """Values of every obs column, in the order of the truth's rows."""
    return {
        "cell_type": [f"type-{i}" for i in range(config.n_types)],
        "condition": [REFERENCE, *(f"stim-{i}" for i in range(1, config.n_conditions))],
        "donor": [f"donor-{i}" for i in range(config.n_donors)],
        "batch_id": [f"batch-{i}" for i in range(config.n_batches)],
    }


def build_truth(config: SimulationConfig) -> Truth:
    """Parameters of a simulation; each part has its own random stream.

    So settings of one part leave the others as they are: with another `interaction`, types,
    shared condition effects and reference cells stay.
    """
    n_types, n_conditions, n_genes = config.n_types, config.n_conditions, config.n_genes
    rng = generator(config.seed, "simulate_genes")
    module = rng.integers(config.n_modules, size=n_genes)
    weight = rng.uniform(0.4, 1.6, size=n_genes)
    base = rng.normal(0, 1, size=n_genes)
    inverse_dispersion = config.inverse_dispersion * np.exp(rng.normal(0, 0.4, size=n_genes))

    def directions(purpose: str, n: int, sd: float, share: float = 1) -> ndarray:
        """`n` effects on all genes that move a share of the modules as a whole."""
        rng = generator(config.seed, purpose)
        activity = rng.normal(0, sd, size=(n, config.n_modules))
        place = np.argsort(rng.random(activity.shape), axis=1)
        activity *= place < math.ceil(share * config.n_modules)
        noise = rng.normal(0, GENE_NOISE * sd, size=(n, n_genes))
        effects: np.ndarray = activity[:, module] * weight + noise
        return effects

    condition = directions("simulate_conditions", n_conditions, config.condition_sd, 0.5)
    response = directions(
        "simulate_responses", n_types * n_conditions, config.interaction * config.condition_sd, 0.5
    ).reshape(n_types, n_conditions, n_genes)
    condition[0], response[:, 0] = 0, 0  # the reference
    rng = generator(config.seed, "simulate_spread")
    return Truth(
        base=base,
        cell_type=directions("simulate_types", n_types, config.type_sd),
        condition=condition,
        response=response,
        donor=_donor_effects(config),
        programs=directions("simulate_programs", config.n_programs, config.program_sd, 0.5),
        program_scale=rng.uniform(0.3, 1.3, size=(n_types, config.n_programs)),
        module=module,
        inverse_dispersion=inverse_dispersion,
        log_library=np.log(config.library_median) + rng.normal(0, LIBRARY_TYPE_SD, size=n_types),
    )


def _donor_effects(config: SimulationConfig) -> Float64[ndarray, "donor gene"]:
    rng = generator(config.seed, "simulate_donors")
    batch = rng.normal(0, config.batch_sd, size=(config.n_batches, config.n_genes))
    donor = rng.normal(0, config.donor_sd, size=(config.n_donors, config.n_genes))
    effects: np.ndarray = donor + batch[batch_of_donor(config)]
    return effects


def batch_of_donor(config: SimulationConfig) -> Int64[ndarray, " donor"]:
    """Technical batch in which each donor was measured."""
    return np.arange(config.n_donors) % config.n_batches


def type_shares(config: SimulationConfig) -> Float64[ndarray, " cell_type"]:
    """Share of each type in all cells."""
    weights = np.linspace(2, 1, config.n_types)
    shares: np.ndarray = weights / weights.sum()
    return shares


class Weights(NamedTuple):
    """Probability of every label; the three are independent in any distribution asked for."""

    cell_type: Float64[ndarray, " cell_type"]
    condition: Float64[ndarray, " condition"]
    donor: Float64[ndarray, " donor"]


def label_weights(config: SimulationConfig, condition: Mapping[str, str]) -> Weights:
    """How often each label occurs among the cells of one condition.

    Args:
        config: the simulated data set.
        condition: values of some of `cell_type`, `condition`, `donor` and `batch_id`; the
            others vary as in the data set.

    Raises:
        ConfigError: if a column or value is unknown, or no donor was in the batch.
    """
    _check_condition(config, condition)
    names = label_names(config)
    batch_of = np.array(names["batch_id"])[batch_of_donor(config)]
    fits = {
        column: np.array([condition.get(column, name) == name for name in names[column]])
        for column in Weights._fields
    }
    fits["donor"] &= np.array([condition.get("batch_id", b) == b for b in batch_of])
    if not fits["donor"].any():
        raise ConfigError(
            f"donor {condition['donor']} was measured in "
            f"{batch_of[names['donor'].index(condition['donor'])]}, not in "
            f"{condition['batch_id']}; leave one of them out"
        )
    fits["cell_type"] = fits["cell_type"] * type_shares(config)
    return Weights(*(w / w.sum() for w in fits.values()))


def fingerprint(truth: Truth) -> Float64[ndarray, " part"]:
    """Size of every part of a truth: other parameters show in it.

    The settings of a data set name its parameters only as long as the random streams of NumPy and
    the code here stay; files carry this beside the settings, and readers compare.
    """
    parts = (getattr(truth, field.name) for field in dataclasses.fields(truth))
    return np.array([np.square(part, dtype=np.float64).sum() for part in parts])


def _check_condition(config: SimulationConfig, condition: Mapping[str, str]) -> None:
    names = label_names(config)
    for column, value in condition.items():
        if column not in names:
            raise ConfigError(f"unknown simulated column {column!r}; known: {listed(names)}")
        if value not in names[column]:
            raise ConfigError(
                f"no simulated cell has {column}={value!r}; known: {listed(names[column])}"
            )
