"""Simulated cells: data sets, and fresh cells of any combination, held-out ones included.

What they are drawn from is `truth`; the exact moments of what is drawn here are in `moments`.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

import anndata
import numpy as np
import pandas as pd
import scipy.sparse
from jaxtyping import Int32
from numpy import ndarray

from save_dist.core.errors import ConfigError
from save_dist.core.seeding import generator
from save_dist.data.simulation import SimulationConfig as SimulationConfig
from save_dist.data.truth import Labels as Labels
from save_dist.data.truth import Truth, batch_of_donor, fingerprint, label_weights, type_shares
from save_dist.data.truth import build_truth as build_truth
from save_dist.data.truth import label_names as label_names

CELLS_AT_ONCE = 1024  # bounds memory; part of the random stream, other values give other cells
LARGEST = 2**30  # expected count of a gene in a cell; what is drawn then fits 32 bits

SETTINGS_KEY, FINGERPRINT_KEY = "simulation", "simulation_fingerprint"
"""Where uns says what the cells were drawn from."""


def simulate(config: SimulationConfig) -> anndata.AnnData:
    """A seeded data set with cells of every combination, in random order.

    Returns:
        Counts in X (CSR), labels `cell_type`, `condition`, `donor` and `batch_id` in obs, the
        gene module in var, the configuration and the truth's fingerprint in uns.
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
    rng = generator(seed, "sample_truth")
    return _to_anndata(config, draw_labels(config, condition, n_cells, rng), rng)


def draw_labels(
    config: SimulationConfig, condition: Mapping[str, str], n_cells: int, rng: np.random.Generator
) -> Labels:
    """Labels of cells of one condition; see `sample_truth`."""
    weights = label_weights(config, condition)
    return Labels(*(rng.choice(len(w), size=n_cells, p=w) for w in weights))


def draw_counts(
    config: SimulationConfig, truth: Truth, labels: Labels, rng: np.random.Generator
) -> Int32[ndarray, "cell gene"]:
    """Counts of some cells, which are held in memory at once.

    Raises:
        ConfigError: if the settings lead to counts that are too large to hold.
    """
    n_cells = len(labels.donor)
    rates = truth.rates(labels, rng.normal(size=(n_cells, config.n_programs)))
    log_library = truth.log_library[labels.cell_type] + rng.normal(0, config.library_sd, n_cells)
    mean = rates * (np.exp(log_library) / rates.sum(axis=1))[:, None]
    shape = np.broadcast_to(truth.inverse_dispersion, mean.shape)
    expected = rng.standard_gamma(shape) * (mean / shape)
    if not expected.max() < LARGEST:
        raise ConfigError(
            f"simulation: a gene of one cell is expected {expected.max():.3g} times, at most "
            f"{LARGEST} can be drawn; lower library_median={config.library_median}, "
            f"library_sd={config.library_sd} or the other spreads"
        )
    counts: np.ndarray = rng.poisson(expected)
    return counts.astype(np.int32)


def _balanced_labels(config: SimulationConfig, rng: np.random.Generator) -> Labels:
    """Every combination as often as its share says, to within one cell."""
    shape = (config.n_types, config.n_conditions, config.n_donors)
    rest = np.full(shape[1:], 1 / (shape[1] * shape[2]))
    edges = np.cumsum(type_shares(config)[:, None, None] * rest)
    middles = (np.arange(config.n_cells) + 0.5) / config.n_cells
    combination = np.searchsorted(edges[:-1], middles, side="right")
    return Labels(*np.unravel_index(rng.permutation(combination), shape))


def _to_anndata(
    config: SimulationConfig, labels: Labels, rng: np.random.Generator
) -> anndata.AnnData:
    truth = build_truth(config)
    starts = range(0, len(labels.donor), CELLS_AT_ONCE)
    parts = [
        scipy.sparse.csr_matrix(
            draw_counts(config, truth, Labels(*(x[i : i + CELLS_AT_ONCE] for x in labels)), rng)
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
        uns={SETTINGS_KEY: dataclasses.asdict(config), FINGERPRINT_KEY: fingerprint(truth)},
    )


def _obs(config: SimulationConfig, labels: Labels) -> pd.DataFrame:
    names = label_names(config)
    codes: dict[str, ndarray[Any, np.dtype[np.int64]]] = labels._asdict()
    codes["batch_id"] = batch_of_donor(config)[labels.donor]
    columns = {c: pd.Categorical.from_codes(codes[c], pd.Index(names[c])) for c in names}
    return pd.DataFrame(columns, index=[f"cell-{i:07d}" for i in range(len(labels.donor))])
