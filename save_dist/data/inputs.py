"""What the input files hold, checked in full before anything is written.

The plan keeps counts and names, never cells: its size does not grow with the atlas.
"""

import logging
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path, PurePath
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
from jaxtyping import Bool
from numpy import ndarray

from save_dist.config.schema import ConditionsConfig, IngestConfig, InputConfig
from save_dist.core.durable import digest, file_digest
from save_dist.core.errors import DataError
from save_dist.core.spread import Spread, in_order
from save_dist.data.annotate import check_markers
from save_dist.data.obs import ObsRules, input_obs
from save_dist.data.readers import (
    CellReader,
    CountFacts,
    content_digest,
    open_cells,
    resolve,
)
from save_dist.data.writer import StoreLayout

logger = logging.getLogger(__name__)

MAX_UNLABELLED_SHARE = 0.05
"""Cells without a value in some condition column are left out, but no more than this share."""


@dataclass(frozen=True)
class InputPlan:
    """One input and the rows of the store that are its own."""

    name: str
    """Prefix of its cell ids: the file name without suffix."""
    path: Path
    config: InputConfig
    start: int
    """First row in the store."""
    n_cells: int
    """Cells taken: those with a value in every condition column."""


@dataclass(frozen=True)
class IngestPlan:
    """Everything an ingest will write, but for the cells themselves."""

    identity: str
    """Equal identity, equal store: see `ingest_key`."""
    inputs: tuple[InputPlan, ...]
    layout: StoreLayout
    nnz: int
    """Nonzero counts in the files, an upper bound of what is written."""
    label_origin: Mapping[str, str]
    """obs column -> origin of its labels, for those that are not in the input files."""

    @property
    def n_cells(self) -> int:
        """Cells of the store."""
        return self.layout.n_cells

    @property
    def n_genes(self) -> int:
        """Genes of the store."""
        return len(self.layout.gene_ids)

    @property
    def n_bytes(self) -> int:
        """Rough size of the store on disk, on the high side."""
        return 3 * self.nnz + 100 * self.n_cells


def check_inputs(
    config: IngestConfig,
    conditions: ConditionsConfig,
    seed: int = 0,
    *,
    identity: str | None = None,
    spread: Spread = in_order,
) -> IngestPlan:
    """Read every file once and plan the store. Writes nothing.

    Args:
        config: files, labels, layout.
        conditions: its columns must end up in obs.
        seed: of the clustering behind marker labels.
        identity: what `ingest_key` gave for the same arguments, if it was just called.
        spread: how the files are shared out.

    Raises:
        ConfigError: if columns are asked for that the store uses itself.
        DataError: naming the file, what is wrong in it and what to do: missing files or columns,
            values that are no counts, duplicate names, no common genes, too few labelled cells.
    """
    rules = ObsRules.of(config, conditions)
    paths = [resolve(item.path) for item in config.inputs]
    items = list(zip(paths, config.inputs, strict=True))
    scans = list(spread(partial(_scan, rules, config), items))
    nnz = sum(scan.counts.nnz for scan in scans)
    max_count = max(scan.counts.max_count for scan in scans)
    starts = np.cumsum([0] + [scan.n_kept for scan in scans])
    layout = StoreLayout(
        n_cells=int(starts[-1]),
        gene_ids=merge_genes([scan.genes for scan in scans], config.genes, paths),
        count_type="uint16" if max_count < 2**16 else "uint32",
        obs_types={c: _common_kind(c, [s.kinds for s in scans], rules) for c in rules.columns},
        rows_per_tile=config.rows_per_tile,
        mean_entries=nnz / sum(scan.n_obs for scan in scans),
    )
    inputs = tuple(
        InputPlan(name, path, item, int(start), scan.n_kept)
        for name, path, item, start, scan in zip(
            input_names(config.inputs), paths, config.inputs, starts[:-1], scans, strict=True
        )
    )
    identity = identity or ingest_key(config, conditions, seed, spread)
    return IngestPlan(identity, inputs, layout, nnz, rules.label_origin(config))


def ingest_key(
    config: IngestConfig, conditions: ConditionsConfig, seed: int, spread: Spread = in_order
) -> str:
    """Identity of the store these settings and files give; reads the files.

    Raises:
        DataError: if a file does not exist.
    """
    settings = config.model_dump(mode="json", exclude={"inputs", "labels", "rows_per_block"})
    contents = spread(content_digest, [resolve(item.path) for item in config.inputs])
    names = input_names(config.inputs)
    files = [
        {"name": name, "sha256": content, **item.model_dump(mode="json", exclude={"path"})}
        for name, item, content in zip(names, config.inputs, contents, strict=True)
    ]
    labels = config.labels
    table = file_digest(labels) if labels is not None and labels.is_file() else None
    return digest(
        {
            "settings": settings,
            "columns": conditions.columns,
            "files": files,
            "labels": table,
            "seed": seed if config.markers and labels is None else None,
        }
    )


