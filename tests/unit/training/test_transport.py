import itertools

import numpy as np
import pytest
import torch

from save_dist.config.schema import (
    CheckpointConfig,
    OptimConfig,
    SolverConfig,
    TrainingConfig,
    TransportConfig,
)
from save_dist.flow.solver import integrate
from save_dist.stores.bundle import LatentScale
from save_dist.stores.checkpoint import CheckpointStore
from save_dist.stores.latents import LatentStore
from save_dist.stores.transports import make_transport_velocity, pair_codes
from save_dist.training.loop import FitInput, fit
from save_dist.training.ranks import Ranks
from save_dist.training.steps import Draws
from save_dist.training.transport import PairSampler, TransportStage, TransportStream
from save_dist.vocab.conditions import ConditionVocabulary
from save_dist.vocab.transports import control_pairs, reference_codes

CONDITIONS = ConditionVocabulary(
    ("group", "condition"),
    (("g0", "g1", "g2", "g3"), ("a", "b", "ctrl")),
    reference={"condition": "ctrl"},
)
CTRL = 2
SHIFT = {0: np.array([1.5, 0, -1, 0.5]), 1: np.array([0, -1.5, 1, 0])}
"""Of [z, log library] under conditions a and b."""
CENTRES = np.array([[-0.6, -0.6, 0], [0.6, -0.6, 0], [-0.6, 0.6, 0], [0.6, 0.6, 0]])
HELD_OUT = (3, 0)
N_LANES, PER_LANE = 4, 32
CONFIG = TransportConfig(
    columns=["condition"],
    width=64,
    depth=2,
    noise=0.05,
    cells_per_group=16,
    optim=OptimConfig(n_steps=250, cells_per_step=N_LANES * PER_LANE, lr=4e-3, ema_decay=0.9),
)
SCALE = LatentScale(np.zeros(4, np.float32), np.ones(4, np.float32))


class Silent:
    def metrics(self, stage, values, step):
        pass


@pytest.fixture(scope="module")
def cells(tmp_path_factory):
    """Codes and latents of training cells: every combination but the held-out one."""
    rng = np.random.default_rng(0)
    seen = [c for c in itertools.product(range(4), range(3)) if c != HELD_OUT]
    codes = np.repeat(np.array(seen), 60, axis=0).astype(np.int16)
    y = np.concatenate([CENTRES[codes[:, 0]], np.zeros((len(codes), 1))], axis=1)
    y += np.array([SHIFT.get(c, np.zeros(4)) for c in codes[:, 1].tolist()])
    y += 0.3 * rng.standard_normal(y.shape)
    store = LatentStore.create(tmp_path_factory.mktemp("l") / "latents", len(codes), 3, {"v": "1"})
    mean, library = y[:, :3].astype(np.float32), y[:, 3].astype(np.float32)
    store.write(0, mean=mean, var=np.full_like(mean, 1e-4), log_library=library)
    store.commit_region(0, len(codes))
    return codes, store


def pairs_of(codes):
    support = {tuple(c): 60 for c in np.unique(codes, axis=0).tolist()}
    return control_pairs(support, reference_codes(CONDITIONS, ["condition"]))


def make_sampler(codes, seed=0, **changes):
    sizes = {"cells_per_lane": PER_LANE, "cells_per_group": 16, **changes}
    return PairSampler(codes, pairs_of(codes), seed=seed, **sizes)


def make_stream(cells, lanes=tuple(range(N_LANES)), seed=0):
    codes, store = cells
    told = pair_codes(CONDITIONS, ["condition"], pairs_of(codes))
    joinids = 1000 + np.arange(len(codes), dtype=np.int64)
    return TransportStream(store, joinids, make_sampler(codes, seed), told, lanes)


def train(cells, folder, n_steps=CONFIG.optim.n_steps, stop_at=None, lanes=None, **changes):
    config = CONFIG.model_copy(update=changes)
    optim = config.optim.model_copy(update={"n_steps": n_steps})
    torch.manual_seed(0)
    module = make_transport_velocity(3, CONDITIONS, config)
    stage = TransportStage(module, config, SCALE, Draws(0, PER_LANE))
    stream = make_stream(cells)

    def minibatches(start, stop):
        return itertools.islice(stream.batches(start, stop), stop_at)

    inputs = FitInput(stage, minibatches, N_LANES * PER_LANE, None)
    training = TrainingConfig(log_every_steps=50, checkpoint=CheckpointConfig(every_steps=10))
    with CheckpointStore.open(folder, 2, expect="h") as checkpoints:
        fit(inputs, optim, training, checkpoints, Silent(), Ranks(), {"config_hash": "h"})
    return module.eval()


def carried(module, x, code):
    told = torch.tensor([[code]]).expand(len(x), 1)
    solver = SolverConfig()
    with torch.inference_mode():
        return integrate(
            lambda t, at: module(at, t.expand(len(at)), told),
            torch.from_numpy(x.astype(np.float32)),
            method=solver.method,
            n_steps=solver.n_steps,
            tolerance=solver.tolerance,
        ).x_1.numpy()


