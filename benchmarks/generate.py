"""What does an atlas cost beside its bare networks, and what do writer, Ray and readers add?

    OMP_NUM_THREADS=1 python benchmarks/generate.py [SECTION ...] [--size SHARE] [--repeats N]

Sections: network, samplers, writer, reading, memory, plans (no Ray), ray, workers (a private Ray).
Networks are those of the presets with random weights, unless --model names a trained one. Every
ratio comes from one run whose two sides take turns; figures are medians over the repeats, in CPU
seconds of this process (`cpu`) or wall seconds, which other load on the machine falsifies. That few
steps are as good as many is shown by benchmarks/quality/few_steps.py.
"""

import argparse
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from generation.figures import Arguments, Line
from generation.networks import network, samplers
from generation.pool import ray, workers
from generation.scale import memory, plans
from generation.store import reading, writer

SECTIONS: dict[str, Callable[[Arguments], Iterator[Line]]] = {
    "network": network,
    "samplers": samplers,
    "writer": writer,
    "reading": reading,
    "memory": memory,
    "plans": plans,
    "ray": ray,
    "workers": workers,
}


def main() -> None:
    """Print one table."""
    torch.set_num_threads(1)
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("sections", nargs="*", choices=[*SECTIONS, []], help="default: all")
    parser.add_argument("--size", type=float, default=1.0, help="share of the cells")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--model", type=Path, help="trained model instead of the demo's networks")
    found = parser.parse_args()
    print(f"{'figure':<66}{'value':>18}  goal", flush=True)
    for name in found.sections or SECTIONS:
        with tempfile.TemporaryDirectory(prefix="gen-") as folder:
            arguments = Arguments(found.size, found.repeats, found.model, Path(folder))
            for line in SECTIONS[name](arguments):
                print(f"{line.what:<66}{line.value:>18}  {line.goal}", flush=True)


if __name__ == "__main__":
    sys.exit(main())
