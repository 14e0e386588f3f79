"""One pass over the training cells for the averages of every combination."""

import numpy as np
from jaxtyping import Int64
from numpy import ndarray

from save_dist.data.source import StoreLocator
from save_dist.data.splits import CellIndex
from save_dist.stores.profiles import Profiles
from save_dist.training.latents import dense_cells


def combination_profiles(
    locator: StoreLocator, index: CellIndex, gene_positions: Int64[ndarray, " gene"]
) -> Profiles:
    """Averages per combination of the cells of `index`, summed in float64.

    Args:
        locator: store of the cells.
        index: training cells, and no others.
        gene_positions: columns of the vocabulary genes.
    """
    combinations, inverse, n_cells = np.unique(
        index.codes, axis=0, return_inverse=True, return_counts=True
    )
    log, counts = (np.zeros((len(combinations), gene_positions.size)) for _ in range(2))
    log_library = np.zeros(len(combinations))
    for first, cells in dense_cells(locator, index, gene_positions):
        own = inverse.ravel()[first : first + cells.library.size]
        for row in np.unique(own):
            members = own == row
            log[row] += cells.log_x[members].sum(axis=0, dtype=np.float64)
            counts[row] += cells.counts[members].sum(axis=0, dtype=np.float64)
            libraries = np.maximum(cells.library[members], 1.0)
            log_library[row] += np.log(libraries).sum(dtype=np.float64)
    return Profiles(
        codes=tuple(tuple(row) for row in combinations.tolist()),
        n_cells=n_cells.astype(np.int64),
        mean_log=(log / n_cells[:, None]).astype(np.float32),
        mean_count=(counts / n_cells[:, None]).astype(np.float32),
        mean_log_library=(log_library / n_cells).astype(np.float32),
    )
