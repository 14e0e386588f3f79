"""From a trained VAE to the flow's minibatches: encode once, standardise, stream.

The flow lives on y = [z, log library], standardised per coordinate over the training cells, so a
cell's library size is generated together with its state and never copied from real cells.
"""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from save_dist.data.balance import Balance
from save_dist.data.partition import StreamPlan
from save_dist.data.scan import scan
from save_dist.data.source import SomaSource, StoreLocator
from save_dist.data.splits import CellIndex
from save_dist.data.transforms import DenseCells, densify
from save_dist.models.vae import Vae
from save_dist.stores.bundle import LatentScale
from save_dist.stores.latents import LatentStore
from save_dist.training.ranks import Ranks

_CELLS_PER_MINIBATCH = 1024


class LatentBatch(NamedTuple):
    """Cells of one optimiser step of one rank, lane by lane."""

    step: int
    lanes: tuple[int, ...]
    joinids: np.ndarray
    codes: Int[Tensor, "cell field"]
    mean: Float[Tensor, "cell latent"]
    sd: Float[Tensor, "cell latent"]
    log_library: Float[Tensor, " cell"]


def encode_cells(
    vae: Vae,
    locator: StoreLocator,
    index: CellIndex,
    gene_positions: Int[np.ndarray, " gene"],
    store: LatentStore,
    ranks: Ranks,
) -> None:
    """Write q(z|x) of this rank's share of `index` (row i of the store = cell i of the index).

    Regions already recorded in the store are kept. Shares begin where minibatches do, so that
    the latents are the same to the last bit for any number of ranks.
    """
    start, stop = share_of(ranks, index.n_cells)
    if start == stop or store.has_region(start, stop):
        return
    device = next(vae.parameters()).device
    mine = index.take(np.arange(start, stop))
    for first, cells in dense_cells(locator, mine, gene_positions):
        codes = mine.codes[first : first + cells.library.size].astype(np.int64)
        with torch.inference_mode():
            posterior = vae.encode(
                torch.from_numpy(cells.log_x).to(device), torch.from_numpy(codes).to(device)
            )
        store.write(
            start + first,
            mean=posterior.mean.float().cpu().numpy(),
            var=posterior.var.float().cpu().numpy(),
            log_library=np.log(np.maximum(cells.library, 1.0)),
        )
    store.commit_region(start, stop)


def share_of(ranks: Ranks, n_cells: int) -> tuple[int, int]:
    """First and last (exclusive) cell that a rank encodes.

    >>> [share_of(Ranks(rank, 2), 5000) for rank in range(2)]
    [(0, 2048), (2048, 5000)]
    """
    bounds = np.linspace(0, n_cells, ranks.world_size + 1).astype(np.int64)
    bounds[1:-1] -= bounds[1:-1] % _CELLS_PER_MINIBATCH
    return int(bounds[ranks.rank]), int(bounds[ranks.rank + 1])


def dense_cells(
    locator: StoreLocator,
    index: CellIndex,
    gene_positions: Int[np.ndarray, " gene"],
    n_cells: int = _CELLS_PER_MINIBATCH,
) -> Iterator[tuple[int, DenseCells]]:
    """Cells of an index in its order, at most `n_cells` at a time, each with its first position."""
    with SomaSource(locator) as source:
        for read in scan(source, index, gene_positions):
            n_read = read.cells.n_cells
            for first in range(0, n_read, n_cells):
                rows = np.arange(first, min(first + n_cells, n_read))
                yield read.start + first, densify(read.cells, rows, gene_positions.size)


def latent_scale(store: LatentStore) -> LatentScale:
    """Mean and sd of every coordinate of y over the training cells, in float64.

    The variance of a coordinate of z is that of its means plus the mean of its variances.
    """
    mean, log_library = store.mean, store.log_library
    centre = np.append(mean.mean(0, dtype=np.float64), log_library.mean(dtype=np.float64))
    within = np.append(store.var.mean(0, dtype=np.float64), 0.0)
    between = np.append(mean.var(0, dtype=np.float64), log_library.var(dtype=np.float64))
    sd = np.sqrt(within + between)
    sd[sd < 1e-6] = 1.0  # a dead coordinate stays what it is
    return LatentScale(centre.astype(np.float32), sd.astype(np.float32))


class LatentStream:
    """Minibatches of latents in the order of a `StreamPlan`; mirrors `CellStream`."""

    def __init__(
        self,
        store: LatentStore,
        index: CellIndex,
        plan: StreamPlan,
        ranks: Ranks,
        balance: Balance | None = None,
    ) -> None:
        self._store = store
        self._index = index
        self._plan = plan
        self._balance = balance
        self._lanes = plan.lanes_of(ranks.rank, ranks.world_size)

    def batches(self, start_step: int, stop_step: int) -> Iterator[LatentBatch]:
        """Minibatches of the optimiser steps `start_step` (inclusive) to `stop_step`."""
        step = start_step
        for stretch in self._plan.stretches(start_step, stop_step):
            places = self._plan.rows_of(stretch, self._lanes)
            if self._balance is not None:
                places = self._balance.cells(stretch.epoch)[places]
            for rows in places:
                yield self._batch(step, rows)
                step += 1

    def _batch(self, step: int, rows: np.ndarray) -> LatentBatch:
        return LatentBatch(
            step=step,
            lanes=self._lanes,
            joinids=self._index.joinids[rows],
            codes=torch.from_numpy(self._index.codes[rows].astype(np.int64)),
            mean=torch.from_numpy(self._store.mean[rows]),
            sd=torch.from_numpy(np.sqrt(self._store.var[rows])),
            log_library=torch.from_numpy(self._store.log_library[rows]),
        )
