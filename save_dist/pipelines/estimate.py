"""How long an atlas will take: measured, on its own finished parts or on one minibatch."""

import time
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from save_dist.config.schema import ClusterConfig
from save_dist.core.errors import AtlasError
from save_dist.core.paths import RunPaths
from save_dist.generation.grid import GridPlan, Part
from save_dist.generation.worker import composer_of, sample_part
from save_dist.stores.bundle import load_bundle
from save_dist.stores.receipts import missing_parts, read_receipt, read_record
from save_dist.stores.storage import Where

N_RECEIPTS = 64
"""Receipts at most that a pace is taken from."""


@dataclass(frozen=True)
class Estimate:
    """What a plan will cost from here on."""

    n_cells_left: int
    """Cells in parts without a receipt."""
    cells_per_worker_s: float
    """Cells that one worker samples and, if receipts say so, writes in a second."""
    measured_on: str
    n_workers: int
    seconds: float
    """Wall time of the cells left on that many workers, once they are started."""


def estimate(plan: GridPlan, paths: RunPaths, cluster: ClusterConfig) -> Estimate:
    """The pace of the run's own finished parts; without any, that of one minibatch sampled here.

    Args:
        plan: what to generate.
        paths: run with the model, and perhaps a part of the atlas.
        cluster: how many workers, and whether they have GPUs.
    """
    done = _finished_parts(paths.atlas, plan)
    left = sorted(set(range(plan.n_parts)) - set(done))
    n_left = plan.n_cells_in(left)
    if done:
        record, some = read_record(paths.atlas), done[:N_RECEIPTS]
        receipts = [read_receipt(paths.atlas, record, part, deep=False) for part in some]
        pace = sum(r.n_cells for r in receipts) / max(sum(r.seconds for r in receipts), 1e-9)
        measured_on = f"{len(receipts)} finished parts"
    else:
        device = "cuda" if cluster.gpus_per_worker > 0 and torch.cuda.is_available() else "cpu"
        n_cells, seconds = _time_minibatch(plan, paths.model, device)
        pace = n_cells / seconds
        measured_on = f"one minibatch of {n_cells} cells on {device}, without writing"
    n_workers = min(cluster.n_workers, max(1, len(left)))
    seconds = round(n_left / pace / n_workers, 1)
    return Estimate(n_left, round(pace, 1), measured_on, n_workers, seconds)


def _finished_parts(atlas: Where, plan: GridPlan) -> list[int]:
    """Parts of the plan that need no work: all with a receipt, but a short one to be filled up."""
    try:
        record = read_record(atlas)
    except AtlasError:
        return []
    if record.plan_hash not in (plan.hash, *(sha for _, sha in plan.history)):
        return []
    done = set(range(record.n_parts)) - set(missing_parts(atlas))
    return sorted(p for p in done if record.rows(p)[1] - record.rows(p)[0] == plan.n_cells_in([p]))


def _time_minibatch(plan: GridPlan, model: Path, device: str) -> tuple[int, float]:
    """Cells of the first minibatch of a plan, and the time it takes once everything is warm."""
    bundle = load_bundle(model, device)
    part = _first_cells(plan, plan.output.cells_per_minibatch)
    composer = composer_of(bundle, plan)
    sample_part(bundle, plan, part, composer)
    start_s = time.perf_counter()
    sample_part(bundle, plan, part, composer)
    return part.n_cells, time.perf_counter() - start_s


def _first_cells(plan: GridPlan, n_cells: int) -> Part:
    segments, taken = [], 0
    for segment in plan.part(0).runs[0]:
        n = min(segment.n_cells, n_cells - taken)
        if n > 0:
            segments.append(segment._replace(n_cells=n))
            taken += n
    return replace(plan.part(0), n_cells=taken, runs=(tuple(segments),))
