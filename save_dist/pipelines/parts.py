"""What came of filling a store part by part, for the jobs that do so."""

import logging
from collections.abc import Sequence

from save_dist.cluster.generate import PartOutcome
from save_dist.core.errors import InfrastructureError, PartialError
from save_dist.pipelines.context import Context
from save_dist.stores.storage import Where, storage_of
from save_dist.stores.template import AtlasLayout

logger = logging.getLogger(__name__)


def check_space(path: Where, layout: AtlasLayout, n_cells: int) -> None:
    """Refuse to begin what cannot fit; warn of what may not, since the need is an estimate.

    Args:
        path: store that is to be filled.
        layout: of its cells.
        n_cells: still to be written.

    Raises:
        InfrastructureError: if less than half of what the cells will take is free.
    """
    free, needed = storage_of(path).free_bytes(), round(n_cells * layout.bytes_per_cell)
    if free is None or free >= needed:
        return
    text = (
        f"{n_cells} cells for {path} take about {needed} bytes, its disk has {free} free; free "
        "space, ask for fewer cells or genes, or choose another place"
    )
    if free < needed / 2:
        raise InfrastructureError(text)
    logger.warning("event=disk_nearly_full %s", text)


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
