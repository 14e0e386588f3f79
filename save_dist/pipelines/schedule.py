"""Schedule: what a timer runs. Makes the atlas of the present model and grid, if it is missing.

Every pair of model and grid has a folder of its own below the run, named by its plan, with a copy
of the model. So a new model or another grid never touches what was made before, and an atlas
keeps the model it came from.
"""

import shutil
from dataclasses import dataclass
from pathlib import Path

from save_dist.config.schema import GenerateJob
from save_dist.core.durable import read_json, verify_folder
from save_dist.core.errors import AtlasError, CheckpointError
from save_dist.core.paths import RunPaths
from save_dist.pipelines.generate import fresh_plan
from save_dist.stores.receipts import missing_parts

FOLDER = "atlases"
LEASE = "lease.json"


@dataclass(frozen=True)
class Tick:
    """What a scheduled run has to do."""

    config: GenerateJob
    """The job, its run folder that of the plan."""
    plan_hash: str
    is_complete: bool

    @property
    def paths(self) -> RunPaths:
        """Places of the atlas."""
        return RunPaths(self.config.run.dir)

    @property
    def lease(self) -> Path:
        """Held while the atlas is made."""
        return self.paths.root / LEASE


def look(config: GenerateJob) -> Tick:
    """What is asked for, and whether it is there; changes nothing."""
    plan = fresh_plan(config, RunPaths(config.run.dir))
    folder = config.run.dir / FOLDER / plan.hash[:16]
    run = config.run.model_copy(update={"dir": folder})
    own = config.model_copy(update={"run": run})
    return Tick(own, plan.hash, _is_complete(RunPaths(folder), plan.hash))


def take_model(tick: Tick, source: Path) -> None:
    """Copy the model beside its atlas, unless a whole copy is there.

    Raises:
        CheckpointError: if the copy does not match its manifest.
    """
    target = tick.paths.model
    try:
        verify_folder(target)
        return
    except CheckpointError:
        shutil.rmtree(target, ignore_errors=True)
    shutil.copytree(source, target)
    verify_folder(target)


def _is_complete(paths: RunPaths, plan_hash: str) -> bool:
    """Whether generation ended under this plan and every receipt still fits its files."""
    record = paths.stages / "generate.json"
    if not record.is_file() or read_json(record)["key"] != plan_hash:
        return False
    try:
        return not missing_parts(paths.atlas)
    except AtlasError:
        return False
