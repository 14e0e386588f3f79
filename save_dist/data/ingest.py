"""Files -> one SOMA store of raw counts. A killed ingest continues with the input it stopped in.

Inputs are independent, so several may be worked on at once: each writes its own rows of counts
and leaves its obs in a file. The caller's process alone writes obs, input by input, and then the
record that says the input is finished. An input without its record is written again, over the
same rows, so nothing is doubled and nothing missing.
"""

import contextlib
import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import tiledbsoma
from jaxtyping import Int32, Int64
from numpy import ndarray

from save_dist.config.schema import ConditionsConfig, IngestConfig
from save_dist.core.durable import free_bytes
from save_dist.core.errors import DataError, InfrastructureError
from save_dist.core.spread import Spread, in_order
from save_dist.data import writer
from save_dist.data.annotate import label_by_markers
from save_dist.data.csr import CsrCounts, sort_rows
from save_dist.data.inputs import IngestPlan, InputPlan
from save_dist.data.inputs import check_inputs as check_inputs
from save_dist.data.inputs import ingest_key as ingest_key
from save_dist.data.obs import ObsRules, input_obs
from save_dist.data.readers import open_cells
from save_dist.data.receipts import IngestReceipts, IngestSummary

logger = logging.getLogger(__name__)

_OBS_ROWS_AT_ONCE = 2**16

Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class _Job:
    """What stays the same over all inputs."""

    config: IngestConfig
    plan: IngestPlan
    rules: ObsRules
    records: IngestReceipts
    seed: int

    @property
    def uri(self) -> Path:
        """Folder of the store."""
        return self.records.uri


def ingest(
    config: IngestConfig,
    conditions: ConditionsConfig,
    uri: Path,
    *,
    seed: int = 0,
    plan: IngestPlan | None = None,
    progress: Progress | None = None,
    spread: Spread = in_order,
) -> IngestSummary:
    """Write the cells of all inputs to a SOMA experiment at `uri`, or finish what was begun.

    obs: cell_id, input, the condition columns, `obs_columns`, n_counts. var: gene_id. X: layer
    `raw` of measurement `RNA`.

    Args:
        config: files, labels, layout.
        conditions: its columns must end up in obs.
        uri: folder of the store.
        seed: of the clustering behind marker labels.
        plan: what `check_inputs` gave for the same arguments, if it was just called.
        progress: called with cells written so far and cells in all.
        spread: how the files are shared out; the store is the same for any.

    Raises:
        ConfigError, DataError: see `check_inputs`; before anything is written.
        DataError: if `uri` holds another ingest, or a file has two counts for one cell and gene.
        InfrastructureError: if the output cannot be written or the disk is too small.
    """
    uri = uri.absolute()  # TileDB resolves others against the folder a process began in
    records = IngestReceipts(uri, ingest_key(config, conditions, seed, spread))
    if summary := records.finished():
        logger.info("event=ingest_already_complete uri=%s n_cells=%d", uri, summary.n_cells)
        return summary
    plan = plan or check_inputs(config, conditions, seed, identity=records.key, spread=spread)
    _check_space(plan, uri)
    records.begin()
    if not uri.exists():
        writer.create_store(uri, plan.layout, {"save_dist_ingest_key": records.key})
    job = _Job(config, plan, ObsRules.of(config, conditions), records, seed)
    _write_missing(job, progress, spread)
    writer.mark_complete(uri, plan.label_origin)
    summary = _summary(job)
    records.finish(summary)
    return summary


def as_counts(block: Any, gene_map: Int32[ndarray, " file_gene"], count_type: str) -> CsrCounts:
    """A file's rows in the columns of the store; zeros and genes mapped to -1 are dropped.

    Raises:
        DataError: if a row holds a gene twice.
    """
    genes = gene_map[block.indices]
    kept = (genes >= 0) & (block.data != 0)
    edges = np.concatenate([[0], np.cumsum(kept)])[block.indptr]
    csr = CsrCounts(edges, genes[kept], block.data[kept].astype(count_type))
    if (row := sort_rows(*csr)) >= 0:
        raise DataError(f"row {row} of a block holds two counts for one gene")
    return csr


def _write_missing(job: _Job, progress: Progress | None, spread: Spread) -> None:
    """Write the inputs that have no record yet, and their records in order."""
    missing = [i for i in range(len(job.plan.inputs)) if job.records.of_input(i) is None]
    # Only work that stays in this process can report before an input is done.
    within = progress if spread is in_order or len(missing) == 1 else None
    written = spread(partial(_write_guarded, job, within), missing)
    for position, nnz in zip(missing, written, strict=True):
        item = job.plan.inputs[position]
        with _guarded(job, item), pa.ipc.open_stream(job.records.obs_path(position)) as batches:
            writer.write_obs(job.uri, (pa.Table.from_batches([batch]) for batch in batches))
        record = {"input": item.name, "n_cells": item.n_cells, "nnz": nnz}
        job.records.add_input(position, record)
        _report(progress, item.start + item.n_cells, job.plan.n_cells)


