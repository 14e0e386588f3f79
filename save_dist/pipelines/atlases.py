"""The atlases that a run has made."""

import dataclasses
from pathlib import Path

from save_dist.core.paths import RunPaths
from save_dist.pipelines.context import Summary
from save_dist.stores.catalogue import entries, newest_complete


def atlases(run: Path) -> Summary:
    """What the catalogue of a run lists; the newest complete atlas is checked to be there."""
    place = RunPaths(run).catalogue
    newest = newest_complete(place)
    return {
        "atlases": [dataclasses.asdict(entry) for entry in entries(place)],
        "newest_complete": None if newest is None else str(newest),
    }
