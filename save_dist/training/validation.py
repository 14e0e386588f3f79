"""How VAE and flow do on cells held back for validation."""

from collections.abc import Mapping

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn

from save_dist.data.splits import VALIDATION, CellIndex
from save_dist.flow.path import sample_time, straight_path
from save_dist.models.vae import Vae
from save_dist.stores.bundle import LatentScale
from save_dist.stores.vocabulary import RunVocabulary
from save_dist.training.latents import dense_cells
from save_dist.training.noise import lane_normals, lane_uniforms
from save_dist.training.plan import TrainPlan
from save_dist.training.steps import standardised

_MOST_CELLS = 2048


class VaeValidation:
    """Negative log-likelihood and KL of held-back cells under q's mean, conditions unmasked."""

    def __init__(self, vocabulary: RunVocabulary, plan: TrainPlan, device: torch.device) -> None:
        index = _cells(vocabulary)
        codes = torch.from_numpy(index.codes.astype(np.int64))
        self._minibatches = [
            (
                torch.from_numpy(cells.log_x).to(device),
                torch.from_numpy(cells.counts).to(device),
                codes[first : first + cells.library.size].to(device),
            )
            for first, cells in dense_cells(
                vocabulary.store, index, vocabulary.gene_positions, n_cells=512
            )
        ]
        self._n_latent, self._kl_weight = plan.vae.latent_dim, plan.vae.kl_weight

    def losses(self, module: nn.Module) -> Mapping[str, float]:
        """Means over the validation cells; empty when there are none."""
        if not self._minibatches:
            return {}
        sums = np.zeros(3)
        with torch.inference_mode():
            for log_x, counts, codes in self._minibatches:
                noise = torch.zeros(log_x.shape[0], self._n_latent, device=log_x.device)
                out = module(log_x, counts, codes, codes, noise, None)
                sums += [float(out.reconstruction.sum()), float(out.kl.sum()), log_x.shape[0]]
        reconstruction, kl = (float(value) for value in sums[:2] / sums[2])
        loss = reconstruction + self._kl_weight * kl
        return {"val/loss": loss, "val/reconstruction": reconstruction, "val/kl": kl}


class FlowValidation:
    """Flow matching loss of held-back cells at one fixed noise and time each, conditions unmasked.

    Args:
        vae: the trained encoder, in evaluation mode.
        vocabulary: of the run.
        plan: of the run.
        scale: standardisation of the latents.
    """

    def __init__(
        self, vae: Vae, vocabulary: RunVocabulary, plan: TrainPlan, scale: LatentScale
    ) -> None:
        index = _cells(vocabulary)
        self._codes = torch.from_numpy(index.codes.astype(np.int64))
        if not index.n_cells:
            return
        x_1 = _standardised_means(vae, vocabulary, index, scale)
        n_cells, width = x_1.shape
        lane = (plan.seed, "flow_validation", 0, (0,), n_cells)
        self._t = sample_time(lane_uniforms(*lane, 1)[:, 0], plan.flow.time)
        self._x_t, self._u_t = straight_path(lane_normals(*lane, width), x_1, self._t)

    def losses(self, module: nn.Module) -> Mapping[str, float]:
        """Mean over the validation cells; empty when there are none."""
        if not self._codes.shape[0]:
            return {}
        device = next(module.parameters()).device
        with torch.inference_mode():
            velocity = module(self._x_t.to(device), self._t.to(device), self._codes.to(device))
        return {"val/loss": float((velocity.cpu() - self._u_t).square().mean())}


def _cells(vocabulary: RunVocabulary) -> CellIndex:
    """The cells that validate, at most some thousand."""
    index = vocabulary.index.where(VALIDATION)
    return index.take(np.arange(min(index.n_cells, _MOST_CELLS)))


def _standardised_means(
    vae: Vae, vocabulary: RunVocabulary, index: CellIndex, scale: LatentScale
) -> Float[Tensor, "cell latent"]:
    device = next(vae.parameters()).device
    codes = torch.from_numpy(index.codes.astype(np.int64))
    pieces = []
    for first, cells in dense_cells(vocabulary.store, index, vocabulary.gene_positions):
        shown = codes[first : first + cells.library.size].to(device)
        with torch.inference_mode():
            posterior = vae.encode(torch.from_numpy(cells.log_x).to(device), shown)
        log_library = torch.from_numpy(np.log(np.maximum(cells.library, 1.0)))
        pieces.append(standardised(posterior.mean.float().cpu(), log_library.float(), scale))
    return torch.cat(pieces)
