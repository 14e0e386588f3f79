"""Cells on a plane, for looking at: real and generated ones side by side by UMAP."""

import warnings
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float32
from numpy import ndarray

from save_dist.core import seeding
from save_dist.evaluation.combination import Shared
from save_dist.evaluation.metrics import squared_distances
from save_dist.evaluation.scores import Picture
from save_dist.evaluation.tables import CellTable

N_NEIGHBOURS = 15
_N_EPOCHS = 200
_MIN_DIST = 0.3


@dataclass(frozen=True)
class PictureJob:
    """Draw the plane; `cells` holds real and generated cells."""

    cells: CellTable
    is_generated: ndarray
    is_held_out: ndarray
    seed: int

    def run(self, shared: Shared) -> Picture:
        """Place every cell."""
        points = plane(shared.space.read(self.cells.counts).pca, self.seed)
        return Picture(points, self.cells.codes, self.is_generated, self.is_held_out)


def plane(pca: Float32[ndarray, "cell component"], seed: int) -> Float32[ndarray, "cell 2"]:
    """UMAP of cells from their exact nearest neighbours, started from the first two components.

    Fewer cells than UMAP can place are shown by these two components.
    """
    if len(pca) <= 2 * N_NEIGHBOURS or pca.shape[1] < 2:
        return np.pad(pca[:, :2], ((0, 0), (0, max(0, 2 - pca.shape[1]))))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ImportWarning)  # umap-learn 0.5: no Tensorflow, not needed
        from umap.umap_ import find_ab_params, fuzzy_simplicial_set, simplicial_set_embedding

    state = np.random.RandomState(seeding.stream_seed(seed, "umap") % 2**32)
    neighbours, distances = _neighbours(pca)
    graph, _, _ = fuzzy_simplicial_set(
        pca, N_NEIGHBOURS, state, "euclidean", knn_indices=neighbours, knn_dists=distances
    )
    a, b = find_ab_params(1.0, _MIN_DIST)
    start = (pca[:, :2] * (10.0 / np.abs(pca[:, :2]).max())).astype(np.float32)
    points, _ = simplicial_set_embedding(
        pca, graph, 2, 1.0, a, b, 1.0, 5, _N_EPOCHS, start, state, "euclidean",
        {}, False, {}, False, parallel=False,
    )  # fmt: skip
    out: ndarray = np.asarray(points, dtype=np.float32)
    return out


def _neighbours(pca: Float32[ndarray, "cell component"]) -> tuple[ndarray, ndarray]:
    """Nearest cells of each cell, itself first, and their distances."""
    squares = squared_distances(pca, pca)
    nearest = np.argsort(squares, axis=1, kind="stable")[:, :N_NEIGHBOURS]
    return nearest, np.sqrt(np.take_along_axis(squares, nearest, axis=1)).astype(np.float32)
