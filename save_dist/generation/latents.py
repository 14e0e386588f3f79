"""Standardised latents from noise, what they stand for, and how they are carried elsewhere."""

from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int64, UInt64
from numpy import ndarray
from torch import Tensor

from save_dist.config.schema import GuidanceConfig, SolverConfig
from save_dist.core.errors import ConfigError
from save_dist.core.seeding import cell_keys, normals
from save_dist.flow.guidance import ConditionalVelocity, Field, guided
from save_dist.flow.solver import Solution, backwards, integrate
from save_dist.stores.bundle import ModelBundle


class DecoderInput(NamedTuple):
    """What the decoder reads of each cell besides its condition."""

    latent: Float[Tensor, "cell latent"]
    library: Float[Tensor, " cell"]


def flow_from_noise(
    bundle: ModelBundle,
    codes: Int64[ndarray, "cell field"],
    seeds: UInt64[ndarray, " cell"],
    guidance: GuidanceConfig,
    solver: SolverConfig,
) -> Solution:
    """Standardised latents of cells under their conditions; the noise is of each cell's seed.

    Evaluations are those of the network: guidance makes several in each of the field.
    """
    device = next(bundle.velocity.parameters()).device
    noise = normals(stream(seeds, "noise"), bundle.latent_scale.mean.size)
    return _along(bundle, torch.from_numpy(noise).to(device), codes, guidance, solver)


def through_noise(
    bundle: ModelBundle,
    x: Float[Tensor, "cell standardised"],
    codes: Int64[ndarray, "cell field"],
    targets: Int64[ndarray, "cell field"],
    solver: SolverConfig,
) -> Solution:
    """Back along the flow of one condition to the noise a cell stands for, forth along another.

    Two flows over the same noise join two conditions, cell by cell, without pairs (dual diffusion
    implicit bridges, Su et al. 2023); where both are one, a cell comes back to itself as exactly
    as the solver goes.

    Args:
        bundle: the model.
        x: standardised latents.
        codes: conditions of the cells.
        targets: conditions to take them to.
        solver: of both ways.
    """
    plain = GuidanceConfig()
    noise = _along(bundle, x, codes, plain, solver, back=True)
    made = _along(bundle, noise.x_1, targets, plain, solver)
    return Solution(made.x_1, noise.n_evaluations + made.n_evaluations)


def _along(
    bundle: ModelBundle,
    x: Float[Tensor, "cell standardised"],
    codes: Int64[ndarray, "cell field"],
    guidance: GuidanceConfig,
    solver: SolverConfig,
    back: bool = False,
) -> Solution:
    """Where the flow of each cell's condition leads it: from noise to data, or back."""
    n_evaluations = 0

    def counted(x: Tensor, t: Tensor, codes: Tensor) -> Tensor:
        nonlocal n_evaluations
        n_evaluations += 1
        v: Tensor = bundle.velocity(x, t, codes)
        return v

    field = _field(bundle, counted, torch.from_numpy(codes).to(x.device), guidance)
    solution = integrate(
        backwards(field) if back else field,
        x,
        method=solver.method,
        n_steps=solver.n_steps,
        tolerance=solver.tolerance,
    )
    return Solution(solution.x_1, n_evaluations)


def carry(
    bundle: ModelBundle,
    x: Float[Tensor, "cell standardised"],
    told: Int64[Tensor, "cell column"],
    library_shift: Float[Tensor, " cell"],
    solver: SolverConfig,
) -> Solution:
    """Standardised latents of control cells, carried along the transport of the model.

    A cell keeps its library size but for a shift: how many molecules are caught of a cell is a
    matter of the measurement, and a transport that carries it too only widens its spread.

    Args:
        bundle: model with a transport.
        x: where the cells are.
        told: what the transport is told of each cell (see `Transport.told`).
        library_shift: added to the log library size.
        solver: as for the flow.
    """
    assert bundle.transport is not None, "the plan has checked it"
    velocity, told = bundle.transport.velocity, told.to(x.device)
    moved = integrate(
        lambda t, at: velocity(at, t.expand(len(at)), told),
        x,
        method=solver.method,
        n_steps=solver.n_steps,
        tolerance=solver.tolerance,
    )
    library = x[:, -1] + library_shift.to(x.device) / float(bundle.latent_scale.sd[-1])
    return Solution(torch.cat([moved.x_1[:, :-1], library[:, None]], dim=1), moved.n_evaluations)


def standardise(bundle: ModelBundle, cells: DecoderInput) -> Float[Tensor, "cell standardised"]:
    """Latents and library sizes in units of the training cells' spread."""
    mean, sd = _scale(bundle, cells.latent.device)
    y = torch.cat([cells.latent, cells.library.clamp_min(1).log()[:, None]], dim=1)
    return (y - mean) / sd


def unstandardise(bundle: ModelBundle, x: Float[Tensor, "cell standardised"]) -> DecoderInput:
    """Inverse of `standardise`."""
    mean, sd = _scale(bundle, x.device)
    y = x * sd + mean
    return DecoderInput(y[:, :-1].contiguous(), y[:, -1].exp())


def check_finite(
    bundle: ModelBundle, codes: Int64[ndarray, "cell field"], cells: DecoderInput
) -> None:
    """Stop before numbers that no cell can have reach the decoder.

    Raises:
        ConfigError: naming one of the conditions.
    """
    y = torch.cat([cells.latent, cells.library[:, None]], dim=1)
    bad = ~torch.isfinite(y).all(dim=1).cpu().numpy()
    if bad.any():
        condition = bundle.conditions.decode_one(codes[bad][0].tolist())
        raise ConfigError(
            f"sampling gave no finite numbers for {bad.sum()} of {bad.size} cells, e.g. of "
            f"{condition}; lower grid.guidance, raise grid.solver.n_steps, or train longer"
        )


def stream(seeds: UInt64[ndarray, " cell"], purpose: str) -> UInt64[ndarray, " cell"]:
    """One stream per purpose and cell, from the cell's seed alone."""
    return cell_keys(0, purpose, 0, seeds.view(np.int64))


def _scale(bundle: ModelBundle, device: torch.device) -> tuple[Tensor, Tensor]:
    scale = bundle.latent_scale
    return torch.from_numpy(scale.mean).to(device), torch.from_numpy(scale.sd).to(device)


def _field(
    bundle: ModelBundle,
    velocity: ConditionalVelocity,
    codes: Int64[Tensor, "cell field"],
    guidance: GuidanceConfig,
) -> Field:
    """The guided velocity field; a column that guidance does not name keeps its plain weight 1."""
    weights = [guidance.columns.get(column, 1.0) for column in bundle.conditions.columns]
    return guided(
        velocity,
        codes,
        bundle.conditions.mask_codes,
        scale=guidance.scale,
        column_weights=weights if guidance.columns else None,
        interval=guidance.interval,
    )
