"""The exact moments against samples, closed forms and each other."""

import numpy as np
import pytest

from save_dist.core.errors import ConfigError
from save_dist.data.moments import true_mean_log, true_moments
from save_dist.data.simulate import SimulationConfig, sample_truth
from save_dist.data.truth import Labels, build_truth, type_shares

SMALL = {"n_cells": 600, "n_genes": 60, "n_types": 3, "n_conditions": 3, "n_modules": 6}
ONE = {"cell_type": "type-1", "condition": "stim-2", "donor": "donor-0"}


def small(**changes):
    return SimulationConfig(**{**SMALL, **changes})


def sampled(config, condition, n_cells, seed=1):
    return np.asarray(sample_truth(config, condition, n_cells, seed).X.todense(), dtype=np.float64)


@pytest.mark.parametrize(
    "condition",
    [
        pytest.param(ONE, id="one combination"),
        pytest.param({"condition": "stim-1", "batch_id": "batch-0"}, id="types and donors mixed"),
        pytest.param({}, id="everything"),
    ],
)
def test_moments_are_those_of_the_cells(condition):
    config = small(interaction=1.0)
    exact, counts = true_moments(config, condition), sampled(config, condition, 20_000)
    z = (counts.mean(axis=0) - exact.mean.value) / np.sqrt(exact.variance.value / len(counts))
    assert np.abs(z).max() < 4.5
    frequent = exact.mean.value > 1
    ratio = counts.var(axis=0)[frequent] / exact.variance.value[frequent]
    assert np.abs(ratio - 1).max() < 0.15


def test_without_programs_they_are_the_closed_form():
    config = small(n_programs=0, library_sd=0.5)
    exact, truth = true_moments(config, ONE), build_truth(config)
    rate = np.exp(truth.log_rate(Labels(*(np.array([i]) for i in (1, 2, 0))))[0])
    share, log_library = rate / rate.sum(), truth.log_library[1]
    mean = share * np.exp(log_library + 0.5**2 / 2)
    square = share**2 * np.exp(2 * log_library + 2 * 0.5**2)
    np.testing.assert_allclose(exact.mean.value, mean, rtol=1e-10)
    np.testing.assert_allclose(
        exact.variance.value, mean + square / truth.inverse_dispersion + square - mean**2
    )
    assert not exact.mean.error.any() and not exact.variance.error.any()


def test_means_of_types_add_up_to_the_mean_of_all():
    config = small()
    parts, few = [{"cell_type": f"type-{i}"} for i in range(3)], {"points_per_set": 8}
    of_types = [true_moments(config, part, **few).mean.value for part in parts]
    mixed = type_shares(config) @ np.stack(of_types)
    np.testing.assert_allclose(true_moments(config, {}, **few).mean.value, mixed, rtol=1e-12)


def test_the_stated_error_is_the_real_one():
    config = small(program_sd=0.8)
    best = true_moments(config, ONE, points_per_set=2048, seed=9)
    for seed in range(3):
        rough = true_moments(config, ONE, points_per_set=16, seed=seed)
        for found, exact in zip(rough, best, strict=True):
            z = (found.value - exact.value) / found.error
            assert 0.5 < np.sqrt(np.mean(z**2)) < 2
    assert (best.mean.error < 1e-3 * best.mean.value).all()
    assert np.median(best.mean.error / rough.mean.error) < 1 / 16  # plain Monte Carlo: 1 / 11


@pytest.mark.parametrize("genes", [None, np.array([40, 3, 7])])
def test_mean_log_is_that_of_other_cells(genes):
    config = small()
    exact = true_mean_log(config, ONE, genes=genes, n_cells=8000)
    counts = sampled(config, ONE, 8000, seed=0)
    counts = counts if genes is None else counts[:, genes]
    log_x = np.log1p(counts / np.maximum(counts.sum(axis=1, keepdims=True), 1) * 1e4)
    standard = log_x.std(axis=0) / np.sqrt(len(log_x))
    np.testing.assert_allclose(exact.error, standard, rtol=0.15)
    z = (log_x.mean(axis=0) - exact.value) / np.hypot(standard, exact.error)
    assert np.abs(z).max() < 4
    assert z.any()  # not the very same cells


def type_specific_share(interaction):
    """Share of the true log-fold changes that an additive model of the means cannot explain."""
    config = small(interaction=interaction, n_programs=0)
    mean = {
        (kind, value): true_moments(
            config, {"cell_type": kind, "condition": value, "donor": "donor-0"}
        ).mean.value
        for kind in ("type-0", "type-1", "type-2")
        for value in ("ctrl", "stim-1", "stim-2")
    }
    change = np.stack(
        [
            [np.log(mean[k, v] / mean[k, "ctrl"]) for v in ("stim-1", "stim-2")]
            for k in ("type-0", "type-1", "type-2")
        ]
    )
    change -= change.mean(axis=-1, keepdims=True)  # softmax: known up to a constant over genes
    return np.square(change - change.mean(axis=0)).sum() / np.square(change).sum()


def test_interaction_is_what_an_additive_model_of_the_true_means_misses():
    none, weak, medium, strong = map(type_specific_share, (0.0, 0.25, 0.5, 1.0))
    assert none < 1e-12
    assert 0.01 < weak < 0.1 < medium < 0.25 < strong < 0.6
    assert medium > 2 * weak


@pytest.mark.parametrize(
    ("call", "text"),
    [
        pytest.param(
            lambda c: true_moments(c, {}, points_per_set=100), "points_per_set=100", id="points"
        ),
        pytest.param(lambda c: true_mean_log(c, {}, n_cells=1), "n_cells=1 simul", id="one cell"),
        pytest.param(lambda c: true_moments(c, {"x": "y"}), "unknown simulated", id="column"),
        pytest.param(lambda c: true_mean_log(c, {"donor": "d"}), "donor='d'", id="value"),
    ],
)
def test_refused(call, text):
    with pytest.raises(ConfigError, match=text):
        call(small())
