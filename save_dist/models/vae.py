"""The VAE of SAVE: counts -> latent -> law of the counts (SAVE 3.1-3.3).

Outside, genes stand in vocabulary order; inside, in block order. One precomputed permutation leads
from the one to the other, and training never permutes anything that carries a gradient.
Legend: N cells, G genes, L blocks, K genes per block, D latent, C fields, E embedding.
"""

from dataclasses import dataclass
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor, nn

from save_dist.config.schema import VaeConfig
from save_dist.core.errors import ConfigError, VocabMismatchError
from save_dist.models.backbones import (
    AttentionDecoder,
    AttentionEncoder,
    DenseDecoder,
    DenseEncoder,
)
from save_dist.models.conditioning import ConditionEmbedding
from save_dist.models.likelihoods import (
    COUNTS_PER_CELL,
    Likelihood,
    NegativeBinomial,
    UnitInterval,
    negative_binomial_log_prob,
)

_LOG_VAR_RANGE = (-14.0, 6.0)  # keeps exp and its gradient finite; far outside what is learnt
_LOG_DISPERSION_RANGE = (-9.0, 9.0)  # the same for the inverse dispersion of a cell


@dataclass(frozen=True)
class VaeShape:
    """What the data fix about a VAE."""

    members: Int64[Tensor, "gene_block block_gene"]
    """Gene positions per block; -1 pads the end of the last block."""
    n_genes: int
    sizes: tuple[int, ...]
    """Categories per condition column."""
    columns: tuple[str, ...]
    """Names of the condition columns."""

    def block_order(self) -> Int64[Tensor, " gene"]:
        """Gene position at each place of the block order.

        Raises:
            VocabMismatchError: if the blocks do not hold every gene once, padding last.
        """
        flat = self.members.flatten()
        order, padding = flat[: self.n_genes], flat[self.n_genes :]
        whole = torch.equal(order.sort().values, torch.arange(self.n_genes))
        if not whole or not bool((padding == -1).all()):
            raise VocabMismatchError(
                f"gene blocks of shape {tuple(self.members.shape)} do not hold each of the "
                f"{self.n_genes} genes once with -1 at the very end; build the blocks again for "
                "this gene vocabulary"
            )
        return order.clone()

    def positions_of(self, names: list[str] | None) -> list[int]:
        """Positions of condition columns by name; None: all.

        Raises:
            ConfigError: naming unknown columns and the known ones.
        """
        names = list(self.columns) if names is None else names
        unknown = [name for name in names if name not in self.columns]
        if unknown:
            raise ConfigError(
                f"vae.encoder_columns or vae.decoder_columns name {unknown}, which are no "
                f"condition columns; known: {list(self.columns)}"
            )
        return [self.columns.index(name) for name in names]


class Posterior(NamedTuple):
    """Diagonal normal law of the latent."""

    mean: Float[Tensor, "cell latent"]
    var: Float[Tensor, "cell latent"]

    # SAVE eq. 5
    def kl(self) -> Float[Tensor, " cell"]:
        """Divergence from the standard normal in nats, summed over the latent."""
        return 0.5 * (self.var - self.var.log() + self.mean.square() - 1).sum(1)


class VaeLoss(NamedTuple):
    """Both parts of the evidence bound, per cell, in nats."""

    reconstruction: Float[Tensor, " cell"]
    kl: Float[Tensor, " cell"]


