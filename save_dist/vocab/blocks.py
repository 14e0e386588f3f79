"""Gene blocks: sets of equally many related genes, the tokens of the model (SAVE 3.1).

Gene vectors -> exact-capacity balanced k-means. The only importer of POT in this layer.
"""

import logging
import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from jaxtyping import Float32, Float64, Int64
from numpy import ndarray

from save_dist.core.durable import digest
from save_dist.core.errors import DataError, VocabMismatchError
from save_dist.core.seeding import generator

logger = logging.getLogger(__name__)

PADDING = -1
MAX_PIVOTS = 10**9  # POT's default of 1e5 is too few from about 10,000 genes on


@dataclass(frozen=True, eq=False)
class GeneBlocks:
    """Which genes form which block.

    Args:
        members: gene positions, ascending in every row; rows are full but the last, whose end
            is filled with -1.
        centroids: mean unit-length gene vector of each block.
        objective: sum of squared distances to the centroids, per iteration.

    Raises:
        VocabMismatchError: if a gene stands in no block or in two, or padding anywhere else.
    """

    members: Int64[ndarray, "gene_block block_gene"]
    centroids: Float32[ndarray, "gene_block dim"]
    objective: tuple[float, ...]

    def __post_init__(self) -> None:
        genes = self.members.ravel()[: self.n_genes]
        padding = self.members.ravel()[self.n_genes :]
        covers = np.array_equal(np.sort(genes), np.arange(self.n_genes))
        if not covers or np.any(padding != PADDING) or padding.size >= self.genes_per_block:
            raise VocabMismatchError(
                f"gene blocks of shape {self.members.shape} do not hold each of {self.n_genes} "
                "genes once, padded at the end of the last block; build the blocks again"
            )

    @property
    def n_blocks(self) -> int:
        """L, number of blocks."""
        return int(self.members.shape[0])

    @property
    def genes_per_block(self) -> int:
        """K, places in a block."""
        return int(self.members.shape[1])

    @property
    def n_genes(self) -> int:
        """G, genes over all blocks."""
        return int(np.count_nonzero(self.members != PADDING))

    @cached_property
    def hash(self) -> str:
        """sha256 over the members, all that a model depends on."""
        return digest(self.members.tolist())

    def to_json(self) -> dict[str, Any]:
        """JSON-able form, read back by `from_json` to the last bit."""
        return {
            "members": self.members.tolist(),
            "centroids": self.centroids.tolist(),
            "objective": list(self.objective),
        }

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> "GeneBlocks":
        """The blocks that `to_json` wrote."""
        return cls(
            members=np.array(value["members"], dtype=np.int64),
            centroids=np.array(value["centroids"], dtype=np.float32),
            objective=tuple(value["objective"]),
        )


def build_blocks(
    vectors: Float32[ndarray, "gene dim"], genes_per_block: int, *, n_iterations: int, seed: int
) -> GeneBlocks:
    """Balanced k-means: Lloyd's algorithm whose assignment is an optimal transport plan.

    Args:
        vectors: one vector per gene; only directions count.
        genes_per_block: K; the number of blocks is ceil(G / K).
        n_iterations: at most this many assignments; stops when none improves.
        seed: decides the first centroids; equal arguments give equal blocks.

    Raises:
        DataError: if there is nothing to divide, or the vectors are not finite.
    """
    if vectors.shape[0] == 0 or not np.isfinite(vectors).all():
        raise DataError(
            f"gene vectors of shape {vectors.shape} are empty or hold NaN or infinity; "
            "give one finite vector per gene"
        )
    points = unit_rows(vectors).astype(np.float64)
    capacities = block_sizes(len(points), genes_per_block)
    centroids = _first_centroids(points, len(capacities), seed)
    assignment, objective = _lloyd(points, centroids, capacities, n_iterations)
    logger.info(
        "event=blocks_built n_genes=%d n_blocks=%d n_iterations=%d objective=%.6g",
        *(len(points), len(capacities), len(objective), objective[-1]),
    )
    means = _means(points, assignment, capacities).astype(np.float32)
    members = _members(assignment, len(capacities), genes_per_block)
    return GeneBlocks(members, means, tuple(objective))


def block_sizes(n_genes: int, genes_per_block: int) -> Int64[ndarray, " gene_block"]:
    """Genes per block: full blocks, then the remainder.

    >>> block_sizes(7, 3).tolist()
    [3, 3, 1]
    """
    sizes = np.full(math.ceil(n_genes / genes_per_block), genes_per_block, dtype=np.int64)
    sizes[-1] = n_genes - genes_per_block * (len(sizes) - 1)
    return sizes


