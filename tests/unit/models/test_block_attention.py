import pytest
import torch
from torch import nn

from save_dist.config.schema import VaeConfig
from save_dist.core.errors import ConfigError
from save_dist.models.attention import block_attention
from save_dist.models.layers import SelfAttention
from save_dist.models.vae import Vae, VaeShape

MEMBERS = torch.tensor([[7, 1, 4, 0], [2, 9, 5, 3], [8, 6, -1, -1]])
SMALL = {"width": 8, "depth": 2, "n_heads": 2, "latent_dim": 8, "latent_token_width": 4}


def make_vae(**settings):
    config = VaeConfig(**(SMALL | {"condition_width": 6} | settings))
    shape = VaeShape(MEMBERS, 10, (3, 2), ("type", "stimulus"))
    vae = Vae(shape, config, torch.ones(10), torch.full((10,), 0.1)).eval()
    with torch.no_grad():
        for parameter in vae.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    return vae


def test_weights_are_those_of_attention():
    layer, h = SelfAttention(8, 2), torch.randn(3, 5, 8)
    weights = layer.weights(h, 4)
    assert weights.shape == (3, 4, 5)
    torch.testing.assert_close(weights.sum(2), torch.ones(3, 4))
    torch_layer = nn.MultiheadAttention(8, 2, batch_first=True)
    with torch.no_grad():
        torch_layer.in_proj_weight.copy_(layer.qkv.weight)
        torch_layer.in_proj_bias.copy_(layer.qkv.bias)
        _, expected = torch_layer(h, h, h)
    torch.testing.assert_close(weights, expected[:, :4])


@pytest.mark.parametrize(
    "columns", [[], ["stimulus"]], ids=["plain encoder", "conditioned encoder"]
)
def test_shares_of_each_cell_sum_to_one_and_leave_the_model_as_it_was(columns):
    vae = make_vae(encoder_columns=columns)
    log_x, codes = torch.rand(4, 10), torch.tensor([[0, 0], [1, 0], [2, 1], [0, 1]])
    before = vae.encode(log_x, codes).mean
    found = block_attention(vae, log_x, codes)
    for shares in found:
        assert shares.shape == (4, 3)
        torch.testing.assert_close(shares.sum(1), torch.ones(4))
    torch.testing.assert_close(vae.encode(log_x, codes).mean, before)
    assert not any(m._forward_pre_hooks for m in vae.modules())


def test_the_decoder_s_attention_depends_on_the_condition():
    vae, log_x = make_vae(encoder_columns=[]), torch.rand(1, 10).repeat(2, 1)
    found = block_attention(vae, log_x, torch.tensor([[0, 0], [0, 1]]))
    torch.testing.assert_close(found.encoder[0], found.encoder[1])
    assert (found.decoder[0] - found.decoder[1]).abs().max() > 1e-3


def test_dense_layers_have_no_attention():
    with pytest.raises(ConfigError, match=r"vae\.backbone='mlp' has no attention"):
        block_attention(make_vae(backbone="mlp"), torch.rand(1, 10), torch.zeros(1, 2).long())
