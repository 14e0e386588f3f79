import dataclasses
from typing import NamedTuple

import pytest
import torch
from torch import Tensor

from save_dist.config.schema import VaeConfig
from save_dist.core.errors import ConfigError, VocabMismatchError
from save_dist.models.likelihoods import NegativeBinomial, UnitInterval
from save_dist.models.vae import Posterior, Vae, VaeShape

COLUMNS, SIZES = ("type", "stimulus"), (3, 2)
N_GENES, N_CELLS, LATENT = 10, 7, 8
BACKBONES = ("attention", "mlp")
MEMBERS = torch.tensor([[7, 1, 4, 0], [2, 9, 5, 3], [8, 6, -1, -1]])


class Cells(NamedTuple):
    """Arguments of `Vae.forward`."""

    log_x: Tensor
    counts: Tensor
    codes: Tensor
    masked_codes: Tensor
    noise: Tensor


def make_cells(dtype=torch.float32, n_cells=N_CELLS):
    generator = torch.Generator().manual_seed(5)
    mean = torch.rand(n_cells, N_GENES, generator=generator) * torch.arange(1, N_GENES + 1)
    counts = torch.poisson(mean, generator=generator).to(dtype)
    log_x = torch.log1p(counts / counts.sum(1, keepdim=True) * 1e4)
    codes = torch.stack([torch.randint(0, n, (n_cells,), generator=generator) for n in SIZES], 1)
    masked = torch.where(torch.arange(n_cells)[:, None] % 3 == 0, torch.tensor(SIZES), codes)
    noise = torch.randn(n_cells, LATENT, generator=generator, dtype=dtype)
    return Cells(log_x, counts, codes, masked, noise)


def make_vae(*, members=MEMBERS, dtype=torch.float32, shake=0.3, **settings):
    """A small VAE; `shake` moves all weights away from their neutral start."""
    small = {"width": 8, "depth": 2, "n_heads": 2, "latent_dim": LATENT, "latent_token_width": 4}
    config = VaeConfig(**(small | {"condition_width": 6} | settings))
    scale = torch.linspace(5.0, 9.0, N_GENES)
    fraction = torch.arange(1, N_GENES + 1) / torch.arange(1, N_GENES + 1).sum()
    vae = Vae(VaeShape(members, N_GENES, SIZES, COLUMNS), config, scale, fraction)
    with torch.no_grad():
        for parameter in vae.parameters():
            parameter.add_(shake * torch.randn_like(parameter))
    return vae.to(dtype)


def total(loss):
    return loss.reconstruction + loss.kl


# ---------------------------------------------------------------- shape and start


@pytest.mark.parametrize(
    "members",
    [
        pytest.param([[0, 1], [2, 2], [4, -1]], id="gene twice"),
        pytest.param([[0, 1], [2, -1], [3, 4]], id="padding inside"),
        pytest.param([[0, 1], [2, 3]], id="gene missing"),
        pytest.param([[0, 1], [2, 3], [4, 5]], id="gene too many"),
    ],
)
def test_blocks_must_hold_every_gene_once(members):
    shape = VaeShape(torch.tensor(members), 5, (2,), ("type",))
    with pytest.raises(VocabMismatchError, match="5 genes once with -1 at the very end"):
        shape.block_order()


@pytest.mark.parametrize("setting", ["encoder_columns", "decoder_columns"])
def test_unknown_columns_are_named_with_the_known_ones(setting):
    with pytest.raises(ConfigError, match=r"\['dose'\].*known: \['type', 'stimulus'\]"):
        make_vae(**{setting: ["type", "dose"]})


@pytest.mark.parametrize("backbone", BACKBONES)
def test_decoding_starts_near_the_average_cell(backbone):
    vae, cells = make_vae(backbone=backbone, shake=0.0), make_cells()
    px = vae.decode(cells.noise, cells.codes, torch.ones(N_CELLS))
    fraction = torch.arange(1, N_GENES + 1) / torch.arange(1, N_GENES + 1).sum()
    torch.testing.assert_close(px.mean, fraction.expand(N_CELLS, -1), rtol=0.25, atol=0)
    marginal = NegativeBinomial(
        fraction * cells.counts.sum(1, keepdim=True), torch.ones(1, N_GENES)
    )
    first = vae(*cells).reconstruction.mean().item()
    expected = -marginal.log_prob(cells.counts).sum(1).mean().item()
    assert first == pytest.approx(expected, rel=0.01)


