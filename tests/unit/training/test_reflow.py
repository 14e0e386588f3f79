"""Reflow of a flow whose paths are known in closed form, and curved."""

import itertools

import numpy as np
import pytest
import torch

from save_dist.config.schema import (
    CheckpointConfig,
    FlowConfig,
    MaskConfig,
    OptimConfig,
    ReflowConfig,
    TeacherConfig,
    TrainingConfig,
)
from save_dist.core import seeding
from save_dist.flow.solver import integrate
from save_dist.models.velocity import Velocity
from save_dist.stores.checkpoint import CheckpointStore
from save_dist.training.latents import LatentBatch
from save_dist.training.loop import FitInput, fit
from save_dist.training.ranks import Ranks
from save_dist.training.reflow import ReflowStage
from save_dist.training.steps import Draws

SIZES = (2, 2)
MASK = torch.tensor(SIZES)
DIM = 3
SD = 0.5
MEANS = torch.tensor([[-1.0, 0.5, 0.0], [1.0, 0.0, 0.5], [0.0, -1.0, 1.0]])
"""Of the first column's values; the last one where it is masked."""
N_LANES, PER_LANE = 2, 32
FLOW = FlowConfig(width=32, depth=2, condition_width=16)
CONFIG = ReflowConfig(
    teacher=TeacherConfig(method="rk4", n_steps=4),
    optim=OptimConfig(n_steps=120, cells_per_step=N_LANES * PER_LANE, lr=1e-2, ema_decay=0.9),
)
HALF = MaskConfig(p=0.5)


class Gaussians(Velocity):
    """The exact flow to N(mean of the condition, SD^2), with curved paths.

    x_t = t mean + sqrt((1 - t)^2 + t^2 SD^2) x_0, so noise ends at mean + SD x_0.
    """

    def __init__(self) -> None:
        super().__init__(DIM, SIZES, FLOW)
        self.seen = []

    def forward(self, x, t, codes):
        self.seen.append(codes)
        t, mean = t[:, None], MEANS[codes[:, 0]]
        rate = (t * SD**2 - (1 - t)) / ((1 - t) ** 2 + t**2 * SD**2)
        return mean + rate * (x - t * mean)


class Silent:
    def metrics(self, stage, values, step):
        pass


def minibatch(step, lanes=tuple(range(N_LANES))):
    rngs = [seeding.generator(0, "test", step, lane) for lane in lanes]
    codes = np.concatenate([rng.integers(0, 2, (PER_LANE, 2)) for rng in rngs])
    n = len(codes)
    joinids = 1000 * np.repeat(lanes, PER_LANE) + np.tile(np.arange(PER_LANE), len(lanes))
    nothing = torch.zeros(n, DIM - 1)
    return LatentBatch(
        step, lanes, joinids, torch.from_numpy(codes), nothing, nothing, torch.zeros(n)
    )


def make_stage(config=CONFIG, mask=HALF, module=None):
    torch.manual_seed(0)
    own = Velocity(DIM, SIZES, FLOW) if module is None else module
    return ReflowStage(own, Gaussians(), config, mask, Draws(0, PER_LANE))


def train(folder, n_steps=CONFIG.optim.n_steps, stop_at=None):
    stage = make_stage()
    optim = CONFIG.optim.model_copy(update={"n_steps": n_steps})

    def minibatches(start, stop):
        return itertools.islice(map(minibatch, range(start, stop)), stop_at)

    inputs = FitInput(stage, minibatches, N_LANES * PER_LANE, None)
    training = TrainingConfig(log_every_steps=50, checkpoint=CheckpointConfig(every_steps=10))
    with CheckpointStore.open(folder, 2, expect="h") as checkpoints:
        fit(inputs, optim, training, checkpoints, Silent(), Ranks(), {"config_hash": "h"})
    return stage.module.eval()


@pytest.fixture(scope="module")
def reflowed(tmp_path_factory):
    return train(tmp_path_factory.mktemp("reflow"))


def path(velocity, codes, n_steps):
    """Noise, where Euler steps carry it, and the velocities on the way."""
    x_0 = torch.randn(400, DIM, generator=torch.Generator().manual_seed(5))
    rows, velocities = torch.tensor([codes]).expand(400, -1), []

    def field(t, x):
        velocities.append(velocity(x, t.expand(400), rows))
        return velocities[-1]

    with torch.no_grad():
        end = integrate(field, x_0, method="euler", n_steps=n_steps, tolerance=1e-5)
    assert end.n_evaluations == n_steps
    return x_0, end.x_1, torch.stack(velocities)


