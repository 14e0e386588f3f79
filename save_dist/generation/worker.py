"""One part of a plan: sample its cells, write its shard, leave its receipt.

A worker knows the model and the atlas, and nothing of other workers.
"""

import logging
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Int64
from numpy import ndarray

from save_dist.core.errors import AtlasError
from save_dist.generation.compose import Composer
from save_dist.generation.grid import GridPlan, Part
from save_dist.generation.rows import Segment
from save_dist.generation.sampler import cell_seeds, sample_cells
from save_dist.stores.bundle import ModelBundle, load_bundle
from save_dist.stores.part import PartColumns, write_part
from save_dist.stores.receipts import Receipt, read_receipt, read_record
from save_dist.stores.storage import Where

logger = logging.getLogger(__name__)

PARTS_IN_FLIGHT = 2
"""Threads that a worker is worth calling from: one writes its part while the other samples."""


class PartFiller(ABC):
    """Fills parts of one store; the model is loaded once. Kinds say what stands in a part.

    `run` may be called from several threads: they sample in turns, and each writes what it sampled
    while another samples. A worker holds as many parts in memory as threads call it.

    Args:
        bundle: model folder.
        atlas: store with its template written.
        device: torch device of the networks.

    Raises:
        AtlasError: if the store was begun with another model.
    """

    def __init__(self, bundle: Path, atlas: Where, device: str = "cpu") -> None:
        self._atlas = atlas
        self.record = read_record(atlas)
        self.bundle = load_bundle(bundle, device)
        if self.bundle.hash != self.record.model_hash:
            raise AtlasError(
                f"{atlas} was begun with model {self.record.model_hash}, {bundle} is model "
                f"{self.bundle.hash}; finish it with the first, or generate into another run "
                "folder"
            )
        self._turn = threading.Lock()

    def run(self, part: int) -> Receipt:
        """Make sure a part stands in the store; one whose every byte verifies is left alone."""
        try:
            return read_receipt(self._atlas, self.record, part, deep=True)
        except AtlasError as e:
            logger.info("event=part_begun part=%d because=%r", part, str(e))
        with self._turn:
            start_s = time.perf_counter()
            columns, n_evaluations = self.sample(part)
        return write_part(
            self._atlas,
            self.record,
            part,
            columns,
            n_evaluations=n_evaluations,
            start_s=start_s,
            n_threads=torch.get_num_threads(),
        )

    @abstractmethod
    def sample(self, part: int) -> tuple[PartColumns, int]:
        """Cells of a part, and how often velocity networks were evaluated for them."""


class PartWorker(PartFiller):
    """Fills parts of one atlas with virtual cells."""

    def __init__(self, bundle: Path, atlas: Where, device: str = "cpu") -> None:
        super().__init__(bundle, atlas, device)
        self._plan = GridPlan.from_json(self.record.plan, self.bundle.facts)
        self._composer = composer_of(self.bundle, self._plan)

    def sample(self, part: int) -> tuple[PartColumns, int]:
        """Cells of a part, and how often velocity networks were evaluated for them."""
        return sample_part(self.bundle, self._plan, self._plan.part(part), self._composer)


def sample_part(
    bundle: ModelBundle, plan: GridPlan, part: Part, composer: Composer | None
) -> tuple[PartColumns, int]:
    """Cells of a part, and how often the velocity field was evaluated for them.

    Args:
        bundle: the model of the plan.
        plan: what to sample.
        part: one of its parts.
        composer: what `composer_of` gives for bundle and plan.
    """
    runs = [_sample_run(bundle, plan, run, composer) for run in part.runs]
    return PartColumns.joined([columns for columns, _ in runs]), sum(n for _, n in runs)


def _sample_run(
    bundle: ModelBundle, plan: GridPlan, run: Sequence[Segment], composer: Composer | None
) -> tuple[PartColumns, int]:
    seeds = [
        cell_seeds(bundle, s.codes, np.arange(s.first, s.first + s.n_cells), plan.grid.seed)
        for s in run
    ]
    routes = [plan.routes.of(segment.codes) for segment in run]
    support = [plan.routes.n_train_cells(segment.codes) for segment in run]
    sizes = [segment.n_cells for segment in run]
    rows = np.array([segment.codes for segment in run], np.int16)
    codes, cell_seed = np.repeat(rows, sizes, axis=0), np.concatenate(seeds)
    cells = sample_cells(
        bundle,
        codes.astype(np.int64),
        cell_seed,
        guidance=plan.grid.guidance,
        solver=plan.grid.solver,
        cells_per_minibatch=plan.output.cells_per_minibatch,
        composer=composer,
        genes=_stored_genes(plan),
        with_means="mean" in plan.output.layers,
    )
    columns = PartColumns(
        counts=cells.counts,
        codes=codes,
        n_train_cells=np.repeat(np.array(support, np.int64), sizes),
        route=np.repeat(np.array([r.number for r in routes], np.int16), sizes),
        n_route_cells=np.repeat(np.array([r.n_start_cells for r in routes], np.int64), sizes),
        cell_seed=cell_seed,
        mean=cells.mean,
        latent=cells.latent if plan.output.latents else None,
    )
    return columns, cells.n_evaluations


def _stored_genes(plan: GridPlan) -> Int64[ndarray, " gene"] | None:
    """Positions in the model of the genes that the plan keeps; None: all."""
    if plan.output.genes is None:
        return None
    place = {name: i for i, name in enumerate(plan.model.genes.ids)}
    return np.array([place[name] for name in plan.gene_ids], np.int64)


def composer_of(bundle: ModelBundle, plan: GridPlan) -> Composer | None:
    """What carries the cells of unseen combinations, if the plan asks for it."""
    if plan.grid.unseen != "compose":
        return None
    grid = plan.grid
    return Composer(bundle, plan.routes, grid.compose, grid.guidance, grid.solver)
