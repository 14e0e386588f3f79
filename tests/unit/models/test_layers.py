import pytest
import torch
from torch import nn
from torch.nn import functional

from save_dist.models.layers import AdaptiveBlock, Block, Modulation, SelfAttention, adaptive_norm

WIDTH, HEADS = 8, 2


def tokens(n_tokens, dtype=torch.float64):
    return torch.randn(3, n_tokens, WIDTH, dtype=dtype)


def modulations(*, scale=1.0, shift=0.0, gate=1.0):
    parts = torch.tensor([scale, shift, gate] * 2, dtype=torch.float64)
    return parts[:, None, None].expand(6, 3, WIDTH)


@pytest.mark.parametrize("n_tokens", [1, 5, 15, 16, 17, 32, 33])
def test_attention_equals_torchs_own(n_tokens):
    ours = SelfAttention(WIDTH, HEADS).double()
    torchs = nn.MultiheadAttention(WIDTH, HEADS, batch_first=True).double()
    with torch.no_grad():
        torchs.in_proj_weight.copy_(ours.qkv.weight)
        torchs.in_proj_bias.copy_(ours.qkv.bias)
        torchs.out_proj.weight.copy_(ours.out.weight)
        torchs.out_proj.bias.copy_(ours.out.bias)
    h = tokens(n_tokens)
    torch.testing.assert_close(ours(h), torchs(h, h, h, need_weights=False)[0])


@pytest.mark.parametrize("n_tokens", [6, 40])
def test_attention_gradients_match_torchs_kernel(n_tokens):
    attention = SelfAttention(WIDTH, HEADS).double()
    h = tokens(n_tokens).requires_grad_()
    (ours,) = torch.autograd.grad(attention(h).square().sum(), h)
    q, k, v = attention.qkv(h).view(3, n_tokens, 3, HEADS, -1).permute(2, 0, 3, 1, 4)
    mixed = functional.scaled_dot_product_attention(q, k, v)
    out = attention.out(mixed.transpose(1, 2).flatten(2))
    torch.testing.assert_close(ours, torch.autograd.grad(out.square().sum(), h)[0])


def test_block_equals_torchs_encoder_layer():
    block = Block(WIDTH, HEADS).double()
    torchs = nn.TransformerEncoderLayer(
        WIDTH, HEADS, 4 * WIDTH, 0.0, "gelu", norm_first=True, batch_first=True
    ).double()
    pairs = {
        "self_attn.in_proj_weight": block.attention.qkv.weight,
        "self_attn.in_proj_bias": block.attention.qkv.bias,
        "self_attn.out_proj.weight": block.attention.out.weight,
        "self_attn.out_proj.bias": block.attention.out.bias,
        "linear1.weight": block.feed_forward[0].weight,
        "linear1.bias": block.feed_forward[0].bias,
        "linear2.weight": block.feed_forward[2].weight,
        "linear2.bias": block.feed_forward[2].bias,
    }
    norms = {f"norm{i}.{p}": t for i in (1, 2) for p, t in (("weight", torch.ones(WIDTH)),)}
    norms |= {f"norm{i}.bias": torch.zeros(WIDTH) for i in (1, 2)}
    torchs.load_state_dict(pairs | norms)
    h = tokens(5)
    torch.testing.assert_close(block(h), torchs(h))


@pytest.mark.parametrize("kind", [Block, AdaptiveBlock])
def test_blocks_do_not_care_about_token_order(kind):
    block = kind(WIDTH, HEADS).double()
    extra = () if kind is Block else (torch.randn(6, 3, WIDTH, dtype=torch.float64),)
    h, order = tokens(7), torch.randperm(7)
    torch.testing.assert_close(block(h[:, order], *extra), block(h, *extra)[:, order])


def test_adaptive_block_without_modulation_is_the_plain_block():
    adaptive, plain = AdaptiveBlock(WIDTH, HEADS).double(), Block(WIDTH, HEADS).double()
    plain.load_state_dict(adaptive.state_dict(), strict=False)
    h = tokens(5)
    torch.testing.assert_close(adaptive(h, modulations()), plain(h))


def test_closed_gates_make_an_adaptive_block_the_identity():
    h = tokens(5)
    assert torch.equal(AdaptiveBlock(WIDTH, HEADS).double()(h, modulations(gate=0.0)), h)


def test_adaptive_block_is_eq_2():
    block, h = AdaptiveBlock(WIDTH, HEADS).double(), tokens(5)
    scale_1, shift_1, gate_1, scale_2, shift_2, gate_2 = torch.randn(6, 3, 1, WIDTH).double()
    modulation = torch.stack([scale_1, shift_1, gate_1, scale_2, shift_2, gate_2])[:, :, 0]
    normed = functional.layer_norm(h, (WIDTH,)) * scale_1 + shift_1
    middle = h + gate_1 * block.attention(normed)
    normed = functional.layer_norm(middle, (WIDTH,)) * scale_2 + shift_2
    expected = middle + gate_2 * block.feed_forward(normed)
    torch.testing.assert_close(block(h, modulation), expected)


@pytest.mark.parametrize("n_kept", [1, 4, 7])
def test_tokens_kept_are_those_of_the_whole_block(n_kept):
    block = AdaptiveBlock(WIDTH, HEADS).double()
    h, modulation = tokens(7), torch.randn(6, 3, WIDTH, dtype=torch.float64)
    kept = block(h, modulation, n_kept)
    torch.testing.assert_close(kept, block(h, modulation)[:, :n_kept])


def test_cells_do_not_see_each_other():
    block = AdaptiveBlock(WIDTH, HEADS).double()
    h, modulation = tokens(4), torch.randn(6, 3, WIDTH, dtype=torch.float64)
    alone = block(h[1:2], modulation[:, 1:2])
    torch.testing.assert_close(alone, block(h, modulation)[1:2])


def test_adaptive_norm_is_norm_then_scale_then_shift():
    h = tokens(4)
    out = adaptive_norm(h, torch.tensor([2.0] * WIDTH).double(), torch.tensor([3.0] * WIDTH))
    torch.testing.assert_close(out, 2 * functional.layer_norm(h, (WIDTH,)) + 3)


@pytest.mark.parametrize(("gate", "n_branches"), [(1.0, 2), (0.0, 1)])
def test_modulation_starts_neutral_whatever_the_condition(gate, n_branches):
    modulation = Modulation(4, WIDTH, 3, gate=gate, n_branches=n_branches)
    out = modulation(torch.randn(5, 4))
    assert out.shape == (3, 3 * n_branches, 5, WIDTH)
    expected = torch.tensor([1.0, 0.0, gate] * n_branches)
    assert torch.equal(out, expected[None, :, None, None].expand_as(out))


def test_modulation_gives_each_cell_its_own():
    modulation = Modulation(4, WIDTH, 2, gate=1.0)
    nn.init.normal_(modulation.linear.weight)
    e = torch.randn(5, 4)
    torch.testing.assert_close(modulation(e)[:, :, 2], modulation(e[2:3])[:, :, 0])


def test_gradients_of_an_adaptive_block_are_right():
    block = AdaptiveBlock(4, 2).double()
    h = torch.randn(2, 3, 4, dtype=torch.float64, requires_grad=True)
    modulation = torch.randn(6, 2, 4, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda a, b: block(a, b, 2), (h, modulation))
