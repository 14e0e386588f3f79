import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from save_dist.vocab.blocks import block_sizes, build_blocks

N_GENES = st.integers(1, 60)


@settings(deadline=None, max_examples=60)
@given(
    n_genes=N_GENES,
    genes_per_block=st.integers(1, 70),
    dim=st.integers(1, 4),
    n_distinct=st.integers(1, 60),
    seed=st.integers(0, 3),
)
def test_every_gene_has_one_block_and_the_objective_falls(
    n_genes, genes_per_block, dim, n_distinct, seed
):
    rng = np.random.default_rng(seed)
    values = rng.normal(size=(n_distinct, dim)).astype(np.float32)
    points = values[rng.integers(n_distinct, size=n_genes)]

    blocks = build_blocks(points, genes_per_block, n_iterations=12, seed=seed)

    filled = blocks.members >= 0
    assert filled.sum(axis=1).tolist() == block_sizes(n_genes, genes_per_block).tolist()
    assert sorted(blocks.members[filled].tolist()) == list(range(n_genes))
    assert (np.diff(filled.astype(int), axis=1) <= 0).all()
    assert (np.diff(blocks.objective) <= 0).all()
    again = build_blocks(points, genes_per_block, n_iterations=12, seed=seed)
    assert again.hash == blocks.hash


@given(n_genes=st.integers(1, 10**6), genes_per_block=st.integers(1, 10**4))
def test_sizes_are_full_blocks_and_a_remainder(n_genes, genes_per_block):
    sizes = block_sizes(n_genes, genes_per_block)
    assert sizes.sum() == n_genes
    assert (sizes[:-1] == genes_per_block).all()
    assert 1 <= sizes[-1] <= genes_per_block
