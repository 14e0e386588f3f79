"""What the doctor thinks of recorded facts: pure functions, one per question, facts -> check."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Literal

from rich.table import Table

from save_dist.cluster.facts import MachineFacts
from save_dist.cluster.nodes import ClusterFacts
from save_dist.config.schema import ClusterConfig
from save_dist.core.errors import listed

Level = Literal["ok", "warning", "error"]

GIB = 2**30
LEAST_DISK_BYTES = GIB
WARN_DISK_BYTES = 20 * GIB
LEAST_SHARED_MEMORY_BYTES = 256 * 2**20
WARN_SHARED_MEMORY_BYTES = 2 * GIB
WARN_SKEW_S, MOST_SKEW_S = 1.0, 30.0
TOKEN_REMEDY = "export RAY_AUTH_MODE=token and RAY_AUTH_TOKEN_PATH=FILE here and on every node"  # noqa: S105


@dataclass(frozen=True)
class Check:
    """One question answered; `remedy` is empty when nothing needs doing."""

    name: str
    level: Level
    found: str
    remedy: str = ""


def table(found: list[Check]) -> Table:
    """One row per check."""
    drawn = Table("check", "", "found", "what to do", title="save-dist doctor")
    for check in found:
        drawn.add_row(check.name, check.level, check.found, check.remedy)
    return drawn


def check_versions(driver: MachineFacts, nodes: Iterable[MachineFacts]) -> Check:
    """Python and the packages that decide results must be the same everywhere."""
    mine = {"python": driver.python, **driver.versions}
    wrong = [
        f"{node.node} has {name} {theirs}, the driver {mine[name]}"
        for node in nodes
        for name, theirs in {"python": node.python, **node.versions}.items()
        if theirs != mine[name]
    ]
    absent = [name for name, version in driver.versions.items() if version == "absent"]
    if wrong or absent:
        found = listed([*wrong, *(f"{name} is not installed" for name in absent)], 4)
        remedy = "run one image, or one environment from constraints.txt, on every node"
        return Check("versions", "error", found, remedy)
    found = f"python {driver.python}, " + ", ".join(
        f"{name} {driver.versions[name]}" for name in ("ray", "torch") if name in mine
    )
    return Check("versions", "ok", found)


def check_nodes(cluster: ClusterFacts, config: ClusterConfig | None) -> Check:
    """All nodes answer, and have what the job will ask for."""
    found = f"{len(cluster.nodes)} nodes answer, {cluster.n_cpus:g} CPUs, {cluster.n_gpus:g} GPUs"
    if cluster.silent:
        text = f"{found}; silent: {listed(cluster.silent, 3)}"
        return Check("ray", "error", text, "look at the logs of these nodes, or remove them")
    if config is None:
        return Check("ray", "ok", found)
    n_cpus = config.n_workers * config.cpus_per_worker
    n_gpus = config.n_workers * config.gpus_per_worker
    if n_cpus > cluster.n_cpus or n_gpus > cluster.n_gpus:
        text = f"{found}; the workers ask for {n_cpus:g} CPUs and {n_gpus:g} GPUs"
        remedy = "lower cluster.n_workers or what each asks for; else the job waits for nodes"
        return Check("ray", "warning", text, remedy)
    return Check("ray", "ok", found)


def check_storage(storage: Mapping[str, str], folder: str) -> Check:
    """The run folder is the same folder on every node."""
    alone = [f"{node}: {why}" for node, why in storage.items() if why]
    if alone:
        remedy = "put run.dir on storage mounted at the same path, writable, on every node"
        return Check("shared storage", "error", f"{folder}: {listed(alone, 3)}", remedy)
    return Check("shared storage", "ok", f"{folder} is shared by driver and {len(storage)} nodes")


def check_disk(machines: Iterable[MachineFacts]) -> Check:
    """Room for stores, checkpoints and what Ray spills."""
    free = [(n, f"{m.node} {where}") for m in machines for where, n in m.free_bytes.items()]
    if unknown := [where for n, where in free if n < 0]:
        remedy = "mount the folder there, or fix its permissions"
        return Check("disk", "error", f"cannot be read: {listed(unknown, 3)}", remedy)
    least, where = min(free, default=(0, "no folder"))
    level: Level = _level(least, WARN_DISK_BYTES, LEAST_DISK_BYTES)
    remedy = "free space, or choose another folder; `save-dist ... --dry-run` estimates bytes"
    return Check(
        "disk", level, f"least {_gib(least)} free: {where}", remedy if level != "ok" else ""
    )


def check_shared_memory(machines: Iterable[MachineFacts]) -> Check:
    """Ray's object store and torch's workers live in /dev/shm; without it they use the disk."""
    least, where = min((m.shared_memory_bytes, m.node) for m in machines)
    level = _level(least, WARN_SHARED_MEMORY_BYTES, LEAST_SHARED_MEMORY_BYTES)
    level = "warning" if least < 0 else level  # Ray falls back to the disk
    remedy = "give the container more, e.g. an emptyDir of medium Memory, or --shm-size=4g"
    found = "absent" if least < 0 else f"least {_gib(least)} free"
    return Check("/dev/shm", level, f"{found}: {where}", remedy if level != "ok" else "")  # noqa: S108


def check_clocks(nodes: Iterable[MachineFacts]) -> Check:
    """Clocks agree: times of logs, journals and leases are compared across machines."""
    worst = max(nodes, key=lambda m: max(0.0, abs(m.clock_skew_s) - m.clock_error_s), default=None)
    if worst is None:
        return Check("clocks", "ok", "one machine")
    skew = max(0.0, abs(worst.clock_skew_s) - worst.clock_error_s)
    found = f"largest distance from the driver at least {skew:.2f} s: {worst.node}"
    if skew <= WARN_SKEW_S:
        return Check("clocks", "ok", found)
    level: Level = "warning" if skew <= MOST_SKEW_S else "error"
    return Check("clocks", level, found, "run chrony or ntpd on every node")


def check_gpus(
    machines: Iterable[MachineFacts], cluster: ClusterFacts | None, wanted: float
) -> Check:
    """Torch sees the GPUs that Ray hands out and the job asks for."""
    machines = list(machines)
    if broken := [f"{m.node}: {m.gpu.driver_error}" for m in machines if m.gpu.driver_error]:
        level: Level = "error" if wanted else "warning"
        remedy = "install the NVIDIA driver and container toolkit, or use the CPU image"
        return Check("gpus", level, listed(broken, 3), remedy)
    n_devices = sum(m.gpu.n_devices for m in machines)
    versions = sorted({f"CUDA {m.gpu.cuda} NCCL {m.gpu.nccl}" for m in machines if m.gpu.cuda})
    found = f"torch sees {n_devices} GPUs" + (
        f", {listed(versions)}" if versions else ", CPU build"
    )
    if wanted and n_devices == 0:
        remedy = "use the GPU image on GPU nodes, or set cluster.gpus_per_worker=0"
        return Check("gpus", "error", f"{found}; the job wants {wanted:g}", remedy)
    if len(versions) > 1:
        return Check("gpus", "error", found, "run one image: NCCL versions must be equal")
    if cluster is not None and n_devices < cluster.n_gpus:
        remedy = "start Ray with the GPUs torch sees: compare nvidia-smi and --num-gpus"
        return Check("gpus", "warning", f"{found}, Ray hands out {cluster.n_gpus:g}", remedy)
    return Check("gpus", "ok", found)


def check_token(environment: Mapping[str, str], joins: bool, token: "TokenFile") -> Check:
    """Ray asks for a token, and it can be had."""
    mode = environment.get("RAY_AUTH_MODE", "")
    if mode != "token":
        if not joins:
            return Check("token", "ok", "no cluster is joined; a private Ray makes its own")
        found = f"RAY_AUTH_MODE={mode or '(unset)'}: anyone who reaches the ports can run code"
        return Check("token", "warning", found, TOKEN_REMEDY)
    if environment.get("RAY_AUTH_TOKEN"):
        return Check("token", "ok", "from RAY_AUTH_TOKEN")
    if not token.is_readable or not token.n_bytes:
        state = "empty" if token.is_readable else "absent"
        found = f"RAY_AUTH_MODE=token, but {token.place} is {state}"
        return Check("token", "error", found, TOKEN_REMEDY)
    if token.is_open:
        remedy = f"chmod 600 {token.place}"
        return Check("token", "warning", f"{token.place} can be read by other users", remedy)
    return Check("token", "ok", f"from {token.place}")


@dataclass(frozen=True)
class TokenFile:
    """Where the token would be read from; never what it is."""

    place: str
    is_readable: bool
    n_bytes: int
    is_open: bool
    """Whether group or others may read it."""


def check_stale_address(place: str, address: str, answers: bool) -> Check:
    """A file left by a dead cluster makes a plain `ray.init()` fail."""
    if not address:
        return Check("stale address", "ok", f"{place} is absent")
    if answers:
        return Check("stale address", "ok", f"{place} names {address}, which answers")
    remedy = f"remove {place}"
    return Check(
        "stale address", "warning", f"{place} names {address}, where nothing answers", remedy
    )


def failed(checks: Iterable[Check]) -> list[Check]:
    """The checks that forbid starting."""
    return [check for check in checks if check.level == "error"]


def _level(value: int, warn_below: int, least: int) -> Level:
    if value < least:
        return "error"
    return "warning" if value < warn_below else "ok"


def _gib(n_bytes: int) -> str:
    return f"{n_bytes / GIB:.1f} GiB"
