"""Simulated cells on disk, h5ad or SOMA, and the settings read back from either."""

import contextlib
import dataclasses
import json
import secrets
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, get_args

import anndata
import h5py
import numpy as np
import tiledbsoma

from save_dist.core.errors import ConfigError, InfrastructureError, listed
from save_dist.data import writer
from save_dist.data.csr import CsrCounts
from save_dist.data.simulate import FINGERPRINT_KEY, SETTINGS_KEY
from save_dist.data.simulation import Form, SimulationConfig
from save_dist.data.truth import build_truth, fingerprint

ROWS_PER_WRITE = 16_384
ROWS_PER_TILE = 64
INPUT = "simulated"
"""Value of the obs column `input` in a store, and prefix of its cell ids."""

_SOMA_PREFIX = "save_dist_"
_TOLERANCE = 1e-6  # libraries differ in the last bits of sums, other parameters in the first


def form_of(path: Path, asked: Form | None = None) -> Form:
    """How a file of this name is written: as asked, else by its ending.

    Raises:
        ConfigError: if neither says it.
    """
    form = asked or path.suffix.removeprefix(".")
    if form not in get_args(Form):
        raise ConfigError(
            f"cannot tell the format of {path} from its ending {path.suffix!r}; name it "
            f"{path.stem}.h5ad or {path.stem}.soma, or give --format {' or '.join(get_args(Form))}"
        )
    return "h5ad" if form == "h5ad" else "soma"


def check_output(path: Path, form: Form) -> None:
    """Refuse a place that cannot be written, before cells are drawn.

    Raises:
        ConfigError: if a store or folder stands there. A file is replaced.
    """
    if path.is_dir() or (form == "soma" and path.exists()):
        raise ConfigError(f"{path} exists; delete it or choose another name")


def write_cells(adata: anndata.AnnData, path: Path, form: Form) -> None:
    """Write simulated cells; nothing stands at `path` before all of them do.

    A store has the columns of `ingest` (cell_id, input, n_counts), the labels, and the settings
    in the metadata of the experiment; the genes' modules follow from the settings.

    Raises:
        InfrastructureError: if the disk refuses.
    """
    write = _write_h5ad if form == "h5ad" else _write_soma
    aside = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write(adata, aside)
        aside.replace(path)
    except (OSError, tiledbsoma.SOMAError) as e:
        raise InfrastructureError(
            f"could not write {path}: {e}; free space or fix permissions, then run again"
        ) from e
    finally:
        with contextlib.suppress(OSError):
            shutil.rmtree(aside) if aside.is_dir() else aside.unlink(missing_ok=True)


def read_settings(path: Path) -> SimulationConfig:
    """What the cells of a simulated h5ad file or SOMA store were drawn from.

    Raises:
        ConfigError: if the file is absent or not simulated, or if its settings no longer give the
            parameters that its cells were drawn from.
    """
    if not path.exists():
        raise ConfigError(f"simulated cells {path} do not exist (working folder: {Path.cwd()})")
    try:
        found = _from_soma(path) if path.is_dir() else _from_h5ad(path)
    except (OSError, KeyError, tiledbsoma.SOMAError, tiledbsoma.DoesNotExistError) as e:
        raise ConfigError(
            f"{path} does not say how it was simulated ({e}); give an h5ad file or SOMA store "
            "that `save-dist simulate` wrote"
        ) from e
    config = _parsed(found[SETTINGS_KEY], path)
    stored, now = np.asarray(found[FINGERPRINT_KEY]), fingerprint(build_truth(config))
    if stored.shape != now.shape or not np.allclose(stored, now, rtol=_TOLERANCE):
        raise ConfigError(
            f"the settings in {path} give other parameters here than its cells were drawn from "
            f"(fingerprint {now[0]:.6g}, there {stored.flat[0]:.6g}, ...): it was written by "
            "another version of save_dist or NumPy; simulate it again"
        )
    return config


def _write_h5ad(adata: anndata.AnnData, path: Path) -> None:
    adata.write_h5ad(path)


def _write_soma(adata: anndata.AnnData, path: Path) -> None:
    counts = adata.X
    layout = writer.StoreLayout(
        n_cells=adata.n_obs,
        gene_ids=tuple(adata.var_names),
        count_type="uint16" if counts.dtype == np.uint16 else "uint32",
        obs_types=dict.fromkeys(adata.obs.columns, "string"),
        rows_per_tile=ROWS_PER_TILE,
        mean_entries=counts.nnz / adata.n_obs,
    )
    about = {key: json.dumps(value) for key, value in _plain(adata.uns).items()}
    writer.create_store(path, layout, {_SOMA_PREFIX + key: text for key, text in about.items()})
    for start, block in _blocks(counts, layout.count_type):
        writer.write_counts(path, block, start)
    frame = adata.obs.assign(
        cell_id=[f"{INPUT}:{name}" for name in adata.obs_names],
        input=INPUT,
        n_counts=np.asarray(counts.sum(axis=1)).ravel().astype(np.int64),
    )
    writer.write_obs(path, [writer.obs_table(frame, layout.obs_types, 0)])
    writer.mark_complete(path, {})


def _blocks(counts: Any, count_type: str) -> Iterator[tuple[int, CsrCounts]]:
    """First row and compressed rows of every write."""
    for start in range(0, counts.shape[0], ROWS_PER_WRITE):
        rows = counts[start : start + ROWS_PER_WRITE]
        edges, genes = rows.indptr.astype(np.int64), rows.indices.astype(np.int32)
        yield start, CsrCounts(edges, genes, rows.data.astype(count_type))


def _plain(uns: Mapping[str, Any]) -> dict[str, Any]:
    return {SETTINGS_KEY: uns[SETTINGS_KEY], FINGERPRINT_KEY: uns[FINGERPRINT_KEY].tolist()}


def _from_h5ad(path: Path) -> dict[str, Any]:
    with h5py.File(path, "r") as file:
        uns: Any = file["uns"]
        return {key: anndata.io.read_elem(uns[key]) for key in (SETTINGS_KEY, FINGERPRINT_KEY)}


def _from_soma(path: Path) -> dict[str, Any]:
    with tiledbsoma.Experiment.open(str(path)) as experiment:
        texts = dict(experiment.metadata)
    return {key: json.loads(texts[_SOMA_PREFIX + key]) for key in (SETTINGS_KEY, FINGERPRINT_KEY)}


def _parsed(settings: Mapping[str, Any], path: Path) -> SimulationConfig:
    fields = {field.name: field.type for field in dataclasses.fields(SimulationConfig)}
    if settings.keys() != fields.keys():
        raise ConfigError(
            f"the simulation settings in {path} are {listed(sorted(settings))}, expected "
            f"{listed(sorted(fields))}: another version of save_dist wrote them; simulate it again"
        )
    try:
        values: dict[str, Any] = {
            name: int(settings[name]) if kind is int else float(settings[name])
            for name, kind in fields.items()
        }
    except (TypeError, ValueError) as e:
        raise ConfigError(f"a simulation setting in {path} is no number: {e}") from e
    return SimulationConfig(**values)