def test_genes_never_counted_start_as_the_rarest_one():
    fraction = torch.tensor([0.0, 0.2, 0.8])
    shape = VaeShape(torch.tensor([[0, 1, 2]]), 3, SIZES, COLUMNS)
    vae = Vae(shape, VaeConfig(), torch.ones(3), fraction)
    torch.testing.assert_close(vae.bias.data, torch.tensor([0.2, 0.2, 0.8]).log())


def test_condition_does_not_matter_at_the_start():
    vae, cells = make_vae(shake=0.0), make_cells()
    a, b = (
        vae.decode(cells.noise, c, torch.ones(N_CELLS)).mean
        for c in (cells.codes, cells.codes.flip(0))
    )
    assert torch.equal(a, b)


# ---------------------------------------------------------------- encoding


def test_kl_equals_torchs():
    generator = torch.Generator().manual_seed(1)
    mean = torch.randn(5, 3, generator=generator)
    var = torch.rand(5, 3, generator=generator) * 4
    normal = torch.distributions.Normal
    expected = torch.distributions.kl_divergence(normal(mean, var.sqrt()), normal(0.0, 1.0)).sum(1)
    torch.testing.assert_close(Posterior(mean, var).kl(), expected)


@pytest.mark.parametrize("backbone", BACKBONES)
@pytest.mark.parametrize("push", [-1e4, 1e4])
def test_variance_is_positive_and_finite_whatever_the_weights(backbone, push):
    vae, cells = make_vae(backbone=backbone), make_cells()
    with torch.no_grad():
        vae.encoder.head.bias[LATENT:] = push
    posterior = vae.encode(cells.log_x, cells.codes)
    assert bool((posterior.var > 0).all())
    assert bool(torch.isfinite(posterior.kl()).all())


@pytest.mark.parametrize("backbone", BACKBONES)
@pytest.mark.parametrize(
    ("columns", "sees"),
    [
        pytest.param([], (False, False), id="none"),
        pytest.param(["stimulus"], (False, True), id="one"),
        pytest.param(["stimulus", "type"], (True, True), id="both"),
    ],
)
def test_encoder_sees_its_columns_alone(backbone, columns, sees):
    vae, cells = make_vae(backbone=backbone, encoder_columns=columns), make_cells()
    before = vae.encode(cells.log_x, cells.codes).mean
    for column, is_seen in enumerate(sees):
        changed = cells.codes.clone()
        changed[:, column] = SIZES[column]
        after = vae.encode(cells.log_x, changed).mean
        assert torch.equal(before, after) == (not is_seen)


# ---------------------------------------------------------------- decoding


@pytest.mark.parametrize("backbone", BACKBONES)
@pytest.mark.parametrize(
    ("columns", "sees"),
    [
        pytest.param(None, (True, True), id="all"),
        pytest.param(["stimulus"], (False, True), id="one"),
        pytest.param([], (False, False), id="none"),
    ],
)
@pytest.mark.parametrize("linear_skip", [True, False])
def test_decoder_sees_its_columns_alone(backbone, columns, sees, linear_skip):
    vae = make_vae(backbone=backbone, decoder_columns=columns, linear_skip=linear_skip)
    cells, library = make_cells(), torch.ones(N_CELLS)
    before = vae.decode(cells.noise, cells.codes, library).mean
    for column, is_seen in enumerate(sees):
        changed = cells.codes.clone()
        changed[:, column] = SIZES[column]
        after = vae.decode(cells.noise, changed, library).mean
        assert torch.equal(before, after) == (not is_seen)


def test_mean_adds_up_to_the_library():
    vae, cells = make_vae(), make_cells()
    library = torch.linspace(100, 5000, N_CELLS)
    px = vae.decode(cells.noise, cells.codes, library)
    torch.testing.assert_close(px.mean.sum(1), library)


def test_logit_offset_multiplies_the_mean_before_it_is_normalised():
    vae, cells = make_vae(), make_cells()
    library, offset = torch.full((N_CELLS,), 100.0), torch.randn(N_GENES)
    plain = vae.decode(cells.noise, cells.codes, library).mean
    for shape in (offset, offset.expand(N_CELLS, -1)):
        shifted = vae.decode(cells.noise, cells.codes, library, logit_offset=shape).mean
        expected = plain * offset.exp()
        torch.testing.assert_close(shifted, 100 * expected / expected.sum(1, keepdim=True))


