"""Export: an atlas in the form another tool wants, part by part, never over what stands there.

Each form is written aside and renamed, whole or file by file. A small record beside the output
says of which atlas it is and how far it got, so a killed export of many files goes on where it was.
"""

import re
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import anndata
import numpy as np
import pandas as pd
import zarr
from jaxtyping import Int64
from numpy import ndarray

from save_dist.config.schema import IngestConfig
from save_dist.core.durable import read_json, write_json
from save_dist.core.errors import ConfigError, InfrastructureError, listed
from save_dist.data import writer
from save_dist.data.csr import CsrCounts
from save_dist.generation.atlas_view import Atlas
from save_dist.pipelines.context import Summary
from save_dist.stores.h5ad import write_h5ad
from save_dist.stores.storage import Where, sync

COLLECTION = {"encoding-type": "annbatch-preshuffled", "encoding-version": "0.1.0"}
"""By which annbatch knows a folder of `dataset_N` (its change log, 0.1)."""


@dataclass(frozen=True)
class _Job:
    """One export."""

    view: Atlas
    output: Path
    record: Path
    """Beside the output: of which atlas, in which form, how much is done."""
    about: dict[str, str]

    @property
    def n_done(self) -> int:
        """Pieces that are finished, as last recorded."""
        return int(read_json(self.record)["n_done"])

    @property
    def is_complete(self) -> bool:
        """Whether the export ended."""
        return bool(read_json(self.record)["complete"])

    def note(self, n_done: int, *, is_complete: bool = False) -> None:
        """Record how far the export is."""
        write_json(self.record, {**self.about, "n_done": n_done, "complete": is_complete})


def export(atlas: Where, output: Path, form: str) -> Summary:
    """Write an atlas in another form.

    Args:
        atlas: a complete atlas.
        output: file or folder to write.
        form: one of `FORMS`.

    Raises:
        ConfigError: for an unknown form, or if something else stands at `output`.
        AtlasError: if there is no complete atlas.
        InfrastructureError: if the disk refuses; the same command goes on.
    """
    if form not in FORMS:
        raise ConfigError(f"--to {form!r} is unknown; choose one of {listed(FORMS)}")
    view = Atlas(atlas)
    summary: Summary = {"output": str(output), "form": form, "n_cells": view.n_obs}
    try:
        job = _begin(view, output, form)
        if job.is_complete:
            return {**summary, "did": "nothing: it is already there"}
        n_pieces = FORMS[form](job)
        job.note(n_pieces, is_complete=True)
    except OSError as e:
        raise InfrastructureError(
            f"could not write {output}: {e}; free space or fix permissions, then run again"
        ) from e
    return {**summary, "did": "exported", "n_pieces": n_pieces}


def _begin(view: Atlas, output: Path, form: str) -> _Job:
    """An export that was begun, if it is of this atlas and form; else a new one.

    Raises:
        ConfigError: if something else stands at the place.
    """
    output.parent.mkdir(parents=True, exist_ok=True)
    about = {"plan_hash": str(view.plan["hash"]), "form": form}
    job = _Job(view, output, output.with_name(f"{output.name}.export.json"), about)
    if not output.exists():
        job.note(0)
        return job
    if not job.record.is_file():
        raise ConfigError(f"{output} exists and is not from an export; choose another place")
    found = {name: read_json(job.record).get(name) for name in about}
    if found != about:
        raise ConfigError(
            f"{output} holds an export of plan {found['plan_hash']} to {found['form']}, asked for "
            f"is plan {about['plan_hash']} to {form}; choose another place"
        )
    return job


def _to_h5ad(job: _Job) -> int:
    """One file, in one go: a killed export starts anew."""
    _publish_h5ad(job.output, job.view, job.view.ranges())
    return 1


