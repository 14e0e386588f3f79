"""The cells that are compared with real ones: the model's, and those of floor and baselines."""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from jaxtyping import Float32
from numpy import ndarray

from save_dist.core import seeding
from save_dist.evaluation import baselines, catalogue
from save_dist.evaluation.case import Case
from save_dist.evaluation.space import Sample, Space


class Candidate(NamedTuple):
    """Cells of one method, and the real cells that they are compared with."""

    name: str
    real: Sample
    cells: Sample


class Candidates:
    """All candidates of one combination, drawn anew for every sampling seed.

    Args:
        case: the combination and what its baselines are made from.
        space: where cells are compared.
        marginal: training cells of any condition.
    """

    def __init__(self, case: Case, space: Space, marginal: Sample) -> None:
        self._case = case
        self._space = space
        read = {name: space.read(counts) for name, counts in case.pools.items()}
        self.generated = space.read(case.generated)
        self._pools = {catalogue.GENERATED: self.generated, catalogue.MARGINAL: marginal, **read}
        self._gaussian = self._fit_gaussian()
        self._independent = self._fit_independent()

    def drawn(self, real: Sample, seed: int) -> Iterator[Candidate]:
        """Every candidate beside as many real cells, the floor first."""
        case, n = self._case, real.n_cells
        half = n // 2
        yield Candidate(catalogue.FLOOR, real.take(slice(half)), real.take(slice(half, 2 * half)))
        for name, pool in self._pools.items():
            yield Candidate(name, real, draw(pool, n, seed, name, case))
        for name, cells in self._made(n, seed):
            yield Candidate(name, real, cells)

    def _made(self, n: int, seed: int) -> Iterator[tuple[str, Sample]]:
        """Cells that no one measured: drawn from a fitted law, or real ones that were changed."""
        case, space = self._case, self._space
        if case.shuffle_pool is not None:
            rng = _rng(seed, catalogue.SHUFFLE, case)
            yield catalogue.SHUFFLE, space.read(baselines.shuffled_genes(case.shuffle_pool, n, rng))
        if self._independent is not None:
            rng = _rng(seed, catalogue.INDEPENDENT, case)
            yield catalogue.INDEPENDENT, space.read(self._independent.draw(n, rng))
        if self._gaussian is not None:
            rng = _rng(seed, catalogue.GAUSSIAN, case)
            yield catalogue.GAUSSIAN, self._gaussian.draw(n, rng)
        for name, shift in case.shifts.items():
            control = draw(self._pools[catalogue.CONTROL], n, seed, name, case)
            yield name, baselines.shifted(control, shift, space)

    def _fit_gaussian(self) -> baselines.Gaussian | None:
        """Seen: of its own training cells. Held-out: of the control cells, moved by the shift."""
        case = self._case
        if not case.is_held_out:
            pool = case.shuffle_pool
            return None if pool is None else baselines.Gaussian.fit(self._space.read(pool), None)
        if catalogue.ADDITIVE not in case.shifts:
            return None
        shift: Float32[ndarray, " component"] = (
            case.shifts[catalogue.ADDITIVE] @ self._space.components
        )
        return baselines.Gaussian.fit(self._pools[catalogue.CONTROL], shift)

    def _fit_independent(self) -> baselines.IndependentGenes | None:
        """Seen: of its own training cells. Held-out: of the control cells, at the moved rates."""
        case = self._case
        if not case.is_held_out:
            pool = case.shuffle_pool
            return None if pool is None else baselines.IndependentGenes.fit(pool)
        if case.moved_rate is None:
            return None
        control = baselines.IndependentGenes.fit(case.pools[catalogue.CONTROL])
        return control.at_rate(case.moved_rate)


def draw(pool: Sample, n: int, seed: int, name: str, case: Case) -> Sample:
    """At most `n` cells without replacement: a cell drawn twice would be its own neighbour."""
    return pool.take(_rng(seed, name, case).permutation(pool.n_cells)[:n])


def _rng(seed: int, name: str, case: Case) -> np.random.Generator:
    """Stream of one candidate in one combination; adding a candidate moves no other."""
    return seeding.generator(seed, f"evaluation_{name}", case.identity)