@pytest.mark.parametrize("backbone", BACKBONES)
def test_linear_skip_adds_the_condition_to_the_logits(backbone):
    vae, cells = make_vae(backbone=backbone), make_cells()
    library = torch.ones(N_CELLS)
    with_skip = vae.decode(cells.noise, cells.codes, library).mean.log()
    effect = (vae.decoder_condition(cells.codes) @ vae.skip)[:, vae.inverse_order]
    vae.skip.data.zero_()
    without = vae.decode(cells.noise, cells.codes, library).mean.log()
    torch.testing.assert_close(with_skip, (without + effect).log_softmax(1))


@pytest.mark.parametrize("backbone", BACKBONES)
def test_latent_tokens_have_their_places(backbone):
    vae, cells = make_vae(backbone=backbone), make_cells()
    swapped = torch.cat([cells.noise[:, 4:], cells.noise[:, :4]], dim=1)
    a, b = (vae.decode(z, cells.codes, torch.ones(N_CELLS)).mean for z in (cells.noise, swapped))
    assert not torch.allclose(a, b, rtol=1e-3)


@pytest.mark.parametrize("backbone", BACKBONES)
def test_hidden_tokens_keep_their_latents_from_the_decoder(backbone):
    vae, cells = make_vae(backbone=backbone, latent_mask=(0.2, 0.4)), make_cells()
    library = torch.ones(N_CELLS)
    hidden = torch.tensor([[True, False]]).expand(N_CELLS, -1)
    other = cells.noise.clone()
    other[:, :4] = 9.0
    a, b = (vae.decode(z, cells.codes, library, hidden).mean for z in (cells.noise, other))
    assert torch.equal(a, b)
    shown = vae.decode(cells.noise, cells.codes, library, ~hidden).mean
    assert not torch.allclose(a, shown)
    nothing_hidden = vae.decode(cells.noise, cells.codes, library, torch.zeros_like(hidden)).mean
    assert torch.equal(nothing_hidden, vae.decode(cells.noise, cells.codes, library).mean)


def test_tokens_cannot_be_hidden_from_a_model_trained_without():
    vae, cells = make_vae(), make_cells()
    with pytest.raises(ConfigError, match=r"vae\.latent_mask=null; train one with"):
        vae(*cells, torch.zeros(N_CELLS, 2, dtype=torch.bool))


# ---------------------------------------------------------------- gene order and padding


@pytest.mark.parametrize("projection", ["shared", "per_block"])
def test_padding_contributes_to_nothing(projection):
    vae, cells = make_vae(block_projection=projection), make_cells()
    loss = total(vae(*cells))
    decoded = vae.decode(cells.noise, cells.codes, torch.ones(N_CELLS)).mean
    loss.sum().backward()
    assert float(vae.decoder.output.grad[2, :, 2:].abs().max()) == 0
    if projection == "per_block":
        assert float(vae.encoder.projection.grad[2, 2:].abs().max()) == 0
    with torch.no_grad():  # poison every weight that belongs to padding
        vae.decoder.output[2, :, 2:] = 1e20
        if projection == "per_block":
            vae.encoder.projection[2, 2:] = 1e20
    assert torch.equal(total(vae(*cells)), loss)
    after = vae.decode(cells.noise, cells.codes, torch.ones(N_CELLS)).mean
    assert torch.equal(after, decoded)


@pytest.mark.parametrize("likelihood", ["nb", "unit_interval"])
@pytest.mark.parametrize("backbone", BACKBONES)
def test_the_order_of_the_vocabulary_does_not_matter(backbone, likelihood):
    """Genes renumbered in data and blocks alike: the same losses, the same means renumbered."""
    vae, cells = make_vae(backbone=backbone, likelihood=likelihood), make_cells()
    new_from_old = torch.randperm(N_GENES)
    members = torch.where(MEMBERS < 0, -1, new_from_old[MEMBERS])
    other = make_vae(backbone=backbone, likelihood=likelihood, members=members)
    weights = {k: v for k, v in vae.state_dict().items() if "order" not in k}
    other.load_state_dict(other.state_dict() | weights)
    old_from_new = new_from_old.argsort()
    moved = cells._replace(log_x=cells.log_x[:, old_from_new], counts=cells.counts[:, old_from_new])
    torch.testing.assert_close(other(*moved), vae(*cells))
    library = torch.full((N_CELLS,), 50.0)
    ours, theirs = (m.decode(cells.noise, cells.codes, library) for m in (vae, other))
    torch.testing.assert_close(theirs.mean, ours.mean[:, old_from_new])
    torch.testing.assert_close(theirs.inverse_dispersion, ours.inverse_dispersion[:, old_from_new])


