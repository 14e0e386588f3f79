"""Which gene sets are over-represented among the genes of each block (SAVE appendix C).

One-sided hypergeometric test against the genes of the model, Benjamini-Hochberg over all blocks
and sets together. Gene sets come from a .gmt file: name, description, genes, separated by tabs.
"""

import gzip
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from scipy.stats import false_discovery_control, hypergeom

from save_dist.core.errors import DataError

MIN_GENES = 5
"""Genes of the model that a set needs: smaller ones can hardly be told from chance."""
MAX_GENES = 500
"""Genes of the model that a set may have: larger ones say little."""


class GeneSet(NamedTuple):
    """A named set of genes, those of the model alone."""

    name: str
    genes: frozenset[str]


class Enrichment(NamedTuple):
    """One gene set in one block."""

    block: int
    name: str
    n_shared: int
    """Genes of the block that are in the set."""
    n_block: int
    n_set: int
    """Genes of the model that are in the set."""
    p: float
    """Chance of as many shared genes or more, were the block drawn at random."""
    q: float
    """Smallest false discovery rate at which it counts as enriched."""


def read_gene_sets(path: Path, genes: Sequence[str]) -> list[GeneSet]:
    """Sets of a .gmt or .gmt.gz file with enough, and not too many, genes of the model.

    Args:
        path: the file.
        genes: names of the model's genes.

    Raises:
        DataError: if it cannot be read, is no gmt file, or none of its sets fits the genes.
    """
    known, found = set(genes), []
    opened = gzip.open if path.suffix == ".gz" else open
    try:
        with opened(path, "rt", encoding="utf-8") as lines:
            for number, line in enumerate(lines, start=1):
                name, *rest = line.rstrip("\n").split("\t")
                if not rest:
                    raise DataError(
                        f"line {number} of {path} has no tab; expected a .gmt file: name, "
                        "description and genes, separated by tabs"
                    )
                shared = known.intersection(rest[1:])
                if MIN_GENES <= len(shared) <= MAX_GENES:
                    found.append(GeneSet(_title(name, rest[0]), frozenset(shared)))
    except (OSError, UnicodeDecodeError) as e:
        raise DataError(f"could not read the gene sets {path}: {e}; give a .gmt or .gmt.gz") from e
    if not found:
        raise DataError(
            f"no set of {path} has {MIN_GENES} to {MAX_GENES} genes of the model (its genes are "
            f"called e.g. {genes[0]!r}); give sets with the same kind of gene names"
        )
    return found


def _title(name: str, description: str) -> str:
    """What a reader understands: the description, unless it is an address or not there."""
    return name if not description or "://" in description else description


def enrich(blocks: Mapping[int, Sequence[str]], sets: Sequence[GeneSet]) -> list[Enrichment]:
    """Every set that shares a gene with a block, most significant first within each block.

    Args:
        blocks: genes of each block; together they are what sets are tested against.
        sets: gene sets, of genes in the blocks alone.
    """
    n_genes = sum(len(genes) for genes in blocks.values())
    shared = np.array([[len(s.genes.intersection(g)) for s in sets] for g in blocks.values()])
    sizes = np.array([len(s.genes) for s in sets])
    drawn = np.array([len(genes) for genes in blocks.values()])
    p = hypergeom.sf(shared - 1, n_genes, sizes[None], drawn[:, None])
    q = false_discovery_control(p.ravel(), method="bh").reshape(p.shape)
    found = [
        Enrichment(
            block, s.name, int(shared[i, j]), int(drawn[i]), int(sizes[j]), float(p[i, j]),
            float(q[i, j]),
        )
        for i, block in enumerate(blocks)
        for j, s in enumerate(sets)
        if shared[i, j]
    ]  # fmt: skip
    return sorted(found, key=lambda e: (e.block, e.p, e.name))
