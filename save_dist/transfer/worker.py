"""One part of a transferred store: read its real cells, recast them, write them, leave a receipt.

Cells are streamed from the SOMA store; their noise belongs to seed, joinid and target, so the bytes
of a part depend on no worker.
"""

from functools import cached_property
from pathlib import Path

import numpy as np
from jaxtyping import Int16, Int64
from numpy import ndarray

from save_dist.core import seeding
from save_dist.core.paths import RunPaths
from save_dist.data.lazy import soma_reader
from save_dist.data.source import SomaSource
from save_dist.data.splits import CellIndex
from save_dist.generation.routes import Routes
from save_dist.generation.worker import PartFiller
from save_dist.stores.part import PartColumns
from save_dist.stores.storage import Where
from save_dist.stores.vocabulary import load_vocabulary
from save_dist.transfer.plan import Stretch, TransferPlan, chosen_cells
from save_dist.transfer.recast import Recaster, minibatches, shown_codes


class TransferWorker(PartFiller):
    """Fills parts of one transferred store; model, vocabulary and store are opened once.

    The run folder of the model holds the vocabulary, and that names the store.

    Raises:
        AtlasError: if the store was begun with another model or other cells.
    """

    def __init__(self, bundle: Path, atlas: Where, device: str = "cpu") -> None:
        super().__init__(bundle, atlas, device)
        vocabulary = load_vocabulary(RunPaths(bundle.parent).vocab)
        self._plan = TransferPlan.from_json(self.record.plan, self.bundle.facts, vocabulary.hash)
        chosen = chosen_cells(vocabulary.index, vocabulary.conditions, self._plan.config)
        self._index, self._chosen = vocabulary.index, chosen
        self._source = SomaSource(vocabulary.store)
        self._read = soma_reader(self._source, vocabulary.gene_positions)
        self._routes = Routes(self.bundle.conditions, self.bundle.support)

    @cached_property
    def _recasters(self) -> list[Recaster]:
        config = self._plan.config
        return [
            Recaster(self.bundle, aim, config.method, config.compose, config.solver)
            for aim in self._plan.aims
        ]

    def sample(self, part: int) -> tuple[PartColumns, int]:
        """Cells of a part, and how often velocity networks were evaluated for them."""
        size = self._plan.config.cells_per_minibatch
        found = []
        for stretch in self._plan.stretches(part):
            for rows in minibatches(stretch.stop - stretch.first, size):
                first, stop = stretch.first + rows.start, stretch.first + rows.stop
                found.append(self._minibatch(Stretch(stretch.target, first, stop)))
        return PartColumns.joined([columns for columns, _ in found]), sum(n for _, n in found)

    def _minibatch(self, stretch: Stretch) -> tuple[PartColumns, int]:
        cells = self._index.take(self._chosen[stretch.first : stretch.stop])
        recaster, codes = self._recasters[stretch.target], cells.codes.astype(np.int64)
        shown = shown_codes(self.bundle, recaster.aim, codes)
        known = self.bundle.conditions
        target = known.identity(known.encode_one(recaster.aim.target))
        keys = seeding.cell_keys(self._plan.seed, "transfer", target, cells.joinids)
        made = recaster.recast(self._read(cells.joinids), codes, keys)
        columns = PartColumns(
            counts=made.counts,
            codes=self._stored_codes(shown, codes),
            n_train_cells=self._support(shown),
            route=np.zeros(codes.shape[0], np.int16),
            n_route_cells=self._support(codes),
            cell_seed=keys,
            mean=made.mean if self._plan.config.means else None,
            latent=made.latent,
            names=self._names(cells, stretch.target),
        )
        return columns, made.n_evaluations

    def _stored_codes(
        self, shown: Int64[ndarray, "cell field"], codes: Int64[ndarray, "cell field"]
    ) -> Int16[ndarray, "cell column"]:
        """The conditions afterwards, then those that changed as they were."""
        known = self.bundle.conditions.columns
        before = codes[:, [known.index(column) for column in self._plan.changed]]
        return np.concatenate([shown, before], axis=1).astype(np.int16)

    def _support(self, codes: Int64[ndarray, "cell field"]) -> Int64[ndarray, " cell"]:
        """Training cells of each cell's combination."""
        known, inverse = np.unique(codes, axis=0, return_inverse=True)
        counts = [self._routes.n_train_cells(tuple(row)) for row in known.tolist()]
        found: ndarray = np.array(counts, np.int64)[inverse.ravel()]
        return found

    def _names(self, cells: CellIndex, target: int) -> ndarray:
        """Names of the cells in the store, one of a kind also where targets are several."""
        names = self._source.names_of(cells.joinids)
        if len(self._plan.aims) == 1:
            return names
        return np.array([f"{name}-{target}" for name in names], dtype=object)
