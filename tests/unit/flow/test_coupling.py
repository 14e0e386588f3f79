import itertools

import pytest
import torch

from save_dist.flow.coupling import pair


def cost(x_0, x_1):
    return float((x_0 - x_1).square().sum())


def test_pairing_is_the_cheapest_of_all():
    x_0, x_1 = torch.randn(2, 6, 2, generator=torch.Generator().manual_seed(0))
    best = min(cost(x_0[list(p)], x_1) for p in itertools.permutations(range(6)))
    assert cost(x_0[pair(x_0, x_1)], x_1) == pytest.approx(best, rel=1e-5)


def test_shuffled_points_find_themselves():
    x_1 = torch.randn(100, 4, generator=torch.Generator().manual_seed(1))
    shuffle = torch.randperm(100, generator=torch.Generator().manual_seed(2))
    x_0 = x_1[shuffle] + 0.01
    assert torch.equal(shuffle[pair(x_0, x_1)], torch.arange(100))


@pytest.mark.parametrize(
    "groups",
    [
        pytest.param([0, 1] * 20, id="interleaved"),
        pytest.param([7] * 39 + [3], id="one alone"),
        pytest.param(list(range(40)), id="all alone"),
    ],
)
def test_pairs_stay_within_groups(groups):
    groups = torch.tensor(groups)
    generator = torch.Generator().manual_seed(3)
    x_0 = torch.randn(40, 3, generator=generator)
    x_1 = torch.randn(40, 3, generator=generator) + 5 * groups[:, None]
    permutation = pair(x_0, x_1, groups)
    assert torch.equal(groups[permutation], groups)
    assert torch.equal(permutation.sort().values, torch.arange(40))
    assert cost(x_0[permutation], x_1) <= cost(x_0, x_1)


def test_pairing_ignoring_groups_ties_noise_to_them():
    generator = torch.Generator().manual_seed(4)
    groups = torch.arange(200) % 2
    x_0 = torch.randn(200, 1, generator=generator)
    x_1 = torch.randn(200, 1, generator=generator) + 10 * groups[:, None]
    within = x_0[pair(x_0, x_1, groups)]
    across = x_0[pair(x_0, x_1)]
    assert abs(float(within[groups == 1].mean())) < 0.3
    assert float(across[groups == 1].mean()) > 0.6