def test_the_dispersion_of_a_gene_follows_its_expression_along_its_trend():
    vae, cells = make_vae(), make_cells()
    library = torch.full((N_CELLS,), 50.0)
    with torch.no_grad():
        vae.dispersion_trend[:] = torch.linspace(-0.5, 1.5, N_GENES)
    px = vae.decode(cells.noise, cells.codes, library)
    rate = px.mean / library[:, None]
    fraction = vae.log_fraction[vae.inverse_order].exp()
    trend, level = (
        x[vae.inverse_order] for x in (vae.dispersion_trend, vae.log_inverse_dispersion)
    )
    expected = level.exp() * (rate / fraction) ** trend
    torch.testing.assert_close(px.inverse_dispersion, expected)


def test_without_a_trend_all_cells_share_the_dispersions():
    vae, cells = make_vae(dispersion="gene"), make_cells()
    px = vae.decode(cells.noise, cells.codes, torch.full((N_CELLS,), 50.0))
    assert px.inverse_dispersion.shape == (1, N_GENES)
    assert "dispersion_trend" not in vae.state_dict()


def test_whole_blocks_may_change_places_with_their_weights():
    """Tokens have no order of their own: blocks 0 and 1 swapped with all that belongs to them."""
    vae, cells = make_vae(), make_cells()
    swap = torch.tensor([1, 0, 2])
    genes = torch.tensor([4, 5, 6, 7, 0, 1, 2, 3, 8, 9])
    other = make_vae(members=MEMBERS[swap])
    weights = vae.state_dict()
    for name in (
        "encoder.projection",
        "encoder.block_embedding",
        "decoder.queries",
        "decoder.output",
    ):
        weights[name] = weights[name][swap]
    for name in (
        "bias",
        "log_inverse_dispersion",
        "dispersion_trend",
        "log_fraction",
        "scale",
    ):
        weights[name] = weights[name][genes]
    weights["skip"] = weights["skip"][:, genes]
    head = weights["encoder.head.weight"].unflatten(1, (3, -1))
    weights["encoder.head.weight"] = head[:, swap].flatten(1)
    weights |= {k: v for k, v in other.state_dict().items() if "order" in k}
    other.load_state_dict(weights)
    torch.testing.assert_close(other(*cells), vae(*cells))


# ---------------------------------------------------------------- the loss


@pytest.mark.parametrize("backbone", BACKBONES)
def test_loss_is_made_of_encode_and_decode(backbone):
    vae, cells = make_vae(backbone=backbone, encoder_columns=["type"]), make_cells()
    loss = vae(*cells)
    posterior = vae.encode(cells.log_x, cells.codes)
    z = posterior.mean + posterior.var.sqrt() * cells.noise
    px = vae.decode(z, cells.masked_codes, cells.counts.sum(1))
    torch.testing.assert_close(loss.reconstruction, -px.log_prob(cells.counts).sum(1))
    torch.testing.assert_close(loss.kl, posterior.kl())


def test_unit_interval_loss_is_made_of_encode_and_decode():
    vae, cells = make_vae(likelihood="unit_interval"), make_cells()
    loss = vae(*cells)
    posterior = vae.encode(cells.log_x, cells.codes)
    z = posterior.mean + posterior.var.sqrt() * cells.noise
    px = vae.decode(z, cells.masked_codes, cells.counts.sum(1))
    assert isinstance(px, UnitInterval)
    scaled = cells.log_x / torch.linspace(5.0, 9.0, N_GENES)
    torch.testing.assert_close(loss.reconstruction, -px.log_prob(scaled).sum(1))


