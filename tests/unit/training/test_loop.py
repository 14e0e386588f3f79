import itertools
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch

from save_dist.config.schema import CheckpointConfig, OptimConfig, TrainingConfig
from save_dist.core.errors import CheckpointError, DivergedError
from save_dist.stores.checkpoint import CheckpointStore
from save_dist.training.loop import FitInput, Loss, Ranks, fit

N_CELLS = 8


@dataclass
class Minibatch:
    step: int
    x: torch.Tensor
    y: torch.Tensor


class LineStage:
    """Fits y = 3 x - 1 by least squares."""

    name = "vae"

    def __init__(self, poison_at: int | None = None) -> None:
        torch.manual_seed(0)
        self.module = torch.nn.Linear(1, 1)
        self._poison_at = poison_at

    def loss(self, forward, minibatch, part):
        per_cell = (forward(minibatch.x[part]) - minibatch.y[part]).square()[:, 0]
        if minibatch.step == self._poison_at:
            per_cell = per_cell * torch.tensor([1.0] * (len(per_cell) - 1) + [float("nan")])
        joinids = np.arange(100, 100 + N_CELLS)[part]
        return Loss(per_cell, {"reconstruction": per_cell.mean()}, joinids)


class Recorder:
    def __init__(self) -> None:
        self.records: list[tuple[str, int, dict]] = []

    def metrics(self, stage, values, step):
        self.records.append((stage, step, dict(values)))

    def series(self, name):
        return [(s, v[name]) for _, s, v in self.records if name in v]


def minibatches(start, stop):
    for step in range(start, stop):
        x = torch.randn(N_CELLS, 1, generator=torch.Generator().manual_seed(step))
        yield Minibatch(step, x, 3 * x - 1)


def run(
    folder: Path, n_steps=60, *, poison_at=None, stop_at=None, n_accumulation=1, config_hash="a"
):
    stage, recorder = LineStage(poison_at), Recorder()
    config = OptimConfig(
        n_steps=n_steps,
        cells_per_step=N_CELLS,
        lr=0.1,
        weight_decay=0.0,
        ema_decay=0.5,
        n_accumulation=n_accumulation,
    )
    training = TrainingConfig(
        log_every_steps=10, validate_every_steps=20, checkpoint=CheckpointConfig(every_steps=20)
    )

    def limited(start, stop):
        return itertools.islice(minibatches(start, stop), stop_at)

    inputs = FitInput(
        stage, limited, N_CELLS, lambda module: {"val/weight": module.weight.item()}, lambda: 0.0
    )
    with CheckpointStore.open(folder, 2, expect=config_hash) as checkpoints:
        fit(inputs, config, training, checkpoints, recorder, Ranks(), {"config_hash": config_hash})
    return stage.module, recorder


def test_learns_and_reports(tmp_path):
    module, recorder = run(tmp_path, n_steps=200)
    assert module.weight.item() == pytest.approx(3, abs=0.2)
    losses = recorder.series("train/loss")
    assert [step for step, _ in losses] == list(range(10, 201, 10))
    assert losses[-1][1] < 0.05 * losses[0][1]
    assert [step for step, _ in recorder.series("val/weight")] == list(range(20, 201, 20))


def test_resumed_run_equals_the_undisturbed_one_to_the_last_bit(tmp_path):
    whole, _ = run(tmp_path / "whole")
    run(tmp_path / "cut", stop_at=33)  # its newest checkpoint is step 20
    resumed, recorder = run(tmp_path / "cut")
    assert torch.equal(whole.weight, resumed.weight)
    assert torch.equal(whole.bias, resumed.bias)
    assert recorder.records[0][1] == 30


def test_finished_stage_takes_no_step(tmp_path):
    first, _ = run(tmp_path)
    again, recorder = run(tmp_path, stop_at=0)
    assert torch.equal(first.weight, again.weight)
    assert recorder.records == []


def test_accumulated_gradient_is_that_of_the_whole_minibatch(tmp_path):
    one, _ = run(tmp_path / "one", n_steps=20)
    four, _ = run(tmp_path / "four", n_steps=20, n_accumulation=4)
    assert one.weight.item() == pytest.approx(four.weight.item(), rel=1e-5)


def test_non_finite_loss_stops_before_the_update_and_names_the_cell(tmp_path):
    with pytest.raises(DivergedError, match=r"step 26 .*soma_joinid \[107\].*Lower vae.optim.lr"):
        run(tmp_path, poison_at=25)
    with CheckpointStore(tmp_path, 2) as checkpoints:
        found = checkpoints.newest()
    assert found is not None and found.step == 20
    assert all(torch.isfinite(v).all() for v in found.tensors.values())


def test_checkpoints_of_another_configuration_are_refused(tmp_path):
    run(tmp_path, config_hash="a")
    with pytest.raises(CheckpointError, match="b"):
        run(tmp_path, config_hash="b")
