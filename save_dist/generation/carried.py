"""Real control cells under another value: encoded, carried along the transport, decoded."""

import torch
from jaxtyping import Float32, Int64, UInt64
from numpy import ndarray

from save_dist.config.schema import SolverConfig
from save_dist.core.seeding import normals
from save_dist.generation.compose import Course
from save_dist.generation.latents import (
    DecoderInput,
    carry,
    check_finite,
    standardise,
    stream,
    unstandardise,
)
from save_dist.stores.bundle import ModelBundle


def carried_means(
    bundle: ModelBundle,
    log_x: Float32[ndarray, "cell gene"],
    library: Float32[ndarray, " cell"],
    codes: Int64[ndarray, "cell field"],
    targets: Int64[ndarray, "cell field"],
    course: Course,
    keys: UInt64[ndarray, " cell"],
    solver: SolverConfig,
) -> tuple[Float32[ndarray, "cell gene"], Float32[ndarray, "#cell gene"]]:
    """Mean counts of each cell under its target, and the genes' inverse dispersion.

    The library size is shifted (see `carry`). Where the transport was trained on draws from
    q(z|x), a draw is carried: its noise belongs to the cell's key.

    Args:
        bundle: model with a transport.
        log_x: log-normalised expression of the cells.
        library: their counts over the model's genes.
        codes: their conditions.
        targets: conditions to carry them to.
        course: of every cell (see `Composer.course_between`).
        keys: one stream per cell.
        solver: of the transport.

    Raises:
        ConfigError: if the transport leaves the range of numbers.
    """
    assert bundle.transport is not None, "a course comes from a transport"
    with torch.inference_mode():
        posterior = bundle.vae.encode(torch.from_numpy(log_x), torch.from_numpy(codes))
        z = posterior.mean
        if bundle.transport.config.target == "sample":
            noise = normals(stream(keys, "latent"), z.shape[1])
            z = z + posterior.var.sqrt() * torch.from_numpy(noise)
        x = standardise(bundle, DecoderInput(z, torch.from_numpy(library)))
        moved = carry(bundle, x, course.told, course.library_shift, solver)
        cells = unstandardise(bundle, moved.x_1)
        check_finite(bundle, targets, cells)
        condition = torch.from_numpy(targets)
        px = bundle.vae.decode(cells.latent, condition, cells.library, logit_offset=course.offset)
        return px.mean.numpy(), px.inverse_dispersion.numpy()
