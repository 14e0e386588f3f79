"""One combination before it is scored: its cells, and what its baselines are made from."""

from collections.abc import Mapping
from dataclasses import dataclass

from jaxtyping import Float32
from numpy import ndarray

from save_dist.evaluation.moments import Moments
from save_dist.evaluation.tables import Codes, Counts


@dataclass(frozen=True)
class Reference:
    """Cells at the reference of one column that agree with a combination in all other columns.

    Args:
        column: name of the column.
        test: real test cells.
        test_halves: the same cells in two halves.
        train: training cells.
    """

    column: str
    test: Moments
    test_halves: tuple[Moments, Moments]
    train: Moments


@dataclass(frozen=True)
class Case:
    """A combination with real and generated cells.

    Args:
        condition: value per column.
        codes: the same as codes.
        identity: 64-bit identity of the condition, for its random streams.
        is_held_out: whether it was kept out of training.
        test: real cells it is compared with.
        generated: cells of the model.
        shuffle_pool: real cells whose genes are shuffled: training cells, or the held-out cells
            themselves, which have no other.
        pools: cells that serve as they are: real training cells (control cells, nearest seen), and
            those of other methods.
        shifts: log-space changes to add to the control cells, per baseline.
        moved_rate: of a held-out combination, share of every gene in the counts of a cell, made
            from those of the control cells by the additive change; None without a control.
        references: one per column that has a reference and differs from it here.
        n_train: training cells of this combination.
    """

    condition: Mapping[str, str]
    codes: Codes
    identity: int
    is_held_out: bool
    test: Counts
    generated: Counts
    shuffle_pool: Counts | None
    pools: Mapping[str, Counts]
    shifts: Mapping[str, Float32[ndarray, " gene"]]
    moved_rate: Float32[ndarray, " vocabulary_gene"] | None
    references: tuple[Reference, ...]
    n_train: int
