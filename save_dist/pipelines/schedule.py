"""Schedule: what a timer runs. Makes the atlas of the present model and grid, if it is missing.

Every pair of model and grid has a folder of its own below the run, named by its plan, with a copy
of the model. So a new model or another grid never touches what was made before, and an atlas
keeps the model it came from. Which atlases there are stands in the run's catalogue. The present
model is the champion of the registry, or without MLflow the one that the run exported.
"""

import shutil
from dataclasses import dataclass
from pathlib import Path

from save_dist.config.schema import GenerateJob
from save_dist.core.durable import verify_folder
from save_dist.core.errors import CheckpointError
from save_dist.core.paths import ATLASES, RunPaths
from save_dist.pipelines.generate import fresh_plan
from save_dist.pipelines.promotion import registry
from save_dist.stores.catalogue import newest_complete
from save_dist.stores.storage import Where

LEASE = "lease.json"
CHAMPIONS = "champions"
"""Folder in the scratch of a run; holds models that were fetched from the registry."""


@dataclass(frozen=True)
class Tick:
    """What a scheduled run has to do."""

    config: GenerateJob
    """The job, its run folder that of the plan."""
    plan_hash: str
    model: Path
    """Folder of the present model."""
    atlas: Where | None
    """The newest complete atlas of this model and grid; None: it has to be made."""

    @property
    def paths(self) -> RunPaths:
        """Places of the atlas to make."""
        return RunPaths(self.config.run.dir, self.config.run.atlas)

    @property
    def lease(self) -> Path:
        """Held while the atlas is made."""
        return self.paths.root / LEASE


def present_model(config: GenerateJob) -> Path:
    """Folder of the model that atlases are made with now; a champion is fetched if need be.

    Raises:
        CheckpointError: if MLflow has no champion, or its files are not what was registered.
        InfrastructureError: if MLflow does not answer.
    """
    paths, tracking = RunPaths(config.run.dir), config.tracking
    if tracking.backend == "none":
        return paths.model
    known = registry(tracking, paths.root)
    champion = known.champion()
    folder = paths.scratch / CHAMPIONS / champion.model_hash[:16]
    known.fetch(champion, folder)
    return folder


def look(config: GenerateJob, model: Path) -> Tick:
    """What is asked for with a model, and whether it is there; changes nothing."""
    base = RunPaths(config.run.dir)
    plan = fresh_plan(config, model)
    folder = base.root / ATLASES / plan.hash[:16]
    run = config.run.model_copy(
        update={"dir": folder, "atlas": _of_plan(config.run.atlas, plan.hash)}
    )
    found = newest_complete(base.catalogue, model_hash=plan.model.hash, plan_hash=plan.hash)
    return Tick(config.model_copy(update={"run": run}), plan.hash, model, found)


def _of_plan(atlas: str | None, plan_hash: str) -> str | None:
    """A place in an object store for this plan alone, beside the one that was named."""
    if atlas is None:
        return None
    return f"{atlas.rstrip('/').removesuffix('.zarr')}-{plan_hash[:16]}.zarr"


def take_model(tick: Tick) -> None:
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
    shutil.copytree(tick.model, target)
    verify_folder(target)
