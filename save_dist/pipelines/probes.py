"""The doctor's look at what surrounds a job: token, address file, MLflow, run folder. Read-only."""

import base64
import os
import socket
import stat
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Mapping
from pathlib import Path

from save_dist.config.load import TICK
from save_dist.config.schema import BlocksJob, IngestJob, JobConfig, PipelineJob, TrackingConfig
from save_dist.core.durable import verify_folder
from save_dist.core.errors import SaveDistError
from save_dist.core.paths import RunPaths
from save_dist.core.redaction import redact
from save_dist.data.attach import attach
from save_dist.data.ingest import check_inputs
from save_dist.data.source import SomaSource, StoreLocator
from save_dist.pipelines.checks import Check, TokenFile, check_stale_address
from save_dist.pipelines.gene_vectors import check_embedding
from save_dist.pipelines.ingest import attached
from save_dist.pipelines.promotion import registry
from save_dist.stores.receipts import read_record
from save_dist.stores.storage import Where, storage_of

MLFLOW_TIMEOUT_S = 3.0
RAY_ADDRESS_FILE = Path("/tmp/ray/ray_current_cluster")  # noqa: S108 (Ray's own place)
_LOGIN = ("MLFLOW_TRACKING_USERNAME", "MLFLOW_TRACKING_PASSWORD")
_QUESTION = "/api/2.0/mlflow/experiments/search?max_results=1"
_NEEDS: dict[str, tuple[str, ...]] = {
    "blocks": ("store",),
    "train": ("store", "vocabulary"),
    "sweep": ("store", "vocabulary"),
    "generate": ("model",),
    "transfer": ("store", "vocabulary", "model"),
    "evaluate": ("store", "vocabulary", "atlas"),
}
"""What a job reads of its run folder."""


def token_file(environment: Mapping[str, str]) -> TokenFile:
    """The file Ray would read the token from, without its content."""
    named = environment.get("RAY_AUTH_TOKEN_PATH")
    place = Path(named) if named else Path.home() / ".ray" / "auth_token"
    try:
        about = place.stat()
    except OSError:
        return TokenFile(str(place), is_readable=False, n_bytes=0, is_open=False)
    is_open = bool(about.st_mode & (stat.S_IRWXG | stat.S_IRWXO))
    return TokenFile(str(place), os.access(place, os.R_OK), about.st_size, is_open)


def stale_address(place: Path = RAY_ADDRESS_FILE) -> Check:
    """Whether a cluster that is gone left its address behind."""
    try:
        address = place.read_text().strip()
    except OSError:
        address = ""
    return check_stale_address(str(place), address, bool(address) and _answers(address))


def mlflow(tracking: TrackingConfig, run: Path, environment: Mapping[str, str]) -> Check:
    """The server answers within seconds and takes the login; a local database can be made."""
    if tracking.backend == "none":
        return Check("mlflow", "ok", "off; metrics.jsonl is written in any case")
    uri = tracking.uri or f"sqlite:///{run / 'mlflow.db'}"
    if not uri.startswith(("http://", "https://")):
        return Check("mlflow", "ok", f"{redact(uri)}, opened by the job itself")
    question = urllib.request.Request(  # noqa: S310 (http or https, as tested above)
        uri.rstrip("/") + _QUESTION, headers=_login(environment)
    )
    remedy = "metrics are kept in metrics.jsonl; once it runs: save-dist track sync RUN"
    try:
        with urllib.request.urlopen(question, timeout=MLFLOW_TIMEOUT_S):  # noqa: S310
            return Check("mlflow", "ok", f"{redact(uri)} answers")
    except urllib.error.HTTPError as e:
        found = f"{redact(uri)} answers {e.code} {e.reason}"
        if e.code == 401:
            remedy = f"set {' and '.join(_LOGIN)}"
        elif e.code == 403:
            remedy = "name this host in the server's --allowed-hosts, or ask for rights"
        return Check("mlflow", "warning", found, remedy)
    except (OSError, ValueError) as e:
        return Check("mlflow", "warning", f"{redact(uri)} does not answer: {e}", remedy)


