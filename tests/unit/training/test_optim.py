import pytest
import torch

from save_dist.config.schema import OptimConfig
from save_dist.training.optim import make_average, make_optimizer, make_schedule, rate_share

CONFIG = OptimConfig(n_steps=100, warmup_share=0.1, final_lr_share=0.2, lr=0.5)


@pytest.mark.parametrize(
    ("step", "share"),
    [
        pytest.param(0, 0.1, id="first-step-is-not-zero"),
        pytest.param(9, 1.0, id="end-of-warm-up"),
        pytest.param(10, 1.0, id="peak"),
        pytest.param(55, 0.6, id="half-way-down"),
        pytest.param(100, 0.2, id="end"),
        pytest.param(500, 0.2, id="after-the-end"),
    ],
)
def test_rate_share(step, share):
    assert rate_share(step, CONFIG) == pytest.approx(share)


def test_schedule_scales_the_optimiser():
    weight = torch.nn.Parameter(torch.zeros(1))
    optimizer = make_optimizer([weight], CONFIG)
    schedule = make_schedule(optimizer, CONFIG)
    assert optimizer.param_groups[0]["lr"] == pytest.approx(0.05)
    for _ in range(10):
        optimizer.step()
        schedule.step()
    assert optimizer.param_groups[0]["lr"] == pytest.approx(0.5)


def test_average_follows_the_weights_with_its_decay():
    module = torch.nn.Linear(1, 1, bias=False)
    average = make_average(module, OptimConfig(ema_decay=0.75))
    with torch.no_grad():
        for value in (4.0, 8.0):
            module.weight.fill_(value)
            average.update_parameters(module)
    assert average.module.weight.item() == pytest.approx(0.75 * 4 + 0.25 * 8)
