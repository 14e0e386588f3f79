"""A Ray head, worker nodes and an MLflow server with a login, on addresses of loopback.

Ray replaces 127.0.0.1 by the machine's own address, so its nodes have 127.0.0.2 and on.
"""

import base64
import json
import re
import secrets
import urllib.error
import urllib.parse
import urllib.request
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from postgres import find_programs, start_postgres
from processes import Child, Children, answers, free_ports, wait_until

START_S = 240.0
AGENT_PORTS = {
    "dashboard_agent_listen_port": "dashboard-agent-listen-port",
    "metrics_agent_port": "dashboard-agent-grpc-port",
    "metrics_export_port": "metrics-export-port",
    "runtime_env_agent_port": "runtime-env-agent-port",
}
"""Ports of a node's agents: their files' names and their options."""
OBJECT_STORE_BYTES = 100_000_000
ADMIN = "admin"
PATIENCE = {
    "RAY_DASHBOARD_STARTUP_TIMEOUT_S": f"{START_S:.0f}",
    "RAY_DASHBOARD_SUBPROCESS_MODULE_WAIT_READY_TIMEOUT": f"{START_S:.0f}",
    "RAY_raylet_start_wait_time_s": f"{START_S:.0f}",
    "RAY_agent_register_timeout_ms": f"{1000 * START_S:.0f}",
    "RAY_worker_register_timeout_seconds": f"{START_S:.0f}",
    "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S": f"{START_S:.0f}",
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
    head = _start_ray(
        *(children, "ray-head", address, 0),
        *("--head", f"--port={gcs}", f"--ray-client-server-port={client}"),
        *(f"--dashboard-host={address}", f"--dashboard-port={dashboard}"),
    )
    cluster = Cluster(f"{address}:{gcs}", f"http://{address}:{dashboard}", head, [])
    for number in range(1, n_nodes + 1):
        joins = f"--address={cluster.gcs}"
        cluster.nodes.append(_start_ray(children, f"ray-node-{number}", _address(number), 1, joins))
    assert answers(f"{cluster.dashboard}/api/version"), head.tail()
    return cluster


def _address(number: int) -> str:
    return f"127.0.0.{number + 2}"


def _start_ray(children: Children, name: str, address: str, n_cpus: int, *more: str) -> Child:
    """A head or node that is up, its agent too."""
    folder = children.folder / name[-1]  # short: sockets end at 107 bytes
    manager, raylet, *others = free_ports(2 + len(AGENT_PORTS))
    ports = dict(zip(AGENT_PORTS, others, strict=True))
    child = children.start(
        name,
        *("ray", "start", "--block", f"--node-ip-address={address}", f"--num-cpus={n_cpus}"),
        *(f"--temp-dir={folder}", f"--object-store-memory={OBJECT_STORE_BYTES}"),
        *(f"--object-manager-port={manager}", f"--node-manager-port={raylet}"),
        *(f"--{AGENT_PORTS[what]}={port}" for what, port in ports.items()),
        "--include-log-monitor=false",
        *more,
    )

    def is_up() -> bool:
        _announce(folder, ports)
        return "Ray runtime started" in child.log.read_text(errors="replace")

    agent = f"http://{address}:{ports['dashboard_agent_listen_port']}"
    wait_until(is_up, name, [child], START_S)
    wait_until(lambda: answers(agent), f"agent of {name}", [child], START_S)
    return child


def _announce(folder: Path, ports: dict[str, int]) -> None:
    """Tell a raylet the ports that it was given.

    It waits 15 s until its agents have written them into files, a number that cannot be set and
    that two busy cores exceed (Ray 2.60).
    """
    for log in folder.glob("session_2*/logs/raylet.out"):
        if found := re.search(r"Initializing NodeManager node_id=(\w+)", log.read_text()):
            for what, port in ports.items():
                place = log.parents[1] / f"{what}_{found[1]}"
                if not place.exists():
                    place.write_text(str(port))


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


@dataclass(frozen=True)
class Databases:
    """Where an MLflow server keeps its records and its users, as SQLAlchemy URIs."""

    records: str
    users: str
    environment: dict[str, str]


def start_databases(children: Children) -> Databases:
    """Postgres as in `infra/compose` where the machine has it, else sqlite files."""
    programs = find_programs()
    if programs is None:
        folder = children.folder
        return Databases(f"sqlite:///{folder}/mlflow.db", f"sqlite:///{folder}/auth.db", {})
    postgres = start_postgres(children, programs, secrets.token_hex(16))
    passfile = {"PGPASSFILE": str(postgres.passfile)}
    records, users = (postgres.uri(name, "+psycopg2") for name in ("mlflow", "mlflow_auth"))
    return Databases(records, users, passfile)


def start_mlflow(children: Children, databases: Databases, password: str) -> tuple[Mlflow, Child]:
    """A server that takes nobody without a login."""
    (port,) = free_ports(1)
    folder = children.folder
    settings = folder / "basic_auth.ini"
    settings.write_text(
        f"[mlflow]\ndefault_permission = READ\ndatabase_uri = {databases.users}\n"
        f"admin_username = {ADMIN}\n"
        "authorization_function = mlflow.server.auth:authenticate_request_basic_auth\n"
        "grant_default_workspace_access = false\n"
    )
    server = children.start(
        "mlflow",
        *("mlflow", "server", "--app-name", "basic-auth", "--workers", "1"),
        *("--host", "127.0.0.1", "--port", str(port)),
        *("--backend-store-uri", databases.records),
        *("--artifacts-destination", str(folder / "artifacts")),
        MLFLOW_AUTH_CONFIG_PATH=str(settings),
        MLFLOW_AUTH_ADMIN_PASSWORD=password,
        MLFLOW_FLASK_SERVER_SECRET_KEY=secrets.token_hex(16),
        MLFLOW_SERVER_ENABLE_JOB_EXECUTION="false",
        **databases.environment,
    )
    return Mlflow(f"http://127.0.0.1:{port}", password), server
