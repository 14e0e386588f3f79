import dataclasses

import numpy as np
import pytest
import torch
from tiny_model import load_tiny_model

from save_dist.config.schema import ComposeConfig, GuidanceConfig, SolverConfig
from save_dist.data.transforms import log_normalise
from save_dist.generation.compose import Composer
from save_dist.generation.routes import Routes
from save_dist.generation.sampler import cell_seeds, sample_cells, sample_conditions
from save_dist.stores.profiles import similarity_shift

HELD_OUT, CONTROL = (2, 1), (2, 0)
PLAIN = {"guidance": GuidanceConfig(), "solver": SolverConfig()}
FEW = ComposeConfig(n_cells=64)
OFF = ComposeConfig(anchor=False, blend=0, n_cells=256)
ANCHOR = ComposeConfig(anchor=True, blend=0, n_cells=256)
MATCHED = ComposeConfig(anchor=False, blend=1, n_cells=2000, n_iterations=8)


@pytest.fixture(scope="module")
def bundle(tmp_path_factory):
    return load_tiny_model(tmp_path_factory.mktemp("compose") / "model", transport=True)


def make(bundle, config=FEW, **options):
    routes = Routes(bundle.conditions, bundle.support, bundle.transport_columns)
    return Composer(bundle, routes, config, **{**PLAIN, **options})


def sample(bundle, codes, composer=None, n_cells=2000, size=2000):
    return sample_conditions(
        bundle,
        np.array(codes),
        n_cells,
        seed=0,
        cells_per_minibatch=size,
        composer=composer,
        **PLAIN,
    )


def mean_log(counts):
    return log_normalise(counts.astype(np.float32)).mean(0, dtype=np.float64)


def offset(composer, codes=HELD_OUT):
    return composer.offset(composer.routes.of(codes), codes)


def test_seen_combinations_are_as_without_a_composer(bundle):
    codes = [(0, 0), (1, 1), (2, 0)]
    plain, composed = (sample(bundle, codes, c, 20, 7) for c in (None, make(bundle)))
    np.testing.assert_array_equal(plain.counts, composed.counts)
    assert plain.n_evaluations == composed.n_evaluations


def test_an_unseen_combination_is_carried_from_its_control(bundle, monkeypatch):
    """With a transport that moves every cell by one vector: control latents plus that vector."""
    plain = _control_latents(bundle, 8)
    moved = sample(bundle, [HELD_OUT], make(bundle, OFF), 8, 8)
    assert not np.array_equal(moved.latent, plain.latent)
    assert moved.n_evaluations == 2 * plain.n_evaluations
    step = torch.tensor([1.0, 0.0, -2.0, 0.5, 0.25])
    monkeypatch.setattr(
        bundle.transport.velocity, "forward", lambda x, t, told: step.expand_as(x).clone()
    )
    moved = sample(bundle, [HELD_OUT], make(bundle, OFF), 8, 8)
    np.testing.assert_allclose(moved.latent, plain.latent + step[:4].numpy(), atol=1e-5)

    # the library size moves as that of similar cells, whatever the transport says
    transport = bundle.transport
    shift = similarity_shift(transport.profiles, transport.pairs, CONTROL, 0.4).log_library
    assert abs(shift) > 0.1
    np.testing.assert_allclose(np.log(moved.library), np.log(plain.library) + shift, atol=1e-5)


def _control_latents(bundle, n_cells):
    """Cells of the control's labels with the noise of the held-out combination's cells."""
    seeds = cell_seeds(bundle, HELD_OUT, np.arange(n_cells, dtype=np.int64), 0)
    codes = np.tile(np.array(CONTROL), (n_cells, 1))
    return sample_cells(bundle, codes, seeds, cells_per_minibatch=n_cells, **PLAIN)


def test_the_transport_is_told_the_target_value(bundle, monkeypatch):
    told = []

    def forward(x, t, codes):
        told.append(codes.tolist())
        return torch.zeros_like(x)

    monkeypatch.setattr(bundle.transport.velocity, "forward", forward)
    sample(bundle, [(0, 0), HELD_OUT], make(bundle, OFF), 4, 8)
    assert told == [[[1]] * 256] * 10 + [[[1]] * 4] * 10  # constants, then the four unseen cells


def test_without_corrections_the_offset_is_zero(bundle):
    assert not offset(make(bundle, OFF)).any()


