"""The additive mean of the latents: one effect per category, fitted on the training cells.

The flow may learn what it leaves over (`flow.centre: additive`). An unseen combination of seen
categories then starts from the sum of their effects.
"""

from collections.abc import Sequence

import numpy as np
import scipy.sparse as sp
from jaxtyping import Float32, Float64, Int, Int64
from numpy import ndarray

from save_dist.stores.bundle import LatentScale
from save_dist.stores.latents import LatentStore

_ROWS = 65_536  # read at once
_RANK_TOLERANCE = 1e-10  # singular values below this share of the largest are no evidence


def additive_effects(
    store: LatentStore,
    codes: Int[ndarray, "cell field"],
    sizes: Sequence[int],
    scale: LatentScale,
) -> Float32[ndarray, "category standardised"]:
    """Effect of every category on the standardised y = [z, log library].

    Least squares over the means of the seen combinations, weighted by their training cells. The
    effects of a column have the weighted mean 0, so a column that is not given adds nothing; there
    is no constant, since y has mean 0 over the same cells. Where the cells cannot tell effects
    apart (one column nested in another), the solution of smallest norm shares them out. A category
    without training cells has no effect. Reads the store once; float64.

    Args:
        store: latents of the training cells.
        codes: their condition codes, in the order of the store.
        sizes: categories per column.
        scale: standardisation, of the same store.

    Returns:
        rows column after column, each with a last row of zeros for MASK (see
        `models.conditioning.category_rows`).
    """
    combinations, inverse, n_cells = np.unique(
        codes, axis=0, return_inverse=True, return_counts=True
    )
    means = _means(store, inverse.ravel(), n_cells, scale)
    return _fitted(combinations, n_cells, means, sizes).astype(np.float32)


def _means(
    store: LatentStore,
    combination: Int64[ndarray, " cell"],
    n_cells: Int64[ndarray, " combination"],
    scale: LatentScale,
) -> Float64[ndarray, "combination standardised"]:
    """Mean of standardised y over the cells of each combination."""
    mean, log_library = store.mean, store.log_library
    sums = np.zeros((n_cells.size, scale.mean.size))
    for start in range(0, store.n_cells, _ROWS):
        rows = slice(start, start + _ROWS)
        y = np.concatenate([mean[rows], log_library[rows, None]], axis=1).astype(np.float64)
        cell = np.arange(len(y))
        member = sp.csr_array(
            (np.ones(len(y)), (combination[rows], cell)), shape=(n_cells.size, len(y))
        )
        sums += member @ y
    out: ndarray = (sums / n_cells[:, None] - scale.mean) / scale.sd
    return out


def _fitted(
    combinations: Int[ndarray, "combination field"],
    n_cells: Int64[ndarray, " combination"],
    means: Float64[ndarray, "combination standardised"],
    sizes: Sequence[int],
) -> Float64[ndarray, "category standardised"]:
    """Weighted least squares of smallest norm, each column centred on its weighted mean."""
    is_of = np.concatenate(
        [combinations[:, [column]] == np.arange(size + 1) for column, size in enumerate(sizes)],
        axis=1,
    ).astype(np.float64)
    share = n_cells @ is_of / n_cells.sum()
    weight = np.sqrt(n_cells)[:, None]
    effects = np.linalg.lstsq(weight * (is_of - share), weight * means, rcond=_RANK_TOLERANCE)[0]
    first = 0
    for size in sizes:
        rows = slice(first, first + size + 1)
        effects[rows] -= share[rows] @ effects[rows]
        first += size + 1
    effects[share == 0] = 0
    out: ndarray = effects
    return out
