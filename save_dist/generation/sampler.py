"""Cells from a model: noise -> flow -> latent and library size -> law of the counts -> counts.

Everything random about a cell comes from its seed, and the seed from (plan seed, condition, index
within the condition). Workers, parts and start order have no say.
"""

from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float32, Int64, UInt16, UInt64
from numpy import ndarray

from save_dist.config.schema import GuidanceConfig, SolverConfig
from save_dist.core.errors import ConfigError
from save_dist.core.seeding import cell_keys
from save_dist.generation.compose import Composer
from save_dist.generation.draw import draw_counts
from save_dist.generation.latents import (
    carry,
    check_finite,
    flow_from_noise,
    stream,
    unstandardise,
)
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
    """Evaluations of the velocity networks."""
    mean: Float32[ndarray, "cell gene"] | None = None
    """Expected counts, if they were asked for."""


class _Laws(NamedTuple):
    """What the networks say of some cells; only the counts are still to be drawn."""

    mean: Float32[ndarray, "cell gene"]
    inverse_dispersion: Float32[ndarray, "#cell gene"]
    latent: Float32[ndarray, "cell latent"]
    library: Float32[ndarray, " cell"]
    n_evaluations: int


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
    composer: Composer | None = None,
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
        composer=composer,
    )


def sample_cells(
    bundle: ModelBundle,
    codes: Int64[ndarray, "cell field"],
    seeds: UInt64[ndarray, " cell"],
    *,
    guidance: GuidanceConfig,
    solver: SolverConfig,
    cells_per_minibatch: int,
    composer: Composer | None = None,
    genes: Int64[ndarray, " gene"] | None = None,
    with_means: bool = False,
) -> SampledCells:
    """Cells of any conditions; each `cells_per_minibatch` neighbours share a minibatch.

    Which cells share one decides the last bits of a cell (sums in another order), hence it is
    part of the plan. All genes are drawn, so that choosing `genes` changes no count. The counts of
    a minibatch are drawn while the networks work on the next one, in as many threads as torch has.

    Args:
        bundle: the model.
        codes: condition of each cell.
        seeds: of each cell.
        guidance: of the flow.
        solver: of flow and transport.
        cells_per_minibatch: cells sampled at once.
        composer: carries the cells of unseen combinations; None: every cell goes direct.
        genes: positions of the genes to keep; None: all.
        with_means: keep expected counts, too.

    Raises:
        ConfigError: if the flow leaves the range of numbers, naming a condition where it did.
    """
    kept = slice(None) if genes is None else genes
    n_cells, scale = seeds.size, bundle.latent_scale
    n_genes = len(bundle.genes) if genes is None else genes.size
    counts = np.empty((n_cells, n_genes), dtype=np.uint16)
    mean = np.empty(counts.shape, dtype=np.float32) if with_means else None
    latent = np.empty((n_cells, scale.mean.size - 1), dtype=np.float32)
    library = np.empty(n_cells, dtype=np.float32)
    n_evaluations = 0

    def draw(start: int, laws: _Laws, part: slice) -> None:
        """Counts of some cells of the minibatch that begins at `start`."""
        rows = slice(start + part.start, start + part.stop)
        theta = laws.inverse_dispersion
        theta = theta[part] if len(theta) > 1 else theta
        drawn = draw_counts(laws.mean[part], theta, stream(seeds[rows], "counts"))
        counts[rows] = drawn[:, kept]
        if mean is not None:
            mean[rows] = laws.mean[part][:, kept]

    n_threads = torch.get_num_threads()
    with ThreadPoolExecutor(n_threads, "draw") as drawers:
        drawing: list[Future[None]] = []
        for start in range(0, n_cells, cells_per_minibatch):
            rows = slice(start, start + cells_per_minibatch)
            laws = _laws(bundle, codes[rows], seeds[rows], guidance, solver, composer)
            latent[rows], library[rows] = laws.latent, laws.library
            n_evaluations += laws.n_evaluations
            _wait(drawing)
            drawing = [
                drawers.submit(draw, start, laws, part)
                for part in _parts(len(laws.mean), n_threads)
            ]
        _wait(drawing)
    return SampledCells(counts, latent, library, n_evaluations, mean)


def _parts(n_cells: int, n: int) -> Iterator[slice]:
    """`n` runs of neighbours at most, together all cells."""
    size = -(-n_cells // n)
    return (slice(i, min(i + size, n_cells)) for i in range(0, n_cells, size))


def _wait(drawing: Sequence[Future[None]]) -> None:
    """Until all is drawn; raises what went wrong."""
    for future in drawing:
        future.result()


def _laws(
    bundle: ModelBundle,
    codes: Int64[ndarray, "cell field"],
    seeds: UInt64[ndarray, " cell"],
    guidance: GuidanceConfig,
    solver: SolverConfig,
    composer: Composer | None,
) -> _Laws:
    course = None if composer is None else composer.course(codes)
    with torch.inference_mode():
        start = codes if course is None else course.start
        solution = flow_from_noise(bundle, start, seeds, guidance, solver)
        x, n_evaluations, offset = solution.x_1, solution.n_evaluations, None
        if course is not None:
            carried = course.carried.to(x.device)
            moved = carry(bundle, x[carried], course.told, course.library_shift, solver)
            x = x.index_copy(0, carried, moved.x_1)
            n_evaluations += moved.n_evaluations
            offset = course.offset.to(x.device)
        cells = unstandardise(bundle, x)
        check_finite(bundle, codes, cells)
        condition = torch.from_numpy(codes).to(x.device)
        px = bundle.vae.decode(cells.latent, condition, cells.library, logit_offset=offset)
        return _Laws(
            mean=px.mean.float().cpu().numpy(),
            inverse_dispersion=px.inverse_dispersion.float().cpu().numpy(),
            latent=cells.latent.cpu().numpy(),
            library=cells.library.cpu().numpy(),
            n_evaluations=n_evaluations,
        )