def _write_guarded(job: _Job, progress: Progress | None, position: int) -> int:
    item = job.plan.inputs[position]
    with _guarded(job, item):
        return _write_input(job, position, progress)


@contextlib.contextmanager
def _guarded(job: _Job, item: InputPlan) -> Iterator[None]:
    try:
        yield
    except (OSError, tiledbsoma.SOMAError) as e:
        raise InfrastructureError(
            f"could not copy input {item.name} to {job.uri}: {e}; free space or fix permissions, "
            "then run again: finished inputs are kept"
        ) from e


def _write_input(job: _Job, position: int, progress: Progress | None) -> int:
    """Write counts block by block, and obs to a file. Returns the number of counts."""
    item = job.plan.inputs[position]
    n_counts: list[np.ndarray] = []
    nnz = 0
    with open_cells(item.path, job.config.layer, item.config.gene_column) as reader:
        frame, kept = input_obs(reader, item.config, job.rules)
        gene_map = pd.Index(job.plan.layout.gene_ids).get_indexer(pd.Index(reader.gene_ids))
        row = item.start
        first = 0
        for block in reader.blocks(job.config.rows_per_block):
            wanted = kept[first : first + block.shape[0]]
            csr = _checked_counts(block[wanted], gene_map, job, item)
            writer.write_counts(job.uri, csr, row)
            n_counts.append(_row_sums(csr))
            first, row, nnz = first + wanted.size, row + csr.n_cells, nnz + csr.counts.size
            _report(progress, row, job.plan.n_cells)
        if job.rules.marker_column and job.config.markers:
            labels = label_by_markers(reader, job.config.markers, job.seed)
            frame[job.rules.marker_column] = labels
        names = reader.cell_names.filter(pa.array(kept))
    frame = frame[kept].assign(n_counts=np.concatenate(n_counts))
    _write_obs_file(job, item, frame, names, job.records.obs_path(position))
    return nnz


def _write_obs_file(
    job: _Job, item: InputPlan, frame: pd.DataFrame, names: pa.LargeStringArray, path: Path
) -> None:
    """Some rows at a time: as text they take more memory than all the rest."""
    types = job.plan.layout.obs_types
    with contextlib.ExitStack() as stack:
        stream = None
        for start in range(0, len(frame), _OBS_ROWS_AT_ONCE):
            rows = slice(start, start + _OBS_ROWS_AT_ONCE)
            cell_ids = [f"{item.name}:{name}" for name in names[rows].to_pylist()]
            part = frame[rows].assign(cell_id=cell_ids, input=item.name)
            table = writer.obs_table(part, types, item.start + start)
            stream = stream or stack.enter_context(pa.ipc.new_stream(path, table.schema))
            stream.write_table(table)


def _checked_counts(block: Any, gene_map: ndarray, job: _Job, item: InputPlan) -> CsrCounts:
    try:
        return as_counts(block, gene_map.astype(np.int32), job.plan.layout.count_type)
    except DataError as e:
        raise DataError(
            f"{item.path}: {e}; sum or drop duplicate entries (scipy: sum_duplicates)"
        ) from e


def _row_sums(csr: CsrCounts) -> Int64[ndarray, " cell"]:
    edges = np.concatenate([[0], np.cumsum(csr.counts, dtype=np.int64)])
    return np.diff(edges[csr.indptr])


def _check_space(plan: IngestPlan, uri: Path) -> None:
    """Refuse to start what cannot fit."""
    free = free_bytes(uri)
    if free < plan.n_bytes:
        raise InfrastructureError(
            f"the disk has {free} bytes free, the store {uri} needs about {plan.n_bytes}; "
            "free space or use another run.dir"
        )


def _report(progress: Progress | None, n_done: int, n_cells: int) -> None:
    if progress is not None:
        progress(n_done, n_cells)


def _summary(job: _Job) -> IngestSummary:
    plan = job.plan
    records = (job.records.of_input(i) for i in range(len(plan.inputs)))
    return IngestSummary(
        n_cells=plan.n_cells,
        n_genes=plan.n_genes,
        nnz=sum(int(record["nnz"]) for record in records if record is not None),
        n_inputs=len(plan.inputs),
        key=job.records.key,
        label_origin=dict(plan.label_origin),
    )
