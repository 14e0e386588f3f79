"""What evaluation found: plain records, JSON-able and the same on every run."""

import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from jaxtyping import Bool, Float32, Int16, Int64
from numpy import ndarray

from save_dist.evaluation import catalogue
from save_dist.evaluation.biology import GeneProfile
from save_dist.evaluation.tables import Codes

Values = Mapping[str, float]
"""Metric -> value; what could not be measured is absent."""
Table = Mapping[str, Values]
"""Candidate (the model, the floor, a baseline) -> metrics."""


@dataclass(frozen=True)
class CombinationScores:
    """One condition combination.

    Args:
        condition: value per column.
        codes: the same as codes.
        group: `seen` or `held_out`.
        n_train: training cells of it among those given.
        n_test: real cells given.
        n_generated: generated cells given.
        n_used: cells per side that were compared.
        is_averaged: whether it counts in the averages; small combinations do not.
        metrics: mean over sampling seeds.
        spread: standard deviation over sampling seeds, generated cells only.
        normalised: (d - floor) / (d_marginal - floor) of the means; absent where the marginal
            does not stand clear of the floor.
    """

    condition: Mapping[str, str]
    codes: Codes
    group: str
    n_train: int
    n_test: int
    n_generated: int
    n_used: int
    is_averaged: bool
    metrics: Table
    spread: Values
    normalised: Table


@dataclass(frozen=True)
class Average:
    """Mean over combinations.

    Args:
        mean: each combination weighs the same.
        low: lower end of the bootstrap 95% interval over combinations; None below two.
        high: upper end.
        weighted: combinations weighted by their test cells.
        n_combinations: combinations in which it was measured.
    """

    mean: float
    low: float | None
    high: float | None
    weighted: float
    n_combinations: int


@dataclass(frozen=True)
class GroupScores:
    """All seen, or all held-out, combinations.

    Args:
        n_combinations: combinations with real and generated cells.
        n_averaged: those of them with enough test cells.
        metrics: averages per candidate and metric.
        normalised: averages of the normalised scores.
        pooled: normalised score of the averaged distances, steadier than the average of scores.
    """

    n_combinations: int
    n_averaged: int
    metrics: Mapping[str, Mapping[str, Average]]
    normalised: Mapping[str, Mapping[str, Average]]
    pooled: Table


@dataclass(frozen=True)
class SpaceFacts:
    """The space of the comparison."""

    n_train_cells: int
    n_genes: int
    n_components: int
    explained: float
    median_squared: float


@dataclass(frozen=True)
class Picture:
    """Cells for the scatter: equal numbers of real and generated ones per combination."""

    points: Float32[ndarray, "cell 2"]
    codes: Int16[ndarray, "cell field"]
    is_generated: Bool[ndarray, " cell"]
    is_held_out: Bool[ndarray, " cell"]

    def take(self, rows: Int64[ndarray, " row"]) -> "Picture":
        """The cells at `rows`."""
        sides = (self.points, self.codes, self.is_generated, self.is_held_out)
        return Picture(*(side[rows] for side in sides))


@dataclass(frozen=True)
class GroupProfiles:
    """Gene profiles within combinations, averaged over the combinations of a group."""

    real: GeneProfile
    generated: GeneProfile


@dataclass(frozen=True)
class TopGenes:
    """The genes that change most in a combination, cell by cell.

    Args:
        condition: value per column.
        column: the column in which the control differs.
        is_held_out: whether training never saw the combination.
        genes: names, largest |t| of the real change first.
        values: log-normalised expression of control, real and generated cells.
    """

    condition: Mapping[str, str]
    column: str
    is_held_out: bool
    genes: tuple[str, ...]
    values: Mapping[str, Float32[ndarray, "_cell gene"]]


@dataclass(frozen=True)
class Responder:
    """A gene of known response in one combination.

    Args:
        condition: value per column.
        column: the column along which it changes.
        group: `seen` or `held_out`.
        gene: its name.
        real_change: log-fold change of real cells.
        predicted_change: that of generated ones.
        real_rank: 1 if no gene of the real cells changes more, in either direction.
        predicted_rank: the same of generated ones.
    """

    condition: Mapping[str, str]
    column: str
    group: str
    gene: str
    real_change: float
    predicted_change: float
    real_rank: int
    predicted_rank: int


