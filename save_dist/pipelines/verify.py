"""Verify: an atlas against its receipts and its plan, and some parts against the model."""

from dataclasses import dataclass
from pathlib import Path

from save_dist.core.errors import ConfigError, PartialError
from save_dist.core.paths import RunPaths
from save_dist.generation.audit import check_conditions, check_totals, choose_parts, resample
from save_dist.generation.worker import PartWorker
from save_dist.pipelines.context import Summary
from save_dist.stores.atlas import discard_parts
from save_dist.stores.atlas import verify as verify_atlas
from save_dist.stores.receipts import read_record
from save_dist.stores.storage import Where
from save_dist.transfer.plan import KIND as TRANSFER
from save_dist.transfer.worker import TransferWorker


@dataclass(frozen=True)
class Resampling:
    """Which parts of an atlas to sample again, and by what."""

    n_parts: int
    model: Path | None
    """Model folder; None: the one beside the atlas."""
    seed: int
    """Chooses the parts."""


def verify(path: Where, *, mend: bool, resampling: Resampling) -> Summary:
    """Every byte of an atlas, conditions, sums of counts, and some parts sampled again.

    With `mend`, bad parts become missing for the next `generate`.

    Raises:
        PartialError: naming what is missing or altered.
        CheckpointError: if parts are to be sampled again and the model cannot be read.
        ConfigError: if no model is named for an atlas in an object store.
    """
    report = verify_atlas(path)
    sound = [part for part in range(report.n_parts) if part not in set(report.bad_parts)]
    is_transfer = read_record(path).plan.get("kind") == TRANSFER
    problems = [*report.problems, *check_totals(path, sound)]
    if not is_transfer:
        problems += check_conditions(path, sound)
    chosen = choose_parts(path, resampling.n_parts, resampling.seed)
    again = [part for part in chosen if part in set(sound)]
    if again:
        model = resampling.model or _model_beside(path)
        worker = (TransferWorker if is_transfer else PartWorker)(model, path)
        problems += resample(path, worker, again)
    if not problems:
        return {"atlas": str(path), "n_parts": report.n_parts, "resampled": again}
    bad = sorted({problem.part for problem in problems if problem.part is not None})
    if mend:
        discard_parts(path, bad)
    shown = "; ".join(problem.text for problem in problems[:5])
    what_now = "run generate to write them anew" if mend else "add --mend, then run generate"
    raise PartialError(
        f"{path} does not verify: {len(problems)} problems, parts {bad[:20]}: {shown}; {what_now}"
    )


def _model_beside(atlas: Where) -> Path:
    if isinstance(atlas, str):
        raise ConfigError(f"--resample: no model stands beside {atlas}; add --model RUN/model")
    return RunPaths(atlas.parent).model