def unit_rows(vectors: Float32[ndarray, "gene dim"]) -> Float32[ndarray, "gene dim"]:
    """Rows scaled to length 1; rows of zeros stay."""
    # The direction says which programme a gene belongs to, the length only how strongly it is
    # measured: unscaled, all weak genes would sit at the origin and share blocks of their own.
    lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    return vectors / np.where(lengths > 0, lengths, 1)


def _lloyd(
    points: Float64[ndarray, "gene dim"],
    centroids: Float64[ndarray, "gene_block dim"],
    capacities: Int64[ndarray, " gene_block"],
    n_iterations: int,
) -> tuple[Int64[ndarray, " gene"], list[float]]:
    """Alternate assignment and means while the objective falls; both steps can only lower it."""
    best = np.zeros(0, dtype=np.int64)
    objective: list[float] = []
    for _ in range(n_iterations):
        cost = _squared_distances(points, centroids)
        assignment = _assign(cost, capacities)
        total = float(cost[np.arange(len(points)), assignment].sum())
        if objective and total >= objective[-1]:
            break
        objective.append(total)
        if np.array_equal(best, assignment):
            break
        best = assignment
        centroids = _means(points, assignment, capacities)
    return best, objective


def _assign(
    cost: Float64[ndarray, "gene gene_block"], capacities: Int64[ndarray, " gene_block"]
) -> Int64[ndarray, " gene"]:
    """Block of each gene in the cheapest assignment that fills every block exactly."""
    if len(capacities) == 1:
        return np.zeros(len(cost), dtype=np.int64)
    import ot  # costs more than torch to import; only this function needs it

    # Whole-number marginals make every vertex of the polytope whole, so no gene is split.
    plan = ot.emd(np.ones(len(cost)), capacities.astype(np.float64), cost, numItermax=MAX_PIVOTS)
    assignment: np.ndarray = plan.argmax(axis=1)
    sizes = np.bincount(assignment, minlength=len(capacities))
    assert np.array_equal(sizes, capacities), f"block sizes {sizes} are not {capacities}"
    return assignment.astype(np.int64)


def _first_centroids(
    points: Float64[ndarray, "gene dim"], n_blocks: int, seed: int
) -> Float64[ndarray, "gene_block dim"]:
    """Genes far from each other: each next one with probability by its squared distance."""
    rng = generator(seed, "block_centroids")
    chosen = [int(rng.integers(len(points)))]
    nearest = _squared_distances(points, points[chosen])[:, 0]
    for _ in range(n_blocks - 1):
        mass = np.cumsum(nearest)
        if mass[-1] > 0:
            place = int(np.searchsorted(mass, rng.random() * mass[-1], side="right"))
            chosen.append(min(place, len(points) - 1))
        else:  # fewer distinct vectors than blocks
            chosen.append(int(rng.integers(len(points))))
        nearest = np.minimum(nearest, _squared_distances(points, points[chosen[-1:]])[:, 0])
    return points[chosen]


def _squared_distances(
    points: Float64[ndarray, "gene dim"], centroids: Float64[ndarray, "gene_block dim"]
) -> Float64[ndarray, "gene gene_block"]:
    squares = np.square(points).sum(1)[:, None] + np.square(centroids).sum(1)
    distances: np.ndarray = np.maximum(squares - 2 * points @ centroids.T, 0)
    return distances


def _means(
    points: Float64[ndarray, "gene dim"],
    assignment: Int64[ndarray, " gene"],
    capacities: Int64[ndarray, " gene_block"],
) -> Float64[ndarray, "gene_block dim"]:
    order = np.argsort(assignment, kind="stable")
    starts = np.cumsum(capacities) - capacities
    means: np.ndarray = np.add.reduceat(points[order], starts, axis=0) / capacities[:, None]
    return means


def _members(
    assignment: Int64[ndarray, " gene"], n_blocks: int, genes_per_block: int
) -> Int64[ndarray, "gene_block block_gene"]:
    """Gene positions by block; a stable sort keeps them ascending."""
    members = np.full((n_blocks, genes_per_block), PADDING, dtype=np.int64)
    members.ravel()[: len(assignment)] = np.argsort(assignment, kind="stable")
    return members
