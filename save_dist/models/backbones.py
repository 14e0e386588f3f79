"""Encoders and decoders of the VAE: gene-block attention, and dense layers for comparison.

Genes come and go in block order: the members of block 0, then those of block 1, and so on, G in all
(only the last block may be short). Legend: N cells, L blocks, K genes per block, G genes, M width,
D latent, E embedding, T latent tokens.
"""

import itertools

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

from save_dist.config.schema import VaeConfig
from save_dist.models.layers import AdaptiveBlock, Block, Modulation

_VAE_GATE = 1.0  # residual branches are open from the start
_SMALL = 0.02  # scale of learned tokens and of output matrices at the start


class AttentionEncoder(nn.Module):
    """Gene blocks as tokens through a transformer, flattened (SAVE eq. 1, 3, 4)."""

    def __init__(self, n_blocks: int, block_genes: int, n_genes: int, config: VaeConfig) -> None:
        super().__init__()
        self.n_padding = n_blocks * block_genes - n_genes
        self.n_blocks = n_blocks
        n_projections = n_blocks if config.block_projection == "per_block" else 1
        self.projection = nn.Parameter(torch.empty(n_projections, block_genes, config.width))
        nn.init.normal_(self.projection, std=block_genes**-0.5)
        self.block_embedding = nn.Parameter(_SMALL * torch.randn(n_blocks, config.width))
        kind = AdaptiveBlock if config.encoder_columns else Block
        self.blocks = nn.ModuleList(kind(config.width, config.n_heads) for _ in range(config.depth))
        self.modulation = (
            Modulation(config.condition_width, config.width, config.depth, gate=_VAE_GATE)
            if config.encoder_columns
            else None
        )
        self.norm = nn.LayerNorm(config.width)
        self.head = nn.Linear(n_blocks * config.width, 2 * config.latent_dim)

    def forward(
        self, x: Float[Tensor, "cell gene"], e: Float[Tensor, "cell embedding"] | None
    ) -> Float[Tensor, "cell moment"]:
        """Mean and log-variance of the latent, side by side."""
        x_NLK = functional.pad(x, (0, self.n_padding)).view(len(x), self.n_blocks, -1)
        projection_LKM = self.projection.expand(self.n_blocks, -1, -1)
        h = torch.bmm(x_NLK.transpose(0, 1), projection_LKM).transpose(0, 1) + self.block_embedding
        if self.modulation is None:
            for block in self.blocks:
                h = block(h)
        else:
            for block, modulation in zip(self.blocks, self.modulation(e), strict=True):
                h = block(h, modulation)
        moments: Tensor = self.head(self.norm(h).flatten(1))
        return moments


class AttentionDecoder(nn.Module):
    """One learned query per gene block beside the latent tokens in one transformer (SAVE eq. 6)."""

    def __init__(self, n_blocks: int, block_genes: int, n_genes: int, config: VaeConfig) -> None:
        super().__init__()
        self.n_genes, self.n_blocks = n_genes, n_blocks
        self.token_width = config.latent_token_width
        n_tokens = config.latent_dim // self.token_width
        self.projection = nn.Linear(self.token_width, config.width)
        self.token_embedding = nn.Parameter(_SMALL * torch.randn(n_tokens, config.width))
        self.queries = nn.Parameter(_SMALL * torch.randn(n_blocks, config.width))
        self.blocks = nn.ModuleList(
            AdaptiveBlock(config.width, config.n_heads) for _ in range(config.depth)
        )
        self.modulation = Modulation(
            config.condition_width, config.width, config.depth, gate=_VAE_GATE
        )
        self.norm = nn.LayerNorm(config.width)
        self.output = nn.Parameter(_SMALL * torch.randn(n_blocks, config.width, block_genes))

    def forward(
        self, z: Float[Tensor, "cell latent"], e: Float[Tensor, "cell embedding"]
    ) -> Float[Tensor, "cell gene"]:
        """Gene logits, without bias."""
        tokens = self.projection(z.view(len(z), -1, self.token_width)) + self.token_embedding
        h = torch.cat([self.queries.expand(len(z), -1, -1), tokens], dim=1)
        last = len(self.blocks) - 1
        for i, modulation in enumerate(self.modulation(e)):
            h = self.blocks[i](h, modulation, self.n_blocks if i == last else None)
        logits_LNK = torch.bmm(self.norm(h).transpose(0, 1), self.output)
        return logits_LNK.transpose(0, 1).flatten(1)[:, : self.n_genes]


class DenseEncoder(nn.Module):
    """Two dense layers over all genes at once."""

    def __init__(self, n_genes: int, config: VaeConfig) -> None:
        super().__init__()
        self.layers = _DenseLayers(n_genes, config, conditioned=bool(config.encoder_columns))
        self.head = nn.Linear(2 * config.width, 2 * config.latent_dim)

    def forward(
        self, x: Float[Tensor, "cell gene"], e: Float[Tensor, "cell embedding"] | None
    ) -> Float[Tensor, "cell moment"]:
        """Mean and log-variance of the latent, side by side."""
        moments: Tensor = self.head(self.layers(x, e))
        return moments


class DenseDecoder(nn.Module):
    """Two dense layers and one output layer."""

    def __init__(self, n_genes: int, config: VaeConfig) -> None:
        super().__init__()
        self.layers = _DenseLayers(config.latent_dim, config, conditioned=True)
        self.output = nn.Linear(2 * config.width, n_genes, bias=False)
        nn.init.normal_(self.output.weight, std=_SMALL)

    def forward(
        self, z: Float[Tensor, "cell latent"], e: Float[Tensor, "cell embedding"]
    ) -> Float[Tensor, "cell gene"]:
        """Gene logits, without bias."""
        logits: Tensor = self.output(self.layers(z, e))
        return logits


class _DenseLayers(nn.Module):
    """Two layers of width 2M; the condition enters both of them."""

    def __init__(self, n_inputs: int, config: VaeConfig, *, conditioned: bool) -> None:
        super().__init__()
        widths = [n_inputs, 2 * config.width, 2 * config.width]
        pairs = list(itertools.pairwise(widths))
        self.linears = nn.ModuleList(nn.Linear(a, b) for a, b in pairs)
        self.norms = nn.ModuleList(nn.LayerNorm(b) for _, b in pairs)
        self.conditions = nn.ModuleList(
            nn.Linear(config.condition_width, b, bias=False) for _, b in pairs if conditioned
        )

    def forward(
        self, h: Float[Tensor, "cell feature"], e: Float[Tensor, "cell embedding"] | None
    ) -> Float[Tensor, "cell hidden"]:
        for i, (linear, norm) in enumerate(zip(self.linears, self.norms, strict=True)):
            h = linear(h)
            if self.conditions and e is not None:
                h = h + self.conditions[i](e)
            h = functional.gelu(norm(h))
        return h
