"""The additive mean of the latents against models whose answer is known."""

import itertools

import numpy as np
import pytest

from save_dist.stores.latents import LatentStore
from save_dist.training import additive
from save_dist.training.additive import additive_effects
from save_dist.training.latents import latent_scale

SIZES = (4, 3)
N_LATENT = 2
DIM = N_LATENT + 1
HELD_OUT = (3, 0)
EFFECTS = [np.random.default_rng(column).normal(size=(n, DIM)) for column, n in enumerate(SIZES)]
"""Of every category on [z, log library]."""


def truth(codes):
    return sum(table[codes[:, column]] for column, table in enumerate(EFFECTS))


def seen_codes(rng, seen=None):
    """Between 3 and 40 cells of each combination, in random order."""
    if seen is None:
        seen = [c for c in itertools.product(*map(range, SIZES)) if c != HELD_OUT]
    codes = np.repeat(np.array(seen), rng.integers(3, 40, len(seen)), axis=0)
    return rng.permutation(codes).astype(np.int16)


def fitted(folder, codes, y, sizes=SIZES):
    """Effects, and the scale they are in units of."""
    store = LatentStore.create(folder / "latents", len(codes), y.shape[1] - 1, {"v": "1"})
    mean, library = y[:, :-1].astype(np.float32), y[:, -1].astype(np.float32)
    store.write(0, mean=mean, var=np.full_like(mean, 0.1), log_library=library)
    store.commit_region(0, len(codes))
    scale = latent_scale(store)
    return additive_effects(store, codes, sizes, scale), scale


def predicted(effects, scale, codes, sizes=SIZES):
    """Mean of y under codes, MASK among them."""
    firsts = np.cumsum([0, *(size + 1 for size in sizes[:-1])])
    return effects[np.asarray(codes) + firsts].sum(1) * scale.sd + scale.mean


def test_an_unseen_combination_of_additive_latents_is_hit(tmp_path):
    codes = seen_codes(np.random.default_rng(0))
    effects, scale = fitted(tmp_path, codes, truth(codes))
    every = np.array(list(itertools.product(*map(range, SIZES))))
    np.testing.assert_allclose(predicted(effects, scale, every), truth(every), atol=1e-5)


def test_a_masked_column_adds_the_mean_over_the_training_cells(tmp_path):
    codes = seen_codes(np.random.default_rng(1))
    effects, scale = fitted(tmp_path, codes, truth(codes))
    own = truth(np.column_stack([np.full(len(codes), 2), codes[:, 1]]))
    found = predicted(effects, scale, [[2, SIZES[1]], [*SIZES]])
    np.testing.assert_allclose(found[0], own.mean(0), atol=1e-5)
    np.testing.assert_allclose(found[1], truth(codes).mean(0), atol=1e-5)


def test_rows_of_mask_and_of_categories_without_cells_are_zero(tmp_path):
    seen = [c for c in itertools.product(*map(range, SIZES)) if c[0] != 1]
    codes = seen_codes(np.random.default_rng(2), seen)
    effects, _ = fitted(tmp_path, codes, truth(codes))
    is_zero = ~effects.any(axis=1)
    assert np.flatnonzero(is_zero).tolist() == [1, 4, 8]


def test_cells_weigh_alike_where_the_latents_are_not_additive(tmp_path):
    """Against the regression over single cells, whose normal equations must vanish."""
    rng = np.random.default_rng(3)
    codes = seen_codes(rng)
    y = truth(codes) + rng.normal(size=(len(codes), DIM)) + 2.0 * (codes.sum(1) == 2)[:, None]
    effects, scale = fitted(tmp_path, codes, y)
    residual = y - predicted(effects, scale, codes)
    for column, size in enumerate(SIZES):
        for code in range(size):
            np.testing.assert_allclose(residual[codes[:, column] == code].mean(0), 0, atol=1e-5)


def test_effects_that_cells_cannot_tell_apart_are_shared_out(tmp_path):
    """Two columns that always agree: each takes half of the effect."""
    codes = np.repeat([[0, 0], [1, 1]], 50, axis=0).astype(np.int16)
    y = np.where(codes[:, [0]] == 0, -1.0, 1.0) * np.ones(DIM)
    effects, scale = fitted(tmp_path, codes, y, sizes=(2, 2))
    np.testing.assert_allclose(effects[:3], effects[3:], atol=1e-6)
    np.testing.assert_allclose(
        predicted(effects, scale, [[1, 1], [1, 2], [0, 1]], (2, 2))[:, 0], [1, 0.5, 0], atol=1e-5
    )


def test_the_fit_is_the_same_every_time_and_however_much_is_read_at_once(tmp_path, monkeypatch):
    rng = np.random.default_rng(4)
    codes = seen_codes(rng)
    y = truth(codes) + rng.normal(size=(len(codes), DIM))
    (tmp_path / "again").mkdir()
    first = fitted(tmp_path, codes, y)[0]
    np.testing.assert_array_equal(fitted(tmp_path / "again", codes, y)[0], first)
    monkeypatch.setattr(additive, "_ROWS", 7)
    (tmp_path / "pieces").mkdir()
    pieces = fitted(tmp_path / "pieces", codes, y)[0]
    np.testing.assert_allclose(pieces, first, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("n_cells", [1, 2])
def test_a_single_combination_has_no_effects(tmp_path, n_cells):
    codes = np.zeros((n_cells, 2), np.int16)
    effects, _ = fitted(tmp_path, codes, np.ones((n_cells, DIM)))
    assert not effects.any()
