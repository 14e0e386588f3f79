"""Ray Data around the sampling of parts: a pool of actors, each with the model loaded once.

No cell passes through the object store: an actor writes its part into the atlas and returns a
few numbers. What is complete is decided by receipts in the store, never by rows returned.
"""

import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from save_dist.cluster import runtime
from save_dist.config.schema import ClusterConfig
from save_dist.core.errors import InfrastructureError
from save_dist.generation.worker import PARTS_IN_FLIGHT, PartFiller, PartWorker
from save_dist.stores.receipts import Receipt
from save_dist.stores.storage import Where
from save_dist.tracking.progress import Progress

logger = logging.getLogger(__name__)

PARTS_PER_ROUND = 10_000
"""Parts handed to Ray Data at once; bounds what the driver and its scheduler hold."""


@dataclass(frozen=True)
class PartOutcome:
    """What came of one part; `error` is empty when its receipt was written."""

    part: int
    n_cells: int
    seconds: float
    n_evaluations: int
    error: str
    writing_s: float = 0.0
    """Share of `seconds` that went into compressing and writing."""
    is_refused: bool = False
    """Whether a disk or server refused what the part was to be written to."""


class _Actor:
    """Ray's side of a `PartFiller`: one per process, model loaded once, called from its threads."""

    def __init__(
        self, kind: type[PartFiller], bundle: str, atlas: Where, n_threads: int, device: str
    ) -> None:
        import torch

        torch.set_num_threads(n_threads)
        self._worker = kind(Path(bundle), atlas, device)

    def __call__(self, row: dict[str, Any]) -> dict[str, Any]:
        part = int(row["part"])
        try:
            receipt = self._worker.run(part)
        except Exception as e:  # one bad part must not end the other parts
            logger.exception("event=part_failed part=%d", part)
            text = f"{type(e).__name__}: {e}"
            refused = isinstance(e, InfrastructureError)
            return _row(part, error=text, is_refused=refused)
        return _row(part, receipt)


def _row(
    part: int, receipt: Receipt | None = None, *, error: str = "", is_refused: bool = False
) -> dict[str, Any]:
    """What an actor tells of a part."""
    return {
        "part": part,
        "n_cells": receipt.n_cells if receipt else 0,
        "seconds": receipt.seconds if receipt else 0.0,
        "n_evaluations": receipt.n_evaluations if receipt else 0,
        "error": error,
        "writing_s": receipt.writing_s if receipt else 0.0,
        "is_refused": is_refused,
    }


def generate(
    parts: Sequence[int],
    cells: int,
    bundle: Path,
    atlas: Where,
    config: ClusterConfig,
    progress: Progress,
    kind: type[PartFiller] = PartWorker,
) -> list[PartOutcome]:
    """Sample and write `parts`; a failed part is tried once more in a second round.

    Args:
        parts: part numbers without a receipt.
        cells: cells in these parts together, for the progress bar.
        bundle: exported model.
        atlas: store with its template written.
        config: workers and their resources.
        progress: receiver of progress.
        kind: what fills the parts.

    Raises:
        InfrastructureError: if the pool itself failed.
    """
    with runtime.session(config), progress.task("generating", cells, "cells") as task:
        outcomes: dict[int, PartOutcome] = {}
        todo = list(parts)
        for _ in range(2):
            for outcome in _rounds(todo, bundle, atlas, config, kind):
                outcomes[outcome.part] = outcome
                n_done = sum(o.n_cells for o in outcomes.values())
                n_failed = sum(1 for o in outcomes.values() if o.error)
                task.update(n_done, f"{n_failed} parts failed" if n_failed else "")
            todo = [p for p in todo if p not in outcomes or outcomes[p].error]
            if not todo:
                break
    return [outcomes[p] for p in sorted(outcomes)]


def _rounds(
    parts: Sequence[int],
    bundle: Path,
    atlas: Where,
    config: ClusterConfig,
    kind: type[PartFiller],
) -> Iterator[PartOutcome]:
    for start in range(0, len(parts), PARTS_PER_ROUND):
        yield from _round(parts[start : start + PARTS_PER_ROUND], bundle, atlas, config, kind)


def _round(
    parts: Sequence[int],
    bundle: Path,
    atlas: Where,
    config: ClusterConfig,
    kind: type[PartFiller],
) -> Iterator[PartOutcome]:
    import ray.data
    import ray.exceptions

    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    context.execution_no_progress_timeout_s = 600
    logging.getLogger("ray.data").setLevel(logging.ERROR)
    n_actors = min(config.n_workers, len(parts))
    outcomes = ray.data.from_items(
        [{"part": part} for part in parts], override_num_blocks=len(parts)
    ).map(
        _Actor,
        fn_constructor_args=(
            kind,
            str(bundle.resolve()),
            atlas.resolve() if isinstance(atlas, Path) else atlas,
            max(1, int(config.cpus_per_worker)),
            "cuda" if config.gpus_per_worker > 0 else "cpu",
        ),
        compute=ray.data.ActorPoolStrategy(
            min_size=1,
            max_size=n_actors,
            initial_size=n_actors,
            max_concurrent_calls_per_actor=PARTS_IN_FLIGHT,
            enable_true_multi_threading=True,
        ),
        num_cpus=config.cpus_per_worker,
        num_gpus=config.gpus_per_worker,
        runtime_env={"env_vars": runtime.worker_environment(config)},
    )
    try:
        for row in outcomes.iter_rows():
            yield PartOutcome(**row)
    except ray.exceptions.RayError as e:
        raise InfrastructureError(
            f"the pool of sampling actors failed: {str(e)[-500:]}. Finished parts are kept; run "
            "the same command to continue"
        ) from e
