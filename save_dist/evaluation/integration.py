"""How well a representation mixes batches and keeps biology: the components of scIB.

Definitions are those of Luecken et al. 2022 as scib-metrics 0.5 computes them, with clusters by
k-means; kBET is left out. They are written here because scib-metrics cannot be imported without
igraph, whose licence is the GPL. Every component lies between 0 and 1, and 1 is best.
"""

from dataclasses import asdict, dataclass

import numpy as np
from jaxtyping import Float, Float64, Int64
from numpy import ndarray

from save_dist.core.errors import DataError

N_NEIGHBOURS = 90
"""Of the inverse Simpson indices; their perplexity is a third of it."""
N_CONNECTED = 15
"""Neighbours in the graph whose connectivity is measured."""
_N_SEARCH_STEPS = 50


@dataclass(frozen=True)
class IntegrationScores:
    """Components of scIB without kBET.

    Biology: isolated labels, NMI, ARI, silhouette of labels, cLISI. Batch: silhouette of batches
    within labels, iLISI, graph connectivity, comparison of principal component regressions.
    """

    isolated_labels: float
    nmi: float
    ari: float
    silhouette_label: float
    clisi: float
    silhouette_batch: float
    ilisi: float
    graph_connectivity: float
    pcr_comparison: float

    @property
    def biology(self) -> float:
        """Mean of the components that say whether cell types are kept."""
        kept = (self.isolated_labels, self.nmi, self.ari, self.silhouette_label, self.clisi)
        return float(np.mean(kept))

    @property
    def batch(self) -> float:
        """Mean of the components that say whether batches are mixed."""
        mixed = (self.silhouette_batch, self.ilisi, self.graph_connectivity, self.pcr_comparison)
        return float(np.mean(mixed))

    @property
    def total(self) -> float:
        """0.6 biology + 0.4 batch."""
        return 0.6 * self.biology + 0.4 * self.batch

    @property
    def paper(self) -> float:
        """The score of the SAVE paper: five of the components."""
        biology = np.mean([self.nmi, self.ari, self.silhouette_label])
        batch = np.mean([self.silhouette_batch, self.graph_connectivity])
        return float(0.6 * biology + 0.4 * batch)

    def row(self) -> dict[str, float]:
        """All components and means by name."""
        means = {n: getattr(self, n) for n in ("biology", "batch", "total", "paper")}
        return {**asdict(self), **means}


def integration_scores(
    latent: Float[ndarray, "cell latent"],
    uncorrected: Float[ndarray, "cell component"],
    labels: Int64[ndarray, " cell"],
    batches: Int64[ndarray, " cell"],
    seed: int = 0,
) -> IntegrationScores:
    """Score a representation of cells; time and memory grow with the square of their number.

    Args:
        latent: what is scored.
        uncorrected: the same cells in principal components, to see how much batch is taken out.
        labels: code of the cell type, from 0.
        batches: code of the batch, from 0.
        seed: of k-means.

    Raises:
        DataError: if there is one label, one batch, or no more cells than neighbours.
    """
    _check(latent, labels, batches)
    from sklearn.cluster import KMeans
    from sklearn.metrics import (
        adjusted_rand_score,
        normalized_mutual_info_score,
        pairwise_distances,
        silhouette_score,
    )

    latent = np.asarray(latent, dtype=np.float64)
    distances = pairwise_distances(latent)
    clusters = KMeans(len(np.unique(labels)), n_init=10, random_state=seed).fit_predict(latent)
    asw = silhouette_score(distances, labels, metric="precomputed")
    order = np.argsort(distances, axis=1, kind="stable")[:, : N_NEIGHBOURS + 1]
    near = np.take_along_axis(distances, order, axis=1)
    ilisi = np.median(lisi(near[:, 1:], batches[order[:, 1:]]))
    clisi = np.median(lisi(near[:, 1:], labels[order[:, 1:]]))
    n_labels, n_batches = len(np.unique(labels)), len(np.unique(batches))
    return IntegrationScores(
        isolated_labels=isolated_labels(distances, labels, batches),
        nmi=float(normalized_mutual_info_score(labels, clusters)),
        ari=float(adjusted_rand_score(labels, clusters)),
        silhouette_label=float((asw + 1) / 2),
        clisi=float((n_labels - clisi) / (n_labels - 1)),
        silhouette_batch=silhouette_batch(distances, labels, batches),
        ilisi=float((ilisi - 1) / (n_batches - 1)),
        graph_connectivity=graph_connectivity(order[:, : N_CONNECTED + 1], labels),
        pcr_comparison=pcr_comparison(uncorrected, latent, batches),
    )


