"""Perturbation discrimination: is a generated change most like the real change of its own target.

The score of the Virtual Cell Challenge (Arc Institute, cell-eval): the real changes of all targets
are ordered by their Manhattan distance to the predicted one. Here the place of the own target runs
over n - 1 others, so that 1 is first, 0 is last and chance is exactly 0.5.
"""

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import replace

import numpy as np
from jaxtyping import Float32, Float64
from numpy import ndarray

from save_dist.evaluation import baselines, catalogue
from save_dist.evaluation.combination import CombinationResult
from save_dist.evaluation.tables import Codes
from save_dist.evaluation.tasks import TaskMaker

MIN_TARGETS = 3
"""Targets below which an order says nothing."""


def with_discrimination(
    results: Mapping[Codes, CombinationResult], maker: TaskMaker
) -> dict[Codes, CombinationResult]:
    """The results with a score per candidate and column, wherever a column has enough targets.

    Targets are the values of a column beside its reference, all other columns equal.
    """
    found = dict(results)
    for column, reference in baselines.reference_codes(maker.conditions).items():
        name = f"change_discrimination:{maker.conditions.columns[column]}"
        for targets in _contexts(results, column, reference):
            offset = maker.reference_offset(targets[0], column)
            if len(targets) < MIN_TARGETS or offset is None:
                continue
            real = np.stack([results[codes].means[catalogue.REAL] for codes in targets])
            for place, codes in enumerate(targets):
                scores = {
                    candidate: (own_place(mean + offset, real, place),)
                    for candidate, mean in results[codes].means.items()
                    if candidate != catalogue.REAL
                }
                found[codes] = _with_metric(found[codes], name, scores)
    return found


def own_place(
    predicted: Float64[ndarray, " gene"] | Float32[ndarray, " gene"],
    real: Float32[ndarray, "target gene"],
    own: int,
) -> float:
    """1 if `predicted` is nearest to row `own` of `real`, 0 if all others are nearer.

    Equal distances count half.
    """
    distance = np.abs(real - predicted).sum(axis=1, dtype=np.float64)
    n_nearer = np.sum(distance < distance[own])
    n_level = np.sum(distance == distance[own]) - 1
    return float(1.0 - (n_nearer + n_level / 2.0) / (len(real) - 1))


def _contexts(
    results: Mapping[Codes, CombinationResult], column: int, reference: int
) -> list[list[Codes]]:
    """Measured combinations that differ in the column alone, without the reference."""
    groups: dict[Codes, list[Codes]] = defaultdict(list)
    for codes, result in results.items():
        if codes[column] != reference and result.means:
            groups[codes[:column] + codes[column + 1 :]].append(codes)
    return [sorted(members) for members in groups.values()]


def _with_metric(
    result: CombinationResult, name: str, values: Mapping[str, tuple[float, ...]]
) -> CombinationResult:
    metrics = {
        candidate: {**row, name: values[candidate]} if candidate in values else row
        for candidate, row in result.metrics.items()
    }
    return replace(result, metrics=metrics)
