"""What do checkpoints, MLflow, more ranks and lost workers cost training?

    OMP_NUM_THREADS=1 python benchmarks/training.py [SECTION ...] [--repeats N]

Sections: plan (no networks), checkpoints, tracking (one process), ranks (two processes), jobs (a
private Ray that loses a worker). Every ratio comes from one run whose two sides take turns; figures
are medians with their range. Wall seconds, which other load on the machine falsifies: the load is
printed.
"""

import argparse
import os
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from fitting.jobs import jobs
from fitting.plan import plan
from fitting.ranks import ranks
from fitting.steps import checkpoints, tracking
from generation.figures import Line

SECTIONS: dict[str, Callable[[Path, int], Iterator[Line]]] = {
    "plan": plan,
    "checkpoints": checkpoints,
    "tracking": tracking,
    "ranks": ranks,
    "jobs": jobs,
}


def main() -> None:
    """Print one table."""
    torch.set_num_threads(1)
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("sections", nargs="*", choices=[*SECTIONS, []], help="default: all")
    parser.add_argument("--repeats", type=int, default=5)
    found = parser.parse_args()
    print(f"{'figure':<66}{'value':>20}  goal", flush=True)
    for name in found.sections or SECTIONS:
        with tempfile.TemporaryDirectory(prefix="fit-") as folder:
            for line in SECTIONS[name](Path(folder), found.repeats):
                print(f"{line.what:<66}{line.value:>20}  {line.goal}", flush=True)
        print(f"load {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores", flush=True)


if __name__ == "__main__":
    sys.exit(main())
