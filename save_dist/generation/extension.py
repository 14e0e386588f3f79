"""A recorded plan and a grid that asks for more -> the plan of the larger atlas.

Only additions extend: further conditions, or more cells of one. What is there keeps its rows, so
everything else that a cell depends on must be as it was.
"""

from save_dist.config.load import resolved
from save_dist.config.schema import GridConfig
from save_dist.core.errors import AtlasError, ConfigError, listed
from save_dist.generation.grid import GridPlan, plan_grids

GROWING = ("columns", "include", "exclude", "cells_per_condition", "cells_otherwise")
"""Settings of a grid that may differ from those of the grid it extends."""


def continued(recorded: GridPlan, asked: GridPlan) -> GridPlan:
    """The recorded plan if nothing new is asked for, else that plan with the new cells behind it.

    Args:
        recorded: plan of the atlas that stands there.
        asked: plan of the present grid alone.

    Raises:
        AtlasError: with both hashes, if the grid does not merely add to the recorded one.
    """
    if reason := _obstacle(recorded, asked):
        raise _refused(recorded, asked, reason)
    if asked.grid == recorded.grid:
        return recorded
    grids = [*recorded.grids, asked.grid]
    try:
        plan = plan_grids(grids, recorded.output, recorded.model)
    except ConfigError as e:
        raise _refused(recorded, asked, str(e)) from e
    return plan if plan.n_cells > recorded.n_cells else recorded


def _obstacle(recorded: GridPlan, asked: GridPlan) -> str:
    """What forbids to extend, besides conditions and numbers of cells; empty: nothing."""
    if recorded.model.hash != asked.model.hash:
        return f"its model is {recorded.model.hash}, the present one {asked.model.hash}"
    before, now = resolved(recorded.output), resolved(asked.output)
    differing = [f"output.{name}" for name in now if before[name] != now[name]]
    old, new = _fixed(recorded.grid), _fixed(asked.grid)
    differing += [f"grid.{name}" for name in new if old[name] != new[name]]
    return f"{listed(differing)} changed" if differing else ""


def _fixed(grid: GridConfig) -> dict[str, object]:
    return {name: value for name, value in resolved(grid).items() if name not in GROWING}


def _refused(recorded: GridPlan, asked: GridPlan, reason: str) -> AtlasError:
    return AtlasError(
        f"the run folder holds an atlas of plan {recorded.hash}, the plan asked for is "
        f"{asked.hash} and does not merely add to it: {reason}; generate into another run folder, "
        "or undo the change"
    )
