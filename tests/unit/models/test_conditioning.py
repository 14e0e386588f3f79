import pytest
import torch

from save_dist.config.schema import MaskConfig
from save_dist.models.conditioning import ConditionEmbedding, mask_codes, share_unmasked

SIZES = (3, 2, 4)
MASK = torch.tensor(SIZES)
N_CELLS = 40_000


def draw(config, seed=0, n_cells=N_CELLS):
    generator = torch.Generator().manual_seed(seed)
    codes = torch.stack([torch.randint(0, n, (n_cells,), generator=generator) for n in SIZES], 1)
    uniforms = torch.rand(n_cells, 1 + len(SIZES), generator=generator)
    return codes, mask_codes(codes, uniforms, MASK, config)


@pytest.mark.parametrize("columns", [None, (0, 1, 2), (2,), (2, 0)])
def test_embedding_is_the_sum_over_the_columns_seen(columns):
    embedding = ConditionEmbedding(SIZES, 5, columns)
    codes = torch.tensor([[0, 0, 0], [2, 1, 3], [3, 2, 4]])
    seen = range(3) if columns is None else columns
    starts = {c: sum(SIZES[d] + 1 for d in list(seen)[:i]) for i, c in enumerate(seen)}
    expected = sum(embedding.table.weight[starts[c] + codes[:, c]] for c in seen)
    torch.testing.assert_close(embedding(codes), expected)


def test_every_category_and_mask_has_its_own_row():
    embedding = ConditionEmbedding(SIZES, 5)
    assert embedding.table.weight.shape == (sum(SIZES) + len(SIZES), 5)
    rows = embedding(torch.cartesian_prod(*(torch.arange(n + 1) for n in SIZES)))
    assert len(torch.unique(rows, dim=0)) == 4 * 3 * 5


def test_masked_codes_train_the_mask_rows_alone():
    embedding = ConditionEmbedding(SIZES, 2)
    embedding(MASK.expand(7, -1)).sum().backward()
    touched = embedding.table.weight.grad.abs().sum(1).nonzero().flatten()
    assert touched.tolist() == [3, 6, 11]


def test_unseen_columns_do_not_matter():
    embedding = ConditionEmbedding(SIZES, 5, [1])
    a, b = embedding(torch.tensor([[0, 1, 0], [2, 1, 3]]))
    assert torch.equal(a, b)


def test_without_columns_the_embedding_is_zero():
    embedding = ConditionEmbedding(SIZES, 5, []).double()
    e = embedding(torch.tensor([[0, 1, 0]] * 4))
    assert torch.equal(e, torch.zeros(4, 5, dtype=torch.float64))
    assert list(embedding.parameters()) == []


@pytest.mark.parametrize("p", [0.0, 0.1, 0.6, 1.0])
def test_fixed_masking_hides_each_column_independently(p):
    codes, masked = draw(MaskConfig(scheme="fixed", p=p))
    hidden = masked != codes
    assert torch.equal(masked[hidden], MASK.expand_as(masked)[hidden])
    shares = hidden.float().mean(0)
    torch.testing.assert_close(shares, torch.full((3,), p), atol=0.01, rtol=0)
    joint = (hidden[:, 0] & hidden[:, 1]).float().mean()
    assert float(joint) == pytest.approx(p**2, abs=0.01)
    assert share_unmasked(masked, MASK) == pytest.approx((1 - p) ** 3, abs=0.01)


def test_mixture_has_whole_hidden_and_graded_cells():
    codes, masked = draw(MaskConfig(scheme="mixture"))
    n_hidden = (masked != codes).sum(1)
    # Bernoulli(p) with p uniform makes every number of hidden columns equally likely
    counts = torch.bincount(n_hidden, minlength=4) / N_CELLS
    expected = torch.tensor([0.25 + 0.125, 0.125, 0.125, 0.25 + 0.125])
    torch.testing.assert_close(counts, expected, atol=0.01, rtol=0)
    torch.testing.assert_close(
        (masked != codes).float().mean(0), torch.full((3,), 0.5), atol=0.01, rtol=0
    )


@pytest.mark.parametrize(
    ("of_cell", "of_column", "hidden"),
    [
        pytest.param(0.0, 0.0, False, id="whole cell"),
        pytest.param(0.2499, 0.0, False, id="still whole"),
        pytest.param(0.5, 0.49, True, id="p is a half: hidden"),
        pytest.param(0.5, 0.51, False, id="p is a half: shown"),
        pytest.param(0.75, 0.9999, True, id="hidden cell"),
    ],
)
def test_mixture_thresholds(of_cell, of_column, hidden):
    uniforms = torch.tensor([[of_cell, of_column]])
    masked = mask_codes(
        torch.tensor([[1]]), uniforms, torch.tensor([3]), MaskConfig(scheme="mixture", p=0.0)
    )
    assert masked.item() == (3 if hidden else 1)


def test_masking_depends_on_a_cells_own_numbers_alone():
    config = MaskConfig(scheme="mixture")
    codes = torch.randint(0, 2, (50, 3))
    uniforms = torch.rand(50, 4)
    whole = mask_codes(codes, uniforms, MASK, config)
    halves = [mask_codes(codes[s], uniforms[s], MASK, config) for s in (slice(20), slice(20, 50))]
    assert torch.equal(whole, torch.cat(halves))


def test_share_unmasked_counts_cells_without_any_mask():
    codes = torch.tensor([[0, 0, 0], [3, 0, 0], [0, 2, 4], [2, 1, 3]])
    assert share_unmasked(codes, MASK) == 0.5
