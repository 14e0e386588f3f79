"""How a stage stands on validation: when it has stopped gaining, and which weights were best.

Pure integers and floats that travel in every checkpoint, so a resumed run ends where the
undisturbed one does.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from save_dist.config.schema import StoppingConfig


@dataclass(frozen=True)
class Standing:
    """What the validations of a stage have shown so far.

    >>> standing = Standing()
    >>> for step, loss in [(10, 2.0), (20, 1.0), (30, 1.5)]:
    ...     standing = standing.after(step, loss, StoppingConfig(patience=1))
    >>> standing
    Standing(best_loss=1.0, best_step=20, n_without_gain=1, is_over=True)
    """

    best_loss: float | None = None
    """None before the first validation."""
    best_step: int = 0
    n_without_gain: int = 0
    """Validations since the best one."""
    is_over: bool = False
    """Whether patience has run out: the stage takes no further step."""

    def after(self, step: int, loss: float, config: StoppingConfig) -> "Standing":
        """The standing once `loss` was seen at `step`."""
        if self.best_loss is None or loss < self.best_loss - config.min_gain:
            return Standing(loss, step)
        n_without_gain = self.n_without_gain + 1
        is_over = config.patience is not None and n_without_gain >= config.patience
        return Standing(self.best_loss, self.best_step, n_without_gain, is_over)

    def facts(self) -> dict[str, Any]:
        """JSON-able, for a checkpoint; floats come back to the last bit."""
        return asdict(self)


def standing_of(about: Mapping[str, Any]) -> Standing:
    """The standing a checkpoint carries; no checkpoint says nothing."""
    return Standing(**about.get("standing", {}))


def is_finished(step: int, about: Mapping[str, Any], n_steps: int) -> bool:
    """Whether a checkpoint is the last one of its stage."""
    return step >= n_steps or standing_of(about).is_over
