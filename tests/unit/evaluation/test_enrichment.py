"""Gene sets in gene blocks, against values computed by hand."""

import gzip
from math import comb

import pytest

from save_dist.core.errors import DataError
from save_dist.evaluation.enrichment import GeneSet, enrich, read_gene_sets

GENES = [f"g{i}" for i in range(20)]
BLOCKS = {0: GENES[:10], 1: GENES[10:]}
SETS = [
    GeneSet("all in block 0", frozenset(GENES[:6])),
    GeneSet("four to one", frozenset([*GENES[6:10], GENES[10]])),
]


def by_key(found):
    return {(e.block, e.name): e for e in found}


def test_p_is_the_tail_of_the_hypergeometric_law():
    found = by_key(enrich(BLOCKS, SETS))
    first = found[0, "all in block 0"]
    assert (first.n_shared, first.n_block, first.n_set) == (6, 10, 6)
    assert first.p == pytest.approx(comb(10, 6) / comb(20, 6))
    tail = (comb(10, 4) * comb(10, 1) + comb(10, 5)) / comb(20, 5)
    assert found[0, "four to one"].p == pytest.approx(tail)
    assert found[1, "four to one"].p == pytest.approx(1 - comb(10, 5) / comb(20, 5))


def test_q_is_benjamini_hochberg_over_all_blocks_and_sets():
    found = by_key(enrich(BLOCKS, SETS))
    p = sorted([e.p for e in found.values()] + [1.0])  # block 1 shares no gene of the first set
    assert found[0, "all in block 0"].q == pytest.approx(p[0] * 4)
    assert found[0, "four to one"].q == pytest.approx(p[1] * 2)


def test_pairs_without_a_shared_gene_are_left_out_and_blocks_are_in_order():
    found = enrich(BLOCKS, SETS)
    assert [(e.block, e.name) for e in found] == [
        (0, "all in block 0"),
        (0, "four to one"),
        (1, "four to one"),
    ]


@pytest.mark.parametrize("name", ["sets.gmt", "sets.gmt.gz"])
def test_sets_are_read_over_the_genes_of_the_model(tmp_path, name):
    text = "GO:1\tgrowth\t" + "\t".join([*GENES[:5], "other"]) + "\nGO:2\ttoo few\tg1\tg2\n"
    path = tmp_path / name
    path.write_bytes(gzip.compress(text.encode()) if name.endswith("gz") else text.encode())
    assert read_gene_sets(path, GENES) == [GeneSet("growth", frozenset(GENES[:5]))]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        pytest.param("no tabs here\n", r"line 1 of .* has no tab", id="no gmt"),
        pytest.param("GO:1\tx\tA\tB\tC\tD\tE\n", r"called e\.g\. 'g0'", id="other names"),
    ],
)
def test_a_file_that_fits_nothing_is_named(tmp_path, text, message):
    path = tmp_path / "sets.gmt"
    path.write_text(text)
    with pytest.raises(DataError, match=message):
        read_gene_sets(path, GENES)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(DataError, match=r"could not read the gene sets .*nowhere"):
        read_gene_sets(tmp_path / "nowhere.gmt", GENES)
