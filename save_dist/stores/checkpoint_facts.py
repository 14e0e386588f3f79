"""What a folder of checkpoints says without a tensor being read: steps, and facts of each."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from save_dist.core.durable import read_json
from save_dist.core.errors import CheckpointError

ABOUT = "about.json"


class CheckpointFacts:
    """Checkpoints of one training stage, seen from outside.

    Args:
        folder: where the step folders live.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def steps(self) -> list[int]:
        """Steps that have a folder, ascending; not verified."""
        names = (p.name.removeprefix("step-") for p in self._folder.glob("step-*"))
        return sorted(int(name) for name in names if name.isdecimal())

    def about(self, step: int) -> dict[str, Any]:
        """Facts of a checkpoint, unverified; empty if they are not there (any more)."""
        place = self._place(step)
        try:
            return migrated(read_json(place / ABOUT), place)
        except CheckpointError:
            return {}

    def _place(self, step: int) -> Path:
        return self._folder / f"step-{step:08d}"


def migrated(about: Mapping[str, Any], place: Path) -> dict[str, Any]:
    """Facts of a checkpoint as this version writes them, whichever earlier one wrote it.

    Raises:
        CheckpointError: if a later version did.
    """
    found = {"format": 1, **about}
    number = found.pop("format")
    if number > FORMAT:
        raise CheckpointError(
            f"{place} has format {number} of checkpoints, this version of save-dist reads up to "
            f"{FORMAT}; use the version that wrote it, or another run folder"
        )
    for step in _MIGRATIONS[number - 1 :]:
        found = step(found)
    return found


def _add_standing(about: dict[str, Any]) -> dict[str, Any]:
    """Format 1 to 2: what validation has shown is kept; before, it decided nothing."""
    return {"standing": {}, **about}


_MIGRATIONS: tuple[Callable[[dict[str, Any]], dict[str, Any]], ...] = (_add_standing,)
"""From format 1 to 2, and so on."""
FORMAT = 1 + len(_MIGRATIONS)
"""Of the checkpoints that this version writes."""
