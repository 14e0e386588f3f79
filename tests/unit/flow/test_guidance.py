import pytest
import torch

from save_dist.flow.guidance import guided

MASK = (3, 2)
CODES = torch.tensor([[0, 1], [2, 0], [3, 1]])


class Recorded:
    """A velocity that is linear in a table of condition effects, and remembers its calls."""

    effects = (torch.tensor([1.0, 2.0, 3.0, 0.5]), torch.tensor([10.0, 20.0, 5.0]))

    def __init__(self):
        self.codes = []
        self.times = []

    def __call__(self, x, t, codes):
        self.codes.append(codes)
        self.times.append(t)
        return x + (self.effects[0][codes[:, 0]] + self.effects[1][codes[:, 1]])[:, None]

    def of(self, codes):
        return Recorded()(X, torch.zeros(3), codes)


X = torch.randn(3, 2, generator=torch.Generator().manual_seed(0))
T = torch.tensor(0.5)
NULL = torch.tensor([MASK] * 3)


def test_scale_one_is_the_conditional_field_in_one_call():
    network = Recorded()
    v = guided(network, CODES, MASK)(T, X)
    assert torch.equal(v, network.of(CODES))
    assert len(network.codes) == 1
    assert torch.equal(network.times[0], torch.full((3,), 0.5))


def test_scale_zero_is_the_unconditional_field_in_one_call():
    network = Recorded()
    v = guided(network, CODES, MASK, scale=0.0)(T, X)
    assert torch.equal(v, network.of(NULL))
    assert len(network.codes) == 1


@pytest.mark.parametrize("scale", [0.5, 1.5, 3.0])
def test_scale_mixes_the_two_fields(scale):
    network = Recorded()
    v = guided(network, CODES, MASK, scale=scale)(T, X)
    torch.testing.assert_close(v, (1 - scale) * network.of(NULL) + scale * network.of(CODES))
    assert len(network.codes) == 2


@pytest.mark.parametrize(
    ("weights", "n_calls"),
    [
        pytest.param((1.0, 1.0), 3, id="additive"),
        pytest.param((2.0, 0.0), 2, id="one column alone"),
        pytest.param((1.0, 0.0), 1, id="nothing to mix"),
        pytest.param((0.0, 0.0), 1, id="unconditional"),
        pytest.param((0.3, 1.7), 3, id="both, unevenly"),
    ],
)
def test_columns_are_weighted_one_by_one(weights, n_calls):
    network = Recorded()
    v = guided(network, CODES, MASK, column_weights=weights)(T, X)
    null = network.of(NULL)
    expected = null.clone()
    for column, weight in enumerate(weights):
        alone = NULL.clone()
        alone[:, column] = CODES[:, column]
        expected += weight * (network.of(alone) - null)
    torch.testing.assert_close(v, expected)
    assert len(network.codes) == n_calls


def test_column_weights_replace_the_scale():
    fields = [
        guided(Recorded(), CODES, MASK, scale=s, column_weights=(1.0, 2.0)) for s in (1.0, 5.0)
    ]
    assert torch.equal(fields[0](T, X), fields[1](T, X))


@pytest.mark.parametrize(
    ("t", "is_guided"),
    [(0.0, False), (0.25, True), (0.5, True), (0.75, True), (0.76, False), (1.0, False)],
)
def test_guidance_applies_within_its_interval_only(t, is_guided):
    network = Recorded()
    field = guided(network, CODES, MASK, scale=2.0, interval=(0.25, 0.75))
    v = field(torch.tensor(t), X)
    plain = network.of(CODES)
    assert torch.equal(v, 2 * plain - network.of(NULL)) == is_guided
    assert torch.equal(v, plain) == (not is_guided)
    assert len(network.codes) == (2 if is_guided else 1)


def test_codes_are_left_alone():
    codes = CODES.clone()
    guided(Recorded(), codes, MASK, column_weights=(1.0, 2.0))(T, X)
    assert torch.equal(codes, CODES)