class Vae(nn.Module):
    """Encoder, decoder and likelihood.

    Args:
        shape: what the data fix.
        config: the rest.
        scale: largest log1p expression of each gene in training; 1 stands for it inside.
        fraction: share of each gene in all counted molecules of the training cells; the decoder
            starts there.
    """

    order: Tensor
    inverse_order: Tensor
    scale: Tensor
    log_fraction: Tensor

    def __init__(
        self,
        shape: VaeShape,
        config: VaeConfig,
        scale: Float[Tensor, " gene"],
        fraction: Float[Tensor, " gene"],
    ) -> None:
        super().__init__()
        self.shape, self.config = shape, config
        order = shape.block_order()
        self.register_buffer("order", order)
        self.register_buffer("inverse_order", order.argsort())
        self.register_buffer("scale", scale[order])
        e_width, encoder_columns = (
            config.condition_width,
            shape.positions_of(config.encoder_columns),
        )
        decoder_columns = shape.positions_of(config.decoder_columns)
        self.encoder_condition = (
            ConditionEmbedding(shape.sizes, e_width, encoder_columns) if encoder_columns else None
        )
        self.decoder_condition = ConditionEmbedding(shape.sizes, e_width, decoder_columns)
        self.encoder, self.decoder = _backbone(shape, config)
        self.skip = (
            nn.Parameter(torch.zeros(e_width, shape.n_genes)) if config.linear_skip else None
        )
        self.bias = nn.Parameter(self._start_of_logits(fraction[order], self.scale))
        self.log_inverse_dispersion = self.dispersion_trend = None
        if config.likelihood == "nb":
            self.log_inverse_dispersion = nn.Parameter(torch.zeros(shape.n_genes))
            if config.dispersion == "trend":
                self.dispersion_trend = nn.Parameter(torch.zeros(shape.n_genes))
        self.register_buffer("log_fraction", _floored(fraction[order]).log())
        self.hidden_token = (
            nn.Parameter(torch.zeros(config.latent_token_width)) if config.latent_mask else None
        )

    def encode(
        self, log_x: Float[Tensor, "cell gene"], codes: Int64[Tensor, "cell field"]
    ) -> Posterior:
        """Law of the latent given log1p expression (SAVE eq. 3, 4).

        The variance is the exponential of the network's output, clamped to [-14, 6].
        """
        return self._encode(log_x.index_select(1, self.order) / self.scale, codes)

    def decode(
        self,
        z: Float[Tensor, "cell latent"],
        codes: Int64[Tensor, "cell field"],
        library: Float[Tensor, " cell"],
        hidden_tokens: Bool[Tensor, "cell token"] | None = None,
        logit_offset: Float[Tensor, " gene"] | Float[Tensor, "cell gene"] | None = None,
    ) -> Likelihood:
        """Law of the counts, genes in vocabulary order.

        Args:
            z: latents.
            codes: conditions; the decoder looks at its own columns alone.
            library: counts over the vocabulary's genes that each cell shall have.
            hidden_tokens: latent tokens to replace by the learned one.
            logit_offset: added to the gene logits.

        Raises:
            ConfigError: if tokens are hidden from a model trained without `latent_mask`.
        """
        logits = self._logits(z, codes, hidden_tokens).to(z.dtype)
        if logit_offset is not None:
            logits = logits + logit_offset.index_select(-1, self.order)
        if self.log_inverse_dispersion is None:
            logits = logits.index_select(1, self.inverse_order)
            return UnitInterval(logits, self.scale[self.inverse_order], library)
        log_rate = logits.log_softmax(1)
        mean = log_rate.exp() * library[:, None]
        theta = self._log_dispersion(log_rate).exp()
        return NegativeBinomial(
            mean.index_select(1, self.inverse_order), theta.index_select(1, self.inverse_order)
        )

    def forward(
        self,
        log_x: Float[Tensor, "cell gene"],
        counts: Float[Tensor, "cell gene"],
        codes: Int64[Tensor, "cell field"],
        masked_codes: Int64[Tensor, "cell field"],
        noise: Float[Tensor, "cell latent"],
        hidden_tokens: Bool[Tensor, "cell token"] | None = None,
    ) -> VaeLoss:
        """Negative log-likelihood and KL divergence of one draw of the latent.

        Args:
            log_x: log1p expression.
            counts: the same cells' counts.
            codes: conditions, for the encoder.
            masked_codes: conditions, for the decoder.
            noise: standard normals that make the draw.
            hidden_tokens: latent tokens hidden from the decoder.
        """
        x = log_x.index_select(1, self.order) / self.scale
        posterior = self._encode(x, codes)
        z = torch.addcmul(posterior.mean, posterior.var.sqrt(), noise)
        logits = self._logits(z, masked_codes, hidden_tokens).to(x.dtype)
        if self.log_inverse_dispersion is None:
            log_prob = UnitInterval(logits, self.scale, counts.sum(1)).log_prob(x).sum(1)
        else:
            # a cell without counts keeps a finite mean of about zero
            log_library = counts.sum(1, keepdim=True).clamp_min(1).log()
            log_rate = logits.log_softmax(1)
            log_prob = negative_binomial_log_prob(
                counts.index_select(1, self.order),
                log_rate + log_library,
                self._log_dispersion(log_rate),
            )
        return VaeLoss(-log_prob, posterior.kl())

    def _encode(
        self, x: Float[Tensor, "cell gene"], codes: Int64[Tensor, "cell field"]
    ) -> Posterior:
        e = None if self.encoder_condition is None else self.encoder_condition(codes)
        moments = self.encoder(x, e).to(x.dtype)
        mean, log_var = moments.chunk(2, dim=1)
        return Posterior(mean, log_var.clamp(*_LOG_VAR_RANGE).exp())

    def _logits(
        self,
        z: Float[Tensor, "cell latent"],
        codes: Int64[Tensor, "cell field"],
        hidden_tokens: Bool[Tensor, "cell token"] | None,
    ) -> Float[Tensor, "cell gene"]:
        """Gene logits in block order (SAVE eq. 6)."""
        if hidden_tokens is not None:
            z = self._hide(z, hidden_tokens)
        e = self.decoder_condition(codes)
        logits: Tensor = self.decoder(z, e) + self.bias
        return logits if self.skip is None else torch.addmm(logits, e, self.skip)

    def _log_dispersion(self, log_rate: Float[Tensor, "cell gene"]) -> Float[Tensor, "#cell gene"]:
        """Log inverse dispersion in block order: of each gene, or along its trend."""
        assert self.log_inverse_dispersion is not None, "counts are negative binomial"
        level = self.log_inverse_dispersion[None]
        if self.dispersion_trend is None:
            return level
        trend = torch.addcmul(level, log_rate - self.log_fraction, self.dispersion_trend)
        return trend.clamp(*_LOG_DISPERSION_RANGE)

    def _hide(
        self, z: Float[Tensor, "cell latent"], hidden_tokens: Bool[Tensor, "cell token"]
    ) -> Float[Tensor, "cell latent"]:
        if self.hidden_token is None:
            raise ConfigError(
                "latent tokens cannot be hidden from a model with vae.latent_mask=null; "
                "train one with vae.latent_mask, e.g. [0.2, 0.4]"
            )
        tokens = z.view(*hidden_tokens.shape, -1)
        return torch.where(hidden_tokens[:, :, None], self.hidden_token, tokens).flatten(1)

    def _start_of_logits(
        self, fraction: Float[Tensor, " gene"], scale: Float[Tensor, " gene"]
    ) -> Float[Tensor, " gene"]:
        """Logits under which every cell looks like the average of the training cells."""
        fraction = _floored(fraction)
        if self.config.likelihood == "nb":
            return fraction.log()
        expression = torch.log1p(fraction * COUNTS_PER_CELL) / scale
        return torch.logit(expression, eps=1e-3)


def _floored(fraction: Float[Tensor, " gene"]) -> Float[Tensor, " gene"]:
    """Genes without a count take the share of the rarest one."""
    rarest = fraction[fraction > 0].min() if bool((fraction > 0).any()) else 1.0
    return fraction.clamp_min(rarest)


def _backbone(shape: VaeShape, config: VaeConfig) -> tuple[nn.Module, nn.Module]:
    if config.backbone == "mlp":
        return DenseEncoder(shape.n_genes, config), DenseDecoder(shape.n_genes, config)
    n_blocks, block_genes = shape.members.shape
    return (
        AttentionEncoder(n_blocks, block_genes, shape.n_genes, config),
        AttentionDecoder(n_blocks, block_genes, shape.n_genes, config),
    )
