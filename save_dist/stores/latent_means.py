"""The mean latent of every seen combination: what latent arithmetic adds and subtracts."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float32, Float64, Int64
from numpy import ndarray
from safetensors.torch import load_file, save_file

from save_dist.vocab.transports import Codes

FILE = "latent_means.safetensors"


@dataclass(frozen=True)
class LatentMeans:
    """Means of the posterior means of the training cells; row i belongs to `codes[i]`."""

    codes: tuple[Codes, ...]
    mean: Float32[ndarray, "combination latent"]

    @classmethod
    def of(
        cls, latents: Float32[ndarray, "cell latent"], codes: Int64[ndarray, "cell field"]
    ) -> "LatentMeans":
        """Means per combination, in float64 one coordinate after the other."""
        known, inverse = np.unique(codes, axis=0, return_inverse=True)
        inverse, sizes = inverse.ravel(), np.bincount(inverse.ravel())
        sums = [
            np.bincount(inverse, weights=latents[:, i].astype(np.float64))
            for i in range(latents.shape[1])
        ]
        mean = np.stack(sums, axis=1) / sizes[:, None]
        return cls(tuple(tuple(row) for row in known.tolist()), mean.astype(np.float32))

    @cached_property
    def rows(self) -> Mapping[Codes, int]:
        """Row of every combination."""
        return {codes: row for row, codes in enumerate(self.codes)}

    def shift(self, start: Codes, target: Codes) -> Float64[ndarray, " latent"] | None:
        """Mean change of the latent along the columns in which two combinations differ.

        Every pair of seen combinations that shows this very change, and agrees in all other
        columns, counts the same, however many cells it has (scGen, Lotfollahi et al. 2019, which
        draws equally many cells per type).

        Returns:
            None where no pair shows it.
        """
        shown = [
            self.mean[b].astype(np.float64) - self.mean[a] for a, b in self._pairs(start, target)
        ]
        return np.mean(shown, axis=0) if shown else None

    def _pairs(self, start: Codes, target: Codes) -> Iterator[tuple[int, int]]:
        changed = [i for i, (a, b) in enumerate(zip(start, target, strict=True)) if a != b]
        for codes, row in self.rows.items():
            if all(codes[i] == start[i] for i in changed):
                moved = list(codes)
                for i in changed:
                    moved[i] = target[i]
                if (other := self.rows.get(tuple(moved))) is not None:
                    yield row, other

    def save(self, path: Path) -> None:
        """Write everything as safetensors."""
        codes = torch.tensor(self.codes, dtype=torch.int64)
        save_file({"codes": codes, "mean": torch.from_numpy(self.mean.copy())}, path)

    @classmethod
    def load(cls, path: Path) -> "LatentMeans":
        """Read what `save` wrote."""
        arrays = load_file(path)
        codes = tuple(tuple(row) for row in arrays["codes"].tolist())
        return cls(codes, arrays["mean"].numpy())
