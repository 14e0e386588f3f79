"""Sizes that nobody samples on a desk: the memory of a worker, a plan for a thousand of them."""

import multiprocessing
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from generation.figures import Arguments, Line, gene_names, vocabulary

from save_dist.config.schema import GridConfig, OutputConfig
from save_dist.generation.grid import GridPlan, plan_grid
from save_dist.generation.worker import PARTS_IN_FLIGHT, PartFiller
from save_dist.stores import atlas
from save_dist.stores.facts import ModelFacts
from save_dist.stores.part import PartColumns
from save_dist.stores.receipts import read_record

GENES, NON_ZEROS = 200, 15
MIB = 2**20


def memory(args: Arguments) -> Iterator[Line]:
    """Peak memory of a worker that fills atlases of two sizes with cells that cost nothing."""
    sizes = [args.cells(n, 100) for n in (100_000, 10_000_000)]
    peaks = [in_child(fill, args.folder / str(n), n) for n in sizes]
    what = f"worker memory, {sizes[1]:,} cells against {sizes[0]:,}"
    yield Line(
        f"{what} ({peaks[0] / MIB:.0f} MiB)", f"{peaks[1] / peaks[0]:.2f} x", "flat: <= 1.10"
    )


def plans(args: Arguments) -> Iterator[Line]:
    """10^9 cells of 10^6 conditions, and every part of them as 1,000 workers would derive it."""
    seconds, peak = in_child(plan_everything, 1000, args.cells(1000))
    yield Line("plan of 10^6 conditions, all its parts: CPU seconds", f"{seconds:.1f}", "<= 60")
    yield Line("the same: peak memory, MiB, of it 200 for imports", f"{peak / MIB:.0f}", "<= 1024")


class Simulated(PartFiller):
    """Fills parts with the same sparse counts again and again; has no model."""

    def __init__(self, path: Path, plan: GridPlan) -> None:
        self._atlas, self._plan, self.record = path, plan, read_record(path)
        rng, size = np.random.default_rng(0), plan.output.cells_per_part
        self._counts = (rng.random((size, GENES)) < NON_ZEROS / GENES).astype(np.uint16)
        self._turn = threading.Lock()

    def sample(self, part: int) -> tuple[PartColumns, int]:
        """Cells of a part, their conditions those of the plan."""
        segments = self._plan.part(part).segments
        sizes = [s.n_cells for s in segments]
        n = sum(sizes)
        codes = np.repeat(np.array([s.codes for s in segments], np.int16), sizes, axis=0)
        many = np.full(n, 100, np.int64)
        seeds = np.arange(n, dtype=np.uint64) + np.uint64(part * n)
        return PartColumns(
            self._counts[:n].copy(), codes, many, np.zeros(n, np.int16), many, seeds
        ), 1


def fill(folder: Path, n_cells: int) -> int:
    """An atlas of 100 conditions, in the threads that an actor has; peak memory in bytes."""
    facts = ModelFacts("model", vocabulary(("kind", "drug"), (10, 10)), {}, gene_names(GENES))
    plan = plan_grid(GridConfig(cells_per_condition=n_cells // 100), OutputConfig(), facts)
    path = folder / "atlas.zarr"
    atlas.create_template(path, plan.layout(), {})
    worker = Simulated(path, plan)
    with ThreadPoolExecutor(PARTS_IN_FLIGHT) as pool:
        for _ in pool.map(worker.run, range(plan.n_parts)):
            pass
    return peak_bytes()


def plan_everything(n_workers: int, n_cells: int) -> tuple[float, int]:
    """CPU seconds and peak memory of planning, and of deriving every part of every worker."""
    names = vocabulary(("a", "b", "c"), (100, 100, 100))
    support = {(i, i, j): 7 for i in range(100) for j in range(100)}
    facts = ModelFacts("model", names, support, gene_names(GENES))
    start_s = time.process_time()
    plan = plan_grid(GridConfig(cells_per_condition=n_cells), OutputConfig(), facts)
    total = 0
    for worker in range(n_workers):
        for part in range(worker, plan.n_parts, n_workers):
            total += sum(segment.n_cells for segment in plan.part(part).segments)
    assert total == plan.n_cells == n_cells * 10**6
    return time.process_time() - start_s, peak_bytes()


def peak_bytes() -> int:
    """Most memory this process has had at once."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM"))


def in_child(work: Callable[..., Any], *arguments: object) -> Any:
    """What `work` returns in a process of its own, whose memory is its own."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(work, arguments)
