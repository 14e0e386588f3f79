"""The one reader of SOMA stores: rows of raw counts as compressed rows, and obs columns.

Knows nothing of minibatches, orders or ranks; `stream` decides which rows to ask for.
"""

import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple, cast

import numpy as np
import pandas as pd
import pyarrow as pa
import tiledbsoma
from jaxtyping import Int64
from numpy import ndarray

from save_dist.core.durable import digest
from save_dist.core.errors import DataError, InfrastructureError, SaveDistError
from save_dist.data.csr import CsrCounts as CsrCounts
from save_dist.data.csr import CsrPiece, assemble, rows_of, sort_rows
from save_dist.data.damage import COMPLETE_KEY as COMPLETE_KEY
from save_dist.data.damage import (
    STORE_ERRORS,
    check_descriptions,
    damaged_cell,
    damaged_fragments,
    remedy,
    stranger,
)
from save_dist.data.locator import StoreLocator as StoreLocator
from save_dist.data.locator import is_remote as is_remote
from save_dist.data.opening import open_experiment

GENE_ID_COLUMNS = ("gene_id", "var_id", "feature_id")
"""Where gene names stand: our own stores, tiledbsoma.io, CELLxGENE Census."""
CELL_ID_COLUMNS = ("cell_id", "obs_id", "observation_joinid")
"""Where cell names stand, in the same order."""

ORIGIN_KEY = "save_dist_label_origin"
"""Experiment metadata: JSON of obs column -> origin of its labels."""

_X_COLUMNS = ("soma_dim_0", "soma_dim_1", "soma_data")
# Local stores are read in portions whose tiles and Arrow columns find memory that is warm already:
# in one large read more than half of the time goes into page faults. A remote store pays a round
# trip for each, so it is asked for everything at once.
_ENTRIES_PER_READ = 2**21


class Entries(NamedTuple):
    """Stored entries as the store yields them: views of one Arrow batch, in any order."""

    joinids: np.ndarray
    genes: np.ndarray
    """Columns of the store."""
    counts: np.ndarray
    """In the type of the layer."""


