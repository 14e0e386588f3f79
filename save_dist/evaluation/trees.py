"""Boosted trees for two classes, made for fitting hundreds of small ones.

Gradient boosting of the log loss (Chen and Guestrin 2016, eq. 5-7) with histograms over binned
features and trees that grow where the gain is largest. It gives the scores of scikit-learn's
HistGradientBoostingClassifier of the same settings, which spends most of its time on a small
problem in Python, once per feature and fit.
"""

from typing import NamedTuple, no_type_check

import numba
import numpy as np
from jaxtyping import Float, Float64, UInt8
from numpy import ndarray

N_TREES = 30
MAX_LEAVES = 8
N_BINS = 16
"""Values per feature that a tree tells apart: quantiles of the cells it is fitted on."""
LEARNING_RATE = 0.1
MIN_CELLS_PER_LEAF = 20

_MIN_HESSIAN = 1e-3
_EPS = 1e-15


class Binned(NamedTuple):
    """Cells that are fitted and cells that are scored, as the number of each value's bin."""

    fit: UInt8[ndarray, "feature cell"]
    rest: UInt8[ndarray, "feature other"]


def bin_features(
    fit: Float[ndarray, "cell feature"], rest: Float[ndarray, "other feature"]
) -> Binned:
    """Bins whose edges are quantiles of `fit`, or lie between its values if these are few."""
    sides = [np.ascontiguousarray(side.T, dtype=np.float64) for side in (fit, rest)]
    out = [np.empty(side.shape, dtype=np.uint8) for side in sides]
    _fill_bins(np.sort(sides[0], axis=1), *sides, *out)
    return Binned(*out)


def boosted_scores(
    binned: Binned, is_second: Float64[ndarray, " cell"]
) -> Float64[ndarray, " other"]:
    """Log odds of the second class for the cells that are scored.

    Args:
        binned: the cells.
        is_second: 1 for fitted cells of the second class, else 0; both occur.
    """
    share = float(is_second.mean())
    start = float(np.log(share / (1.0 - share)))
    scores = np.full(binned.rest.shape[1], start)
    _boost(*binned, is_second, start, N_TREES, scores)
    return scores


# no_type_check: numba cannot compile the wrapper that the shape checks of the tests put around
# annotated functions (jaxtyping 0.3).
@numba.njit(cache=True, nogil=True)
@no_type_check
def _fill_bins(ordered, fit, rest, fit_bins, rest_bins) -> None:
    """Bin every value; `ordered` is `fit` with ascending rows."""
    edges = np.empty(N_BINS)
    for feature in range(ordered.shape[0]):
        n_edges = _edges(ordered[feature], edges)
        for i in range(fit.shape[1]):
            fit_bins[feature, i] = np.searchsorted(edges[:n_edges], fit[feature, i])
        for i in range(rest.shape[1]):
            rest_bins[feature, i] = np.searchsorted(edges[:n_edges], rest[feature, i])


@numba.njit(cache=True, nogil=True)
@no_type_check
def _edges(values, edges) -> int:
    """Upper ends of all bins but the last, into `edges`; gives how many there are."""
    n_distinct, last = 1, values[0]
    for value in values:
        if value != last:
            if n_distinct <= N_BINS:
                edges[n_distinct - 1] = (last + value) / 2
            n_distinct += 1
            last = value
    if n_distinct <= N_BINS:
        return n_distinct - 1
    n_edges = 0
    for k in range(1, N_BINS):
        place, between = divmod(values.size * k, N_BINS)
        edge = values[place] if between else (values[place - 1] + values[place]) / 2
        if n_edges == 0 or edge > edges[n_edges - 1]:
            edges[n_edges] = edge
            n_edges += 1
    return n_edges


@numba.njit(cache=True, nogil=True)
@no_type_check
def _boost(fit, rest, is_second, start, n_trees, scores) -> None:
    """Add the values of all trees to `scores`."""
    n_features, n_cells = fit.shape
    raw = np.full(n_cells, start)
    slopes = np.empty((2, n_cells), dtype=np.float32)  # gradient and hessian of the loss
    tree = np.empty((2 * MAX_LEAVES - 1, 5))  # feature (-1: leaf), bin, left, right, value
    sums = np.empty((2 * MAX_LEAVES - 1, n_features, N_BINS, 3))
    order = np.empty(n_cells, dtype=np.int64)
    for _ in range(n_trees):
        for i in range(n_cells):
            chance = 1.0 / (1.0 + np.exp(-raw[i]))
            slopes[0, i] = chance - is_second[i]
            slopes[1, i] = chance * (1.0 - chance)
        _grow(fit, slopes, sums, order, tree)
        _descend(tree, fit, raw)
        _descend(tree, rest, scores)


