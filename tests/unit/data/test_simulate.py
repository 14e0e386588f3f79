import anndata
import numpy as np
import pytest
import scipy.sparse

from save_dist.core.errors import ConfigError
from save_dist.data.simulate import (
    Labels,
    SimulationConfig,
    build_truth,
    label_names,
    sample_truth,
    simulate,
)

SMALL = {"n_cells": 600, "n_genes": 80, "n_types": 3, "n_conditions": 3, "n_modules": 6}


def small(**changes):
    return SimulationConfig(**{**SMALL, **changes})


def dense(adata):
    return np.asarray(adata.X.todense(), dtype=np.float64)


def profile(adata):
    counts = dense(adata).sum(axis=0)
    return counts / counts.sum()


def log_rates(config):
    """Log rate ["cell_type condition gene"] of donor 0."""
    shape = (config.n_types, config.n_conditions)
    kind, condition = (x.ravel() for x in np.indices(shape))
    labels = Labels(kind, condition, np.zeros_like(kind))
    return build_truth(config).log_rate(labels).reshape(*shape, -1)


def response_of(config):
    """Effect of every condition in every type, against the reference."""
    rate = log_rates(config)
    return rate - rate[:, :1]


def test_layout():
    adata = simulate(small())
    assert adata.shape == (600, 80)
    assert list(adata.obs.columns) == ["cell_type", "condition", "donor", "batch_id"]
    assert adata.obs["condition"].cat.categories.tolist() == ["ctrl", "stim-1", "stim-2"]
    assert adata.obs_names.is_unique
    assert adata.var_names.is_unique
    assert isinstance(adata.X, scipy.sparse.csr_matrix)
    assert adata.X.dtype == np.uint16
    assert adata.X.has_canonical_format
    assert adata.X.data.min() > 0
    assert adata.uns["simulation"]["n_types"] == 3


def test_counts_beyond_16_bits_are_kept():
    adata = simulate(small(n_genes=2, library_median=5e6, library_sd=0.0, program_sd=0.0))
    assert adata.X.dtype == np.int32
    assert adata.X.max() > 2**16


def test_file_round_trip(tmp_path):
    adata = simulate(small())
    adata.write_h5ad(tmp_path / "x.h5ad")
    again = anndata.read_h5ad(tmp_path / "x.h5ad")
    assert (again.X != adata.X).nnz == 0
    assert again.obs.equals(adata.obs)


def test_equal_seeds_give_equal_cells():
    first, again, other = simulate(small()), simulate(small()), simulate(small(seed=1))
    assert (first.X != again.X).nnz == 0
    assert first.obs.equals(again.obs)
    assert (first.X != other.X).nnz > 0


def test_combinations_are_as_frequent_as_their_shares():
    counts = simulate(small(n_cells=648)).obs.value_counts(["cell_type", "condition", "donor"])
    for i, share in enumerate([4 / 9, 3 / 9, 2 / 9]):
        of_type = counts[f"type-{i}"]
        assert of_type.size == 12
        assert (np.abs(of_type - 648 * share / 12) <= 1).all()


def test_cells_come_in_random_order():
    kind = simulate(small()).obs["cell_type"].cat.codes.to_numpy()
    assert abs(np.corrcoef(kind[1:], kind[:-1])[0, 1]) < 0.15


def test_a_donor_is_measured_in_one_batch():
    obs = simulate(small(n_donors=5, n_batches=2)).obs
    pairs = obs.value_counts(["donor", "batch_id"]).index.tolist()
    assert sorted(pairs) == [(f"donor-{i}", f"batch-{i % 2}") for i in range(5)]


def test_without_interaction_effects_are_the_same_in_every_type():
    effects = response_of(small(interaction=0.0))
    np.testing.assert_allclose(effects, np.broadcast_to(effects[:1], effects.shape), atol=1e-12)
    assert np.abs(effects[0, 1:]).max() > 0.5


