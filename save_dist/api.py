"""A trained model in a notebook: generate, encode, transfer. Needs neither Ray nor a run folder."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import anndata
import numpy as np
import pandas as pd
import scipy.sparse as sp
from jaxtyping import Float32, Int16, Int64
from numpy import ndarray

from save_dist.config.schema import GuidanceConfig, SolverConfig
from save_dist.core import seeding
from save_dist.core.errors import DataError
from save_dist.data.transforms import log_normalise
from save_dist.generation.draw import draw_counts
from save_dist.generation.sampler import sample_conditions
from save_dist.stores.bundle import ModelBundle, load_bundle
from save_dist.transfer.recondition import expected_counts, latents, minibatches, target_codes

MINIBATCH = 512


class Model:
    """A trained SAVE model.

    Args:
        bundle: what `load` read.
    """

    def __init__(self, bundle: ModelBundle) -> None:
        self.bundle = bundle

    def __repr__(self) -> str:
        known = ", ".join(
            f"{column} ({len(values)})"
            for column, values in zip(
                self.bundle.conditions.columns, self.bundle.conditions.categories, strict=True
            )
        )
        return f"save_dist.Model({len(self.bundle.genes)} genes; conditions: {known})"

    def generate(
        self,
        conditions: Mapping[str, str] | Sequence[Mapping[str, str]],
        n_cells: int,
        *,
        seed: int = 0,
        guidance: GuidanceConfig | None = None,
        solver: SolverConfig | None = None,
    ) -> anndata.AnnData:
        """Sample virtual cells.

        Args:
            conditions: one condition or several; a column left out is masked.
            n_cells: cells of each condition.
            seed: equal seeds give equal cells.
            guidance: classifier-free guidance; None: the plain conditional field.
            solver: ODE solver; None: midpoint, 5 steps.

        Returns:
            counts in X (uint16), conditions, `seen` and `n_train_cells` in obs, z in obsm X_save.

        Raises:
            ConfigError: for an unknown column or value.
        """
        if isinstance(conditions, Mapping):
            conditions = [conditions]
        rows = [self.bundle.conditions.encode_one(condition) for condition in conditions]
        cells = sample_conditions(
            self.bundle,
            np.array(rows, dtype=np.int64),
            n_cells,
            seed=seed,
            guidance=guidance or GuidanceConfig(),
            solver=solver or SolverConfig(),
            cells_per_minibatch=MINIBATCH,
        )
        codes = np.repeat(np.array(rows, dtype=np.int16), n_cells, axis=0)
        adata = self._table(cells.counts, self._obs(codes))
        adata.obsm["X_save"] = cells.latent
        return adata

    def encode(self, adata: anndata.AnnData) -> Float32[ndarray, "cell latent"]:
        """Posterior mean of z for every cell of `adata` (raw counts in X).

        Condition columns are read only if the model's encoder looks at them.

        Raises:
            VocabMismatchError: if genes of the model are missing.
            DataError: if X does not hold counts.
        """
        needed = self.bundle.vae_config.encoder_columns
        codes = self._codes(adata, needed)
        out = [
            latents(self.bundle, log_normalise(self._counts(adata, part)), codes[part])
            for part in minibatches(adata.n_obs, MINIBATCH)
        ]
        return np.concatenate(out) if out else np.empty((0, self._n_latent), dtype=np.float32)

    def transfer(
        self, adata: anndata.AnnData, target: Mapping[str, str], *, seed: int = 0
    ) -> anndata.AnnData:
        """The same cells under another condition: each keeps its latent and library size.

        Args:
            adata: raw counts in X and the model's condition columns in obs.
            target: values to set; other columns keep each cell's own.
            seed: of the drawn counts.

        Returns:
            counts in X, expected counts in layer `mean`, obs with the target's values.
        """
        codes = self._codes(adata, self.bundle.conditions.columns)
        targets = target_codes(self.bundle, codes, target)
        keys = seeding.cell_keys(seed, "transfer", 0, np.arange(adata.n_obs, dtype=np.int64))
        counts = np.empty((adata.n_obs, len(self.bundle.genes)), dtype=np.uint16)
        means = np.empty(counts.shape, dtype=np.float32)
        for part in minibatches(adata.n_obs, MINIBATCH):
            real = self._counts(adata, part)
            means[part], inverse_dispersion = expected_counts(
                self.bundle, log_normalise(real), codes[part], targets[part], real.sum(1)
            )
            counts[part] = draw_counts(means[part], inverse_dispersion, keys[part])
        out = self._table(counts, self._obs(targets.astype(np.int16), adata.obs_names))
        out.layers["mean"] = means
        return out

    @property
    def _n_latent(self) -> int:
        return self.bundle.vae_config.latent_dim

    def _table(self, counts: Any, obs: pd.DataFrame) -> anndata.AnnData:
        var = pd.DataFrame(index=pd.Index(self.bundle.genes.ids))
        return anndata.AnnData(counts, obs=obs, var=var, uns={"save_dist": self._about()})

    def _about(self) -> dict[str, str]:
        return {"model_hash": self.bundle.hash}

    def _obs(self, codes: Int16[ndarray, "cell field"], names: Any = None) -> pd.DataFrame:
        """Condition columns (missing where masked), and how well each combination is known."""
        vocabulary = self.bundle.conditions
        index = pd.RangeIndex(len(codes)).astype(str) if names is None else names
        obs = pd.DataFrame(index=index)
        pairs = zip(vocabulary.columns, vocabulary.categories, strict=True)
        for number, (column, values) in enumerate(pairs):
            shown = np.where(codes[:, number] == len(values), -1, codes[:, number])
            obs[column] = pd.Categorical.from_codes(shown.astype(np.int16), pd.Index(values))
        support = self.bundle.support
        obs["n_train_cells"] = [support.get(tuple(row), 0) for row in codes.tolist()]
        obs["seen"] = obs["n_train_cells"] > 0
        return obs

    def _codes(
        self, adata: anndata.AnnData, columns: Sequence[str]
    ) -> Int64[ndarray, "cell field"]:
        """Condition codes of real cells; columns not asked for are masked."""
        vocabulary = self.bundle.conditions
        if not columns:
            return np.tile(np.array(vocabulary.mask_codes, dtype=np.int64), (adata.n_obs, 1))
        return vocabulary.encode(adata.obs).astype(np.int64)

    def _counts(self, adata: anndata.AnnData, part: slice) -> Float32[ndarray, "cell gene"]:
        """Counts of some cells over the model's genes, in its order."""
        positions = self.bundle.genes.positions_in(adata.var_names.tolist())
        rows = adata.X[part]
        dense = rows.toarray() if sp.issparse(rows) else np.asarray(rows)
        counts = np.ascontiguousarray(dense[:, positions], dtype=np.float32)
        if not np.array_equal(counts, np.rint(counts)):
            value = counts[counts != np.rint(counts)][0]
            raise DataError(
                f"X holds {value!r}, expected raw counts; pass unnormalised data "
                "(adata.X = adata.layers['counts'])"
            )
        return counts


def load(path: str | Path) -> Model:
    """Read an exported model folder (`RUN/model`), checking every byte.

    Raises:
        CheckpointError: if it does not exist, is incomplete or altered.
    """
    return Model(load_bundle(Path(path)))
