import numpy as np
import pytest
import torch
from scipy import special, stats

from save_dist.flow.path import sample_time, straight_path


@pytest.mark.parametrize("t", [0.0, 0.25, 1.0])
def test_path_lies_on_the_line_and_moves_at_constant_velocity(t):
    x_0, x_1 = torch.randn(2, 5, 3, dtype=torch.float64)
    x_t, u_t = straight_path(x_0, x_1, torch.full((5,), t, dtype=torch.float64))
    torch.testing.assert_close(x_t, x_0 + t * (x_1 - x_0))
    assert torch.equal(u_t, x_1 - x_0)


def test_every_cell_has_its_own_time():
    x_0, x_1 = torch.zeros(3, 2), torch.ones(3, 2)
    x_t, _ = straight_path(x_0, x_1, torch.tensor([0.0, 0.5, 1.0]))
    assert x_t[:, 0].tolist() == [0.0, 0.5, 1.0]


def test_velocity_is_the_derivative_of_the_path():
    x_0, x_1 = torch.randn(2, 1, 4, dtype=torch.float64)
    t = torch.tensor([0.3], dtype=torch.float64)
    by_autograd = torch.autograd.functional.jacobian(lambda s: straight_path(x_0, x_1, s)[0], t)
    torch.testing.assert_close(by_autograd[0, :, 0], straight_path(x_0, x_1, t)[1][0])


def test_uniform_times_are_the_numbers_given():
    uniforms = torch.rand(10)
    assert torch.equal(sample_time(uniforms, "uniform"), uniforms)


def test_logit_normal_times_have_their_law():
    uniforms = (torch.arange(1000) + 0.5) / 1000
    times = sample_time(uniforms, "logit_normal").numpy()
    np.testing.assert_allclose(times, special.expit(stats.norm.ppf(uniforms)), atol=1e-5)
    assert (abs(times - 0.5) < 0.25).mean() == pytest.approx(0.728, abs=0.01)


def test_logit_normal_time_of_zero_is_finite():
    assert sample_time(torch.zeros(1), "logit_normal").tolist() == [0.0]
