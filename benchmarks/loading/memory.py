"""Peak memory of processes of their own that stream or ingest, by number of cells.

python -m loading.memory stream STORE N_STEPS | ingest FILE STORE   (in benchmarks/)
"""

import os
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parents[1]


def peak_bytes(*what: object) -> int:
    """Largest resident memory of `python -m loading.memory WHAT`.

    Raises:
        RuntimeError: if it fails, with what it said.
    """
    paths = [str(HERE), str(HERE.parent), os.environ.get("PYTHONPATH", "")]
    done = subprocess.run(
        [sys.executable, "-m", "loading.memory", *map(str, what)],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(paths)},
        capture_output=True,
        text=True,
    )
    if done.returncode:
        raise RuntimeError(done.stderr)
    return int(done.stdout)


def main(what: str, source: str, target: str) -> None:
    """Do it, and print the peak in bytes."""
    if what == "stream":
        _stream(Path(source), int(target))
    else:
        _ingest(Path(source), Path(target))
    # not ru_maxrss, which holds what the parent had when it forked
    status = Path("/proc/self/status").read_text()
    print(1024 * int(status.split("VmHWM:")[1].split()[0]))


def _stream(uri: Path, n_steps: int) -> None:
    import numpy as np

    from save_dist.data.partition import StreamPlan
    from save_dist.data.source import SomaSource, StoreLocator
    from save_dist.data.splits import CellIndex
    from save_dist.data.stream import CellStream

    locator = StoreLocator(str(uri))
    with SomaSource(locator) as source:
        joinids, n_genes = source.joinids, source.n_genes
    codes = np.zeros((joinids.size, 1), dtype=np.int16)
    index = CellIndex(joinids, codes, np.zeros(joinids.size, dtype=np.uint8))
    plan = StreamPlan(joinids.size, 1024, 128, 256, n_lanes=4, seed=0)
    with CellStream(locator, index, np.arange(n_genes), plan) as stream:
        for _ in stream.batches(0, n_steps):
            pass


def _ingest(path: Path, uri: Path) -> None:
    from save_dist.config.schema import ConditionsConfig, IngestConfig
    from save_dist.data.ingest import ingest

    config = IngestConfig.model_validate({"inputs": [{"path": str(path)}]})
    ingest(config, ConditionsConfig(columns=["dataset"]), uri)


if __name__ == "__main__":
    main(*sys.argv[1:])
