"""What one minibatch does to each of the two networks of SAVE.

Noise, masks and times come from streams keyed by (seed, purpose, step, lane).
"""

from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from save_dist.config.schema import FlowConfig, VaeConfig
from save_dist.data.stream import CellBatch
from save_dist.flow.coupling import pair
from save_dist.flow.path import sample_time, straight_path
from save_dist.models.conditioning import mask_codes, share_unmasked
from save_dist.models.vae import Vae
from save_dist.models.velocity import Velocity
from save_dist.stores.bundle import LatentScale
from save_dist.training.latents import LatentBatch
from save_dist.training.loop import Loss
from save_dist.training.noise import lane_normals, lane_uniforms


class Draws(NamedTuple):
    """Where the random numbers of a stage come from."""

    seed: int
    cells_per_lane: int

    def normals(self, purpose: str, step: int, lanes: tuple[int, ...], n: int) -> Tensor:
        """Standard normals, one row per cell of the minibatch."""
        return lane_normals(self.seed, purpose, step, lanes, self.cells_per_lane, n)

    def uniforms(self, purpose: str, step: int, lanes: tuple[int, ...], n: int) -> Tensor:
        """Uniform numbers, one row per cell of the minibatch."""
        return lane_uniforms(self.seed, purpose, step, lanes, self.cells_per_lane, n)


class VaeStage:
    """Negative log-likelihood plus weighted KL (SAVE eq. 5, 7) under masked conditions."""

    name = "vae"

    def __init__(self, module: Vae, config: VaeConfig, draws: Draws) -> None:
        self.module: nn.Module = module
        self._config = config
        self._draws = draws
        self._mask_codes = torch.tensor(module.shape.sizes)
        self._n_tokens = config.latent_dim // config.latent_token_width

    def loss(self, forward: nn.Module, minibatch: CellBatch, part: slice) -> Loss:
        """Loss of the cells in `part`; `forward` is the wrapped module."""
        step, lanes = minibatch.step, minibatch.lanes
        device = next(self.module.parameters()).device
        codes = torch.from_numpy(minibatch.codes)[part]
        uniforms = self._draws.uniforms("vae_mask", step, lanes, 1 + codes.shape[1])[part]
        masked = mask_codes(codes, uniforms, self._mask_codes, self._config.mask)
        noise = self._draws.normals("vae_noise", step, lanes, self._config.latent_dim)[part]
        out = forward(
            torch.from_numpy(minibatch.log_x)[part].to(device, non_blocking=True),
            torch.from_numpy(minibatch.counts)[part].to(device, non_blocking=True),
            codes.to(device),
            masked.to(device),
            noise.to(device),
            self._hidden_tokens(step, lanes, part, device),
        )
        per_cell = out.reconstruction + self._config.kl_weight * out.kl
        return Loss(
            per_cell,
            {
                "reconstruction": out.reconstruction.mean(),
                "kl": out.kl.mean(),
                "share_unmasked": torch.tensor(share_unmasked(masked, self._mask_codes)),
            },
            minibatch.joinids[part],
        )

    def _hidden_tokens(
        self, step: int, lanes: tuple[int, ...], part: slice, device: torch.device
    ) -> Tensor | None:
        """Latent tokens hidden from the decoder: floor(r * n) of them, r uniform per cell."""
        if self._config.latent_mask is None:
            return None
        low, high = self._config.latent_mask
        uniforms = self._draws.uniforms("vae_latent_mask", step, lanes, 1 + self._n_tokens)[part]
        n_hidden = ((low + (high - low) * uniforms[:, :1]) * self._n_tokens).floor()
        ranks = uniforms[:, 1:].argsort(1).argsort(1)
        return (ranks < n_hidden).to(device)


class FlowStage:
    """Flow matching loss over standardised latents (SAVE eq. 8-10)."""

    name = "flow"

    def __init__(
        self, module: Velocity, config: FlowConfig, scale: LatentScale, draws: Draws
    ) -> None:
        self.module: nn.Module = module
        self._config = config
        self._draws = draws
        self._scale = scale
        self._mask_codes = torch.tensor(module.sizes)

    def loss(self, forward: nn.Module, minibatch: LatentBatch, part: slice) -> Loss:
        """Loss of the cells in `part`; `forward` is the wrapped module."""
        step, lanes = minibatch.step, minibatch.lanes
        device = next(self.module.parameters()).device
        n_fields = minibatch.codes.shape[1]
        x_1 = self._target(minibatch)
        x_0 = self._draws.normals("flow_source", step, lanes, x_1.shape[1])
        x_0 = self._couple(x_0, x_1, minibatch.codes)
        uniforms = self._draws.uniforms("flow_time_mask", step, lanes, 2 + n_fields)
        t = sample_time(uniforms[:, 0], self._config.time)
        masked = mask_codes(minibatch.codes, uniforms[:, 1:], self._mask_codes, self._config.mask)
        x_t, u_t = straight_path(x_0[part], x_1[part], t[part])
        velocity = forward(x_t.to(device), t[part].to(device), masked[part].to(device))
        per_cell = (velocity - u_t.to(device)).square().mean(1)
        parts = {"share_unmasked": torch.tensor(share_unmasked(masked, self._mask_codes))}
        return Loss(per_cell, parts, minibatch.joinids[part])

    def _target(self, minibatch: LatentBatch) -> Float[Tensor, "cell latent"]:
        z = minibatch.mean
        if self._config.target == "sample":
            n = z.shape[1]
            noise = self._draws.normals("flow_target", minibatch.step, minibatch.lanes, n)
            z = z + minibatch.sd * noise
        return standardised(z, minibatch.log_library, self._scale)

    def _couple(
        self,
        x_0: Float[Tensor, "cell latent"],
        x_1: Float[Tensor, "cell latent"],
        codes: Int[Tensor, "cell field"],
    ) -> Float[Tensor, "cell latent"]:
        """Pair noise with data lane by lane, so that pairs do not depend on the ranks."""
        if self._config.coupling == "none":
            return x_0
        group = torch.unique(codes, dim=0, return_inverse=True)[1]
        n = self._draws.cells_per_lane
        pieces = []
        for start in range(0, x_0.shape[0], n):
            lane = slice(start, start + n)
            groups = group[lane] if self._config.coupling == "within_condition" else None
            pieces.append(x_0[lane][pair(x_0[lane], x_1[lane], groups)])
        return torch.cat(pieces)


def standardised(
    z: Float[Tensor, "cell latent"], log_library: Float[Tensor, " cell"], scale: LatentScale
) -> Float[Tensor, "cell standardised"]:
    """Latents and library sizes as y = [z, log library] in units of the training cells' spread."""
    y = torch.cat([z, log_library[:, None]], dim=1)
    return (y - torch.from_numpy(scale.mean)) / torch.from_numpy(scale.sd)
