"""Simulated cells whose true distribution is known, for combinations held out as well.

Gene modules give types, conditions and programs their directions. The log rate of a gene is

    base + type + condition + interaction * (condition in type) + donor + batch + programs

and counts are negative binomial around library * softmax(log rate). Without interaction the
condition effects are log-additive over types.
"""

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import anndata
import numpy as np
import pandas as pd
import scipy.sparse
from jaxtyping import Float64, Int64
from numpy import ndarray

from save_dist.core.errors import ConfigError, listed
from save_dist.core.seeding import generator

REFERENCE = "ctrl"
CELLS_AT_ONCE = 1024  # bounds memory; part of the random stream, other values give other cells
GENE_NOISE = 0.2  # gene-wise deviation from the module, as a share of the module's spread
LIBRARY_TYPE_SD = 0.2


def _setting(default: int | float, low: int | float) -> Any:  # as dataclasses.field
    """Field of a configuration with its smallest allowed value."""
    return dataclasses.field(default=default, metadata={"low": low})


@dataclass(frozen=True)
class SimulationConfig:
    """What is simulated. Standard deviations are in units of log rate.

    Args:
        n_cells: cells over all combinations, at least two for each.
        n_genes: genes.
        n_types: cell types; the first is twice as frequent as the last.
        n_conditions: perturbations, the reference "ctrl" among them.
        n_donors: donors, each measured in one technical batch.
        n_batches: technical batches, at most one per donor.
        n_modules: gene modules; every gene belongs to one.
        n_programs: continuous programs along which cells of one type differ.
        interaction: size of type-specific condition responses relative to the shared one.
        type_sd: module activity between types.
        condition_sd: module activity of a condition.
        donor_sd: gene-wise differences between donors.
        batch_sd: gene-wise differences between technical batches.
        program_sd: spread of cells along one program.
        library_median: median counts of a cell.
        library_sd: spread of log library size within a type.
        inverse_dispersion: median over genes; variance is mean + mean^2 / inverse_dispersion.
        seed: root of every random stream.

    Raises:
        ConfigError: if a value is out of range.
    """

    n_cells: int = _setting(6000, low=1)
    n_genes: int = _setting(1000, low=1)
    n_types: int = _setting(5, low=1)
    n_conditions: int = _setting(3, low=1)
    n_donors: int = _setting(4, low=1)
    n_batches: int = _setting(2, low=1)
    n_modules: int = _setting(12, low=1)
    n_programs: int = _setting(3, low=0)
    interaction: float = _setting(0.0, low=0.0)
    type_sd: float = _setting(1.0, low=0.0)
    condition_sd: float = _setting(0.7, low=0.0)
    donor_sd: float = _setting(0.05, low=0.0)
    batch_sd: float = _setting(0.15, low=0.0)
    program_sd: float = _setting(0.4, low=0.0)
    library_median: float = _setting(1500.0, low=1.0)
    library_sd: float = _setting(0.35, low=0.0)
    inverse_dispersion: float = _setting(3.0, low=0.01)
    seed: int = _setting(0, low=0)

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


class Labels(NamedTuple):
    """Positions of every cell's labels in the name lists of `label_names`."""

    cell_type: Int64[ndarray, " cell"]
    condition: Int64[ndarray, " cell"]
    donor: Int64[ndarray, " cell"]


def simulate(config: SimulationConfig) -> anndata.AnnData:
    """A seeded data set with cells of every combination, in random order.

    Returns:
        Counts in X (CSR), labels `cell_type`, `condition`, `donor` and `batch_id` in obs, the
        gene module in var, the configuration in uns.
    """
    rng = generator(config.seed, "simulate_cells")
    labels = _balanced_labels(config, rng)
    return _to_anndata(config, labels, rng)


def sample_truth(
    config: SimulationConfig, condition: Mapping[str, str], n_cells: int, seed: int
) -> anndata.AnnData:
    """Fresh cells of one condition from the distribution that `simulate` draws from.

    Args:
        config: the simulated data set.
        condition: values of some of `cell_type`, `condition`, `donor` and `batch_id`; the
            others vary as in the data set.
        n_cells: cells to draw, at least one.
        seed: other seeds give other cells of the same distribution.

    Raises:
        ConfigError: if a column or value is unknown, no donor was in the batch, or no cell is
            asked for.
    """
    if n_cells < 1:
        raise ConfigError(f"n_cells={n_cells} simulated cells asked for, expected at least 1")
    _check_condition(config, condition)
    rng = generator(seed, "sample_truth")
    return _to_anndata(config, _labels_of(config, condition, n_cells, rng), rng)


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
    effects: np.ndarray = donor + batch[_batch_of_donor(config)]
    return effects