@pytest.mark.parametrize("codes", [(0, 1), (1, 0), (2, 0), (2, 2)], ids=str)
def test_one_euler_step_ends_where_the_flow_ends(reflowed, codes):
    """Masked conditions too; one step of the flow itself ends at the mean, without any spread."""
    expected_mean = MEANS[codes[0]]
    x_0, x_1, _ = path(reflowed, codes, 1)
    torch.testing.assert_close(x_1, expected_mean + SD * x_0, atol=0.5, rtol=0)
    torch.testing.assert_close(x_1.mean(0), expected_mean, atol=0.15, rtol=0)
    assert x_1.std(0).sub(SD).abs().max() < 0.1
    assert path(Gaussians(), codes, 1)[1].std(0).max() < 1e-5


@pytest.mark.parametrize("codes", [(0, 1), (2, 2)], ids=str)
def test_paths_become_straight(reflowed, codes):
    """Mean squared deviation of the velocity from the way's own mean velocity."""

    def bend(velocity):
        x_0, x_1, velocities = path(velocity, codes, 32)
        return (velocities - (x_1 - x_0)).square().mean().item()

    assert bend(reflowed) < 0.1 * bend(Gaussians())


def test_a_resumed_reflow_takes_the_same_steps(tmp_path):
    whole = train(tmp_path / "whole", n_steps=16)
    train(tmp_path / "cut", n_steps=16, stop_at=13)
    resumed = train(tmp_path / "cut", n_steps=16)
    for a, b in zip(whole.parameters(), resumed.parameters(), strict=True):
        assert torch.equal(a, b)


def losses(stage, batch, part=slice(None)):
    return stage.loss(stage.module, batch, part).per_cell.detach()


def test_ranks_together_make_the_pairs_of_one_rank():
    stage = make_stage(module=Gaussians())
    whole = losses(stage, minibatch(7))
    parts = [losses(stage, minibatch(7, (lane,))) for lane in range(N_LANES)]
    torch.testing.assert_close(torch.cat(parts), whole)
    assert not torch.allclose(losses(stage, minibatch(8)), whole)


def test_loss_in_parts_is_the_loss_of_the_whole():
    stage, batch = make_stage(module=Gaussians()), minibatch(3)
    parts = [losses(stage, batch, slice(i, i + 32)) for i in (0, 32)]
    torch.testing.assert_close(torch.cat(parts), losses(stage, batch))
    np.testing.assert_array_equal(
        stage.loss(stage.module, batch, slice(32, 64)).joinids, batch.joinids[32:]
    )


@pytest.mark.parametrize(
    ("mask", "share"), [(MaskConfig(p=0), 1.0), (HALF, 0.25), (MaskConfig(p=1), 0.0)]
)
def test_teacher_and_network_are_told_the_same_masked_codes(mask, share):
    stage = make_stage(mask=mask, module=Gaussians())
    batches = [minibatch(step) for step in range(20)]
    losses_ = [stage.loss(stage.module, batch, slice(None)) for batch in batches]
    found = np.mean([loss.parts["share_unmasked"].item() for loss in losses_])
    assert found == pytest.approx(share, abs=0.06)
    for number, batch in enumerate(batches):
        told = stage._teacher.seen[16 * number]  # rk4: 4 evaluations in each of 4 steps
        assert torch.equal(stage.module.seen[number], told.repeat_interleave(4, dim=0))
        assert bool(((told == batch.codes) | (told == MASK)).all())


def test_times_cover_the_path_and_average_out():
    """The deviation of the exact flow from the line, by its integral over t."""
    stage = make_stage(module=Gaussians())
    x_0 = Draws(0, PER_LANE).normals("reflow_source", 1, (0, 1), DIM)
    t = torch.linspace(0, 1, 2001)[:, None, None]
    scale = 1 - t + t * SD
    rate = (t * SD**2 - (1 - t)) / ((1 - t) ** 2 + t**2 * SD**2)
    expected = ((rate * scale - (SD - 1)) * x_0).square().mean()
    many = make_stage(CONFIG.model_copy(update={"n_times": 64}), module=Gaussians())
    torch.testing.assert_close(losses(many, minibatch(1)).mean(), expected, rtol=0.02, atol=0)
    torch.testing.assert_close(losses(stage, minibatch(1)).mean(), expected, rtol=0.2, atol=0)


def test_the_teacher_is_left_as_it_is():
    stage = make_stage()
    before = [p.clone() for p in stage._teacher.parameters()]
    stage.loss(stage.module, minibatch(0), slice(None)).per_cell.mean().backward()
    assert all(p.grad is None for p in stage._teacher.parameters())
    assert all(map(torch.equal, before, stage._teacher.parameters()))
    assert any(p.grad is not None and p.grad.any() for p in stage.module.parameters())