@dataclass(frozen=True)
class Scores:
    """Everything evaluation found.

    Args:
        protocol: version of the protocol.
        config: its settings.
        columns: condition columns.
        categories: values of each column.
        space: where cells were compared.
        seen: averages over seen combinations; None if there are none.
        held_out: averages over held-out combinations; None if there are none.
        combinations: every combination with real and generated cells.
        missing: combinations with real but no generated cells.
        remarks: what a reader must know of how the numbers were made.
        responders: genes of known response, if any were asked for.
        top_genes: genes of largest change in a few combinations, for the picture; not in the JSON.
        profiles: gene profiles per group, for the picture; not in the JSON.
        picture: cells for the scatter; not in the JSON.
    """

    protocol: int
    config: Mapping[str, Any]
    columns: tuple[str, ...]
    categories: tuple[tuple[str, ...], ...]
    space: SpaceFacts
    seen: GroupScores | None
    held_out: GroupScores | None
    combinations: tuple[CombinationScores, ...]
    missing: tuple[Mapping[str, str], ...]
    remarks: tuple[str, ...]
    responders: tuple[Responder, ...]
    top_genes: tuple[TopGenes, ...] = field(repr=False)
    profiles: Mapping[str, GroupProfiles] = field(repr=False)
    picture: Picture = field(repr=False)

    def group(self, name: str) -> GroupScores | None:
        """Averages of `seen` or `held_out`."""
        return self.seen if name == catalogue.SEEN else self.held_out

    def to_json(self) -> dict[str, Any]:
        """JSON-able form without pictures."""
        return {
            "protocol": self.protocol,
            "config": dict(self.config),
            "columns": list(self.columns),
            "space": asdict(self.space),
            "seen": None if self.seen is None else asdict(self.seen),
            "held_out": None if self.held_out is None else asdict(self.held_out),
            "combinations": [_listed(asdict(c)) for c in self.combinations],
            "missing": [dict(condition) for condition in self.missing],
            "remarks": list(self.remarks),
            "responders": [asdict(r) for r in self.responders],
        }

    def flat(self) -> dict[str, float]:
        """Every average as `seen/generated/energy` -> mean, for a metrics tracker.

        Normalised scores end in `_s`. Behind a name stand `.low` and `.high` of the interval,
        `.weighted` by test cells, and `.n`, the combinations in which it was measured.
        """
        out: dict[str, float] = {}
        for name in (catalogue.SEEN, catalogue.HELD_OUT):
            if (group := self.group(name)) is None:
                continue
            out[f"{name}/n_combinations"] = float(group.n_combinations)
            out[f"{name}/n_averaged"] = float(group.n_averaged)
            for kind, table in (("", group.metrics), ("_s", group.normalised)):
                for candidate, averages in table.items():
                    for metric, average in averages.items():
                        key = re.sub(r"[^\w./ -]", ".", f"{name}/{candidate}/{metric}{kind}")
                        out |= _named(key, average)
        return out

    def headline(self) -> dict[str, Any]:
        """The few numbers of a job's summary."""
        out: dict[str, Any] = {
            "protocol": self.protocol,
            "n_combinations": len(self.combinations),
            "n_missing": len(self.missing),
        }
        for name in (catalogue.SEEN, catalogue.HELD_OUT):
            if (group := self.group(name)) is not None:
                out[name] = _headline(group)
        return out


def _named(key: str, average: Average) -> dict[str, float]:
    """An average and what stands beside it; without an interval its ends are left out."""
    ends = {"low": average.low, "high": average.high}
    known = {f"{key}.{end}": value for end, value in ends.items() if value is not None}
    return {
        key: average.mean,
        f"{key}.weighted": average.weighted,
        f"{key}.n": float(average.n_combinations),
        **known,
    }


def _headline(group: GroupScores) -> dict[str, Any]:
    out: dict[str, Any] = {"n_averaged": group.n_averaged}
    ours = group.metrics.get(catalogue.GENERATED, {})
    for metric in ("c2st_trees_gene", "c2st_trees_pca", "mean_r2", "zero_difference"):
        if metric in ours:
            out[metric] = ours[metric].mean
    for metric, average in group.normalised.get(catalogue.GENERATED, {}).items():
        out[f"{metric}_s"] = average.mean
    return out


def _listed(value: dict[str, Any]) -> dict[str, Any]:
    return {**value, "codes": list(value["codes"])}
