import pytest
import torch

from save_dist.config.schema import FlowConfig
from save_dist.flow.solver import integrate
from save_dist.models.velocity import TimeEmbedding, Velocity, make_flow_velocity

SIZES = (3, 2)
N_CELLS = 6
BACKBONES = ("attention", "mlp")


def make_velocity(backbone, dim=9, *, shake=0.3, dtype=torch.float32, **settings):
    small = {"width": 8, "depth": 2, "n_heads": 2, "condition_width": 6, "token_width": 4}
    velocity = Velocity(dim, SIZES, FlowConfig(backbone=backbone, **(small | settings)))
    with torch.no_grad():
        for parameter in velocity.parameters():
            parameter.add_(shake * torch.randn_like(parameter))
    return velocity.to(dtype)


def make_inputs(dim=9, dtype=torch.float32, n_cells=N_CELLS):
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(n_cells, dim, generator=generator, dtype=dtype)
    t = torch.rand(n_cells, generator=generator, dtype=dtype)
    codes = torch.stack([torch.randint(0, n, (n_cells,), generator=generator) for n in SIZES], 1)
    return x, t, codes


@pytest.mark.parametrize("backbone", BACKBONES)
def test_velocity_is_zero_at_the_start(backbone):
    v = make_velocity(backbone, shake=0.0)(*make_inputs())
    assert torch.equal(v, torch.zeros(N_CELLS, 9))


def make_centred(backbone, *, shake, dtype=torch.float64):
    """A network around an additive mean, and the same network without."""
    effects = torch.randn(7, 9, generator=torch.Generator().manual_seed(2))
    effects[[3, 6]] = 0
    torch.manual_seed(0)
    plain = make_velocity(backbone, shake=shake)
    centred = make_flow_velocity(8, SIZES, plain.config.model_copy(update={"centre": "additive"}))
    centred.load_state_dict(plain.state_dict() | {"centre.effects": effects})
    return centred.to(dtype), plain.to(dtype), effects.to(dtype)


@pytest.mark.parametrize("backbone", BACKBONES)
def test_a_centred_velocity_starts_as_its_additive_mean(backbone):
    velocity, _, effects = make_centred(backbone, shake=0.0)
    x, t, _ = make_inputs(dtype=torch.float64)
    codes = torch.tensor([[0, 1], [2, 0], [3, 0], [1, 2], [3, 2], [0, 0]])
    v = velocity(x, t, codes)
    torch.testing.assert_close(v, effects[codes[:, 0]] + effects[4 + codes[:, 1]])
    torch.testing.assert_close(v[2:5], torch.stack([effects[4], effects[1], 0 * effects[0]]))


@pytest.mark.parametrize("backbone", BACKBONES)
def test_a_centred_velocity_learns_the_residual_of_its_mean(backbone):
    """Its error on the path to x_1 is that of the plain network on the path to x_1 - m."""
    velocity, plain, _ = make_centred(backbone, shake=0.3)
    x_1, t, codes = make_inputs(dtype=torch.float64)
    x_0, t_N1 = torch.randn_like(x_1), t[:, None]
    m = velocity.centre(codes)
    error = velocity((1 - t_N1) * x_0 + t_N1 * x_1, t, codes) - (x_1 - x_0)
    residual = x_1 - m
    expected = plain((1 - t_N1) * x_0 + t_N1 * residual, t, codes) - (residual - x_0)
    torch.testing.assert_close(error, expected)


@pytest.mark.parametrize(("method", "n_steps"), [("euler", 2), ("midpoint", 3), ("rk4", 2)])
def test_solvers_carry_noise_to_the_mean_and_the_residual(method, n_steps):
    velocity, plain, _ = make_centred("mlp", shake=0.3)
    x_0, _, codes = make_inputs(dtype=torch.float64)

    def end(network):
        return integrate(
            lambda t, x: network(x, t.expand(len(x)), codes),
            x_0,
            method=method,
            n_steps=n_steps,
            tolerance=1e-5,
        ).x_1

    torch.testing.assert_close(end(velocity), velocity.centre(codes) + end(plain))


