"""What the decoder says about the counts of a cell.

Both laws have `mean` and `inverse_dispersion`, which is all that drawing counts needs.
Legend: N cells, G genes.
"""

from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional

from save_dist.models.counting import fill_terms

COUNTS_PER_CELL = 1e4
"""Library size that normalised expression is scaled to before log1p."""
_POISSON = 1e6  # an inverse dispersion at which the negative binomial is a Poisson law


@dataclass(frozen=True)
class NegativeBinomial:
    """Counts with variance mean + mean^2 / inverse_dispersion."""

    mean: Float[Tensor, "cell gene"]
    inverse_dispersion: Float[Tensor, "#cell gene"]
    """Of every cell, or one row for all cells."""

    def log_prob(self, counts: Float[Tensor, "cell gene"]) -> Float[Tensor, "cell gene"]:
        """Log-probability of each count, normalising constant included."""
        theta, total = self.inverse_dispersion, self.mean + self.inverse_dispersion
        return (
            torch.lgamma(counts + theta)
            - torch.lgamma(theta)
            - torch.lgamma(counts + 1)
            + theta * (theta / total).log()
            + torch.xlogy(counts, self.mean / total)
        )


@dataclass(frozen=True)
class UnitInterval:
    """Expression scaled to [0, 1] as a Bernoulli mean: the cross-entropy head of the paper.

    Its law has no width of its own; `mean` turns it into expected counts, to be drawn as Poisson.
    """

    logits: Float[Tensor, "cell gene"]
    scale: Float[Tensor, " gene"]
    """log1p expression that 1 stands for."""
    library: Float[Tensor, " cell"]

    @property
    def expression(self) -> Float[Tensor, "cell gene"]:
        """Expected scaled expression."""
        return torch.sigmoid(self.logits)

    @property
    def mean(self) -> Float[Tensor, "cell gene"]:
        """Expected counts."""
        normalised = torch.expm1(self.expression * self.scale)
        return normalised * (self.library[:, None] / COUNTS_PER_CELL)

    @property
    def inverse_dispersion(self) -> Float[Tensor, "1 gene"]:
        """So large that counts drawn from `mean` are Poisson."""
        return torch.full_like(self.scale, _POISSON)[None]

    def log_prob(self, scaled: Float[Tensor, "cell gene"]) -> Float[Tensor, "cell gene"]:
        """Minus the cross-entropy of scaled expression; values above 1 count as 1."""
        return -functional.binary_cross_entropy_with_logits(
            self.logits, scaled.clamp(0, 1), reduction="none"
        )


Likelihood = NegativeBinomial | UnitInterval


def negative_binomial_log_prob(
    counts: Float[Tensor, "cell gene"],
    log_mean: Float[Tensor, "cell gene"],
    log_inverse_dispersion: Float[Tensor, "#cell gene"],
) -> Float[Tensor, " cell"]:
    """Log-probability of each cell's counts, constants included: what training maximises.

    The same as `NegativeBinomial.log_prob(counts).sum(1)` at half the cost, and finite for every
    finite input. Counts carry no gradient.
    """
    inputs = counts, log_mean, log_inverse_dispersion
    out: Tensor = _NegativeBinomialLogProb.apply(*inputs)  # type: ignore[no-untyped-call]  # torch's
    return out


class _NegativeBinomialLogProb(torch.autograd.Function):
    """Written out: autograd would take twice as long, mostly in torch's scalar digamma."""

    @staticmethod
    def forward(ctx: Any, counts: Tensor, log_mean: Tensor, log_theta: Tensor) -> Tensor:
        terms = _terms_on_cpu if counts.device.type == "cpu" else _terms
        log_prob, *slopes = terms(counts, log_mean.detach(), log_theta.detach().contiguous())
        ctx.is_shared = len(log_theta) < len(counts)
        ctx.save_for_backward(*slopes)
        return log_prob

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[None, Tensor, Tensor]:
        of_log_mean, of_log_theta = ctx.saved_tensors
        of_mean = of_log_mean * grad[:, None]
        if ctx.is_shared:
            return None, of_mean, torch.mv(of_log_theta.t(), grad)[None]
        return None, of_mean, of_log_theta * grad[:, None]


class _Terms(NamedTuple):
    """Log-probability of each cell, and its derivatives by every entry of the law."""

    log_prob: Float[Tensor, " cell"]
    of_log_mean: Float[Tensor, "cell gene"]
    of_log_theta: Float[Tensor, "cell gene"]


def _terms(
    counts: Float[Tensor, "cell gene"],
    log_mean: Float[Tensor, "cell gene"],
    log_theta: Float[Tensor, "#cell gene"],
) -> _Terms:
    theta = log_theta.exp()
    total = log_mean.exp().add_(theta)
    log_total = total.log()
    stop = counts + theta
    excess = (stop - total).div_(total)
    of_theta = _digamma(stop).sub_(log_total).sub_(excess).add_(log_theta - _digamma(theta))
    out = torch.lgamma(stop).sub_(torch.lgamma(theta)).sub_(torch.lgamma(counts + 1))
    out += theta * log_theta
    out.addcmul_(counts, log_mean).addcmul_(stop, log_total, value=-1)
    return _Terms(out.sum(1), excess.mul_(theta), of_theta.mul_(theta))


def _terms_on_cpu(
    counts: Float[Tensor, "cell gene"],
    log_mean: Float[Tensor, "cell gene"],
    log_theta: Float[Tensor, "#cell gene"],
) -> _Terms:
    """The same by a kernel, two to three times faster: most counts are 0 or small."""
    theta = log_theta.exp()
    total = log_mean.exp().add_(theta)
    log_total = total.log()
    log_prob = log_mean.new_empty(len(counts))
    arrays = (x.numpy() for x in (counts, log_mean, total, log_total, theta, log_theta, log_prob))
    fill_terms(*arrays, total.numpy(), log_total.numpy())
    return _Terms(log_prob, total, log_total)


def _digamma(x: Float[Tensor, "*axes"]) -> Float[Tensor, "*axes"]:
    """Derivative of lgamma at x > 0, to 2e-7; torch's works number by number on a CPU.

    psi(x) = psi(x + 4) - 1/x - 1/(x+1) - 1/(x+2) - 1/(x+3), where psi(1/2 + w) is
    log w + 1/(24 w^2) - 7/(960 w^4) + 31/(8064 w^6) - ...
    """
    outer = (x + 3).mul_(x)
    inner = (outer + 2).reciprocal_()
    steps = outer.reciprocal_().add_(inner).mul_(2 * x + 3)
    w = x + 3.5
    s = w.square().reciprocal_()
    tail = (s * (31 / 8064)).sub_(7 / 960).mul_(s).add_(1 / 24).mul_(s)
    return w.log_().add_(tail).sub_(steps)