def contents(config: JobConfig, verb: str) -> list[Check]:
    """Inputs and earlier results that the job will read, opened as the job will open them."""
    paths = RunPaths(config.run.dir, config.run.atlas)
    looks: dict[str, tuple[Where, Callable[[], str]]] = {
        "store": (paths.store, lambda: _store(paths)),
        "vocabulary": (paths.vocab, lambda: _folder(paths.vocab)),
        "model": (paths.model, lambda: _folder(paths.model)),
        "atlas": (paths.atlas, lambda: _atlas(paths)),
    }
    needs = _NEEDS.get(verb, ())
    out = []
    if isinstance(config, IngestJob | PipelineJob) and not paths.store.exists():
        remedy = "correct ingest.inputs" if config.ingest else "correct source"
        out.append(_attempt("inputs", lambda: _inputs(config), remedy))
    elif "store" in needs and (locator := attached(paths)) is not None:
        out.append(_attempt("store", lambda: _attached(locator), "see that it can be reached"))
        del looks["store"]
    if isinstance(config, BlocksJob | PipelineJob) and not paths.vocab.exists():
        remedy = "correct blocks.embedding"
        out.append(
            _attempt("gene vectors", lambda: check_embedding(config.blocks.embedding), remedy)
        )
    if verb == TICK and config.tracking.backend == "none":
        needs = ("model",)
    elif verb == TICK:
        remedy = "promote a model, or start MLflow: without a champion every tick fails"
        out.append(_attempt("champion", lambda: _champion(config), remedy))
    for name, (place, look) in looks.items():
        if storage_of(place).exists():
            out.append(_attempt(name, look, "restore it, or run the job that writes it again"))
        elif name in needs:
            found = f"{place} does not exist, {verb} reads it"
            out.append(Check(name, "error", found, "run the jobs before, with the same run.dir"))
    return out


def _attempt(name: str, look: Callable[[], str], remedy: str) -> Check:
    try:
        return Check(name, "ok", look())
    except (SaveDistError, OSError) as e:
        return Check(name, "error", str(e).replace("\n", " "), remedy)


def _inputs(config: IngestJob | PipelineJob) -> str:
    if config.source is not None:
        found = attach(config.source, config.conditions.columns, time.time_ns() // 1_000_000)
        return f"{found.n_cells} cells x {found.n_genes} genes in {redact(found.locator.uri)}"
    assert config.ingest is not None  # checked by the schema
    plan = check_inputs(config.ingest, config.conditions)
    return f"{len(plan.inputs)} files, {plan.layout.n_cells} cells can be read"


def _champion(config: JobConfig) -> str:
    found = registry(config.tracking, config.run.dir).champion()
    return f"version {found.number}, model {found.model_hash[:16]}"


def _store(paths: RunPaths) -> str:
    if not (paths.stages / "ingest.json").is_file():
        return f"{paths.store} is not finished; ingest continues it"
    with SomaSource(StoreLocator(str(paths.store))) as source:
        return f"{source.n_obs} cells x {len(source.gene_ids)} genes"


def _attached(locator: StoreLocator) -> str:
    with SomaSource(locator) as source:
        return f"{source.n_obs} cells x {source.n_genes} genes in {redact(locator.uri)}"


def _folder(place: Path) -> str:
    return f"{len(verify_folder(place)['files'])} files match their digests"


def _atlas(paths: RunPaths) -> str:
    record = read_record(paths.atlas)
    is_finished = (paths.stages / "generate.json").is_file()
    word = "finished" if is_finished else "unfinished"
    return f"{word}, {record.n_cells} cells in {record.n_parts} parts"


def _login(environment: Mapping[str, str]) -> dict[str, str]:
    user, password = (environment.get(name, "") for name in _LOGIN)
    if not user:
        return {}
    pair = base64.b64encode(f"{user}:{password}".encode()).decode()
    return {"Authorization": f"Basic {pair}"}


def _answers(address: str) -> bool:
    host, _, port = address.rpartition(":")
    try:
        with socket.create_connection((host, int(port)), timeout=1.0):
            return True
    except (OSError, ValueError):
        return False
