"""What all sections stand on, and the sections every job shares."""

from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

Condition = dict[str, str]
"""One value per condition column, e.g. {"condition": "stim", "cell_type": "B"}."""

Positive = Annotated[int, Field(gt=0)]
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


class TrackingConfig(Section):
    """Where metrics go besides metrics.jsonl, which is always written."""

    backend: Literal["none", "mlflow"] = "mlflow"
    uri: str | None = None
    """MLflow server or database; null: sqlite file `mlflow.db` in the run folder."""
    experiment: str = "save"
    """MLflow experiment; runs of one experiment are compared with each other."""


class ClusterConfig(Section):
    """The Ray cluster a job runs on. The defaults are one machine."""

    address: str = "auto"
    """`auto` joins the cluster a job was submitted to (RAY_ADDRESS), else starts a private one;
    `local` always starts a private one; anything else is the address of a cluster to join."""
    n_workers: Positive = 2
    """Training processes (DDP ranks), and the most sampling actors, input files, or portions of
    a statistics pass at once."""
    cpus_per_worker: float = Field(1, gt=0)
    """CPUs reserved per worker; also its number of torch threads on CPU."""
    gpus_per_worker: float = Field(0, ge=0)
    """GPUs reserved per worker; a share below 1 lets sampling actors share one GPU."""
    max_failures: int = Field(3, ge=0)
    """Restarts of a failed worker group before the job gives up."""
    collective_timeout_s: float = Field(180, gt=0)
    """Longest wait of a rank for the others before the group is restarted."""
    object_store_bytes: Positive = 200 * 2**20
    """Ray's shared memory on a private cluster; cells never pass through it."""
    dashboard: bool = False
    """Start Ray's dashboard on loopback (a private cluster only)."""
