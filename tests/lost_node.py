"""Fills an atlas on a Ray cluster of two nodes, one of which dies: `lost_node.py MODEL ATLAS SEED`.

A program of its own, since a process has one Ray. Prints the parts that were reported, as JSON.
"""

import json
import shutil
import sys
import tempfile
import threading
import time
from pathlib import Path

import numpy as np
from ray.cluster_utils import Cluster

from save_dist.cluster.generate import generate
from save_dist.config.schema import ClusterConfig
from save_dist.stores.receipts import missing_parts, read_record
from save_dist.tracking.progress import make_progress

MEMORY = 80 * 2**20
QUICK = {"health_check_period_ms": 500, "health_check_failure_threshold": 3}
"""A dead node is known to be dead after seconds instead of a quarter of a minute."""


def main(model: Path, path: Path, seed: int) -> None:
    """Two nodes of one CPU each; the second dies when a random part is finished."""
    folder = tempfile.mkdtemp(prefix="sd-")  # short: Ray's socket paths end at 107 bytes
    head = {"num_cpus": 1, "object_store_memory": MEMORY, "include_dashboard": False}
    cluster = Cluster(
        initialize_head=True, head_node_args={**head, "temp_dir": folder, "_system_config": QUICK}
    )
    try:
        second = cluster.add_node(num_cpus=1, object_store_memory=MEMORY)
        n_parts, rng = read_record(path).n_parts, np.random.default_rng(seed)
        n_left = int(rng.integers(n_parts // 2, n_parts - 2))

        def lose() -> None:
            while len(missing_parts(path)) > n_left:
                time.sleep(0.02)
            cluster.remove_node(second, allow_graceful=False)

        loss = threading.Thread(target=lose, daemon=True)
        loss.start()
        config = ClusterConfig(address=cluster.address, n_workers=2)
        parts, n_cells = missing_parts(path), read_record(path).n_cells
        outcomes = generate(parts, n_cells, model, path, config, make_progress())
        loss.join()
        n_nodes = len(cluster.worker_nodes) + 1
    finally:
        cluster.shutdown()
        shutil.rmtree(folder, ignore_errors=True)
    found = [(outcome.part, outcome.error) for outcome in outcomes]
    print(json.dumps({"outcomes": found, "n_nodes": n_nodes}))


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3]))
