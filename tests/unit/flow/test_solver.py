import math

import pytest
import torch

from save_dist.core.errors import ConfigError
from save_dist.flow.solver import integrate

FIXED = {"euler": (1, 1), "midpoint": (2, 2), "heun": (2, 2), "rk4": (4, 4)}
"""Method -> (evaluations per step, order of convergence)."""
ROTATION = torch.tensor([[0.0, -2.0], [2.0, 0.0]], dtype=torch.float64)
X_0 = torch.randn(4, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


def growth(t, x):
    """x' = 2 t x, so x(1) = e x(0)."""
    return 2 * t * x


def rotation(t, x):
    """A turn by two radians."""
    return x @ ROTATION.T


FIELDS = {
    "growth": (growth, math.e * X_0),
    "rotation": (rotation, X_0 @ torch.linalg.matrix_exp(ROTATION).T),
    "time": (lambda t, x: 3 * t**2 * torch.ones_like(x), X_0 + 1),
}


def error(field, expected, method, n_steps):
    x_1 = integrate(field, X_0, method=method, n_steps=n_steps, tolerance=1e-5).x_1
    return float((x_1 - expected).abs().max())


@pytest.mark.parametrize("name", ["growth", "rotation"])
@pytest.mark.parametrize("method", FIXED)
def test_fixed_steps_converge_at_their_order(method, name):
    field, expected = FIELDS[name]
    coarse, fine = (error(field, expected, method, n) for n in (64, 128))
    assert math.log2(coarse / fine) == pytest.approx(FIXED[method][1], abs=0.25)


@pytest.mark.parametrize("name", FIELDS)
def test_every_solver_reaches_the_closed_form(name):
    field, expected = FIELDS[name]
    for method in (*FIXED, "dopri5"):
        assert error(field, expected, method, 200) < (0.05 if method == "euler" else 1e-3), method


@pytest.mark.parametrize("method", FIXED)
@pytest.mark.parametrize("n_steps", [1, 3, 5, 7, 49, 100])
def test_evaluations_are_counted(method, n_steps):
    times = []

    def field(t, x):
        times.append(float(t))
        return x

    solution = integrate(field, X_0.float(), method=method, n_steps=n_steps, tolerance=1e-5)
    assert solution.n_evaluations == len(times) == FIXED[method][0] * n_steps
    assert min(times) == 0
    assert max(times) <= 1
    assert solution.x_1.dtype == torch.float32


def test_a_constant_field_is_exact_in_one_step():
    shift = torch.randn(4, 2, dtype=torch.float64)
    for method in FIXED:
        x_1 = integrate(lambda t, x: shift, X_0, method=method, n_steps=1, tolerance=1e-5).x_1
        torch.testing.assert_close(x_1, X_0 + shift)


@pytest.mark.parametrize("tolerance", [1e-3, 1e-6, 1e-9])
def test_dopri5_meets_its_tolerance(tolerance):
    solution = integrate(growth, X_0, method="dopri5", n_steps=1, tolerance=tolerance)
    assert float((solution.x_1 - math.e * X_0).abs().max()) < 20 * tolerance


def test_dopri5_takes_more_evaluations_for_a_smaller_tolerance():
    counts = [
        integrate(growth, X_0, method="dopri5", n_steps=1, tolerance=t).n_evaluations
        for t in (1e-3, 1e-6, 1e-9)
    ]
    assert counts == sorted(set(counts))


def test_source_is_left_alone():
    x_0 = X_0.clone()
    integrate(growth, x_0, method="midpoint", n_steps=3, tolerance=1e-5)
    assert torch.equal(x_0, X_0)


def test_a_field_that_blows_up_is_a_config_error():
    def field(t, x):
        return torch.full_like(x, torch.nan)

    with pytest.raises(ConfigError, match=r"solver\.tolerance=0\.001.*method: midpoint"):
        integrate(field, X_0, method="dopri5", n_steps=1, tolerance=1e-3)
