"""Two ranks with B cells each and one with 2B: the same gradients and losses, in both stages."""

import itertools

import numpy as np
import pytest
import torch
from two_ranks import run_on_two_ranks

from save_dist.config.schema import FlowConfig, OptimConfig, TrainingConfig, VaeConfig
from save_dist.data.partition import StreamPlan
from save_dist.data.stream import CellBatch
from save_dist.models.vae import Vae, VaeShape
from save_dist.models.velocity import make_flow_velocity
from save_dist.stores.bundle import LatentScale
from save_dist.stores.checkpoint import CheckpointStore
from save_dist.training.latents import LatentBatch
from save_dist.training.loop import FitInput, fit
from save_dist.training.ranks import Ranks
from save_dist.training.state import State
from save_dist.training.steps import Draws, FlowStage, VaeStage

pytestmark = [
    pytest.mark.slow,
    # the successor is not in the oldest torch that we take
    pytest.mark.filterwarnings("ignore:`broadcast_buffers` is deprecated:FutureWarning"),
]

N_CELLS, N_GENES, LATENT, SIZES, N_STEPS = 400, 30, 8, (3, 2), 30
PLAN = StreamPlan(N_CELLS, 64, rows_per_chunk=8, chunks_per_pool=16, n_lanes=4, seed=0)
DRAWS = Draws(0, PLAN.cells_per_lane)
OPTIM = OptimConfig(n_steps=N_STEPS, cells_per_step=PLAN.cells_per_step, lr=3e-3)
STAGES = ("vae", "flow")
WORLDS = (1, 2)


def cells():
    rng = np.random.default_rng(0)
    codes = np.stack([rng.integers(0, n, N_CELLS) for n in SIZES], axis=1)
    counts = rng.poisson(rng.uniform(0, 4, N_GENES) * (1 + codes[:, :1]), (N_CELLS, N_GENES))
    return codes, counts.astype(np.float32)


def make_vae_stage():
    torch.manual_seed(0)
    config = VaeConfig(
        width=16, depth=1, n_heads=2, latent_dim=LATENT, latent_token_width=4, condition_width=8
    )
    shape = VaeShape(torch.arange(N_GENES).view(3, -1), N_GENES, SIZES, ("type", "stimulus"))
    fraction = torch.full((N_GENES,), 1 / N_GENES)
    return VaeStage(Vae(shape, config, torch.full((N_GENES,), 4.0), fraction), config, DRAWS)


def vae_batch(step, lanes, rows):
    codes, counts = (values[rows] for values in cells())
    library = counts.sum(1)
    log_x = np.log1p(counts / np.maximum(library, 1)[:, None] * 1e4)
    return CellBatch(step, lanes, rows, rows, codes, counts, log_x, library)


def make_flow_stage():
    torch.manual_seed(1)
    config = FlowConfig(width=32, depth=2, condition_width=8, coupling="within_condition")
    ones = np.ones(LATENT + 1, np.float32)
    module = make_flow_velocity(LATENT, SIZES, config)
    return FlowStage(module, config, LatentScale(0 * ones, ones), DRAWS)


def flow_batch(step, lanes, rows):
    mean = torch.sin(torch.arange(N_CELLS * LATENT).float()).view(N_CELLS, -1)[rows]
    codes, library = torch.from_numpy(cells()[0][rows]), mean.sum(1)
    return LatentBatch(step, lanes, rows, codes, mean, 0.1 + mean.square(), library)


MAKE = {"vae": (make_vae_stage, vae_batch), "flow": (make_flow_stage, flow_batch)}


def minibatches(make_batch, lanes, start, stop):
    steps = itertools.count(start)
    for stretch in PLAN.stretches(start, stop):
        for rows in PLAN.rows_of(stretch, lanes):
            yield make_batch(next(steps), lanes, rows)


def gradient(name, ranks):
    """Gradient of the first step, all parameters one after the other."""
    make_stage, make_batch = MAKE[name]
    stage, lanes = make_stage(), PLAN.lanes_of(ranks.rank, ranks.world_size)
    state = State.create(stage.module, OPTIM, ranks)
    minibatch = next(minibatches(make_batch, lanes, 0, 1))
    loss = stage.loss(state.forward, minibatch, slice(0, len(minibatch.joinids)))
    loss.per_cell.mean().backward()
    return torch.cat([p.grad.ravel() for p in stage.module.parameters() if p.grad is not None])


class Losses:
    def __init__(self):
        self.values = []

    def metrics(self, stage, values, step):
        self.values.append(values["train/loss"])


def losses(name, ranks, folder):
    """Loss of every step of a short training, over the cells of all ranks."""
    make_stage, make_batch = MAKE[name]
    lanes, reporter = PLAN.lanes_of(ranks.rank, ranks.world_size), Losses()
    inputs = FitInput(
        make_stage(),
        lambda start, stop: minibatches(make_batch, lanes, start, stop),
        PLAN.cells_per_step // ranks.world_size,
        None,
    )
    training = TrainingConfig(log_every_steps=1)
    with CheckpointStore(folder / f"{name}-{ranks.world_size}", 1) as checkpoints:
        fit(inputs, OPTIM, training, checkpoints, reporter, ranks, {"config_hash": "a"})
    return torch.tensor(reporter.values, dtype=torch.float64)


def measure(ranks, folder):
    found = {name: (gradient(name, ranks), losses(name, ranks, folder)) for name in STAGES}
    if ranks.is_first:
        torch.save(found, folder / f"{ranks.world_size}.pt")


def on_rank(rank, folder):
    measure(Ranks(rank, 2), folder)


@pytest.fixture(scope="module")
def measured(tmp_path_factory):
    """By number of ranks and stage: a gradient and the losses."""
    folder = tmp_path_factory.mktemp("gradients")
    run_on_two_ranks(on_rank, folder)
    measure(Ranks(), folder)
    return {n: torch.load(folder / f"{n}.pt", weights_only=True) for n in WORLDS}


@pytest.mark.parametrize("stage", STAGES)
def test_two_ranks_have_the_gradient_of_one(measured, stage):
    one, two = (measured[n][stage][0] for n in WORLDS)
    assert one.norm() > 0
    assert (two - one).norm() <= 1e-6 * one.norm()


@pytest.mark.parametrize("stage", STAGES)
def test_two_ranks_have_the_losses_of_one(measured, stage):
    one, two = (measured[n][stage][1] for n in WORLDS)
    assert one.shape == (N_STEPS,) and one[-1] < one[0]
    assert torch.allclose(two, one, rtol=1e-5, atol=0), (two / one - 1).abs().max()