def isolated_labels(
    distances: Float64[ndarray, "cell cell"],
    labels: Int64[ndarray, " cell"],
    batches: Int64[ndarray, " cell"],
) -> float:
    """Silhouette of the labels found in fewest batches, mean of them."""
    from sklearn.metrics import silhouette_samples

    widths = silhouette_samples(distances, labels, metric="precomputed")
    n_batches = {c: len(np.unique(batches[labels == c])) for c in np.unique(labels)}
    fewest = [c for c, n in n_batches.items() if n == min(n_batches.values())]
    return float(np.mean([(widths[labels == c].mean() + 1) / 2 for c in fewest]))


def silhouette_batch(
    distances: Float64[ndarray, "cell cell"],
    labels: Int64[ndarray, " cell"],
    batches: Int64[ndarray, " cell"],
) -> float:
    """1 - |silhouette of the batch| within each label; labels of a single batch are left out."""
    from sklearn.metrics import silhouette_samples

    found = []
    for label in np.unique(labels):
        rows = np.flatnonzero(labels == label)
        if 1 < len(np.unique(batches[rows])) < len(rows):
            inside = distances[np.ix_(rows, rows)]
            widths = silhouette_samples(inside, batches[rows], metric="precomputed")
            found.append(1 - np.abs(widths).mean())
    return float(np.mean(found)) if found else float("nan")


def lisi(
    distances: Float64[ndarray, "cell neighbour"], codes: Int64[ndarray, "cell neighbour"]
) -> Float64[ndarray, " cell"]:
    """Local inverse Simpson index: effective number of codes among the neighbours of each cell.

    Neighbours weigh by a normal kernel whose width gives each cell the same perplexity.
    """
    low, high = np.full(len(distances), -60.0), np.full(len(distances), 60.0)
    wanted = np.log(distances.shape[1] / 3)
    for _ in range(_N_SEARCH_STEPS):  # on the logarithm of the precision
        middle = (low + high) / 2
        weights, entropy = _kernel(distances, middle)
        is_wide = entropy > wanted
        low, high = np.where(is_wide, middle, low), np.where(is_wide, high, middle)
    total = np.zeros(len(distances))
    for code in np.unique(codes):
        total += np.square((weights * (codes == code)).sum(axis=1))
    out: ndarray = 1 / total
    return out


def _kernel(
    distances: Float64[ndarray, "cell neighbour"], log_precision: Float64[ndarray, " cell"]
) -> tuple[Float64[ndarray, "cell neighbour"], Float64[ndarray, " cell"]]:
    """Weights that sum to 1, and their entropy."""
    nearest = distances - distances.min(axis=1, keepdims=True)
    weights = np.exp(-np.exp(log_precision)[:, None] * nearest)
    weights /= weights.sum(axis=1, keepdims=True)
    return weights, -(weights * np.log(np.maximum(weights, 1e-300))).sum(axis=1)


def graph_connectivity(
    neighbours: Int64[ndarray, "cell neighbour"], labels: Int64[ndarray, " cell"]
) -> float:
    """Share of each label's cells that hang together in the graph of neighbours, mean of labels."""
    from scipy.sparse import csr_matrix
    from scipy.sparse.csgraph import connected_components

    n, k = neighbours.shape
    rows = np.repeat(np.arange(n), k)
    graph = csr_matrix((np.ones(n * k), (rows, neighbours.ravel())), shape=(n, n))
    found = []
    for label in np.unique(labels):
        inside = np.flatnonzero(labels == label)
        _, parts = connected_components(graph[inside][:, inside], connection="strong")
        found.append(np.bincount(parts).max() / inside.size)
    return float(np.mean(found))


def pcr_comparison(
    before: Float[ndarray, "cell component"],
    after: Float[ndarray, "cell latent"],
    batches: Int64[ndarray, " cell"],
) -> float:
    """How much less of the variance the batch explains than before, as a share; 0 at least."""
    share = _explained_by_batch(before, batches)
    return max(0.0, (share - _explained_by_batch(after, batches)) / share) if share > 0 else 0.0


def _explained_by_batch(
    values: Float[ndarray, "cell component"], batches: Int64[ndarray, " cell"]
) -> float:
    """Share of the total variance that lies between batches."""
    centred = np.asarray(values, dtype=np.float64) - np.mean(values, axis=0)
    between = 0.0
    for batch in np.unique(batches):
        mean = centred[batches == batch].mean(axis=0)
        between += np.sum(batches == batch) * float(mean @ mean)
    return between / float(np.sum(np.square(centred)))


def _check(
    latent: Float[ndarray, "cell latent"],
    labels: Int64[ndarray, " cell"],
    batches: Int64[ndarray, " cell"],
) -> None:
    for name, codes in (("label", labels), ("batch", batches)):
        if len(np.unique(codes)) < 2:
            raise DataError(f"all cells have the same {name}; integration needs two or more")
    if len(latent) <= N_NEIGHBOURS:
        raise DataError(f"{len(latent)} cells are too few; expected more than {N_NEIGHBOURS}")
