"""Control-as-source flow: from latents of reference cells to latents under another value.

Control and target cells of a minibatch come from one pair of seen combinations that agree in all
other columns, so whatever else a cell is stays out of what is learnt. Which pairs, which cells and
which noise are functions of (seed, step, lane).
"""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int, Int64
from numpy import ndarray
from torch import Tensor, nn

from save_dist.config.schema import TransportConfig
from save_dist.core import seeding
from save_dist.flow.coupling import pair
from save_dist.flow.path import sample_time, straight_path
from save_dist.models.velocity import Velocity
from save_dist.stores.bundle import LatentScale
from save_dist.stores.latents import LatentStore
from save_dist.training.loop import Loss
from save_dist.training.steps import Draws, standardised
from save_dist.vocab.transports import Codes, Pair


class CellLatents(NamedTuple):
    """Posteriors and library sizes of some cells."""

    mean: Float[Tensor, "cell latent"]
    sd: Float[Tensor, "cell latent"]
    log_library: Float[Tensor, " cell"]


class TransportBatch(NamedTuple):
    """Control and target cells of one optimiser step of one rank, lane by lane, side by side."""

    step: int
    lanes: tuple[int, ...]
    joinids: Int64[ndarray, " cell"]
    """Of the target cells."""
    group: Int64[Tensor, " cell"]
    """Cells of one number come from one pair of combinations."""
    codes: Int64[Tensor, "cell field"]
    """What the velocity network is told."""
    control: CellLatents
    target: CellLatents


class PairSampler:
    """Which control and target cells a lane takes in a step.

    Args:
        codes: condition codes of the training cells, in the order of the latents.
        pairs: combinations to draw from; each with weight sqrt(cells on both sides).
        cells_per_lane: pairs of cells per lane and step.
        cells_per_group: of these from one pair of combinations.
        seed: seed of the run.
    """

    def __init__(
        self,
        codes: Int[ndarray, "cell field"],
        pairs: Sequence[Pair],
        *,
        cells_per_lane: int,
        cells_per_group: int,
        seed: int,
    ) -> None:
        self._pairs, self._seed = pairs, seed
        self._rows = _rows_by_combination(codes, pairs)
        starts = range(0, cells_per_lane, cells_per_group)
        self.group_sizes = [min(cells_per_group, cells_per_lane - start) for start in starts]
        n_cells = [len(self._rows[p.control]) + len(self._rows[p.target]) for p in pairs]
        weights = np.sqrt(np.array(n_cells, dtype=np.float64))
        self._shares = weights / weights.sum()

    def draw(
        self, step: int, lane: int
    ) -> tuple[Int64[ndarray, "role cell"], Int64[ndarray, " cell"]]:
        """Rows of control (0) and target (1) cells, and the number of the pair each is of."""
        rng = seeding.generator(self._seed, "transport_cells", step, lane)
        numbers = rng.choice(len(self._pairs), size=len(self.group_sizes), p=self._shares)
        pieces = []
        for number, n in zip(numbers.tolist(), self.group_sizes, strict=True):
            sides = (self._pairs[number].control, self._pairs[number].target)
            pieces.append(np.stack([rng.choice(self._rows[side], size=n) for side in sides]))
        return np.concatenate(pieces, axis=1), np.repeat(numbers, self.group_sizes)


