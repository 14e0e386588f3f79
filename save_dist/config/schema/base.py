"""What all sections stand on, and the sections every job shares."""

from pathlib import Path
from typing import Annotated, Literal
from urllib.parse import urlsplit

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, field_validator

from save_dist.core.redaction import holds_secret, redact

Condition = dict[str, str]
"""One value per condition column, e.g. {"condition": "stim", "cell_type": "B"}."""

Positive = Annotated[int, Field(gt=0)]


def _without_secret(uri: str) -> str:
    """Configurations are stored beside results and shown in MLflow, so they hold no secrets."""
    if holds_secret(uri):
        raise ValueError(
            f"{redact(uri)} carries a password or token, and configurations are stored beside "
            "results; take it out and set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD "
            "(a server), PGPASSFILE (Postgres) or AWS_SECRET_ACCESS_KEY (a store) instead"
        )
    return uri


Uri = Annotated[str, AfterValidator(_without_secret)]
"""A place that may be remote; a login in it is refused."""
Share = Annotated[float, Field(ge=0, le=1)]


class Section(BaseModel):
    """Base of all sections: frozen, unknown keys and infinite or undefined numbers refused."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


def check_ascending(setting: str, ends: tuple[float, float]) -> None:
    """An interval is given as its lower, then its upper end.

    Raises:
        ValueError: naming the setting.
    """
    if ends[0] > ends[1]:
        raise ValueError(f"{setting}={list(ends)} is reversed; write the smaller number first")


class RunConfig(Section):
    """Where one run lives and what makes it repeatable."""

    dir: Path
    """Run folder; every file of the run is written below it."""
    seed: int = Field(0, ge=0)
    """Root of every random stream of the run."""
    atlas: str | None = Field(None, pattern=r"^s3://[^/?#\s]+/[^?#\s]+$")
    """Where `generate` writes the atlas instead of `atlas.zarr` in the run folder:
    `s3://bucket/name.zarr`. Endpoint and login come from the environment of every worker."""


class TrackingConfig(Section):
    """Where metrics go besides metrics.jsonl, which is always written."""

    backend: Literal["none", "mlflow"] = "mlflow"
    uri: Uri | None = None
    """MLflow server or database; null: sqlite file `mlflow.db` in the run folder."""
    experiment: str = "save"
    """MLflow experiment; runs of one experiment are compared with each other, and its exported
    models are the versions of one registered model."""

    @field_validator("uri")
    @classmethod
    def _has_a_registry(cls, uri: str | None) -> str | None:
        scheme = urlsplit(uri).scheme if uri else "sqlite"
        if scheme in ("", "file"):
            raise ValueError(
                f"{uri} is a folder of files, which MLflow no longer writes and which holds no "
                "registry of models; write sqlite:////PATH/mlflow.db or http://SERVER:PORT"
            )
        return uri


class ClusterConfig(Section):
    """The Ray cluster a job runs on. The defaults are one machine."""

    address: str = "auto"
    """`auto` joins the cluster a job was submitted to (RAY_ADDRESS), else starts a private one;
    `local` always starts a private one; anything else is the address of a cluster to join."""
    n_workers: Positive = 2
    """Training processes (DDP ranks), and the most sampling actors, input files, or portions of
    a statistics pass at once."""
    min_workers: Positive | None = None
    """Fewest training processes to go on with when machines are lost; training grows again when
    they are back. Null: it waits until there are n_workers."""
    cpus_per_worker: float = Field(1, gt=0)
    """CPUs reserved per worker; also its number of torch threads on CPU."""
    gpus_per_worker: float = Field(0, ge=0)
    """GPUs reserved per worker; a share below 1 lets sampling actors share one GPU."""
    max_failures: int = Field(3, ge=0)
    """Restarts of a failed worker group before the job gives up."""
    collective_timeout_s: float = Field(180.0, gt=0)
    """Longest duration of a training step on one rank, reading and waiting for the others
    included, before the group is restarted."""
    grace_s: float = Field(25.0, gt=0)
    """How long training may take to save its state after SIGTERM; keep it below the time your
    scheduler leaves between SIGTERM and SIGKILL (30 s on Kubernetes and Slurm)."""
    object_store_bytes: Positive = 200 * 2**20
    """Ray's shared memory on a private cluster; cells never pass through it."""
    dashboard: bool = False
    """Start Ray's dashboard on loopback (a private cluster only)."""