@numba.njit(cache=True, nogil=True)
@no_type_check
def _descend(tree, cells, scores) -> None:
    """Add the value of the leaf that each cell falls into."""
    for i in range(scores.size):
        node = 0
        while tree[node, 0] >= 0:
            goes_left = cells[int(tree[node, 0]), i] <= tree[node, 1]
            node = int(tree[node, 2] if goes_left else tree[node, 3])
        scores[i] += LEARNING_RATE * tree[node, 4]


@numba.njit(cache=True, nogil=True)
@no_type_check
def _grow(cells, slopes, sums, order, tree) -> None:
    """Grow one tree, always where the gain is largest; fills `tree`.

    `order` is scratch for the cells of every node, `sums` for its histograms: gradient, hessian
    and number of cells by feature and bin.
    """
    n_cells = order.size
    bounds = np.empty((tree.shape[0], 2), dtype=np.int64)  # cells of a node in `order`
    gains = np.full(tree.shape[0], -1.0)
    splits = np.empty((tree.shape[0], 2), dtype=np.int64)  # feature and bin of the best split
    order[:] = np.arange(n_cells)
    bounds[0, 0], bounds[0, 1] = 0, n_cells
    tree[0, 0], tree[0, 4] = -1, 0.0
    _sum_up(cells, slopes, order, sums[0])
    gains[0] = _best_split(sums[0], 0.0, splits[0])
    n_nodes = 1
    while n_nodes < tree.shape[0]:
        node = np.argmax(gains[:n_nodes])
        if gains[node] <= 0:
            break
        gains[node] = -1.0
        left, right = n_nodes, n_nodes + 1
        n_nodes += 2
        _part(cells, order, bounds, splits[node], node, left, right)
        tree[node, 0], tree[node, 1] = splits[node, 0], splits[node, 1]
        tree[node, 2], tree[node, 3] = left, right
        small, large = left, right
        if bounds[left, 1] - bounds[left, 0] >= bounds[right, 1] - bounds[right, 0]:
            small, large = right, left
        _sum_up(cells, slopes, order[bounds[small, 0] : bounds[small, 1]], sums[small])
        sums[large] = sums[node] - sums[small]
        for child in (left, right):
            total = _total(sums[child])
            tree[child, 0] = -1
            tree[child, 4] = -total[0] / (total[1] + _EPS)
            gains[child] = -1.0
            if bounds[child, 1] - bounds[child, 0] >= 2 * MIN_CELLS_PER_LEAF:
                gains[child] = _best_split(sums[child], tree[child, 4], splits[child])


@numba.njit(cache=True, nogil=True)
@no_type_check
def _sum_up(cells, slopes, chosen, sums) -> None:
    """Histograms of the chosen cells."""
    sums[:] = 0.0
    gradient, hessian = slopes[0][chosen], slopes[1][chosen]
    for feature in range(cells.shape[0]):
        bins, into = cells[feature], sums[feature]
        for i in range(chosen.size):
            place = bins[chosen[i]]
            into[place, 0] += gradient[i]
            into[place, 1] += hessian[i]
            into[place, 2] += 1.0


@numba.njit(cache=True, nogil=True)
@no_type_check
def _total(sums) -> tuple:
    """Sums over the bins of any feature: the same cells are in all of them."""
    return sums[0, :, 0].sum(), sums[0, :, 1].sum(), sums[0, :, 2].sum()


@numba.njit(cache=True, nogil=True)
@no_type_check
def _best_split(sums, value, split) -> float:
    """Gain of the best split of a node with `value`, -1 if there is none; fills `split`."""
    gradient, hessian, n_cells = _total(sums)
    best = -1.0
    for feature in range(sums.shape[0]):
        left_gradient, left_hessian, n_left = 0.0, 0.0, 0.0
        for place in range(N_BINS - 1):
            left_gradient += sums[feature, place, 0]
            left_hessian += sums[feature, place, 1]
            n_left += sums[feature, place, 2]
            if n_left < MIN_CELLS_PER_LEAF or left_hessian < _MIN_HESSIAN:
                continue
            if n_cells - n_left < MIN_CELLS_PER_LEAF or hessian - left_hessian < _MIN_HESSIAN:
                break
            right = gradient - left_gradient
            gain = gradient * value
            gain += left_gradient * left_gradient / (left_hessian + _EPS)
            gain += right * right / (hessian - left_hessian + _EPS)
            if gain > best and gain > 0:
                best = gain
                split[0], split[1] = feature, place
    return best


@numba.njit(cache=True, nogil=True)
@no_type_check
def _part(cells, order, bounds, split, node, left, right) -> None:
    """Bring the cells of the left child before those of the right one, each in their order."""
    start, stop = bounds[node, 0], bounds[node, 1]
    goes_left = cells[split[0]][order[start:stop]] <= split[1]
    members = order[start:stop].copy()
    middle = start + goes_left.sum()
    order[start:middle] = members[goes_left]
    order[middle:stop] = members[~goes_left]
    bounds[left, 0], bounds[left, 1] = start, middle
    bounds[right, 0], bounds[right, 1] = middle, stop