def _to_h5ad_per_condition(job: _Job) -> int:
    """A folder with one file per condition, and a table that says which is which."""
    job.output.mkdir(exist_ok=True)
    conditions, rows = job.view.condition_list(), []
    width = len(str(len(conditions)))
    for number, condition in enumerate(conditions):
        words = re.sub(r"[^A-Za-z0-9.+-]+", "_", "_".join(condition.values()))
        name = f"{number:0{width}d}_{words[:100]}.h5ad"
        rows.append({"file": name, **condition})
        if not (job.output / name).exists():
            _publish_h5ad(job.output / name, job.view, job.view.ranges(**condition))
    pd.DataFrame(rows).to_csv(job.output / "conditions.csv", index=False)
    return len(rows)


def _to_soma(job: _Job) -> int:
    """A TileDB-SOMA experiment of raw counts, laid out as those that are trained from."""
    n_parts, size = job.view.n_parts, job.view.cells_per_part
    for part in range(job.n_done, n_parts):
        block = job.view.read(part * size, (part + 1) * size)
        types = {name: _soma_type(block.obs[name]) for name in block.obs}
        if not job.output.exists():
            writer.create_store(job.output, _soma_layout(job.view, block, types), job.about)
        counts = CsrCounts(block.X.indptr.astype(np.int64), block.X.indices, block.X.data)
        writer.write_cells(job.output, counts, _soma_obs(block), types, part * size)
        job.note(part + 1)
    writer.mark_complete(job.output, job.view.uns["save_dist"].get("label_origin", {}))
    return n_parts


def _to_collection(job: _Job) -> int:
    """A folder of AnnData-Zarr stores, one per part, as annbatch opens them."""
    root = zarr.open_group(job.output, mode="a", zarr_format=3)
    size = job.view.cells_per_part
    for part in range(job.view.n_parts):
        place, aside = job.output / f"dataset_{part}", job.output / f".dataset_{part}.part"
        if place.exists():
            continue
        shutil.rmtree(aside, ignore_errors=True)
        block = job.view.read(part * size, (part + 1) * size)
        with anndata.settings.override(auto_shard_zarr_v3=True):
            anndata.io.write_elem(zarr.open_group(aside, mode="w", zarr_format=3), "/", block)
        aside.rename(place)
    root.attrs.update(COLLECTION)
    return job.view.n_parts


def _publish_h5ad(path: Path, view: Atlas, ranges: Int64[ndarray, "range 2"]) -> None:
    aside = path.with_name(f".{path.name}.part")
    blocks = (view.read(start, stop) for start, stop in _pieces(view, ranges))
    write_h5ad(aside, blocks, int((ranges[:, 1] - ranges[:, 0]).sum()))
    sync([aside])
    aside.rename(path)


def _pieces(view: Atlas, ranges: Int64[ndarray, "range 2"]) -> Iterator[tuple[int, int]]:
    """The ranges, cut where a part ends: what is held in memory at a time."""
    size = view.cells_per_part
    for first, last in ranges.tolist():
        for start in range(first - first % size, last, size):
            yield max(start, first), min(start + size, last)


def _soma_layout(view: Atlas, block: anndata.AnnData, types: dict[str, str]) -> writer.StoreLayout:
    rows_per_tile = IngestConfig.model_fields["rows_per_tile"].default
    return writer.StoreLayout(
        n_cells=view.n_obs,
        gene_ids=tuple(view.var_names),
        count_type="uint16",
        obs_types=types,
        rows_per_tile=rows_per_tile,
        mean_entries=block.X.nnz / block.n_obs,
    )


def _soma_obs(block: anndata.AnnData) -> pd.DataFrame:
    n_counts = np.asarray(block.X.sum(axis=1, dtype=np.int64)).ravel()
    obs: pd.DataFrame = block.obs
    return obs.assign(cell_id=block.obs_names, input="generated", n_counts=n_counts)


def _soma_type(column: "pd.Series[Any]") -> str:
    return "string" if isinstance(column.dtype, pd.CategoricalDtype) else str(column.dtype)


FORMS: dict[str, Callable[[_Job], int]] = {
    "h5ad": _to_h5ad,
    "h5ad-per-condition": _to_h5ad_per_condition,
    "soma": _to_soma,
    "collection": _to_collection,
}