def test_interaction_adds_type_specific_responses_in_proportion():
    many = {"n_conditions": 9, "n_modules": 20}
    none, half, full = (response_of(small(interaction=s, **many)) for s in (0.0, 0.5, 1.0))
    np.testing.assert_allclose(full - none, 2 * (half - none), atol=1e-12)
    own, shared = (full - none)[:, 1:], none[0, 1:]
    assert own.std() == pytest.approx(shared.std(), rel=0.25)
    assert abs(np.corrcoef(own[0].ravel(), own[1].ravel())[0, 1]) < 0.25
    assert abs(np.corrcoef(own[0].ravel(), shared.ravel())[0, 1]) < 0.25


def test_type_specific_responses_are_exactly_absent_without_interaction():
    truths = [build_truth(small(interaction=s)) for s in (0.0, 0.25, 0.5, 1.0, 2.0)]
    sizes = [np.sqrt(np.square(t.response).mean()) for t in truths]
    assert not truths[0].response.any()
    np.testing.assert_allclose(np.array(sizes) / sizes[3], [0, 0.25, 0.5, 1, 2], rtol=1e-12)
    for truth in truths:
        assert not truth.response[:, 0].any()  # the reference
        np.testing.assert_array_equal(truth.condition, truths[0].condition)


def test_interaction_leaves_the_reference_alone():
    a, b = log_rates(small(interaction=0.0)), log_rates(small(interaction=2.0))
    np.testing.assert_array_equal(a[:, 0], b[:, 0])


def test_modules_move_together():
    config = small(n_genes=300, n_types=20, n_cells=600)
    kinds = build_truth(config).cell_type
    module = simulate(config).var["module"].to_numpy()
    correlation = np.abs(np.corrcoef(kinds.T))
    same = module[:, None] == module
    off_diagonal = ~np.eye(300, dtype=bool)
    assert correlation[same & off_diagonal].mean() > 0.85
    assert correlation[~same].mean() < 0.4


def test_programs_spread_cells_along_few_directions():
    """Beyond counting noise, cells of one kind vary along `n_programs` directions."""
    quiet = {"donor_sd": 0.0, "batch_sd": 0.0, "library_sd": 0.0, "inverse_dispersion": 1e4}
    config = small(n_programs=2, library_median=2e5, program_sd=0.8, **quiet)
    cells = sample_truth(config, {"cell_type": "type-0", "condition": "ctrl"}, 400, seed=0)
    counts = dense(cells)
    log_counts = np.log(counts[:, counts.min(axis=0) > 100])
    log_share = log_counts - log_counts.mean(axis=1, keepdims=True)
    values = np.linalg.svd(log_share - log_share.mean(axis=0), compute_uv=False) ** 2
    assert values[:2].sum() / values.sum() > 0.9
    assert values[1] > 10 * values[2]


def test_counts_are_negative_binomial_around_the_true_rates():
    """One combination without programs: mean and variance as stated, per gene."""
    still = {"program_sd": 0.0, "library_sd": 0.0, "donor_sd": 0.0, "batch_sd": 0.0, "n_donors": 2}
    config = small(inverse_dispersion=2.0, **still)
    counts = dense(sample_truth(config, {"cell_type": "type-1", "condition": "stim-2"}, 20_000, 3))

    truth = build_truth(config)
    rate = np.exp(log_rates(config)[1, 2])
    mean = np.exp(truth.log_library[1]) * rate / rate.sum()
    variance = mean + mean**2 / truth.inverse_dispersion
    error = (counts.mean(axis=0) - mean) / np.sqrt(variance / len(counts))
    assert np.abs(error).max() < 4.5
    frequent = mean > 1
    ratio = counts.var(axis=0)[frequent] / variance[frequent]
    assert np.abs(ratio - 1).max() < 0.15


def test_library_sizes_are_lognormal():
    config = small(library_median=5000.0, library_sd=0.5, inverse_dispersion=1e3, n_genes=300)
    cells = sample_truth(config, {"cell_type": "type-2"}, 4000, seed=0)
    log_library = np.log(dense(cells).sum(axis=1))
    assert log_library.std() == pytest.approx(0.5, rel=0.05)
    assert log_library.mean() == pytest.approx(build_truth(config).log_library[2], abs=0.05)


