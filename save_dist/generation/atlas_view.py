"""An atlas to read from: lazily, by condition, without a model.

The plan stands in the store, so the rows of a condition are known before anything is read, and
what is then read are the chunks that hold them. The store may be a path, `s3://bucket/prefix`, or
whatever else zarr opens.
"""

import itertools
import json
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from typing import Any

import anndata
import dask
import dask.array
import numpy as np
import pandas as pd
import scipy.sparse as sp
import zarr
from jaxtyping import Int64
from numpy import ndarray

from save_dist.config.schema import GridConfig
from save_dist.core.errors import AtlasError, ConfigError, listed
from save_dist.generation.combinations import all_codes, matching
from save_dist.generation.rows import RowMap, Segment, rows_of
from save_dist.stores.storage import is_bucket, storage_of
from save_dist.stores.template import COMPLETE, OWN_COLUMNS, PLAN
from save_dist.vocab.conditions import ConditionVocabulary

Values = str | Sequence[str]


class Atlas:
    """A generated atlas.

    Args:
        store: path, URL or zarr store of the atlas.
        incomplete: open an atlas that is still being written, too. Cells that are not there yet
            are all zero, have no condition, and -1 in obs column `part`.

    Raises:
        AtlasError: if there is no atlas, or it is incomplete and that was not asked for.
    """

    def __init__(self, store: Any, *, incomplete: bool = False) -> None:
        self._name = str(store)
        try:
            place = storage_of(store).zarr if is_bucket(store) else store
            self._group = zarr.open_group(place, mode="r")
            self.plan: Mapping[str, Any] = json.loads(str(self._group[PLAN][()]))
            self.is_complete = bool(self._group[COMPLETE][()])
        except (FileNotFoundError, KeyError, ValueError) as e:
            raise AtlasError(
                f"{self._name} holds no generated atlas ({type(e).__name__}: {e}); give the "
                "path of an atlas.zarr"
            ) from e
        if "grids" not in self.plan:
            raise AtlasError(
                f"{self._name} holds no generated atlas but transferred cells; open them with "
                "anndata.read_zarr or anndata.experimental.read_lazy"
            )
        if not self.is_complete and not incomplete:
            raise AtlasError(
                f"{self._name} is incomplete: cells are missing; run generate again to finish it, "
                "or pass incomplete=True to look at what is there"
            )

    def __repr__(self) -> str:
        word = "" if self.is_complete else ", incomplete"
        return f"save_dist.Atlas({self.n_obs} cells x {self.n_vars} genes{word})"

    @property
    def n_obs(self) -> int:
        """Cells."""
        return int(self._group["X"].shape[0])

    @property
    def n_vars(self) -> int:
        """Genes."""
        return int(self._group["X"].shape[1])

    @property
    def cells_per_part(self) -> int:
        """Rows in one file."""
        return int(self._group["X"].shards[0])

    @property
    def n_parts(self) -> int:
        """Files of a matrix."""
        return -(-self.n_obs // self.cells_per_part)

    @cached_property
    def uns(self) -> dict[str, Any]:
        """What made the cells: plan, hashes, versions, settings."""
        found: dict[str, Any] = anndata.io.read_elem(self._group["uns"])
        return found

    @cached_property
    def var_names(self) -> "pd.Index[str]":
        """Gene ids."""
        return pd.Index([str(name) for name in self._group["var/_index"][:]])

    @cached_property
    def conditions(self) -> ConditionVocabulary:
        """Condition columns and their values, MASK not among them."""
        order, masked = self._group["obs"].attrs["column-order"], self._grids[-1].masked
        columns = [column for column in order if column not in OWN_COLUMNS]
        known = {column: self._categories(column) for column in columns}
        shown = (tuple(known[c][:-1] if c in masked else known[c]) for c in columns)
        return ConditionVocabulary(tuple(columns), tuple(shown))

    @property
    def x(self) -> Any:
        """Counts as a dask array, one dask chunk per file."""
        return self._lazy("X")

    def to_anndata(self) -> anndata.AnnData:
        """All cells: counts (and layers, latents) lazily, obs in memory."""
        return self._table(np.array([[0, self.n_obs]], np.int64))

    def select(self, **values: Values) -> anndata.AnnData:
        """Cells of some conditions; reads what holds them, and their counts only when asked.

        Args:
            values: value, pattern (`CD*`) or list of these per condition column; a column not
                named takes all its values.

        Raises:
            ConfigError: for an unknown column or value, or conditions without a cell.
        """
        ranges = self.ranges(**values)
        if not len(ranges):
            raise ConfigError(
                f"{self._name} holds no cell of {values}; its grid leaves these conditions out"
            )
        return self._table(ranges)

    def read(self, start: int, stop: int) -> anndata.AnnData:
        """Rows [start, stop), as far as there are any, in memory, counts as compressed rows."""
        cells = self._table(np.array([[start, min(stop, self.n_obs)]], np.int64)).to_memory()
        cells.X = sp.csr_matrix(cells.X)
        return cells

    def condition_list(self) -> list[dict[str, str]]:
        """Every condition that has cells; a masked column is absent."""
        rows = all_codes(self._rows.conditions).tolist()
        return [self.conditions.decode_one(row) for row in rows]

    def ranges(self, **values: Values) -> Int64[ndarray, "range 2"]:
        """First row and row after the last of every run of cells of some conditions.

        Raises:
            ConfigError: for an unknown column or value.
        """
        known = self.conditions
        if unknown := sorted(set(values) - set(known.columns)):
            raise ConfigError(
                f"select: unknown condition column {listed(unknown, 5)!r}; the atlas has "
                f"{listed(known.columns)}"
            )
        named = {c: [v] if isinstance(v, str) else list(v) for c, v in values.items()}
        return self._rows.ranges(matching(named, known, "select", self._grids[-1].masked))

    def segments(self, start: int, stop: int) -> list[Segment]:
        """What the plan puts in rows [start, stop), condition by condition."""
        return list(itertools.chain.from_iterable(self._rows.runs(start, stop)))

    @cached_property
    def _grids(self) -> list[GridConfig]:
        return [GridConfig.model_validate(grid) for grid in self.plan["grids"]]

    @cached_property
    def _rows(self) -> RowMap:
        return rows_of(self._grids, self.conditions)

    def _table(self, ranges: Int64[ndarray, "range 2"]) -> anndata.AnnData:
        is_all = len(ranges) == 1 and ranges[0, 1] - ranges[0, 0] == self.n_obs

        def lazy(name: str) -> Any:
            return self._lazy(name) if is_all else self._lazy_rows(name, ranges)

        return anndata.AnnData(
            lazy("X"),
            obs=self._obs(ranges),
            var=pd.DataFrame(index=self.var_names),
            uns=self.uns,
            layers={name: lazy(f"layers/{name}") for name in self._group["layers"]},
            obsm={name: lazy(f"obsm/{name}") for name in self._group["obsm"]},
        )

    def _lazy(self, name: str) -> Any:
        array = self._group[name]
        return dask.array.from_zarr(array, chunks=(self.cells_per_part, array.shape[1]))

    def _lazy_rows(self, name: str, ranges: Int64[ndarray, "range 2"]) -> Any:
        """Some rows of a matrix, one dask chunk per file that holds any of them."""
        array, read = self._group[name], dask.delayed(_read_rows)
        blocks = [
            dask.array.from_delayed(read(array, rows), (rows.size, array.shape[1]), array.dtype)
            for rows in self._rows_by_part(ranges)
        ]
        return dask.array.concatenate(blocks)

    def _rows_by_part(self, ranges: Int64[ndarray, "range 2"]) -> Iterator[Int64[ndarray, " row"]]:
        rows = np.concatenate([np.arange(a, b, dtype=np.int64) for a, b in ranges.tolist()])
        parts = rows // self.cells_per_part
        yield from np.split(rows, np.flatnonzero(np.diff(parts)) + 1)

    def _obs(self, ranges: Int64[ndarray, "range 2"]) -> pd.DataFrame:
        rows = np.concatenate(list(self._rows_by_part(ranges)))
        obs = self._group["obs"]
        table = pd.DataFrame(index=pd.Index([f"cell-{row}" for row in rows.tolist()]))
        for column in obs.attrs["column-order"]:
            found = obs[column]
            if isinstance(found, zarr.Array):
                table[column] = found.oindex[rows]
                continue
            codes, values = found["codes"].oindex[rows], pd.Index(self._categories(column))
            table[column] = pd.Categorical.from_codes(codes, values)
        return table

    def _categories(self, column: str) -> list[str]:
        return [str(value) for value in self._group[f"obs/{column}/categories"][:]]


def _read_rows(array: Any, rows: Int64[ndarray, " row"]) -> ndarray:
    found: ndarray = array.oindex[rows, :]
    return found
