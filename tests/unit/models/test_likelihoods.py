import numpy as np
import pytest
import torch
from scipy import special, stats

from save_dist.models.likelihoods import (
    NegativeBinomial,
    UnitInterval,
    _digamma,
    _terms,
    _terms_on_cpu,
    negative_binomial_log_prob,
)

N_CELLS, N_GENES = 6, 9


BOTH = pytest.mark.parametrize("n_rows", [1, N_CELLS], ids=["shared", "per cell"])
"""One inverse dispersion per gene for all cells, or one for each."""


def draw(n_rows=1, dtype=torch.float64):
    generator = torch.Generator().manual_seed(0)
    mean = torch.rand(N_CELLS, N_GENES, dtype=dtype, generator=generator) * 8
    theta = torch.rand(n_rows, N_GENES, dtype=dtype, generator=generator) * 5 + 0.1
    return torch.poisson(mean, generator=generator), mean, theta


def scipys(counts, mean, theta):
    n, mu = theta.numpy(), mean.numpy()
    return stats.nbinom.logpmf(counts.numpy(), n, n / (n + mu))


@BOTH
def test_negative_binomial_equals_scipys(n_rows):
    counts, mean, theta = draw(n_rows)
    ours = NegativeBinomial(mean, theta).log_prob(counts)
    np.testing.assert_allclose(ours, scipys(counts, mean, theta), rtol=1e-9)


@BOTH
def test_log_prob_of_logarithms_is_the_sum_over_genes(n_rows):
    counts, mean, theta = draw(n_rows)
    ours = negative_binomial_log_prob(counts, mean.log(), theta.log())
    np.testing.assert_allclose(ours, scipys(counts, mean, theta).sum(1), rtol=1e-9)


def test_probabilities_sum_to_one():
    counts = torch.arange(400, dtype=torch.float64)[:, None]
    law = NegativeBinomial(torch.full((400, 1), 3.0).double(), torch.tensor([[0.7]]).double())
    assert float(law.log_prob(counts).exp().sum()) == pytest.approx(1, abs=1e-9)


@BOTH
def test_gradients_are_right(n_rows):
    counts, mean, theta = draw(n_rows)
    inputs = mean.log().requires_grad_(), theta.log().requires_grad_()
    # the series of digamma is good to 2e-7, the finite differences to 1e-8
    assert torch.autograd.gradcheck(
        lambda m, t: negative_binomial_log_prob(counts, m, t), inputs, atol=3e-6
    )


@BOTH
def test_gradients_equal_those_of_the_plain_formula(n_rows):
    counts, mean, theta = draw(n_rows)
    cell_weights = torch.rand(N_CELLS, dtype=torch.float64)
    grads = []
    for law in (
        lambda m, t: negative_binomial_log_prob(counts, m, t),
        lambda m, t: NegativeBinomial(m.exp(), t.exp()).log_prob(counts).sum(1),
    ):
        inputs = mean.log().requires_grad_(), theta.log().requires_grad_()
        grads.append(torch.autograd.grad((cell_weights * law(*inputs)).sum(), inputs))
    for ours, plain in zip(*grads, strict=True):
        torch.testing.assert_close(ours, plain, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("log_mean", [-60.0, -10.0, 0.0, 10.0])
@pytest.mark.parametrize("log_theta", [-9.0, 0.0, 9.0])
@pytest.mark.parametrize("count", [0.0, 1.0, 65_535.0])
def test_log_prob_and_gradients_stay_finite_in_float32(log_mean, log_theta, count):
    m = torch.tensor([[log_mean]], requires_grad=True)
    t = torch.tensor([[log_theta]], requires_grad=True)
    log_prob = negative_binomial_log_prob(torch.tensor([[count]]), m, t)
    grads = torch.autograd.grad(log_prob.sum(), (m, t))
    assert all(bool(torch.isfinite(x).all()) for x in (log_prob, *grads))


def test_an_improbable_count_in_float32_equals_the_double():
    counts, mean, theta = draw()
    double = negative_binomial_log_prob(counts + 1000, mean.log(), theta.log())
    single = negative_binomial_log_prob(
        (counts + 1000).float(), mean.log().float(), theta.log().float()
    )
    torch.testing.assert_close(single.double(), double, rtol=1e-6, atol=0)


@pytest.mark.parametrize("n_rows", [1, 3], ids=["shared", "per cell"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("log_theta", [-9.0, 0.0, 9.0])
def test_the_cpu_kernel_equals_the_plain_formulas(dtype, log_theta, n_rows):
    counts = torch.tensor([0, 0, 1, 2, 15, 16, 17, 300, 65_535, 1.5], dtype=torch.float64)
    law = torch.full((3, 10), 0.3), torch.full((n_rows, 10), log_theta)
    plain = _terms(counts.expand(3, -1), *(x.double() for x in law))
    kernel = _terms_on_cpu(counts.expand(3, -1).to(dtype), *(x.to(dtype) for x in law))
    # single: 65,535 times the rounding of a logarithm; double: digamma is good to 2e-7
    rtol = 2e-5 if dtype == torch.float32 else 1e-6
    for ours, expected in zip(kernel, plain, strict=True):
        scale = float(expected.abs().max())
        torch.testing.assert_close(ours.double(), expected, rtol=rtol, atol=rtol * scale)


def test_digamma_equals_scipys():
    x = torch.logspace(-4, 6, 2001, dtype=torch.float64)
    np.testing.assert_allclose(_digamma(x), special.digamma(x.numpy()), rtol=2e-7, atol=2e-7)


def test_large_inverse_dispersion_is_poisson():
    counts = torch.arange(10, dtype=torch.float64)[:, None]
    law = NegativeBinomial(torch.full((10, 1), 2.0).double(), torch.tensor([[1e6]]).double())
    np.testing.assert_allclose(
        law.log_prob(counts)[:, 0], stats.poisson.logpmf(np.arange(10), 2.0), atol=1e-3
    )


def unit_interval(dtype=torch.float64):
    generator = torch.Generator().manual_seed(1)
    logits = torch.randn(N_CELLS, N_GENES, dtype=dtype, generator=generator)
    scale = 3 + torch.rand(N_GENES, dtype=dtype, generator=generator)
    return UnitInterval(logits, scale, torch.full((N_CELLS,), 2000.0, dtype=dtype))


def test_unit_interval_is_the_cross_entropy():
    law = unit_interval()
    scaled = torch.rand(N_CELLS, N_GENES, dtype=torch.float64)
    p = torch.sigmoid(law.logits)
    expected = scaled * p.log() + (1 - scaled) * (1 - p).log()
    torch.testing.assert_close(law.log_prob(scaled), expected)


def test_unit_interval_takes_more_than_the_training_maximum_for_the_maximum():
    law = unit_interval()
    most = law.log_prob(torch.ones(N_CELLS, N_GENES, dtype=torch.float64))
    more = law.log_prob(torch.full((N_CELLS, N_GENES), 1.7, dtype=torch.float64))
    assert torch.equal(most, more)


def test_expected_counts_invert_the_input_transform():
    law = unit_interval()
    log_x = torch.log1p(law.mean / law.library[:, None] * 1e4)
    torch.testing.assert_close(log_x / law.scale, law.expression)


def test_unit_interval_counts_are_drawn_as_poisson():
    assert torch.equal(unit_interval().inverse_dispersion, torch.full((1, N_GENES), 1e6).double())
