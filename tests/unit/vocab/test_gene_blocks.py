import itertools
import json

import numpy as np
import pytest

from save_dist.core.errors import DataError, VocabMismatchError
from save_dist.vocab.blocks import GeneBlocks, block_sizes, build_blocks, unit_rows


def vectors(n_genes, dim=8, n_groups=7, seed=0):
    rng = np.random.default_rng(seed)
    centers = rng.normal(size=(n_groups, dim))
    noise = 0.4 * rng.normal(size=(n_genes, dim))
    return (centers[rng.integers(n_groups, size=n_genes)] + noise).astype(np.float32)


def build(points, genes_per_block, n_iterations=30, seed=0):
    return build_blocks(points, genes_per_block, n_iterations=n_iterations, seed=seed)


@pytest.mark.parametrize(
    ("n_genes", "genes_per_block", "sizes"),
    [
        pytest.param(1, 1, [1], id="one gene"),
        pytest.param(1, 100, [1], id="one gene, large block"),
        pytest.param(30, 100, [30], id="fewer genes than a block holds"),
        pytest.param(200, 50, [50] * 4, id="even"),
        pytest.param(2003, 50, [50] * 40 + [3], id="remainder"),
        pytest.param(5, 1, [1] * 5, id="blocks of one gene"),
    ],
)
def test_blocks_are_full_but_the_last(n_genes, genes_per_block, sizes):
    blocks = build(vectors(n_genes), genes_per_block)
    assert block_sizes(n_genes, genes_per_block).tolist() == sizes
    assert blocks.members.shape == (len(sizes), genes_per_block)
    assert (blocks.members >= 0).sum(axis=1).tolist() == sizes
    assert sorted(blocks.members[blocks.members >= 0].tolist()) == list(range(n_genes))
    for row, size in zip(blocks.members, sizes, strict=True):
        assert row[:size].tolist() == sorted(row[:size].tolist())
        assert (row[size:] == -1).all()


def test_objective_never_increases_and_is_the_cost_of_the_members():
    points = vectors(403)
    blocks = build(points, 50)
    assert len(blocks.objective) > 3
    assert (np.diff(blocks.objective) <= 0).all()
    unit = unit_rows(points).astype(np.float64)
    cost = sum(
        np.square(unit[row[row >= 0]] - unit[row[row >= 0]].mean(axis=0)).sum()
        for row in blocks.members
    )
    assert blocks.objective[-1] == pytest.approx(cost, rel=1e-9)


def test_centroids_are_means_of_unit_vectors():
    points = vectors(103)
    blocks = build(points, 25)
    means = [unit_rows(points)[row[row >= 0]].mean(axis=0) for row in blocks.members]
    np.testing.assert_allclose(blocks.centroids, means, atol=1e-6)


def test_planted_groups_are_found():
    rng = np.random.default_rng(1)
    group = rng.permutation(np.repeat(np.arange(4), 25))
    points = np.eye(4, dtype=np.float32)[group] + 0.05 * rng.normal(size=(100, 4)).astype("f4")
    found = {frozenset(row.tolist()) for row in build(points, 25).members}
    assert found == {frozenset(np.flatnonzero(group == g).tolist()) for g in range(4)}


def test_length_of_a_vector_does_not_matter():
    points = vectors(120)
    lengths = np.random.default_rng(0).uniform(0.1, 10, size=(120, 1)).astype(np.float32)
    assert build(points, 25).hash == build(points * lengths, 25).hash


def test_assignment_is_the_cheapest_of_all():
    """Six genes, two blocks of three: against every division."""
    points = vectors(6, dim=2, n_groups=3, seed=4)
    unit = unit_rows(points).astype(np.float64)

    def cost(first):
        rest = [g for g in range(6) if g not in first]
        return sum(
            np.square(unit[list(s)] - unit[list(s)].mean(axis=0)).sum() for s in (first, rest)
        )

    best = min(cost(first) for first in itertools.combinations(range(6), 3))
    reached = min(build(points, 3, seed=seed).objective[-1] for seed in range(20))
    assert reached == pytest.approx(best, rel=1e-9)


def test_equal_arguments_equal_blocks_and_seeds_differ():
    points = vectors(500)
    first, again, other = build(points, 60), build(points, 60), build(points, 60, seed=1)
    assert first.hash == again.hash
    assert first.objective == again.objective
    assert first.hash != other.hash


def test_n_iterations_bounds_the_work():
    assert len(build(vectors(300), 40, n_iterations=2).objective) == 2


@pytest.mark.parametrize("genes_per_block", [4, 7], ids=["even", "remainder"])
def test_identical_vectors_are_still_divided(genes_per_block):
    blocks = build(np.zeros((20, 3), dtype=np.float32), genes_per_block)
    assert blocks.n_genes == 20
    assert blocks.objective[-1] == 0


def test_json_round_trip_is_exact():
    blocks = build(vectors(103), 25)
    again = GeneBlocks.from_json(json.loads(json.dumps(blocks.to_json())))
    assert again.hash == blocks.hash
    assert again.objective == blocks.objective
    np.testing.assert_array_equal(again.members, blocks.members)
    np.testing.assert_array_equal(again.centroids, blocks.centroids)
    assert (again.n_blocks, again.genes_per_block, again.n_genes) == (5, 25, 103)


@pytest.mark.parametrize(
    "members",
    [
        pytest.param([[0, 1], [1, 2]], id="a gene twice"),
        pytest.param([[0, 1], [3, -1]], id="a gene missing"),
        pytest.param([[0, -1], [1, 2]], id="padding in the first block"),
        pytest.param([[0, 1], [-1, 2]], id="padding before a gene"),
        pytest.param([[0, 1], [-1, -1]], id="a block of padding"),
    ],
)
def test_members_that_are_no_division_are_refused(members):
    with pytest.raises(
        VocabMismatchError, match=r"shape \(2, 2\) do not hold each of \d genes once"
    ):
        GeneBlocks(np.array(members, dtype=np.int64), np.zeros((2, 1), dtype=np.float32), (0.0,))


@pytest.mark.parametrize(
    "points",
    [
        pytest.param(np.zeros((0, 3), dtype=np.float32), id="no gene"),
        pytest.param(np.full((3, 2), np.nan, dtype=np.float32), id="nan"),
    ],
)
def test_vectors_that_cannot_be_divided_are_refused(points):
    with pytest.raises(DataError, match="give one finite vector per gene"):
        build(points, 2)


def test_sixteen_thousand_genes():
    points = vectors(16_000, dim=32, n_groups=40)
    blocks = build(points, 500, n_iterations=5)
    assert (blocks.members >= 0).all()
