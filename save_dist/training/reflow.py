"""Reflow: straighter paths for a trained flow, so that one or two Euler steps follow them.

The flow's averaged weights are the teacher. A pair is noise and the point that the teacher carries
it to under the same, possibly masked, condition; the network, which starts as the teacher, learns
the straight line between the two (rectified flow, Liu, Gong and Liu 2022, section 2). The law at
t = 1 stays the teacher's. Masked and null conditions are carried by the teacher as they are, so
guidance finds straight fields too.

Conditions are those of the training cells in the order of the flow's minibatches; noise, masks and
times are functions of (seed, step, lane). Pairs are made when they are needed, and never stored.
"""

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn

from save_dist.config.schema import MaskConfig, ReflowConfig
from save_dist.flow.path import sample_time, straight_path
from save_dist.flow.solver import integrate
from save_dist.models.conditioning import mask_codes, share_unmasked
from save_dist.models.velocity import Velocity
from save_dist.training.latents import LatentBatch
from save_dist.training.loop import Loss
from save_dist.training.steps import Draws


class ReflowStage:
    """Flow matching loss (SAVE eq. 8-10) between noise and where the teacher carries it.

    Args:
        module: network to train.
        teacher: trained flow; left as it is.
        config: of the stage.
        mask: condition masking of the flow.
        draws: source of random numbers.
    """

    name = "reflow"

    def __init__(
        self,
        module: Velocity,
        teacher: Velocity,
        config: ReflowConfig,
        mask: MaskConfig,
        draws: Draws,
    ) -> None:
        self.module: nn.Module = module
        self._teacher = teacher.eval().requires_grad_(False)
        self._config, self._mask, self._draws = config, mask, draws
        self._mask_codes = torch.tensor(module.sizes)

    def loss(self, forward: nn.Module, minibatch: LatentBatch, part: slice) -> Loss:
        """Loss of the pairs in `part`, a mean over times; `forward` is the wrapped module."""
        step, lanes, n = minibatch.step, minibatch.lanes, self._config.n_times
        device = next(self.module.parameters()).device
        n_fields = minibatch.codes.shape[1]
        uniforms = self._draws.uniforms("reflow_time_mask", step, lanes, n + 1 + n_fields)
        masked = mask_codes(minibatch.codes, uniforms[:, n:], self._mask_codes, self._mask)[part]
        x_0 = self._draws.normals("reflow_source", step, lanes, self._teacher.dim)[part].to(device)
        codes = masked.to(device)
        x_1 = self._carried(x_0, codes)
        t = self._times(uniforms[part, :n]).to(device)
        each = torch.arange(len(codes), device=device).repeat_interleave(n)
        x_t, u_t = straight_path(x_0[each], x_1[each], t.flatten())
        velocity = forward(x_t, t.flatten(), codes[each])
        per_cell = (velocity - u_t).square().mean(1).view(-1, n).mean(1)
        parts = {"share_unmasked": torch.tensor(share_unmasked(masked, self._mask_codes))}
        return Loss(per_cell, parts, minibatch.joinids[part])

    def _carried(
        self, x_0: Float[Tensor, "cell latent"], codes: Int64[Tensor, "cell field"]
    ) -> Float[Tensor, "cell latent"]:
        """Where the teacher's plain conditional field carries noise."""
        teacher, solver = self._teacher, self._config.teacher
        with torch.no_grad():
            return integrate(
                lambda t, x: teacher(x, t.expand(len(x)), codes),
                x_0,
                method=solver.method,
                n_steps=solver.n_steps,
                tolerance=1.0,  # of adaptive methods alone
            ).x_1

    def _times(self, uniforms: Float[Tensor, "cell time"]) -> Float[Tensor, "cell time"]:
        """One time in each n-th of [0, 1], before the law is applied."""
        n = uniforms.shape[1]
        spread = (torch.arange(n) + uniforms) / n
        return sample_time(spread.flatten(), self._config.time).view(-1, n)
