import time

import pytest
import torch

from save_dist.training.pace import Pace, flops_per_cell, matmul_flops_per_s


def test_products_of_a_dense_layer_are_counted_forward_and_backward():
    module = torch.nn.Linear(6, 5, bias=False)
    x = torch.randn(64, 6)
    counted = flops_per_cell(module, lambda net, part: net(x[part]).sum(1), 64)
    assert counted == 2 * 6 * 5 * 2  # once forward, once for the gradient of the weights
    assert module.weight.grad is None


def test_use_is_work_over_what_the_device_can_do(monkeypatch):
    now = iter([0.0, 0.0, 4.0])
    monkeypatch.setattr(time, "perf_counter", lambda: next(now))
    pace = Pace(10, cells_per_rank=8, world_size=2)
    pace.calibrate(flops_per_cell=100.0, flops_per_s=1000.0)
    values = pace.lap(15)  # 5 steps of 8 cells in 4 s on this rank
    assert values["data/cells_per_s"] == pytest.approx(20)
    assert values["perf/mfu"] == pytest.approx(1.0)


def test_time_until_a_minibatch_is_there_is_waiting():
    def slow():
        for number in range(3):
            time.sleep(0.02)
            yield number

    pace = Pace(0, 1, 1)
    assert list(pace.timed(slow())) == [0, 1, 2]
    assert 0.9 < pace.lap(3)["time/data_wait_share"] <= 1


def test_a_matrix_product_takes_time():
    assert 1e6 < matmul_flops_per_s(torch.device("cpu")) < 1e14