def input_names(inputs: Sequence[InputConfig]) -> list[str]:
    """One name per input: the file name without suffix, or as much more as tells it from others.

    >>> input_names([InputConfig(path="a/x.h5ad"), InputConfig(path="b/x.h5ad")])
    ['a/x', 'b/x']
    >>> input_names([InputConfig(path="x.h5ad"), InputConfig(path="x.zarr")])
    ['x.h5ad', 'x.zarr']
    """
    paths = [PurePath(item.path) for item in inputs]
    longer = [[p.stem for p in paths], [str(p.with_suffix("")) for p in paths]]
    names = [item.path for item in inputs]
    for shorter in reversed(longer):
        many = {name for name, n in Counter(shorter).items() if n > 1}
        names = [n if s in many else s for s, n in zip(shorter, names, strict=True)]
    return names


def merge_genes(genes: Sequence[np.ndarray], how: str, paths: Sequence[Path]) -> tuple[str, ...]:
    """Genes of the store, in the order of the first file that has them.

    Raises:
        DataError: if a file shares no gene with those before it.
    """
    merged = dict.fromkeys(genes[0])
    for own, path in zip(genes[1:], paths[1:], strict=True):
        common = merged.keys() & set(own)
        if not common:
            raise DataError(
                f"{path} has no gene in common with {paths[0]}: {own[0]!r} against "
                f"{next(iter(merged))!r}; name the genes of both alike (gene_column of an input)"
            )
        if how == "intersection":
            merged = {gene: None for gene in merged if gene in common}
        else:
            merged.update(dict.fromkeys(own))
    return tuple(str(gene) for gene in merged)


class _Scan(NamedTuple):
    """What one file holds."""

    n_obs: int
    n_kept: int
    genes: np.ndarray
    kinds: dict[str, str]
    counts: CountFacts


def _scan(rules: ObsRules, config: IngestConfig, found: tuple[Path, InputConfig]) -> _Scan:
    path, item = found
    with open_cells(path, config.layer, item.gene_column) as reader:
        _check_names(reader)
        if rules.marker_column and config.markers:
            check_markers(reader.gene_ids, reader.n_obs, config.markers, str(path))
        frame, kept = input_obs(reader, item, rules)
        _check_kept(kept, frame, rules, path)
        kinds = {str(c): _kind(frame[c]) for c in frame.columns}
        counts = reader.scan_counts()
        return _Scan(reader.n_obs, int(kept.sum()), reader.gene_ids, kinds, counts)


def _check_names(reader: CellReader) -> None:
    if reader.n_obs == 0 or reader.n_vars == 0:
        raise DataError(
            f"{reader.path} has {reader.n_obs} cells and {reader.n_vars} genes, expected at least "
            "one of each; take it out of ingest.inputs"
        )
    for what, names in (("gene", pa.array(reader.gene_ids)), ("cell", reader.cell_names)):
        if pc.count_distinct(names).as_py() == len(names):
            continue
        twice = pd.Index(names)[pd.Index(names).duplicated()]
        raise DataError(
            f"{reader.path}: {twice.nunique()} {what} names occur more than once, e.g. "
            f"{twice[0]!r}; make them unique (AnnData: {'var' if what == 'gene' else 'obs'}"
            "_names_make_unique)" + (", or set gene_column of the input" * (what == "gene"))
        )


def _check_kept(
    kept: Bool[ndarray, " cell"], frame: pd.DataFrame, rules: ObsRules, path: Path
) -> None:
    """Warn of cells that will be left out, refuse when they are many."""
    n_out = int((~kept).sum())
    if not n_out:
        return
    share = n_out / kept.size
    empty = frame[[c for c in rules.conditions if c in frame]]
    columns = [str(c) for c in empty if (empty[c].isna() | (empty[c] == "")).any()]
    if share > MAX_UNLABELLED_SHARE:
        raise DataError(
            f"{path}: {n_out} of {kept.size} cells ({share:.1%}) have no {' or '.join(columns)}; "
            f"at most {MAX_UNLABELLED_SHARE:.0%} may lack it: check ingest.labels_key, the "
            "constants of the input and the cell names, or take these cells out of the file"
        )
    logger.warning(
        "event=cells_left_out input=%s n_cells=%d share=%.4f because_empty=%s",
        path.name,
        n_out,
        share,
        ",".join(columns),
    )


def _kind(values: "pd.Series[Any]") -> str:
    """How a column is stored: bool, int64, float64 or string."""
    if pd.api.types.is_bool_dtype(values):
        return "bool"
    if pd.api.types.is_integer_dtype(values):
        return "int64"
    return "float64" if pd.api.types.is_float_dtype(values) else "string"


def _common_kind(column: str, kinds: Sequence[Mapping[str, str]], rules: ObsRules) -> str:
    found = {kind[column] for kind in kinds if column in kind}
    if column in rules.conditions or not found:
        return "string"
    if found == {"int64", "float64"}:
        return "float64"
    return found.pop() if len(found) == 1 else "string"
