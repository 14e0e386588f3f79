"""What came of filling a store part by part, for the jobs that do so."""

from collections.abc import Sequence

from save_dist.cluster.generate import PartOutcome
from save_dist.core.errors import InfrastructureError, PartialError
from save_dist.pipelines.context import Context


def log_outcomes(outcomes: Sequence[PartOutcome], context: Context, stage: str) -> None:
    """Where the time went, summed over parts."""
    journal = context.journal.child(stage)
    n_cells = sum(o.n_cells for o in outcomes)
    seconds = sum(o.seconds for o in outcomes)
    writing_s = sum(o.writing_s for o in outcomes)
    journal.metrics(
        {
            "data/n_cells": n_cells,
            "time/sampling_s": seconds - writing_s,
            "time/writing_s": writing_s,
            "data/cells_per_worker_s": n_cells / seconds if seconds else 0.0,
            "parts/failed": sum(1 for o in outcomes if o.error),
        },
        step=0,
    )


def require_all(n_parts: int, outcomes: Sequence[PartOutcome], missing: Sequence[int]) -> None:
    """Coverage by receipts decides, not by what workers said.

    Raises:
        PartialError: naming the parts that are missing and why.
        InfrastructureError: the same, if a disk or server refused all of them: a full disk says
            nothing about the parts.
    """
    if not missing:
        return
    found = {o.part: o for o in outcomes}
    reasons = {p: found[p].error for p in missing if p in found}
    shown = "; ".join(f"part {p}: {reasons.get(p) or 'no receipt'}" for p in missing[:3])
    is_refused = all(p in found and found[p].is_refused for p in missing)
    raise (InfrastructureError if is_refused else PartialError)(
        f"{len(missing)} of {n_parts} parts are missing after two tries ({shown}); the "
        "others are kept. Remove the cause and run the same command: it writes what is missing"
    )