def test_the_mean_is_saved_and_not_trained():
    velocity, plain, effects = make_centred("mlp", shake=0.3)
    assert torch.equal(velocity.state_dict()["centre.effects"], effects)
    assert {n for n, _ in velocity.named_parameters()} == {n for n, _ in plain.named_parameters()}


@pytest.mark.parametrize("backbone", BACKBONES)
@pytest.mark.parametrize("dim", [1, 3, 4, 5, 9])
def test_any_length_of_the_latent_fits(backbone, dim):
    v = make_velocity(backbone, dim)(*make_inputs(dim))
    assert v.shape == (N_CELLS, dim)
    assert bool(v.any(0).all())


def test_padding_of_the_last_token_reads_nothing_and_writes_nothing():
    """Nine numbers in tokens of four: three tokens, the last one with three zeros."""
    velocity = make_velocity("attention")
    x, t, codes = make_inputs()
    wide = Velocity(12, SIZES, velocity.config)
    wide.load_state_dict(velocity.state_dict())
    padded = torch.cat([x, torch.zeros(N_CELLS, 3)], dim=1)
    torch.testing.assert_close(wide(padded, t, codes)[:, :9], velocity(x, t, codes))


@pytest.mark.parametrize("backbone", BACKBONES)
def test_every_input_matters(backbone):
    velocity = make_velocity(backbone)
    x, t, codes = make_inputs()
    v = velocity(x, t, codes)
    masked = torch.tensor(SIZES).expand_as(codes)
    for other in ((x + 0.1, t, codes), (x, t + 0.1, codes), (x, t, masked)):
        assert not torch.allclose(velocity(*other), v)


@pytest.mark.parametrize("backbone", BACKBONES)
def test_cells_do_not_see_each_other(backbone):
    velocity, inputs = make_velocity(backbone), make_inputs()
    alone = velocity(*(value[2:3] for value in inputs))
    torch.testing.assert_close(alone, velocity(*inputs)[2:3])


@pytest.mark.parametrize("backbone", BACKBONES)
def test_every_parameter_takes_part_in_every_step(backbone):
    velocity = make_velocity(backbone)
    velocity(*make_inputs()).square().sum().backward()
    idle = [n for n, p in velocity.named_parameters() if p.grad is None or not p.grad.any()]
    assert idle == []


@pytest.mark.parametrize("backbone", BACKBONES)
def test_gradients_are_right(backbone):
    velocity = make_velocity(backbone, 3, depth=1, dtype=torch.float64)
    x, t, codes = make_inputs(3, torch.float64, n_cells=2)
    inputs = x.requires_grad_(), t.requires_grad_()
    assert torch.autograd.gradcheck(lambda a, b: velocity(a, b, codes), inputs)


@pytest.mark.parametrize("backbone", BACKBONES)
def test_bf16_autocast_is_close_and_gives_float32(backbone):
    velocity, inputs = make_velocity(backbone, shake=0.1), make_inputs()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        v = velocity(*inputs)
    assert v.dtype == torch.float32
    torch.testing.assert_close(v, velocity(*inputs), rtol=0.1, atol=0.02)


def test_times_are_told_apart_and_embedded_smoothly():
    embed = TimeEmbedding(16)
    t = torch.linspace(0, 1, 1001)
    e = embed(t)
    distances = torch.cdist(e, e) + 9 * torch.eye(1001)
    assert distances.min().item() > 1e-3
    assert (embed(t + 1e-5) - e).norm(dim=1).max().item() < 1e-2


@pytest.mark.parametrize(("backbone", "last"), [("attention", 0.919056), ("mlp", 1.030814)])
def test_twenty_steps_give_the_loss_they_always_gave(backbone, last):
    """Pinned values: a change here is a change of the model or of its start."""
    # in double precision: AdamW makes steps of the rounding errors of vanishing gradients
    velocity = make_velocity(backbone, shake=0.0, dtype=torch.float64)
    x, t, codes = make_inputs(dtype=torch.float64, n_cells=64)
    target = x.flip(0) - x
    optimizer = torch.optim.AdamW(velocity.parameters(), lr=1e-2)
    losses = []
    for _ in range(20):
        loss = (velocity(x, t, codes) - target).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[0] == pytest.approx(float(target.square().mean()))
    assert losses[-1] == pytest.approx(last, rel=1e-4)
