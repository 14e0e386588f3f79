"""Another number of ranks: the same samples in the same global steps, the same weights."""

import pytest
import torch
from two_ranks import run_on_two_ranks

from save_dist.config.schema import OptimConfig, StoppingConfig, TrainingConfig
from save_dist.core.errors import DivergedError, StoppedError
from save_dist.data.partition import StreamPlan
from save_dist.stores.checkpoint import CheckpointStore
from save_dist.training.loop import Alone, FitInput, Loss, fit
from save_dist.training.noise import lane_normals
from save_dist.training.ranks import Ranks

pytestmark = [
    pytest.mark.slow,
    # the successor is not in the oldest torch that we take
    pytest.mark.filterwarnings("ignore:`broadcast_buffers` is deprecated:FutureWarning"),
]

PLAN = StreamPlan(96, 16, rows_per_chunk=4, chunks_per_pool=8, n_lanes=4, seed=0)
X = torch.linspace(-1, 1, 96)[:, None].sin()


class NoisyLine:
    """A small network on lanes of a stream, with noise keyed by step and lane."""

    name = "vae"

    def __init__(self, poisoned=None):
        self._poisoned = poisoned
        torch.manual_seed(0)
        self.module = torch.nn.Sequential(
            torch.nn.Linear(1, 8), torch.nn.Tanh(), torch.nn.Linear(8, 1)
        )

    def loss(self, forward, minibatch, part):
        step, lanes, rows = minibatch
        noise = lane_normals(0, "noise", step, lanes, PLAN.cells_per_lane, 1)
        x = (X[rows] + 0.1 * noise)[part]
        per_cell = (forward(x) - 3 * x + 1).square()[:, 0]
        is_poisoned = torch.from_numpy(rows[part] == self._poisoned)
        return Loss(per_cell.where(~is_poisoned, torch.nan), {}, rows[part])


def minibatches(lanes, start, stop):
    step = start
    for stretch in PLAN.stretches(start, stop):
        for rows in PLAN.rows_of(stretch, lanes):
            yield step, lanes, rows
            step += 1


class AsksAtStep(Alone):
    def __init__(self, n_steps):
        self._left = n_steps

    def asked_to_stop(self):
        self._left -= 1
        return "" if self._left else "time is up"


def train(folder, ranks, supervisor, stopping, stage=None, n_accumulation=1):
    stage = stage or NoisyLine()
    lanes = PLAN.lanes_of(ranks.rank, ranks.world_size)
    losses = iter([3.0, 2.0, 1.0, 4.0, 5.0, 6.0])
    inputs = FitInput(
        stage,
        lambda start, stop: minibatches(lanes, start, stop),
        PLAN.cells_per_step // ranks.world_size,
        (lambda module: {"val/loss": next(losses)}) if ranks.is_first else None,
    )
    optim = OptimConfig(
        n_steps=24, cells_per_step=PLAN.cells_per_step, lr=0.01, n_accumulation=n_accumulation
    )
    training = TrainingConfig(validate_every_steps=4, log_every_steps=8, stopping=stopping)
    with CheckpointStore(folder, 2) as checkpoints:
        fit(inputs, optim, training, checkpoints, Silent(), ranks, {"config_hash": "a"}, supervisor)


class Silent:
    def metrics(self, stage, values, step):
        pass


def poisoned():
    """A cell in the first half of the minibatch that rank 1 takes in the third step."""
    *_, (_, _, rows) = minibatches(PLAN.lanes_of(1, 2), 0, 3)
    return rows[1]


def on_rank(rank, folder):
    """Two ranks: a stop that rank 0 alone hears, the rest of the run, an early and a bad end."""
    ranks, whole = Ranks(rank, 2), StoppingConfig()
    asked = AsksAtStep(7) if rank == 0 else Alone()
    try:
        train(folder / "two", ranks, asked, whole)
    except StoppedError:
        (folder / f"stopped-{rank}").touch()
    train(folder / "two", ranks, Alone(), whole)
    train(folder / "early", ranks, Alone(), StoppingConfig(patience=2))
    try:
        train(folder / "poisoned", ranks, Alone(), whole, NoisyLine(poisoned()), n_accumulation=2)
    except DivergedError as e:
        (folder / f"diverged-{rank}").write_text(str(e))


def newest(folder):
    with CheckpointStore(folder, 2) as checkpoints:
        return checkpoints.newest()


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    folder = tmp_path_factory.mktemp("ranks")
    run_on_two_ranks(on_rank, folder)
    train(folder / "one", Ranks(), Alone(), StoppingConfig())
    return folder


def test_two_ranks_end_with_the_weights_of_one(trained):
    one, two = newest(trained / "one"), newest(trained / "two")
    assert one.step == two.step == 24
    for name, value in one.tensors.items():
        assert torch.allclose(two.tensors[name], value, rtol=1e-5, atol=1e-7), name


def test_what_rank_0_hears_and_decides_holds_for_all(trained):
    assert all((trained / f"stopped-{rank}").exists() for rank in range(2))
    early = newest(trained / "early")
    assert (early.step, early.about["standing"]["best_step"]) == (20, 12)


def test_all_ranks_name_the_bad_cell_of_one(trained):
    messages = {(trained / f"diverged-{rank}").read_text() for rank in range(2)}
    (message,) = messages
    assert f"at step 3 (the cells with soma_joinid [{poisoned()}] had" in message
    assert newest(trained / "poisoned") is None
