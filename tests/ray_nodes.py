"""A Ray cluster whose nodes are lost and come back, all on this machine.

Run as a program, this file holds the nodes and does what its standard input says; `Nodes` is the
other side. A process of its own, since a process knows one Ray only, and tests share theirs.
"""

import contextlib
import os
import secrets
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import psutil


class Nodes:
    """A head without CPUs and nodes of one CPU each; a context manager."""

    def __init__(self, n_nodes: int) -> None:
        self._n_nodes = n_nodes

    def __enter__(self) -> "Nodes":
        self._folder = Path(tempfile.mkdtemp(prefix="sn-", dir="/tmp"))  # AF_UNIX: 107 bytes
        (self._folder / "token").write_text(secrets.token_hex(16))
        self.environment = os.environ | {
            "RAY_TMPDIR": str(self._folder),  # nobody else must find this cluster by itself
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN_PATH": str(self._folder / "token"),
            "RAY_USAGE_STATS_ENABLED": "0",
            "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.2",
            "RAY_worker_niceness": "0",  # 15 otherwise: minutes beside anything else that runs
            "RAY_health_check_period_ms": "500",
            "RAY_health_check_failure_threshold": "3",
        }
        self.process = subprocess.Popen(
            [sys.executable, __file__, str(self._n_nodes)],
            env=self.environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )
        self.address = self._answer()
        return self

    def __exit__(self, *_: object) -> None:
        try:
            self.process.communicate(timeout=60)
        finally:
            self.process.kill()
            self.process.wait()
            shutil.rmtree(self._folder, ignore_errors=True)

    def lose(self) -> None:
        """SIGKILL to all processes of one node."""
        self._tell("lose")

    def add(self) -> None:
        """One more node."""
        self._tell("add")

    def _tell(self, what: str) -> None:
        self.process.stdin.write(f"{what}\n")
        self.process.stdin.flush()
        assert self._answer() == what

    def _answer(self) -> str:
        """Ray's own words on standard output are passed over."""
        for line in self.process.stdout:
            if line.startswith("nodes: "):
                return line.removeprefix("nodes: ").strip()
        raise AssertionError(f"the nodes ended with {self.process.wait()}")


def main(n_nodes: int) -> None:
    from ray.cluster_utils import Cluster

    cluster = Cluster(
        initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False}
    )
    nodes = [cluster.add_node(num_cpus=1) for _ in range(n_nodes)]
    print("nodes:", cluster.address, flush=True)
    for line in sys.stdin:
        if line.strip() == "add":
            nodes.append(cluster.add_node(num_cpus=1))
        else:
            lose(cluster, nodes.pop())
        print("nodes:", line.strip(), flush=True)
    cluster.shutdown()
    shutil.rmtree(os.environ["RAY_TMPDIR"], ignore_errors=True)


def lose(cluster, node) -> None:
    """A machine takes its workers along; Ray's own function would leave them for a while."""
    pids = [info.process.pid for infos in node.all_processes.values() for info in infos]
    processes = [child for pid in pids for child in psutil.Process(pid).children(recursive=True)]
    for process in processes:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()
    cluster.remove_node(node, allow_graceful=False)


if __name__ == "__main__":
    main(int(sys.argv[1]))
