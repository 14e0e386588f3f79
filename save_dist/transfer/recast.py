"""Real cells under other conditions: moved by a method, decoded, their counts drawn.

The decoder is told the target. A column may also be masked, or averaged over: then the expected
counts are the mean of those under every value that training saw, which takes a batch out of
expression without naming one to look like (as `transform_batch` of scvi-tools does).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from jaxtyping import Float32, Int64, UInt16, UInt64
from numpy import ndarray
from torch import Tensor

from save_dist.config.schema import ComposeConfig, Condition, SolverConfig
from save_dist.core.errors import ConfigError, listed
from save_dist.data.transforms import log_normalise
from save_dist.generation.draw import draw_counts
from save_dist.stores.bundle import ModelBundle
from save_dist.transfer.methods import (
    METHODS,
    Cells,
    Ends,
    Method,
    Moved,
    MoveSettings,
    method_of,
    posterior_of,
)


@dataclass(frozen=True)
class RecastCells:
    """Cells as they would be under their targets, in the order given."""

    counts: UInt16[ndarray, "cell gene"]
    mean: Float32[ndarray, "cell gene"]
    """Expected counts."""
    latent: Float32[ndarray, "cell latent"]
    """z, as the decoder read it."""
    n_evaluations: int
    """Of velocity networks."""


@dataclass(frozen=True)
class Aim:
    """What cells shall become.

    Args:
        target: values to set; other columns keep each cell's own.
        masked: columns the decoder is not told.
        averaged: columns over whose values expected counts are averaged.
    """

    target: Condition
    masked: tuple[str, ...] = ()
    averaged: tuple[str, ...] = ()

    @property
    def erased(self) -> tuple[str, ...]:
        """Columns of which a cell has no value afterwards."""
        return (*self.masked, *self.averaged)


class Recaster:
    """Puts cells of one model under other conditions.

    Args:
        bundle: the model.
        aim: what to make of the cells.
        method: a name of `METHODS`.
        compose: how carried cells are decoded.
        solver: of flow and transport.

    Raises:
        ConfigError: if the model cannot do it.
    """

    def __init__(
        self,
        bundle: ModelBundle,
        aim: Aim,
        method: str,
        compose: ComposeConfig,
        solver: SolverConfig,
    ) -> None:
        check_aim(bundle, aim, method)
        self.bundle, self.aim, self.method = bundle, aim, method
        self._move: Method = METHODS[method](bundle, MoveSettings(compose, solver))

    def recast(
        self,
        counts: Float32[ndarray, "cell gene"],
        codes: Int64[ndarray, "cell field"],
        keys: UInt64[ndarray, " cell"],
    ) -> RecastCells:
        """Cells that share a minibatch.

        Args:
            counts: raw counts over the genes of the model.
            codes: conditions of the cells.
            keys: one stream of random numbers per cell.
        """
        moves_to = target_codes(self.bundle, codes, self.aim.target)
        cells = Cells(log_normalise(counts), counts.sum(axis=1), codes, moves_to, keys)
        with torch.inference_mode():
            moved = self._move(cells)
            mean, theta = self._decoded(moved, moves_to)
        drawn = draw_counts(mean, theta, keys)
        return RecastCells(drawn, mean, moved.cells.latent.cpu().numpy(), moved.n_evaluations)

    def _decoded(
        self, moved: Moved, targets: Int64[ndarray, "cell field"]
    ) -> tuple[Float32[ndarray, "cell gene"], Float32[ndarray, "#cell gene"]]:
        """Expected counts and inverse dispersions, each the mean over what is averaged."""
        means, thetas = [], []
        for values in self._values:
            told = targets.copy()
            told[:, self._columns] = values
            px = self._law(moved, told)
            means.append(px[0])
            thetas.append(px[1])
        mean, theta = torch.stack(means).mean(0), torch.stack(thetas).mean(0)
        return mean.float().cpu().numpy(), theta.float().cpu().numpy()

    def _law(self, moved: Moved, told: Int64[ndarray, "cell field"]) -> tuple[Tensor, Tensor]:
        latent, library = moved.cells
        condition = torch.from_numpy(told).to(latent.device)
        px = self.bundle.vae.decode(latent, condition, library, logit_offset=moved.offset)
        return px.mean, px.inverse_dispersion

    @cached_property
    def _columns(self) -> list[int]:
        known = self.bundle.conditions.columns
        return [known.index(column) for column in self.aim.erased]

    @cached_property
    def _values(self) -> list[tuple[int, ...]]:
        """Codes of the erased columns that the decoder is told in turn."""
        sizes, n_masked = self.bundle.conditions.sizes, len(self.aim.masked)
        masks = tuple(sizes[i] for i in self._columns[:n_masked])
        seen = {tuple(codes[i] for i in self._columns[n_masked:]) for codes in self.bundle.support}
        return [(*masks, *values) for values in sorted(seen)]


def recaster_of(
    bundle: ModelBundle,
    aim: Aim,
    method: str,
    codes: Int64[ndarray, "combination field"],
    compose: ComposeConfig,
    solver: SolverConfig,
) -> Recaster:
    """The recaster for cells of these combinations; `auto` is settled for all of them alike."""
    if method == "auto" and aim.erased:
        return Recaster(bundle, aim, "reencode", compose, solver)
    name = method_of(method, bundle, ends_of(bundle, aim, codes))
    return Recaster(bundle, aim, name, compose, solver)


def ends_of(
    bundle: ModelBundle, aim: Aim, codes: Int64[ndarray, "combination field"]
) -> list[Ends]:
    """Where cells of these combinations start and what they become."""
    starts = np.unique(codes.astype(np.int64), axis=0)
    targets = target_codes(bundle, starts, aim.target)
    pairs = zip(starts.tolist(), targets.tolist(), strict=True)
    return [(tuple(a), tuple(b)) for a, b in pairs]


def target_codes(
    bundle: ModelBundle, codes: Int64[ndarray, "cell field"], target: Mapping[str, str]
) -> Int64[ndarray, "cell field"]:
    """Codes with the columns of `target` replaced, the others kept.

    Raises:
        ConfigError: if a column or value of `target` is unknown.
    """
    wanted = bundle.conditions.encode_one(target)
    out = codes.copy()
    for number, column in enumerate(bundle.conditions.columns):
        if column in target:
            out[:, number] = wanted[number]
    return out


def shown_codes(
    bundle: ModelBundle, aim: Aim, codes: Int64[ndarray, "cell field"]
) -> Int64[ndarray, "cell field"]:
    """The conditions that cells have afterwards; erased columns are masked."""
    out = target_codes(bundle, codes, aim.target)
    for number, column in enumerate(bundle.conditions.columns):
        if column in aim.erased:
            out[:, number] = bundle.conditions.sizes[number]
    return out


def check_aim(bundle: ModelBundle, aim: Aim, method: str) -> None:
    """Refuse what cannot be meant.

    Raises:
        ConfigError: if no column changes or one is named twice, is unknown, or is erased although
            the decoder does not look at it or the method needs its value.
    """
    named = [*aim.target, *aim.erased]
    if not named or len(set(named)) != len(named):
        raise ConfigError(
            f"transfer names {listed(named) or 'no column'}; name at least one column, and each "
            "in one of transfer.target, transfer.masked and transfer.averaged"
        )
    known = bundle.conditions.columns
    if unknown := [column for column in aim.erased if column not in known]:
        raise ConfigError(
            f"transfer: unknown condition column {unknown[0]!r}; known: {listed(known)}"
        )
    if aim.erased and method != "reencode":
        raise ConfigError(
            f"transfer.masked and transfer.averaged take {listed(aim.erased)} out of the decoder, "
            f"which method={method!r} cannot do; use method: reencode"
        )
    seen = bundle.vae_config.decoder_columns
    if blind := [column for column in aim.erased if seen is not None and column not in seen]:
        raise ConfigError(
            f"the decoder does not look at {blind[0]!r}, so taking it out would change nothing; "
            f"it looks at {listed(seen or [])}: train with vae.decoder_columns that name it"
        )


def encoded(
    bundle: ModelBundle,
    counts: Float32[ndarray, "cell gene"],
    codes: Int64[ndarray, "cell field"],
) -> Float32[ndarray, "cell latent"]:
    """Posterior mean of every cell of a minibatch."""
    mean: ndarray = posterior_of(bundle, log_normalise(counts), codes).mean.cpu().numpy()
    return mean


def minibatches(n_cells: int, size: int) -> Sequence[slice]:
    """Consecutive slices of at most `size` cells."""
    return [slice(start, min(start + size, n_cells)) for start in range(0, n_cells, size)]
