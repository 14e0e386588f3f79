"""How the VAE does on cells held back for validation."""

from collections.abc import Mapping

import numpy as np
import torch
from torch import nn

from save_dist.data.splits import VALIDATION
from save_dist.stores.vocabulary import RunVocabulary
from save_dist.training.latents import dense_cells
from save_dist.training.plan import TrainPlan


class VaeValidation:
    """Negative log-likelihood and KL of held-back cells under q's mean, conditions unmasked."""

    def __init__(self, vocabulary: RunVocabulary, plan: TrainPlan, device: torch.device) -> None:
        index = vocabulary.index.where(VALIDATION)
        index = index.take(np.arange(min(index.n_cells, 2048)))
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
        self._n_latent = plan.vae.latent_dim

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
        return {"val/reconstruction": sums[0] / sums[2], "val/kl": sums[1] / sums[2]}
