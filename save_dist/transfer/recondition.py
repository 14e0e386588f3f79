"""Real cells under another condition: encode what a cell is, decode it under the target.

The cell keeps its latent and its library size; only the condition the decoder is given changes
(SAVE 4.3 with a batch column, SAVE 4.4 with a perturbation column).
"""

from collections.abc import Mapping, Sequence

import torch
from jaxtyping import Float32, Int64
from numpy import ndarray

from save_dist.stores.bundle import ModelBundle


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


def expected_counts(
    bundle: ModelBundle,
    log_x: Float32[ndarray, "cell gene"],
    library: Float32[ndarray, " cell"],
    codes: Int64[ndarray, "cell field"],
    targets: Int64[ndarray, "cell field"],
) -> tuple[Float32[ndarray, "cell gene"], Float32[ndarray, "#cell gene"]]:
    """Mean counts of each cell under its target condition, and the genes' inverse dispersion."""
    vae = bundle.vae
    with torch.inference_mode():
        posterior = vae.encode(torch.from_numpy(log_x), torch.from_numpy(codes))
        px = vae.decode(posterior.mean, torch.from_numpy(targets), torch.from_numpy(library))
        return px.mean.numpy(), px.inverse_dispersion.numpy()


def latents(
    bundle: ModelBundle,
    log_x: Float32[ndarray, "cell gene"],
    codes: Int64[ndarray, "cell field"],
) -> Float32[ndarray, "cell latent"]:
    """Posterior mean of every cell."""
    with torch.inference_mode():
        posterior = bundle.vae.encode(torch.from_numpy(log_x), torch.from_numpy(codes))
    mean: ndarray = posterior.mean.numpy()
    return mean


def minibatches(n_cells: int, size: int) -> Sequence[slice]:
    """Consecutive slices of at most `size` cells."""
    return [slice(start, min(start + size, n_cells)) for start in range(0, n_cells, size)]
