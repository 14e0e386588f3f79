"""A Ray head, worker nodes and an MLflow server with a login, on addresses of loopback.

Ray replaces 127.0.0.1 by the machine's own address, so its nodes have 127.0.0.2 and on.
"""

import base64
import json
import secrets
import urllib.error
import urllib.parse
import urllib.request
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from processes import Child, Children, answers, free_ports, wait_until

START_S = 180.0
OBJECT_STORE_BYTES = 100_000_000
ADMIN = "admin"
PATIENCE = {
    "RAY_DASHBOARD_STARTUP_TIMEOUT_S": f"{START_S:.0f}",
    "RAY_DASHBOARD_SUBPROCESS_MODULE_WAIT_READY_TIMEOUT": f"{START_S:.0f}",
    "RAY_raylet_start_wait_time_s": f"{START_S:.0f}",
    "RAY_agent_register_timeout_ms": f"{1000 * START_S:.0f}",
}
"""Ray gives its own processes a minute to start, and less, which two busy cores exceed."""


@dataclass(frozen=True)
class Cluster:
    """A Ray cluster of separate processes, one machine playing several."""

    gcs: str
    dashboard: str
    head: Child
    nodes: list[Child]


def start_cluster(children: Children, n_nodes: int) -> Cluster:
    """A head that only drives, and nodes with one CPU each."""
    gcs, dashboard, client = free_ports(3)
    address = _address(0)
    head = children.start(
        "ray-head",
        *_ray_start(children.folder / "h", address, n_cpus=0),
        *("--head", f"--port={gcs}", f"--ray-client-server-port={client}"),
        *(f"--dashboard-host={address}", f"--dashboard-port={dashboard}"),
    )
    cluster = Cluster(f"{address}:{gcs}", f"http://{address}:{dashboard}", head, [])
    wait_until(lambda: _has_started(head), "Ray's head", [head], START_S)
    for number in range(n_nodes):
        folder = children.folder / f"n{number}"
        command = _ray_start(folder, _address(number + 1), n_cpus=1)
        node = children.start(f"ray-node-{number}", *command, f"--address={cluster.gcs}")
        cluster.nodes.append(node)
    everyone = [head, *cluster.nodes]
    wait_until(lambda: all(map(_has_started, everyone)), "Ray's nodes", everyone, START_S)
    assert answers(f"{cluster.dashboard}/api/version"), head.tail()
    return cluster


def _has_started(process: Child) -> bool:
    return "Ray runtime started" in process.log.read_text(errors="replace")


def _address(number: int) -> str:
    return f"127.0.0.{number + 2}"


def _ray_start(folder: Path, address: str, n_cpus: int) -> list[str]:
    agent, grpc, runtime_env, metrics, manager, raylet = free_ports(6)
    return [
        *("ray", "start", "--block", f"--node-ip-address={address}", f"--num-cpus={n_cpus}"),
        *(f"--temp-dir={folder}", f"--object-store-memory={OBJECT_STORE_BYTES}"),
        *(f"--dashboard-agent-listen-port={agent}", f"--runtime-env-agent-port={runtime_env}"),
        *(f"--metrics-export-port={metrics}", f"--object-manager-port={manager}"),
        *(f"--dashboard-agent-grpc-port={grpc}", f"--node-manager-port={raylet}"),
    ]


@dataclass(frozen=True)
class Mlflow:
    """An MLflow server, through its REST API alone."""

    uri: str
    password: str

    def ask(self, path: str, body: dict[str, Any] | None = None, *, login: bool = True) -> Any:
        """What the server answers, as JSON; a body makes it a POST."""
        request = urllib.request.Request(f"{self.uri}/{path}")
        if login:
            request.add_header("Authorization", self.authorization)
        if body is not None:
            request.data = json.dumps(body).encode()
            request.add_header("Content-Type", "application/json")
        with urllib.request.urlopen(request, timeout=30) as answer:
            return json.load(answer)

    def status(self, path: str, *, login: bool) -> int:
        """HTTP status of a question."""
        try:
            self.ask(path, login=login)
        except urllib.error.HTTPError as e:
            return e.code
        return 200

    @property
    def authorization(self) -> str:
        """Header of a basic login."""
        return "Basic " + base64.b64encode(f"{ADMIN}:{self.password}".encode()).decode()

    def files(self, run_id: str, folder: str) -> dict[str, int]:
        """Artifacts in a folder of a run and their sizes in bytes."""
        query = urllib.parse.urlencode({"run_id": run_id, "path": folder})
        listed = self.ask(f"api/2.0/mlflow/artifacts/list?{query}").get("files", [])
        return {f["path"]: int(f.get("file_size", 0)) for f in listed}


def start_mlflow(children: Children, password: str) -> tuple[Mlflow, Child]:
    """A server over sqlite that takes nobody without a login."""
    (port,) = free_ports(1)
    folder = children.folder
    settings = folder / "basic_auth.ini"
    settings.write_text(
        f"[mlflow]\ndefault_permission = READ\ndatabase_uri = sqlite:///{folder}/auth.db\n"
        f"admin_username = {ADMIN}\n"
        "authorization_function = mlflow.server.auth:authenticate_request_basic_auth\n"
        "grant_default_workspace_access = false\n"
    )
    server = children.start(
        "mlflow",
        *("mlflow", "server", "--app-name", "basic-auth", "--workers", "1"),
        *("--host", "127.0.0.1", "--port", str(port)),
        *("--backend-store-uri", f"sqlite:///{folder}/mlflow.db"),
        *("--artifacts-destination", str(folder / "artifacts")),
        MLFLOW_AUTH_CONFIG_PATH=str(settings),
        MLFLOW_AUTH_ADMIN_PASSWORD=password,
        MLFLOW_FLASK_SERVER_SECRET_KEY=secrets.token_hex(16),
        MLFLOW_SERVER_ENABLE_JOB_EXECUTION="false",
    )
    return Mlflow(f"http://127.0.0.1:{port}", password), server
