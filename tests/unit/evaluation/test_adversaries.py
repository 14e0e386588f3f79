"""Generators that fail in one way each, and the printed metric that catches them.

Each row also names a metric that the failure leaves looking good: the reason why no number of
the report may be read alone.
"""

import numpy as np
import pytest

from save_dist.evaluation.protocol import CellTable

COMBINATIONS = tuple((c, t) for c in range(2) for t in range(3))
HELD_OUT = (1, 2)

N = 100


def shuffled_labels(world, real):
    table = world.table(COMBINATIONS, N, seed=5)
    order = np.random.default_rng(0).permutation(table.n_cells)
    return CellTable(table.counts, table.codes[order])


def inflated_variance(world, real):
    return world.table(COMBINATIONS, N, seed=5, inverse_dispersion=0.5)


def constant_offset(world, real, offset=2):
    table = world.table(COMBINATIONS, N, seed=4)
    return CellTable((table.counts + offset).astype(np.uint16), table.codes)


def memorised(world, real):
    train = real["train"]
    rows = train.rows_by_combination()
    copied = [train.take(rows[c][:N]) for c in COMBINATIONS if c != HELD_OUT]
    fresh = world.table([HELD_OUT], N, seed=5)
    return CellTable(
        np.concatenate([*(c.counts for c in copied), fresh.counts]),
        np.concatenate([*(c.codes for c in copied), fresh.codes]),
    )


def means_only(world, real):
    table = world.table(COMBINATIONS, 400, seed=5)
    counts = [table.counts[r].mean(axis=0) for r in table.rows_by_combination().values()]
    codes = np.repeat(np.array(COMBINATIONS, dtype=np.int16), N, axis=0)
    return CellTable(np.repeat(np.stack(counts), N, axis=0).astype(np.float32), codes)


def no_correlation(world, real):
    table = world.table(COMBINATIONS, N, seed=5)
    rng = np.random.default_rng(0)
    shuffled = table.counts.copy()
    for rows in table.rows_by_combination().values():
        shuffled[rows] = rng.permuted(table.counts[rows], axis=0)
    return CellTable(shuffled, table.codes)


def half_library(world, real):
    table = world.table(COMBINATIONS, N, seed=5)
    rng = np.random.default_rng(0)
    return CellTable(rng.binomial(table.counts, 0.5).astype(np.uint16), table.codes)


def weak_effect(world, real):
    return world.table(COMBINATIONS, N, seed=5, strength=0.4)


def average(scores, metric):
    return scores.seen.metrics["generated"][metric].mean


def energy_score(scores):
    return scores.seen.normalised["generated"]["energy"].mean


def test_perfect_generator_passes_everything(perfect):
    assert abs(energy_score(perfect)) < 0.06
    assert average(perfect, "c2st_trees_gene") < 0.62
    assert average(perfect, "c2st_trees_pca") < 0.62
    assert average(perfect, "mean_r2") > 0.9
    assert average(perfect, "variance_ratio") == pytest.approx(1, abs=0.1)
    assert average(perfect, "zero_difference") == pytest.approx(0, abs=0.02)
    assert average(perfect, "library_ratio") == pytest.approx(1, abs=0.1)
    assert average(perfect, "nearest_train_ratio") == pytest.approx(1, abs=0.1)
    assert average(perfect, "label_accuracy:cell_type") > 0.9
    assert average(perfect, "change_slope:condition") == pytest.approx(1, abs=0.15)


