"""Cells from a model: noise -> flow -> latent and library size -> law of the counts -> counts.

Everything random about a cell comes from its seed, and the seed from (plan seed, condition, index
within the condition). Workers, parts and start order have no say.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float32, Int64, UInt16, UInt64
from numpy import ndarray

from save_dist.config.schema import GuidanceConfig, SolverConfig
from save_dist.core.errors import ConfigError
from save_dist.core.seeding import cell_keys, normals
from save_dist.flow.guidance import Field, guided
from save_dist.flow.solver import integrate
from save_dist.generation.draw import draw_counts
from save_dist.stores.bundle import ModelBundle


@dataclass(frozen=True)
class SampledCells:
    """Generated cells, in the order asked for."""

    counts: UInt16[ndarray, "cell gene"]
    latent: Float32[ndarray, "cell latent"]
    """z, as the decoder read it."""
    library: Float32[ndarray, " cell"]
    """Expected counts per cell."""
    n_evaluations: int
    """Evaluations of the velocity field."""


def cell_seeds(
    bundle: ModelBundle, codes: Sequence[int], index: Int64[ndarray, " cell"], seed: int
) -> UInt64[ndarray, " cell"]:
    """Seeds of the cells of one condition.

    Args:
        bundle: its vocabulary says what the codes mean.
        codes: condition; made into an identity by names, so it survives a grown vocabulary.
        index: number of each cell within the condition, from 0.
        seed: seed of the plan.
    """
    return cell_keys(seed, "generated_cell", bundle.conditions.identity(codes), index)


def sample_conditions(
    bundle: ModelBundle,
    codes: Int64[ndarray, "condition field"],
    n_cells: int,
    *,
    seed: int,
    guidance: GuidanceConfig,
    solver: SolverConfig,
    cells_per_minibatch: int,
) -> SampledCells:
    """The first `n_cells` cells of every condition, condition by condition.

    Raises:
        ConfigError: if no cell is asked for, or the flow leaves the range of numbers, as under
            extreme guidance.
    """
    if n_cells < 1 or not len(codes):
        raise ConfigError(
            f"asked for {n_cells} cells of {len(codes)} conditions; expected at least one of each"
        )
    index = np.arange(n_cells, dtype=np.int64)
    seeds = [cell_seeds(bundle, row, index, seed) for row in codes.tolist()]
    return sample_cells(
        bundle,
        np.repeat(codes, n_cells, axis=0),
        np.concatenate(seeds),
        guidance=guidance,
        solver=solver,
        cells_per_minibatch=cells_per_minibatch,
    )


def sample_cells(
    bundle: ModelBundle,
    codes: Int64[ndarray, "cell field"],
    seeds: UInt64[ndarray, " cell"],
    *,
    guidance: GuidanceConfig,
    solver: SolverConfig,
    cells_per_minibatch: int,
) -> SampledCells:
    """Cells of any conditions; each `cells_per_minibatch` neighbours share a minibatch.

    Which cells share one decides the last bits of a cell (sums in another order), hence it is
    part of the plan.
    """
    n_cells, scale = seeds.size, bundle.latent_scale
    counts = np.empty((n_cells, len(bundle.genes)), dtype=np.uint16)
    latent = np.empty((n_cells, scale.mean.size - 1), dtype=np.float32)
    library = np.empty(n_cells, dtype=np.float32)
    n_evaluations = 0
    for start in range(0, n_cells, cells_per_minibatch):
        rows = slice(start, start + cells_per_minibatch)
        cells = sample_minibatch(bundle, codes[rows], seeds[rows], guidance=guidance, solver=solver)
        counts[rows], latent[rows], library[rows] = cells.counts, cells.latent, cells.library
        n_evaluations += cells.n_evaluations
    return SampledCells(counts, latent, library, n_evaluations)


def sample_minibatch(
    bundle: ModelBundle,
    codes: Int64[ndarray, "cell field"],
    seeds: UInt64[ndarray, " cell"],
    *,
    guidance: GuidanceConfig,
    solver: SolverConfig,
) -> SampledCells:
    """Cells sampled at once, on the device of the bundle.

    Raises:
        ConfigError: if the flow leaves the range of numbers, naming a condition where it did.
    """
    device = next(bundle.velocity.parameters()).device
    code_tensor = torch.from_numpy(codes).to(device)
    scale = bundle.latent_scale
    noise = normals(_stream(seeds, "noise"), scale.mean.size)
    with torch.inference_mode():
        solution = integrate(
            _field(bundle, code_tensor, guidance),
            torch.from_numpy(noise).to(device),
            method=solver.method,
            n_steps=solver.n_steps,
            tolerance=solver.tolerance,
        )
        mean, sd = (torch.from_numpy(a).to(device) for a in (scale.mean, scale.sd))
        y = solution.x_1 * sd + mean
        latent, library = y[:, :-1].contiguous(), y[:, -1].exp()
        _check_finite(bundle, codes, torch.cat([latent, library[:, None]], dim=1))
        px = bundle.vae.decode(latent, code_tensor, library)
        counts = draw_counts(
            px.mean.float().cpu().numpy(),
            px.inverse_dispersion.float().cpu().numpy(),
            _stream(seeds, "counts"),
        )
    return SampledCells(counts, latent.cpu().numpy(), library.cpu().numpy(), solution.n_evaluations)


def _field(
    bundle: ModelBundle, codes: Int64[torch.Tensor, "cell field"], guidance: GuidanceConfig
) -> Field:
    """The guided velocity field; a column that guidance does not name keeps its plain weight 1."""
    weights = [guidance.columns.get(column, 1.0) for column in bundle.conditions.columns]
    return guided(
        bundle.velocity,
        codes,
        bundle.conditions.mask_codes,
        scale=guidance.scale,
        column_weights=weights if guidance.columns else None,
        interval=guidance.interval,
    )


def _stream(seeds: UInt64[ndarray, " cell"], purpose: str) -> UInt64[ndarray, " cell"]:
    """One stream per purpose and cell, from the cell's seed alone."""
    return cell_keys(0, purpose, 0, seeds.view(np.int64))


def _check_finite(
    bundle: ModelBundle, codes: Int64[ndarray, "cell field"], y: torch.Tensor
) -> None:
    bad = ~torch.isfinite(y).all(dim=1).cpu().numpy()
    if bad.any():
        condition = bundle.conditions.decode_one(codes[bad][0].tolist())
        raise ConfigError(
            f"sampling gave no finite numbers for {bad.sum()} of {bad.size} cells, e.g. of "
            f"{condition}; lower grid.guidance, raise grid.solver.n_steps, or train longer"
        )