def test_sampled_truth_is_the_distribution_of_the_data():
    config = small(n_cells=6000, interaction=1.0)
    data = simulate(config)
    asked = {"cell_type": "type-1", "condition": "stim-1"}
    rows = (data.obs["cell_type"] == "type-1") & (data.obs["condition"] == "stim-1")
    fresh = sample_truth(config, asked, 3000, seed=5)
    assert set(fresh.obs["cell_type"]) == {"type-1"}
    assert set(fresh.obs["donor"]) == {"donor-0", "donor-1", "donor-2", "donor-3"}
    other = sample_truth(config, {**asked, "condition": "ctrl"}, 3000, seed=5)
    near = np.abs(profile(fresh) - profile(data[rows])).sum()
    far = np.abs(profile(other) - profile(data[rows])).sum()
    assert near < 0.1 < far


def test_sampling_follows_its_seed():
    a, b, c = (sample_truth(small(), {"condition": "stim-1"}, 50, seed=s) for s in (1, 1, 2))
    assert (a.X != b.X).nnz == 0
    assert (a.X != c.X).nnz > 0


def test_a_batch_leaves_its_donors():
    cells = sample_truth(small(n_donors=5), {"batch_id": "batch-1"}, 200, seed=0)
    assert set(cells.obs["donor"]) == {"donor-1", "donor-3"}
    assert set(cells.obs["batch_id"]) == {"batch-1"}


@pytest.mark.parametrize(
    ("condition", "n_cells", "text"),
    [
        pytest.param(
            {"tissue": "x"}, 5, "unknown simulated column 'tissue'; known: cell_ty", id="column"
        ),
        pytest.param(
            {"donor": "d"}, 5, "no simulated cell has donor='d'; known: donor-0", id="value"
        ),
        pytest.param(
            {"donor": "donor-1", "batch_id": "batch-0"},
            5,
            "donor-1 was measured in batch-1, not in batch-0",
            id="donor of another batch",
        ),
        pytest.param({}, 0, "n_cells=0 simulated cells asked for", id="no cells"),
    ],
)
def test_sampling_refuses(condition, n_cells, text):
    with pytest.raises(ConfigError, match=text):
        sample_truth(small(), condition, n_cells, seed=0)


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        pytest.param({"n_genes": 0}, "n_genes=0, expected at least 1", id="no genes"),
        pytest.param(
            {"interaction": -0.1}, "interaction=-0.1, expected at least 0.0", id="negative"
        ),
        pytest.param({"type_sd": float("inf")}, "type_sd=inf, expected at least 0", id="infinite"),
        pytest.param({"library_sd": float("nan")}, "library_sd=nan, expected", id="undefined"),
        pytest.param({"inverse_dispersion": 0.0}, "inverse_dispersion=0.0", id="dispersion"),
        pytest.param({"n_batches": 5}, "n_batches=5 exceeds n_donors=4", id="batches"),
        pytest.param({"n_cells": 71}, "n_cells=71 is below two .* use at least 72", id="few cells"),
    ],
)
def test_settings_out_of_range(changes, text):
    with pytest.raises(ConfigError, match=text):
        small(**changes)


def test_counts_that_cannot_be_held_are_refused():
    with pytest.raises(ConfigError, match=r"times, at most 1073741824 can be drawn; lower libr"):
        simulate(small(library_median=1e13))


def test_smallest_data_set():
    config = SimulationConfig(
        n_cells=2, n_genes=1, n_types=1, n_conditions=1, n_donors=1, n_batches=1, n_programs=0
    )
    adata = simulate(config)
    assert adata.shape == (2, 1)
    assert label_names(config)["condition"] == ["ctrl"]


def test_ten_thousand_cells():
    adata = simulate(SimulationConfig(n_cells=10_000))
    assert 0.3 < 1 - adata.X.nnz / (10_000 * 1000) < 0.8