@pytest.mark.parametrize("coupling", ["within_group", "none"])
def test_a_known_shift_is_learnt_and_holds_for_a_held_out_group(cells, tmp_path, coupling):
    module = train(cells, tmp_path, coupling=coupling)
    rng = np.random.default_rng(1)
    for group, code in [(0, 0), (2, 1), HELD_OUT]:
        x = np.append(CENTRES[group], 0) + 0.3 * rng.standard_normal((400, 4))
        moved = carried(module, x, code)
        np.testing.assert_allclose((moved - x).mean(0), SHIFT[code], atol=0.2)
        np.testing.assert_allclose(moved.std(0), 0.3, atol=0.12)


def test_resumed_training_takes_the_same_steps(cells, tmp_path):
    whole = train(cells, tmp_path / "whole", n_steps=30)
    train(cells, tmp_path / "cut", n_steps=30, stop_at=17)
    resumed = train(cells, tmp_path / "cut", n_steps=30)
    for a, b in zip(whole.parameters(), resumed.parameters(), strict=True):
        assert torch.equal(a, b)


def test_pairs_agree_in_the_group_and_never_hold_held_out_cells(cells):
    codes, _ = cells
    sampler, pairs = make_sampler(codes), pairs_of(codes)
    assert all(pair.target != HELD_OUT for pair in pairs)
    for step in range(20):
        (control, target), numbers = sampler.draw(step, lane=1)
        assert control.size == target.size == numbers.size == PER_LANE
        np.testing.assert_array_equal(codes[control, 0], codes[target, 0])
        assert (codes[control, 1] == CTRL).all() and (codes[target, 1] != CTRL).all()
        expected = [pairs[number].target for number in numbers]
        np.testing.assert_array_equal(codes[target], expected)


def test_groups_are_drawn_by_the_root_of_their_size():
    codes = np.array([[0, 2]] * 50 + [[0, 0]] * 50 + [[1, 2]] * 200 + [[1, 0]] * 200)
    sampler = make_sampler(codes, cells_per_lane=1, cells_per_group=1)
    numbers = [int(sampler.draw(step, 0)[1][0]) for step in range(3000)]
    assert np.mean(numbers) == pytest.approx(2 / 3, abs=0.03)


def test_the_last_group_of_a_lane_may_be_short(cells):
    sampler = make_sampler(cells[0], cells_per_lane=40, cells_per_group=16)
    assert sampler.group_sizes == [16, 16, 8]
    assert sampler.draw(0, 0)[0].shape == (2, 40)


def test_ranks_together_draw_what_one_rank_draws(cells):
    alone = next(make_stream(cells).batches(7, 8))
    parts = [next(make_stream(cells, lanes).batches(7, 8)) for lanes in ((0, 2), (1, 3))]
    for name in ("codes", "joinids"):
        whole = np.asarray(getattr(alone, name)).reshape(N_LANES, PER_LANE, -1)
        for part, lanes in zip(parts, ([0, 2], [1, 3]), strict=True):
            found = np.asarray(getattr(part, name)).reshape(2, PER_LANE, -1)
            np.testing.assert_array_equal(found, whole[lanes])
    assert len(set(alone.group.tolist())) == N_LANES * 2


def test_streams_differ_by_step_and_seed(cells):
    base = next(make_stream(cells).batches(7, 8)).joinids
    assert not np.array_equal(base, next(make_stream(cells).batches(8, 9)).joinids)
    assert not np.array_equal(base, next(make_stream(cells, seed=1).batches(7, 8)).joinids)


def test_the_network_is_told_the_value_alone():
    two = ConditionVocabulary(
        ("drug", "donor", "time"),
        (("a", "none"), ("x", "y"), ("0h", "6h")),
        {"drug": "none", "time": "0h"},
    )
    support = dict.fromkeys([(1, 0, 0), (0, 0, 0), (1, 1, 0), (1, 1, 1)], 9)
    pairs = control_pairs(support, reference_codes(two, ["drug", "time"]))
    assert pair_codes(two, ["drug", "time"], pairs).tolist() == [[0, 2], [2, 1]]


def test_noise_is_added_to_the_source_alone(cells):
    module = make_transport_velocity(3, CONDITIONS, CONFIG)  # zero at the start
    minibatch = next(make_stream(cells).batches(0, 1))
    losses = []
    for noise in (0.0, 3.0):
        config = CONFIG.model_copy(update={"noise": noise, "coupling": "none"})
        stage = TransportStage(module, config, SCALE, Draws(0, PER_LANE))
        loss = stage.loss(module, minibatch, slice(None))
        losses.append(loss.per_cell.detach().mean().item())
    assert losses[1] - losses[0] == pytest.approx(9, rel=0.25)


def test_loss_in_parts_is_the_loss_of_the_whole(cells):
    torch.manual_seed(1)
    module = make_transport_velocity(3, CONDITIONS, CONFIG)
    stage = TransportStage(module, CONFIG, SCALE, Draws(0, PER_LANE))
    minibatch = next(make_stream(cells).batches(3, 4))
    whole = stage.loss(module, minibatch, slice(None))
    parts = [stage.loss(module, minibatch, slice(i, i + 64)) for i in (0, 64)]
    joined = torch.cat([part.per_cell for part in parts])
    torch.testing.assert_close(joined, whole.per_cell)
    np.testing.assert_array_equal(np.concatenate([p.joinids for p in parts]), whole.joinids)