class SomaSource:
    """An open SOMA experiment. Reading releases the GIL; one thread at a time may use it.

    Args:
        locator: store, measurement and layer.

    Raises:
        DataError: if the store, the measurement or the layer does not exist; what does is listed.
        InfrastructureError: if it exists and cannot be read.
    """

    def __init__(self, locator: StoreLocator) -> None:
        self.locator = locator
        self._is_remote = is_remote(locator.uri)
        self._entries_per_cell = 1024.0
        self._experiment: Any = open_experiment(locator)
        try:
            self._check_complete()
            if not self._is_remote:
                check_descriptions(locator.uri, self._experiment.metadata)
            self._ms: Any = self._member(self._experiment.ms, locator.measurement, "measurement")
            self._x: Any = self._member(self._ms.X, locator.layer, "layer")
            self.n_genes = int(self._ms.var.count)
        except STORE_ERRORS as e:
            matrix = f"{locator.uri}/ms/{locator.measurement}/X/{locator.layer}"
            error = self._unreadable(matrix, lambda x: x.nnz, e)
            self.close()
            raise error from e
        self._gene_dtype = np.uint16 if self.n_genes <= 2**16 else np.int32
        narrow = self._x.schema.field("soma_data").type in (pa.uint8(), pa.uint16())
        self._count_dtype = np.uint16 if narrow else np.float32

    def __enter__(self) -> "SomaSource":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Release the store; harmless when repeated."""
        self._experiment.close()

    @property
    def n_obs(self) -> int:
        """Cells of the store that the locator means."""
        if self.locator.value_filter is None:
            return int(self._experiment.obs.count)
        return self.joinids.size

    @property
    def obs_columns(self) -> list[str]:
        """Columns of obs, soma_joinid left out."""
        names = list(self._experiment.obs.keys())
        return [name for name in names if name != "soma_joinid"]

    @property
    def matrix(self) -> Any:
        """The open array of counts, for those who ask about its layout."""
        return self._x

    @property
    def version(self) -> str | None:
        """Digest of what has been written into the matrix; None for a remote store."""
        if self._is_remote:
            return None
        fragments = Path(self._x.uri.removeprefix("file://")) / "__fragments"
        return digest(sorted(p.name for p in fragments.iterdir()))

    @property
    def label_origin(self) -> dict[str, str]:
        """Obs column -> where its labels come from, for those that were not in the input files."""
        return dict(json.loads(self._experiment.metadata.get(ORIGIN_KEY, "{}")))

    @property
    def joinids(self) -> Int64[ndarray, " cell"]:
        """soma_joinid of every cell that the locator means, ascending; they may have gaps."""
        ids = self._read_obs(["soma_joinid"])["soma_joinid"]
        return np.sort(ids.to_numpy(dtype=np.int64))

    @property
    def gene_ids(self) -> tuple[str, ...]:
        """Gene names in the order of the matrix columns.

        Raises:
            DataError: if var has no column of gene names, one of them stands twice, or its
                joinids are not 0, 1, 2, ...
        """
        names = list(self._ms.var.keys())
        wanted = (self.locator.gene_column,) if self.locator.gene_column else GENE_ID_COLUMNS
        column = next((c for c in wanted if c in names), None)
        if column is None:
            raise DataError(
                f"var of {self.locator.uri} has none of the columns {', '.join(wanted)}; it has: "
                f"{', '.join(names)}; name the one with gene names in source.gene_column"
            )
        var = self._read_frame(self._ms.var, ["soma_joinid", column]).sort_values("soma_joinid")
        if not np.array_equal(var["soma_joinid"], np.arange(len(var))):
            raise DataError(
                f"var of {self.locator.uri} has gaps in its joinids; ingest its cells again "
                "into a store of their own"
            )
        genes = var[column].astype(str)
        if genes.duplicated().any():
            raise DataError(
                f"column {column!r} in var of {self.locator.uri} holds "
                f"{genes[genes.duplicated()].iloc[0]!r} more than once; name a column of unique "
                "gene names in source.gene_column"
            )
        return tuple(genes)

    @property
    def cell_names(self) -> "pd.Series[Any]":
        """Name of every cell that the locator means, by joinid, ascending.

        Raises:
            DataError: if obs has no such column.
        """
        column = self._name_column
        if column is None:
            ids = self.joinids
            return pd.Series(ids.astype(str), index=ids)
        return self.obs([column])[column].astype(str)

    def names_of(self, joinids: Int64[ndarray, " cell"]) -> ndarray:
        """Names of some cells, in the order given.

        Args:
            joinids: strictly ascending.

        Raises:
            DataError: if the store lacks some of them.
        """
        column = self._name_column
        if column is None:
            return joinids.astype(str).astype(object)
        table = self._experiment.obs.read(
            coords=(joinids,), column_names=["soma_joinid", column]
        ).concat()
        names = table.to_pandas().set_index("soma_joinid").sort_index()[column].astype(str)
        if len(names) != joinids.size:
            raise DataError(
                f"{self.locator.uri} lacks {joinids.size - len(names)} cells of the vocabulary; "
                "ingest again"
            )
        found: ndarray = names.to_numpy(dtype=object)
        return found

    @property
    def _name_column(self) -> str | None:
        """Column of obs that names the cells; None: their joinids do."""
        asked = self.locator.cell_column
        return asked or next((c for c in CELL_ID_COLUMNS if c in self.obs_columns), None)

    def obs(self, columns: Sequence[str]) -> pd.DataFrame:
        """The asked columns of every cell that the locator means, by soma_joinid, ascending.

        Raises:
            DataError: naming the columns that are absent and those that exist.
        """
        known = self.obs_columns
        if missing := [c for c in columns if c not in known]:
            raise DataError(
                f"obs of {self.locator.uri} has no column {', '.join(missing)}; "
                f"it has: {', '.join(known)}"
            )
        frame = self._read_obs(["soma_joinid", *columns])
        return frame.set_index("soma_joinid").sort_index()[list(columns)]

    def read_counts(self, joinids: Int64[ndarray, " cell"]) -> CsrCounts:
        """Counts of the given cells over all genes, rows in the order given; one read.

        Args:
            joinids: strictly ascending; ids without entries give empty rows.

        Raises:
            DataError: if the store holds two entries for one cell and gene.
            InfrastructureError: if the store cannot be read.
        """
        assert np.all(joinids[1:] > joinids[:-1]), "joinids must ascend strictly"
        pieces = [self._pack(entries, joinids) for entries in self.read_entries(joinids)]
        csr = assemble(pieces, joinids.size, self._gene_dtype, self._count_dtype)
        if (row := sort_rows(*csr)) >= 0:
            raise DataError(
                f"cell {joinids[row]} of {self.locator.uri} has two entries for one gene; "
                "a sound store has one: write it again without duplicates"
            )
        return csr

    def read_entries(self, joinids: Int64[ndarray, " cell"]) -> Iterator[Entries]:
        """Stored entries of the given cells over all genes, as they come.

        Args:
            joinids: strictly ascending.

        Raises:
            InfrastructureError: if the store cannot be read.
        """
        start = 0
        while start < joinids.size:
            n_cells = joinids.size
            if not self._is_remote:
                n_cells = max(1, int(_ENTRIES_PER_READ / self._entries_per_cell))
            part = joinids[start : start + n_cells]
            n_entries = 0
            for entries in self._read_part(part):
                n_entries += entries.joinids.size
                yield entries
            self._entries_per_cell = max(1.0, n_entries / part.size)
            start += part.size

    def _read_part(self, joinids: ndarray) -> Iterator[Entries]:
        try:
            for table in _tables(self._x, joinids):
                for part in table.to_batches():
                    yield Entries(*(part.column(name).to_numpy() for name in _X_COLUMNS))
        except STORE_ERRORS as e:
            raise self._unreadable(
                self._x.uri, lambda x: list(_tables(x, joinids)), e, joinids=joinids
            ) from e

    def _unreadable(
        self,
        uri: str,
        read: Callable[[Any], object],
        e: Exception,
        kind: Any = tiledbsoma.SparseNDArray,
        joinids: ndarray | None = None,
    ) -> SaveDistError:
        """The error that names the fragment whose bytes have changed, if one has."""
        context, until = self._experiment.context, self.locator.timestamp
        found = [] if self._is_remote else damaged_fragments(kind, uri, context, until, read)
        where = "" if joinids is None else f" at cells {joinids[0]}..{joinids[-1]}"
        if not found:
            return InfrastructureError(f"could not read {uri}{where}: {e}")
        if joinids is not None:
            where = self._origin(damaged_cell(joinids, lambda ids: list(_tables(self._x, ids))))
        return DataError(
            f"{' or '.join(found)} of {uri} is damaged{where}: {e}; these are not the bytes that "
            f"were written: {remedy(self._experiment.metadata)}"
        )

    def _origin(self, cell: int) -> str:
        """Cell, and the file it came from if obs says so, for a message."""
        if "input" not in self.obs_columns:
            return f" at cell {cell}"
        try:
            obs = self._experiment.obs.read(coords=(cell,), column_names=["input"]).concat()
        except STORE_ERRORS:
            return f" at cell {cell}"
        return f" at cell {cell} (input {obs['input'][0]})"

    def _pack(self, entries: Entries, joinids: np.ndarray) -> CsrPiece:
        """Arrow columns (20 bytes an entry) as rows, genes, counts (8 bytes)."""
        genes = entries.genes.astype(self._gene_dtype)
        counts = entries.counts.astype(self._count_dtype)
        rows = rows_of(entries.joinids, joinids)
        is_asked = joinids[np.minimum(rows, joinids.size - 1)] == entries.joinids
        is_asked &= (entries.genes >= 0) & (entries.genes < self.n_genes)
        if not is_asked.all():
            bad = int(np.argmin(is_asked))
            place = int(entries.joinids[bad]), int(entries.genes[bad])
            error = stranger(self.locator.uri, *place, joinids, self.n_genes)
            assert error is not None
            raise error
        return CsrPiece(rows, genes, counts)

    def _check_complete(self) -> None:
        if self._experiment.metadata.get(COMPLETE_KEY) == "false":
            self.close()
            raise DataError(
                f"{self.locator.uri} is incomplete: its ingest was interrupted; run the same "
                "ingest job again, it continues where it stopped"
            )

    def _member(self, collection: Any, name: str, kind: str) -> Any:
        if name not in collection:
            known = ", ".join(sorted(collection.keys()))
            self.close()
            raise DataError(f"{self.locator.uri} has no {kind} {name!r}; it has: {known}")
        return collection[name]

    def _read_obs(self, columns: list[str]) -> pd.DataFrame:
        wanted = self.locator.value_filter
        try:
            return self._read_frame(self._experiment.obs, columns, wanted)
        except (tiledbsoma.SOMAError, ValueError, SyntaxError, KeyError) as e:
            if wanted is None:
                raise
            raise DataError(
                f"obs of {self.locator.uri} cannot be filtered by {wanted!r}: {e}; columns: "
                f"{', '.join(self.obs_columns)}; correct source.value_filter"
            ) from e

    def _read_frame(
        self, frame: Any, columns: list[str], wanted: str | None = None
    ) -> pd.DataFrame:
        def read(frame: Any) -> pd.DataFrame:
            table = frame.read(column_names=columns, value_filter=wanted).concat()
            return cast(pd.DataFrame, table.to_pandas())

        try:
            return read(frame)
        except STORE_ERRORS as e:
            if wanted is not None and "ChecksumError" not in str(e):
                raise
            raise self._unreadable(frame.uri, read, e, tiledbsoma.DataFrame) from e


def _tables(x: Any, joinids: ndarray) -> Iterator[pa.Table]:
    """Arrow tables of some cells. No result_order: sorting the result costs 16 times the read."""
    is_range = joinids[-1] - joinids[0] + 1 == joinids.size
    ids = slice(int(joinids[0]), int(joinids[-1])) if is_range else joinids
    return iter(x.read(coords=(ids,)).tables())