CAUGHT = [
    pytest.param(
        constant_offset,
        {
            "zero_difference": lambda v: v < -0.2,
            "library_ratio": lambda v: v > 1.3,
            "variance_ratio": lambda v: v < 0.5,
            "precision": lambda v: v < 0.5,
        },
        {"mean_pcc": lambda v: v > 0.9, "label_accuracy:cell_type": lambda v: v > 0.95},
        id="constant offset",
    ),
    pytest.param(
        shuffled_labels,
        {
            "label_accuracy:cell_type": lambda v: v < 0.5,
            "c2st_trees_pca": lambda v: v > 0.8,
        },
        {"nearest_train_ratio": lambda v: 0.85 < v < 1.15},
        id="shuffled labels",
    ),
    pytest.param(
        inflated_variance,
        {"variance_ratio": lambda v: v > 1.3, "c2st_trees_gene": lambda v: v > 0.72},
        {"label_accuracy:cell_type": lambda v: v > 0.85},
        id="inflated variance",
    ),
    pytest.param(
        memorised,
        {
            "nearest_train_ratio": lambda v: v < 0.01,
            "nearer_train_share": lambda v: v > 0.99,
        },
        {"c2st_trees_gene": lambda v: v < 0.62, "variance_ratio": lambda v: 0.9 < v < 1.1},
        id="memorised training cells",
    ),
    pytest.param(
        means_only,
        {
            "variance_ratio": lambda v: v < 0.05,
            "recall": lambda v: v < 0.05,
            "coverage": lambda v: v < 0.3,
            "zero_difference": lambda v: v < -0.15,
            "c2st_trees_gene": lambda v: v > 0.95,
        },
        {"mean_pcc": lambda v: v > 0.85, "label_accuracy:cell_type": lambda v: v > 0.95},
        id="means only",
    ),
    pytest.param(
        no_correlation,
        {"correlation_error": lambda v: v > 0.15, "c2st_trees_pca": lambda v: v > 0.7},
        {"mean_r2": lambda v: v > 0.9, "variance_ratio": lambda v: 0.9 < v < 1.1},
        id="no gene correlations",
    ),
    pytest.param(
        half_library,
        {
            "library_ratio": lambda v: v < 0.55,
            "zero_difference": lambda v: v > 0.04,
        },
        {"label_accuracy:cell_type": lambda v: v > 0.85},
        id="half the counts",
    ),
    pytest.param(
        weak_effect,
        {"change_slope:condition": lambda v: v < 0.6, "change_r2_top:condition": lambda v: v < 0.9},
        {"variance_ratio": lambda v: 0.8 < v < 1.2},
        id="effect too weak",
    ),
]


@pytest.mark.parametrize(("make", "catches", "blind"), CAUGHT)
def test_bad_generator_is_caught(make, catches, blind, world, real, score):
    needs_classifiers = any(name.startswith("c2st") for name in (*catches, *blind))
    scores = score(make(world, real), with_classifiers=needs_classifiers)
    found = {name: average(scores, name) for name in (*catches, *blind)}
    assert {name for name, caught in catches.items() if not caught(found[name])} == set(), found
    assert {name for name, fine in blind.items() if not fine(found[name])} == set(), found


@pytest.mark.parametrize("distance", ["energy", "mmd2", "w1", "w2"])
def test_every_distance_rises_with_an_offset_of_one_side(distance, offset_scores):
    raw = [s.seen.metrics["generated"][distance].mean for s in offset_scores]
    assert np.all(np.diff(raw) > 0)
    score = [s.seen.normalised["generated"][distance].mean for s in offset_scores]
    assert np.all(np.diff(score) > 0)
    floors = {s.seen.metrics["floor"][distance].mean for s in offset_scores}
    assert len(floors) == 1


@pytest.fixture(scope="module")
def offset_scores(world, real, score, perfect):
    """Scores of the same cells with 0, 1 and 4 more counts of every gene."""
    return [perfect, *(score(constant_offset(world, real, k)) for k in (1, 4))]


def test_memorised_cells_score_like_new_ones(world, real, score):
    assert abs(energy_score(score(memorised(world, real)))) < 0.06


def test_normalisation_hides_depth_from_distances_but_library_ratio_sees_it(world, score, perfect):
    table = world.table(COMBINATIONS, N, seed=4)
    scores = score(CellTable((3 * table.counts).astype(np.uint16), table.codes))
    for metric in ("energy", "mmd2", "mean_r2"):
        assert average(scores, metric) == pytest.approx(average(perfect, metric), abs=1e-5)
    assert average(scores, "library_ratio") == pytest.approx(3 * average(perfect, "library_ratio"))
