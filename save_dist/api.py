"""A trained model in a notebook: generate, encode, transfer. Needs neither Ray nor a run folder."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import anndata
import numpy as np
import pandas as pd
import scipy.sparse as sp
from jaxtyping import Float32, Int, Int16, Int64, UInt16
from numpy import ndarray

from save_dist.config.load import parse
from save_dist.config.schema import (
    ComposeConfig,
    GridConfig,
    GuidanceConfig,
    OutputConfig,
    SolverConfig,
)
from save_dist.core import seeding
from save_dist.core.errors import ConfigError, DataError
from save_dist.generation.compose import Composer
from save_dist.generation.grid import GridPlan, plan_grid
from save_dist.generation.routes import Routes, check_composable
from save_dist.generation.sampler import sample_conditions
from save_dist.generation.tables import settle, settle_output
from save_dist.generation.worker import composer_of, sample_part
from save_dist.stores.bundle import ModelBundle, load_bundle
from save_dist.stores.part import PartColumns
from save_dist.stores.template import MASK
from save_dist.transfer.recast import (
    Aim,
    encoded,
    minibatches,
    recaster_of,
    shown_codes,
)

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
        unseen: Literal["compose", "direct"] | None = None,
        compose: ComposeConfig | None = None,
    ) -> anndata.AnnData:
        """Sample virtual cells.

        Args:
            conditions: one condition or several; a column left out is masked, and obs says MASK.
            n_cells: cells of each condition.
            seed: equal seeds give equal cells.
            guidance: classifier-free guidance; None: the plain conditional field.
            solver: ODE solver; None: midpoint, 5 steps.
            unseen: how to come by combinations without training cells: carry their control cells
                along a transport, or sample by labels. None: compose if the model can.
            compose: how carried cells are decoded; None: anchored and mean-matched.

        Returns:
            counts in X (uint16), conditions, `seen`, `n_train_cells` and `route` in obs, z in
            obsm X_save.

        Raises:
            ConfigError: for an unknown column or value, or composing without a transport.
        """
        if isinstance(conditions, Mapping):
            conditions = [conditions]
        guidance, solver = guidance or GuidanceConfig(), solver or SolverConfig()
        rows = [self.bundle.conditions.encode_one(condition) for condition in conditions]
        composer = self._composer(unseen, compose, guidance, solver)
        cells = sample_conditions(
            self.bundle,
            np.array(rows, dtype=np.int64),
            n_cells,
            seed=seed,
            guidance=guidance,
            solver=solver,
            cells_per_minibatch=MINIBATCH,
            composer=composer,
        )
        codes = np.repeat(np.array(rows, dtype=np.int16), n_cells, axis=0)
        routes = Routes(self.bundle.conditions, {}) if composer is None else composer.routes
        numbers = np.repeat([routes.of(row).number for row in rows], n_cells)
        adata = self._generated(cells.counts, codes, numbers, routes.names)
        adata.obsm["X_save"] = cells.latent
        return adata

    def plan(
        self, grid: GridConfig | Mapping[str, Any], output: OutputConfig | None = None
    ) -> GridPlan:
        """The plan of a declared grid: its conditions, parts and `summary()`; samples nothing.

        Args:
            grid: settings as under `grid` of a configuration, e.g. {"columns": {"cell_type":
                ["CD*"]}, "cells_per_condition": 10}.
            output: cells per part and minibatch; None: the defaults.

        Raises:
            ConfigError: if the grid cannot be carried out as written.
        """
        if not isinstance(grid, GridConfig):
            grid = parse(GridConfig, grid, "grid")
        facts = self.bundle.facts
        return plan_grid(settle(grid, facts), settle_output(output or OutputConfig(), facts), facts)

    def sample(self, plan: GridPlan) -> anndata.AnnData:
        """All cells of a plan in memory, bit for bit those of an atlas of this plan.

        Returns:
            as `generate`, with the genes, layers and latents of the plan's output settings.

        Raises:
            ConfigError: if the plan is of another model.
        """
        if plan.model.hash != self.bundle.hash:
            raise ConfigError(
                f"the plan is of model {plan.model.hash}, this is model {self.bundle.hash}; plan "
                "with this one"
            )
        composer = composer_of(self.bundle, plan)
        numbers = range(plan.n_parts)
        parts = [sample_part(self.bundle, plan, plan.part(i), composer)[0] for i in numbers]
        cells = PartColumns.joined(parts)
        names, genes = plan.routes.names, plan.gene_ids
        adata = self._generated(cells.counts, cells.codes, cells.route, names, genes)
        if cells.mean is not None:
            adata.layers["mean"] = cells.mean
        if cells.latent is not None:
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
            encoded(self.bundle, self._counts(adata, part), codes[part])
            for part in minibatches(adata.n_obs, MINIBATCH)
        ]
        return np.concatenate(out) if out else np.empty((0, self._n_latent), dtype=np.float32)

    def transfer(
        self,
        adata: anndata.AnnData,
        target: Mapping[str, str] | None = None,
        *,
        masked: Sequence[str] = (),
        averaged: Sequence[str] = (),
        seed: int = 0,
        method: Literal["auto", "transport", "reencode", "inversion", "latent_shift"] = "auto",
        compose: ComposeConfig | None = None,
        solver: SolverConfig | None = None,
    ) -> anndata.AnnData:
        """The same cells under another condition: treated, or without their batch.

        Args:
            adata: raw counts in X and the model's condition columns in obs.
            target: values to set; columns named nowhere keep each cell's own.
            masked: columns that the decoder is not told.
            averaged: columns over whose values the expected counts are averaged.
            seed: of the drawn counts.
            method: see `save_dist.transfer.methods`; `auto` carries cells at the reference of a
                transported column along the transport, and re-encodes all others.
            compose: how carried cells are decoded; None: anchored and mean-matched.
            solver: of flow and transport; None: midpoint, 5 steps.

        Returns:
            counts in X, expected counts in layer `mean`, z in obsm X_save, the new conditions in
            obs (MASK where there is none); the method in uns.

        Raises:
            ConfigError: for an unknown value, or cells that the method cannot take to the target.
        """
        codes = self._codes(adata, self.bundle.conditions.columns)
        aim = Aim(dict(target or {}), tuple(masked), tuple(averaged))
        compose, solver = compose or ComposeConfig(), solver or SolverConfig()
        recaster = recaster_of(self.bundle, aim, method, codes, compose, solver)
        keys = seeding.cell_keys(seed, "transfer", 0, np.arange(adata.n_obs, dtype=np.int64))
        counts = np.empty((adata.n_obs, len(self.bundle.genes)), dtype=np.uint16)
        means = np.empty(counts.shape, dtype=np.float32)
        latent = np.empty((adata.n_obs, self._n_latent), dtype=np.float32)
        for part in minibatches(adata.n_obs, MINIBATCH):
            cells = recaster.recast(self._counts(adata, part), codes[part], keys[part])
            counts[part], means[part], latent[part] = cells.counts, cells.mean, cells.latent
        shown = shown_codes(self.bundle, aim, codes).astype(np.int16)
        out = self._table(counts, self._obs(shown, adata.obs_names))
        out.uns["save_dist"]["method"] = recaster.method
        out.layers["mean"], out.obsm["X_save"] = means, latent
        return out

    def _composer(
        self,
        unseen: str | None,
        compose: ComposeConfig | None,
        guidance: GuidanceConfig,
        solver: SolverConfig,
    ) -> Composer | None:
        """What carries cells of unseen combinations; None: every cell goes direct."""
        columns = self.bundle.transport_columns
        if unseen == "direct" or (unseen is None and not columns):
            return None
        check_composable(columns, "unseen='compose'")
        config = compose or ComposeConfig()
        routes = Routes(self.bundle.conditions, self.bundle.support, columns, config.min_support)
        return Composer(self.bundle, routes, config, guidance, solver)

    @property
    def _n_latent(self) -> int:
        return self.bundle.vae_config.latent_dim

    def _table(
        self, counts: Any, obs: pd.DataFrame, genes: Sequence[str] | None = None
    ) -> anndata.AnnData:
        var = pd.DataFrame(index=pd.Index(genes or self.bundle.genes.ids))
        return anndata.AnnData(counts, obs=obs, var=var, uns={"save_dist": self._about()})

    def _about(self) -> dict[str, str]:
        return {"model_hash": self.bundle.hash}

    def _generated(
        self,
        counts: UInt16[ndarray, "cell gene"],
        codes: Int16[ndarray, "cell field"],
        routes: Int[ndarray, " cell"],
        names: Sequence[str],
        genes: Sequence[str] | None = None,
    ) -> anndata.AnnData:
        adata = self._table(counts, self._obs(codes), genes)
        adata.obs["route"] = pd.Categorical.from_codes(routes, pd.Index(names))
        return adata

    def _obs(self, codes: Int16[ndarray, "cell field"], names: Any = None) -> pd.DataFrame:
        """Condition columns (MASK where not given), and how well each combination is known."""
        vocabulary = self.bundle.conditions
        index = pd.RangeIndex(len(codes)).astype(str) if names is None else names
        obs = pd.DataFrame(index=index)
        pairs = zip(vocabulary.columns, vocabulary.categories, strict=True)
        for number, (column, values) in enumerate(pairs):
            is_masked = bool((codes[:, number] == len(values)).any())
            shown = (*values, MASK) if is_masked else values
            obs[column] = pd.Categorical.from_codes(codes[:, number], pd.Index(shown))
        routes = Routes(vocabulary, self.bundle.support)
        obs["n_train_cells"] = [routes.n_train_cells(tuple(row)) for row in codes.tolist()]
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
