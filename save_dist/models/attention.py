"""Which gene blocks the attention of a VAE goes to, cell by cell (SAVE appendix C).

The paper reads the last layer of a transformer whose tokens are gene blocks. Here these are the
encoder, where a block brings the expression of its genes, and the decoder, where it asks for it and
the condition steers by AdaLN. Legend: N cells, L blocks, K kept tokens, T tokens.
"""

from typing import Any, NamedTuple

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn

from save_dist.core.errors import ConfigError
from save_dist.models.backbones import AttentionDecoder, AttentionEncoder
from save_dist.models.layers import SelfAttention
from save_dist.models.vae import Vae


class BlockAttention(NamedTuple):
    """Share of the attention that each block gets; every row sums to 1."""

    encoder: Float[Tensor, "cell gene_block"]
    decoder: Float[Tensor, "cell gene_block"]


def has_block_attention(vae: Vae) -> bool:
    """Whether its networks attend to gene blocks; dense ones do not."""
    return isinstance(vae.encoder, AttentionEncoder) and isinstance(vae.decoder, AttentionDecoder)


def block_attention(
    vae: Vae, log_x: Float[Tensor, "cell gene"], codes: Int64[Tensor, "cell field"]
) -> BlockAttention:
    """Attention in the last layer of encoder and decoder, averaged over heads and asking blocks.

    Args:
        vae: a model whose backbone is attention.
        log_x: log1p expression.
        codes: conditions.

    Raises:
        ConfigError: if the VAE has dense layers.
    """
    if not has_block_attention(vae):
        raise ConfigError(
            f"vae.backbone={vae.config.backbone!r} has no attention to look at; train a model "
            "with vae.backbone: attention"
        )
    n_blocks = len(vae.shape.members)
    with torch.inference_mode():
        with _Watch(vae.encoder) as encoder:
            posterior = vae.encode(log_x, codes)
        with _Watch(vae.decoder) as decoder:
            vae.decode(posterior.mean, codes, torch.ones(len(log_x), device=log_x.device))
        return BlockAttention(*(_received(w.weights, n_blocks) for w in (encoder, decoder)))


class _Watch:
    """Keeps the weights of the last attention layer of a network while it runs."""

    weights: Float[Tensor, "cell kept token"]

    def __init__(self, network: nn.Module) -> None:
        layers = [m for m in network.modules() if isinstance(m, SelfAttention)]
        self._last = layers[-1]

    def __enter__(self) -> "_Watch":
        self._hook = self._last.register_forward_pre_hook(self._look)
        return self

    def __exit__(self, *_: object) -> None:
        self._hook.remove()

    def _look(self, layer: nn.Module, arguments: tuple[Any, ...]) -> None:
        assert isinstance(layer, SelfAttention), "the hook hangs on one"
        self.weights = layer.weights(*arguments)


def _received(
    weights: Float[Tensor, "cell kept token"], n_blocks: int
) -> Float[Tensor, "cell gene_block"]:
    """What each block gets of the attention that blocks pay to blocks."""
    among = weights[:, :n_blocks, :n_blocks].mean(dim=1)
    return among / among.sum(dim=1, keepdim=True)
