import contextlib
import itertools
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch

from save_dist.config.schema import (
    CheckpointConfig,
    OptimConfig,
    StoppingConfig,
    TrainingConfig,
)
from save_dist.core.errors import CheckpointError, DivergedError, StoppedError
from save_dist.stores.checkpoint import CheckpointStore
from save_dist.training.loop import ALONE, FitInput, Loss, fit
from save_dist.training.ranks import Ranks

N_CELLS = 8
TO_THE_END = StoppingConfig()


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


class StopAfter:
    """Asks for an end once it was asked `n_steps` times."""

    def __init__(self, n_steps):
        self._left = n_steps
        self.told = []

    def asked_to_stop(self):
        self._left -= 1
        return "" if self._left > 0 else "enough"

    def watch(self, stage):
        return contextlib.nullcontext(lambda step, activity: self.told.append((step, activity)))


def run(
    folder: Path,
    n_steps=60,
    *,
    poison_at=None,
    stop_at=None,
    n_accumulation=1,
    config_hash="a",
    supervisor=ALONE,
    validation=lambda module: {"val/loss": module.weight.item()},
    stopping=TO_THE_END,
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
        log_every_steps=10,
        validate_every_steps=20,
        checkpoint=CheckpointConfig(every_steps=20),
        stopping=stopping,
    )

    def limited(start, stop):
        return itertools.islice(minibatches(start, stop), stop_at)

    inputs = FitInput(stage, limited, N_CELLS, validation)
    about = {"config_hash": config_hash}
    with CheckpointStore.open(folder, 2, expect=config_hash) as checkpoints:
        fit(inputs, config, training, checkpoints, recorder, Ranks(), about, supervisor)
    return stage.module, recorder


def newest(folder):
    with CheckpointStore(folder, 2) as checkpoints:
        return checkpoints.newest(), checkpoints.steps()


def test_learns_and_reports(tmp_path):
    module, recorder = run(tmp_path, n_steps=200)
    assert module.weight.item() == pytest.approx(3, abs=0.2)
    losses = recorder.series("train/loss")
    assert [step for step, _ in losses] == list(range(10, 201, 10))
    assert losses[-1][1] < 0.05 * losses[0][1]
    assert [step for step, _ in recorder.series("val/loss")] == list(range(20, 201, 20))


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


def test_asked_to_stop_it_saves_at_once_and_resumes_to_the_last_bit(tmp_path):
    whole, _ = run(tmp_path / "whole")
    supervisor = StopAfter(33)
    with pytest.raises(StoppedError, match=r"vae stopped after step 33 of 60: enough; .* saved"):
        run(tmp_path / "cut", supervisor=supervisor)
    assert supervisor.told[-1] == (60, "waiting for the other ranks")
    assert newest(tmp_path / "cut")[0].step == 33
    resumed, _ = run(tmp_path / "cut")
    assert torch.equal(whole.weight, resumed.weight)
    assert torch.equal(whole.bias, resumed.bias)


LOSSES = [3.0, 2.0, 2.5, 1.0, 1.5, 1.2, 0.5]  # of the weights after 20, 40, ... steps


@pytest.mark.parametrize("cut", [None, 65, 110])
def test_patience_ends_a_stage_at_the_same_step_after_a_kill(tmp_path, cut):
    seen, stopping = [], StoppingConfig(patience=2, export="best")

    def validation(module):
        weight = module.weight.item()
        seen.extend([weight] if weight not in seen else [])
        return {"val/loss": LOSSES[seen.index(weight)]}

    if cut is not None:
        run(tmp_path, 400, stop_at=cut, validation=validation, stopping=stopping)
    _, recorder = run(tmp_path, 400, validation=validation, stopping=stopping)
    found, kept = newest(tmp_path)
    assert (found.step, found.about["standing"]["best_step"]) == (120, 80)
    assert found.about["standing"]["is_over"]
    assert kept == [80, 100, 120]
    assert recorder.records[-1][1] == 120

    _, again = run(tmp_path, 400, validation=validation, stopping=stopping)
    assert again.records == []


def test_the_rates_say_how_the_machine_is_used(tmp_path):
    _, recorder = run(tmp_path, n_steps=10)
    (_, _, values), *_ = recorder.records
    assert 0 < values["perf/mfu"] < 1
    assert 0 <= values["time/data_wait_share"] < 1
    assert values["data/cells_per_s"] == pytest.approx(N_CELLS / values["time/step_s"])


def test_an_unexpected_failure_names_its_step(tmp_path):
    class Broken(LineStage):
        def loss(self, forward, minibatch, part):
            if minibatch.step == 3:
                raise RuntimeError("Timed out waiting 180000ms for recv")
            return super().loss(forward, minibatch, part)

    inputs = FitInput(Broken(), minibatches, N_CELLS, None)
    with (
        CheckpointStore.open(tmp_path, 2) as checkpoints,
        pytest.raises(RuntimeError, match="recv") as caught,
    ):
        fit(
            inputs,
            OptimConfig(n_steps=9, cells_per_step=N_CELLS),
            TrainingConfig(),
            checkpoints,
            Recorder(),
            Ranks(),
            {"config_hash": "a"},
        )
    assert caught.value.__notes__ == ["in step 4 of the stage vae"]