@pytest.mark.parametrize("likelihood", ["nb", "unit_interval"])
def test_a_cell_without_counts_has_a_finite_loss(likelihood):
    vae, cells = make_vae(likelihood=likelihood), make_cells()
    empty = torch.zeros(N_CELLS, N_GENES)
    loss = vae(*cells._replace(log_x=empty, counts=empty))
    total(loss).sum().backward()
    assert bool(torch.isfinite(total(loss)).all())
    assert all(bool(torch.isfinite(p.grad).all()) for p in vae.parameters())


@pytest.mark.parametrize(
    "settings",
    [
        pytest.param({}, id="default"),
        pytest.param({"backbone": "mlp"}, id="mlp"),
        pytest.param({"encoder_columns": ["type"], "decoder_columns": ["type"]}, id="columns"),
        pytest.param({"block_projection": "shared", "linear_skip": False}, id="paper"),
        pytest.param({"likelihood": "unit_interval"}, id="unit interval"),
        pytest.param({"latent_mask": (0.2, 0.4)}, id="latent mask"),
    ],
)
def test_every_parameter_takes_part_in_every_step(settings):
    """What gradient averaging over ranks relies on."""
    vae, cells = make_vae(**settings), make_cells()
    hidden = None
    if vae.config.latent_mask is not None:
        hidden = torch.tensor([[True, False]]).expand(N_CELLS, -1)
    total(vae(*cells, hidden)).sum().backward()
    idle = [n for n, p in vae.named_parameters() if p.grad is None or not p.grad.any()]
    assert idle == []


def test_cells_do_not_see_each_other():
    vae, cells = make_vae(), make_cells()
    alone = vae(*(x[2:3] for x in cells))
    together = vae(*cells)
    torch.testing.assert_close(alone.reconstruction, together.reconstruction[2:3])
    torch.testing.assert_close(alone.kl, together.kl[2:3])


@pytest.mark.parametrize("backbone", BACKBONES)
def test_gradients_are_right(backbone):
    vae = make_vae(backbone=backbone, dtype=torch.float64, depth=1, encoder_columns=["type"])
    cells = make_cells(torch.float64, n_cells=2)
    names = [n for n, p in vae.named_parameters() if p.numel() < 200]
    chosen = tuple(dict(vae.named_parameters())[n].detach().requires_grad_() for n in names)

    def loss(*values):
        out = torch.func.functional_call(vae, dict(zip(names, values, strict=True)), tuple(cells))
        return total(out)

    assert torch.autograd.gradcheck(loss, chosen, atol=1e-5, fast_mode=True)


def test_bf16_autocast_is_close_and_keeps_float32_losses():
    vae, cells = make_vae(shake=0.05), make_cells()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = vae(*cells)
    assert loss.reconstruction.dtype == loss.kl.dtype == torch.float32
    torch.testing.assert_close(total(loss), total(vae(*cells)), rtol=0.03, atol=0.1)


def test_weights_carry_everything_that_was_fitted():
    vae, cells = make_vae(), make_cells()
    ones = torch.ones(N_GENES)
    other = Vae(VaeShape(MEMBERS, N_GENES, SIZES, COLUMNS), vae.config, ones, ones)
    other.load_state_dict(vae.state_dict())
    assert torch.equal(total(other(*cells)), total(vae(*cells)))


@pytest.mark.parametrize(
    ("backbone", "first", "last"),
    [("attention", 23.147258, 19.114991), ("mlp", 21.518121, 18.939327)],
)
def test_twenty_steps_give_the_loss_they_always_gave(backbone, first, last):
    """Pinned values: a change here is a change of the model or of its start."""
    # in double precision: AdamW makes steps of the rounding errors of vanishing gradients
    vae = make_vae(backbone=backbone, shake=0.0, dtype=torch.float64)
    cells = make_cells(torch.float64, n_cells=64)
    optimizer = torch.optim.AdamW(vae.parameters(), lr=1e-2)
    losses = []
    for _ in range(20):
        loss = total(vae(*cells)).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[0] == pytest.approx(first, rel=1e-4)
    assert losses[-1] == pytest.approx(last, rel=1e-4)


def test_shape_is_frozen():
    shape = VaeShape(MEMBERS, N_GENES, SIZES, COLUMNS)
    with pytest.raises(dataclasses.FrozenInstanceError):
        shape.n_genes = 3
