"""The velocity network of the flow: where a latent moves at time t under a condition (SAVE 3.4).

Legend: N cells, D latent (library size included), T tokens, M width, E embedding.
"""

import math
from collections.abc import Sequence

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn
from torch.nn import functional

from save_dist.config.schema import FlowConfig, VelocityConfig
from save_dist.models.conditioning import AdditiveMean, ConditionEmbedding
from save_dist.models.layers import AdaptiveBlock, Modulation, adaptive_norm

_FLOW_GATE = 0.0  # every block starts as the identity
_SMALL = 0.02
_N_FREQUENCIES = 32
_FASTEST = 100.0  # periods per unit of time of the fastest time feature


class Velocity(nn.Module):
    """v(x, t, condition). It is zero at the start of training.

    Centred, it is m + v(x - t m, t, condition) with an additive mean m of the condition, and what
    the network learns is the residual of the data: with x_1 = m + r the straight path is
    x_t = r_t + t m, its velocity m + (r - x_0). Seen from outside it is a velocity of x as any
    other, so solvers and guidance need not know; every condition that it is told, masked columns
    and the null condition too, brings its own m.

    Args:
        dim: length of x.
        sizes: categories per condition column.
        config: backbone and widths.
        is_centred: whether it has an additive mean; zero until it is set.
    """

    def __init__(
        self,
        dim: int,
        sizes: Sequence[int],
        config: VelocityConfig,
        *,
        is_centred: bool = False,
    ) -> None:
        super().__init__()
        self.dim, self.sizes, self.config = dim, tuple(sizes), config
        self.condition = ConditionEmbedding(sizes, config.condition_width)
        self.time = TimeEmbedding(config.condition_width)
        backbone = TokenBackbone if config.backbone == "attention" else DenseBackbone
        self.backbone = backbone(dim, config)
        self.centre = AdditiveMean(sizes, dim) if is_centred else None

    def forward(
        self,
        x: Float[Tensor, "cell latent"],
        t: Float[Tensor, " cell"],
        codes: Int64[Tensor, "cell field"],
    ) -> Float[Tensor, "cell latent"]:
        """Velocity of every cell at its own time."""
        if self.centre is None:
            return self._learnt(x, t, codes)
        m_ND: Tensor = self.centre(codes)
        return m_ND + self._learnt(x - t[:, None] * m_ND, t, codes)

    def _learnt(
        self,
        x: Float[Tensor, "cell latent"],
        t: Float[Tensor, " cell"],
        codes: Int64[Tensor, "cell field"],
    ) -> Float[Tensor, "cell latent"]:
        e = functional.silu(self.condition(codes) + self.time(t))
        v: Tensor = self.backbone(x, e)
        return v.to(x.dtype)


def make_flow_velocity(latent_dim: int, sizes: Sequence[int], config: FlowConfig) -> Velocity:
    """A fresh network of the flow, over z and library size."""
    is_centred = config.centre == "additive"
    return Velocity(latent_dim + 1, sizes, config, is_centred=is_centred)


class TimeEmbedding(nn.Module):
    """Times in [0, 1] as vectors: waves of geometrically spaced frequency, then two layers."""

    frequencies: Tensor

    def __init__(self, width: int) -> None:
        super().__init__()
        frequencies = math.pi * torch.logspace(0, math.log10(2 * _FASTEST), _N_FREQUENCIES)
        self.register_buffer("frequencies", frequencies, persistent=False)
        self.layers = nn.Sequential(
            nn.Linear(2 * _N_FREQUENCIES, width), nn.SiLU(), nn.Linear(width, width)
        )

    def forward(self, t: Float[Tensor, " cell"]) -> Float[Tensor, "cell width"]:
        """Embedding of each time."""
        phase = t[:, None] * self.frequencies
        e: Tensor = self.layers(torch.cat([phase.sin(), phase.cos()], dim=1))
        return e


class TokenBackbone(nn.Module):
    """Transformer over the latent cut into tokens; the last token is padded with zeros."""

    def __init__(self, dim: int, config: VelocityConfig) -> None:
        super().__init__()
        self.dim, self.token_width = dim, config.token_width
        n_tokens = math.ceil(dim / config.token_width)
        self.n_padding = n_tokens * config.token_width - dim
        self.projection = nn.Linear(config.token_width, config.width)
        self.token_embedding = nn.Parameter(_SMALL * torch.randn(n_tokens, config.width))
        self.blocks = nn.ModuleList(
            AdaptiveBlock(config.width, config.n_heads) for _ in range(config.depth)
        )
        self.modulation = Modulation(
            config.condition_width, config.width, config.depth, gate=_FLOW_GATE
        )
        self.norm = nn.LayerNorm(config.width)
        self.head = _zero_linear(config.width, config.token_width)

    def forward(
        self, x: Float[Tensor, "cell latent"], e: Float[Tensor, "cell embedding"]
    ) -> Float[Tensor, "cell latent"]:
        """Velocity of every cell."""
        tokens = functional.pad(x, (0, self.n_padding)).view(len(x), -1, self.token_width)
        h = self.projection(tokens) + self.token_embedding
        for block, modulation in zip(self.blocks, self.modulation(e), strict=True):
            h = block(h, modulation)
        v: Tensor = self.head(self.norm(h)).flatten(1)
        return v[:, : self.dim]


class DenseBackbone(nn.Module):
    """Residual perceptrons over the whole latent, steered as the transformer's."""

    def __init__(self, dim: int, config: VelocityConfig) -> None:
        super().__init__()
        self.projection = nn.Linear(dim, config.width)
        self.layers = nn.ModuleList(
            nn.Sequential(
                nn.Linear(config.width, 2 * config.width),
                nn.GELU(),
                nn.Linear(2 * config.width, config.width),
            )
            for _ in range(config.depth)
        )
        self.modulation = Modulation(
            config.condition_width, config.width, config.depth, gate=_FLOW_GATE, n_branches=1
        )
        self.norm = nn.LayerNorm(config.width)
        self.head = _zero_linear(config.width, dim)

    def forward(
        self, x: Float[Tensor, "cell latent"], e: Float[Tensor, "cell embedding"]
    ) -> Float[Tensor, "cell latent"]:
        """Velocity of every cell."""
        h = self.projection(x)
        for layer, (scale, shift, gate) in zip(self.layers, self.modulation(e), strict=True):
            h = torch.addcmul(h, gate, layer(adaptive_norm(h, scale, shift)))
        v: Tensor = self.head(self.norm(h))
        return v


def _zero_linear(n_in: int, n_out: int) -> nn.Linear:
    linear = nn.Linear(n_in, n_out)
    nn.init.zeros_(linear.weight)
    nn.init.zeros_(linear.bias)
    return linear