class TransportStream:
    """Minibatches of paired latents; mirrors `LatentStream`, but has no epochs.

    Args:
        store: latents of the training cells.
        joinids: of the same cells.
        sampler: choice of cells.
        pair_codes: what the velocity network is told for each pair, by its number.
        lanes: of this rank.
    """

    def __init__(
        self,
        store: LatentStore,
        joinids: Int64[ndarray, " cell"],
        sampler: PairSampler,
        pair_codes: Int64[Tensor, "pair field"],
        lanes: tuple[int, ...],
    ) -> None:
        self._store, self._joinids = store, joinids
        self._sampler, self._pair_codes, self._lanes = sampler, pair_codes, lanes

    def batches(self, start_step: int, stop_step: int) -> Iterator[TransportBatch]:
        """Minibatches of the optimiser steps `start_step` (inclusive) to `stop_step`."""
        sizes = self._sampler.group_sizes
        group = torch.arange(len(self._lanes) * len(sizes)).repeat_interleave(
            torch.tensor(sizes * len(self._lanes))
        )
        for step in range(start_step, stop_step):
            drawn = [self._sampler.draw(step, lane) for lane in self._lanes]
            control, target = np.concatenate([rows for rows, _ in drawn], axis=1)
            numbers = torch.from_numpy(np.concatenate([numbers for _, numbers in drawn]))
            yield TransportBatch(
                step=step,
                lanes=self._lanes,
                joinids=np.asarray(self._joinids[target]),
                group=group,
                codes=self._pair_codes[numbers],
                control=self._latents(control),
                target=self._latents(target),
            )

    def _latents(self, rows: Int64[ndarray, " cell"]) -> CellLatents:
        store = self._store
        return CellLatents(
            torch.from_numpy(store.mean[rows]),
            torch.from_numpy(np.sqrt(store.var[rows])),
            torch.from_numpy(store.log_library[rows]),
        )


class TransportStage:
    """Flow matching loss (SAVE eq. 8-10) with control cells instead of noise as the source."""

    name = "transport"

    def __init__(
        self, module: Velocity, config: TransportConfig, scale: LatentScale, draws: Draws
    ) -> None:
        self.module: nn.Module = module
        self._config = config
        self._draws = draws
        self._scale = scale

    def loss(self, forward: nn.Module, minibatch: TransportBatch, part: slice) -> Loss:
        """Loss of the pairs in `part`; `forward` is the wrapped module."""
        step, lanes = minibatch.step, minibatch.lanes
        device = next(self.module.parameters()).device
        x_0 = self._standardised(minibatch.control, "transport_control", step, lanes)
        x_1 = self._standardised(minibatch.target, "transport_target", step, lanes)
        noise = self._draws.normals("transport_source", step, lanes, x_0.shape[1])
        x_0 = x_0 + self._config.noise * noise
        if self._config.coupling == "within_group":
            x_0 = x_0[pair(x_0, x_1, minibatch.group)]
        uniforms = self._draws.uniforms("transport_time", step, lanes, 1)
        t = sample_time(uniforms[:, 0], self._config.time)
        x_t, u_t = straight_path(x_0[part], x_1[part], t[part])
        velocity = forward(x_t.to(device), t[part].to(device), minibatch.codes[part].to(device))
        per_cell = (velocity - u_t.to(device)).square().mean(1)
        return Loss(per_cell, {}, minibatch.joinids[part])

    def _standardised(
        self, cells: CellLatents, purpose: str, step: int, lanes: tuple[int, ...]
    ) -> Float[Tensor, "cell latent"]:
        if self._config.target == "mean":
            return standardised(cells.mean, cells.log_library, self._scale)
        noise = self._draws.normals(purpose, step, lanes, cells.mean.shape[1])
        return standardised(cells.mean + cells.sd * noise, cells.log_library, self._scale)


def _rows_by_combination(
    codes: Int[ndarray, "cell field"], pairs: Sequence[Pair]
) -> dict[Codes, Int64[ndarray, " _"]]:
    """Rows of every combination that stands in a pair, ascending."""
    combinations, inverse = np.unique(codes, axis=0, return_inverse=True)
    order = np.argsort(inverse.ravel(), kind="stable")
    ends = np.cumsum(np.bincount(inverse.ravel()))[:-1]
    known = [tuple(row) for row in combinations.tolist()]
    wanted = {side for pair_ in pairs for side in (pair_.control, pair_.target)}
    rows = dict(zip(known, np.split(order, ends), strict=True))
    return {combination: rows[combination] for combination in wanted}