def test_anchored_control_cells_have_the_real_profile(bundle):
    """The anchor, applied to the control cells it was found from, removes the decoder's error."""
    profiles = bundle.transport.profiles
    many = dataclasses.replace(profiles, n_cells=profiles.n_cells * 1000)
    known = dataclasses.replace(
        bundle, transport=dataclasses.replace(bundle.transport, profiles=many)
    )
    plain, anchored = (
        _control_fractions(known, found) for found in (None, offset(make(known, ANCHOR)))
    )
    real = profiles.total_counts(CONTROL) / profiles.total_counts(CONTROL).sum()
    assert np.abs(np.log(plain / real)).max() > 0.5
    assert np.abs(np.log(anchored / real)).max() < 0.2 * np.abs(np.log(plain / real)).max()


def _control_fractions(bundle, found):
    with torch.inference_mode():
        cells = _control_latents(bundle, 512)
        codes = torch.tensor([CONTROL]).expand(512, -1)
        logits = None if found is None else torch.from_numpy(found)
        px = bundle.vae.decode(
            torch.from_numpy(cells.latent),
            codes,
            torch.from_numpy(cells.library),
            logit_offset=logits,
        )
        mean = px.mean.sum(0).double().numpy()
    return mean / mean.sum()


def test_a_gene_without_real_counts_is_not_anchored(bundle):
    profiles = bundle.transport.profiles
    counts = profiles.mean_count.copy()
    counts[:, 3] = 0
    counts[profiles.rows[CONTROL], 4] = 2.0  # 10 counts in 5 cells
    few = dataclasses.replace(profiles, mean_count=counts)
    known = dataclasses.replace(
        bundle, transport=dataclasses.replace(bundle.transport, profiles=few)
    )
    found = offset(make(known, ANCHOR))
    assert found[3] == 0 and np.isfinite(found).all() and found[4] != 0


def with_goal(bundle, goal):
    """The same model with profiles under which control mean plus shift is `goal`."""
    transport = bundle.transport
    mean_log = transport.profiles.mean_log.copy()
    rows = transport.profiles.rows
    for kind in (0, 1):
        mean_log[rows[kind, 1]] = mean_log[rows[kind, 0]] + 0.25
    mean_log[rows[CONTROL]] = goal - 0.25
    profiles = dataclasses.replace(transport.profiles, mean_log=mean_log)
    return dataclasses.replace(bundle, transport=dataclasses.replace(transport, profiles=profiles))


def reachable_goal(bundle):
    """Mean of the carried cells under known offsets of the gene logits."""
    composer = make(bundle, OFF)
    known = np.where(np.arange(12) % 2, 0.7, -0.7).astype(np.float32)
    composer.offset = lambda route, codes: known if route.is_composed else 0 * known
    return mean_log(sample(bundle, [HELD_OUT], composer).counts)


def test_matched_cells_reach_the_target_mean(bundle):
    goal = reachable_goal(bundle)
    before = mean_log(sample(bundle, [HELD_OUT], make(bundle, OFF)).counts)
    after = mean_log(sample(bundle, [HELD_OUT], make(with_goal(bundle, goal), MATCHED)).counts)
    assert np.abs(before - goal).mean() > 0.5
    assert np.abs(after - goal).mean() < 0.1


def test_half_a_blend_goes_half_the_way(bundle):
    half = ComposeConfig(anchor=False, blend=0.5, n_cells=2000, n_iterations=8)
    goal = reachable_goal(bundle)
    known = with_goal(bundle, goal)
    own, middle = (
        mean_log(sample(known, [HELD_OUT], make(known, config)).counts) for config in (OFF, half)
    )
    assert np.abs(middle - (own + goal) / 2).mean() < 0.1


def test_constants_do_not_depend_on_what_was_asked_before(bundle):
    fresh = offset(make(bundle))
    used = make(bundle)
    sample(bundle, [(0, 0), HELD_OUT], used, 30, 8)
    np.testing.assert_array_equal(offset(used), fresh)
    assert used.offset.cache_info().misses >= 1


def test_a_cell_does_not_depend_on_its_neighbours_conditions(bundle):
    """Minibatches of 8 stay the same cells, wherever they stand."""
    alone = sample(bundle, [HELD_OUT], make(bundle), 16, 8)
    beside = sample(bundle, [(0, 0), HELD_OUT], make(bundle), 16, 8)
    np.testing.assert_array_equal(alone.counts, beside.counts[16:])


def test_the_paper_head_is_anchored_and_matched_too(tmp_path):
    bundle = load_tiny_model(tmp_path / "model", transport=True, likelihood="unit_interval")
    made = sample(bundle, [HELD_OUT], make(bundle), 64, 64)
    assert made.counts.any() and np.isfinite(offset(make(bundle))).all()