def _batch_of_donor(config: SimulationConfig) -> Int64[ndarray, " donor"]:
    return np.arange(config.n_donors) % config.n_batches


def _type_shares(config: SimulationConfig) -> Float64[ndarray, " cell_type"]:
    weights = np.linspace(2, 1, config.n_types)
    shares: np.ndarray = weights / weights.sum()
    return shares


def _balanced_labels(config: SimulationConfig, rng: np.random.Generator) -> Labels:
    """Every combination as often as its share says, to within one cell."""
    shape = (config.n_types, config.n_conditions, config.n_donors)
    rest = np.full(shape[1:], 1 / (shape[1] * shape[2]))
    edges = np.cumsum(_type_shares(config)[:, None, None] * rest)
    middles = (np.arange(config.n_cells) + 0.5) / config.n_cells
    combination = np.searchsorted(edges[:-1], middles, side="right")
    return Labels(*np.unravel_index(rng.permutation(combination), shape))


def _check_condition(config: SimulationConfig, condition: Mapping[str, str]) -> None:
    names = label_names(config)
    for column, value in condition.items():
        if column not in names:
            raise ConfigError(f"unknown simulated column {column!r}; known: {listed(names)}")
        if value not in names[column]:
            raise ConfigError(
                f"no simulated cell has {column}={value!r}; known: {listed(names[column])}"
            )


def _labels_of(
    config: SimulationConfig, condition: Mapping[str, str], n_cells: int, rng: np.random.Generator
) -> Labels:
    names = label_names(config)
    batch_of = np.array(names["batch_id"])[_batch_of_donor(config)]
    fits = {
        column: np.array([condition.get(column, name) == name for name in names[column]])
        for column in ("cell_type", "condition", "donor")
    }
    fits["donor"] &= np.array([condition.get("batch_id", b) == b for b in batch_of])
    if not fits["donor"].any():
        raise ConfigError(
            f"donor {condition['donor']} was measured in "
            f"{batch_of[names['donor'].index(condition['donor'])]}, not in "
            f"{condition['batch_id']}; leave one of them out"
        )
    fits["cell_type"] = fits["cell_type"] * _type_shares(config)
    return Labels(*(rng.choice(len(w), size=n_cells, p=w / w.sum()) for w in fits.values()))


def _to_anndata(
    config: SimulationConfig, labels: Labels, rng: np.random.Generator
) -> anndata.AnnData:
    truth = build_truth(config)
    starts = range(0, len(labels.donor), CELLS_AT_ONCE)
    parts = [
        scipy.sparse.csr_matrix(
            _draw(config, truth, Labels(*(x[i : i + CELLS_AT_ONCE] for x in labels)), rng)
        )
        for i in starts
    ]
    counts = scipy.sparse.vstack(parts, format="csr")
    if counts.nnz == 0 or counts.data.max() <= np.iinfo(np.uint16).max:
        counts = counts.astype(np.uint16)
    var = pd.DataFrame(
        {"module": truth.module}, index=[f"gene-{i:05d}" for i in range(config.n_genes)]
    )
    return anndata.AnnData(
        X=counts,
        obs=_obs(config, labels),
        var=var,
        uns={"simulation": dataclasses.asdict(config)},
    )


def _draw(
    config: SimulationConfig, truth: Truth, labels: Labels, rng: np.random.Generator
) -> ndarray:
    """Counts int32["cell gene"] of some cells."""
    n_cells = len(labels.donor)
    scores = rng.normal(size=(n_cells, config.n_programs)) * truth.program_scale[labels.cell_type]
    log_library = truth.log_library[labels.cell_type] + rng.normal(0, config.library_sd, n_cells)
    rate = truth.log_rate(labels) + scores @ truth.programs
    rate = np.exp(rate - rate.max(axis=1, keepdims=True))
    mean = rate * (np.exp(log_library) / rate.sum(axis=1))[:, None]
    shape = np.broadcast_to(truth.inverse_dispersion, mean.shape)
    counts: np.ndarray = rng.poisson(rng.standard_gamma(shape) * (mean / shape))
    return counts.astype(np.int32)


def _obs(config: SimulationConfig, labels: Labels) -> pd.DataFrame:
    names = label_names(config)
    codes: dict[str, ndarray[Any, np.dtype[np.int64]]] = labels._asdict()
    codes["batch_id"] = _batch_of_donor(config)[labels.donor]
    columns = {c: pd.Categorical.from_codes(codes[c], pd.Index(names[c])) for c in names}
    return pd.DataFrame(columns, index=[f"cell-{i:07d}" for i in range(len(labels.donor))])
