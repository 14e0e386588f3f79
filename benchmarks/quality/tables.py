"""The records of the quality studies as tables.

    python benchmarks/quality/tables.py [STUDY ...] > benchmarks/results/quality.md

Figures are means over training seeds, with the range over seeds behind them where there are two or
more. s is the normalised energy distance: 0 is as close as other real cells, 1 no better than
ignoring the condition.
"""

import json
import sys
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

RECORDS = Path(__file__).parents[1] / "results" / "quality"
Record = dict[str, Any]

COLUMNS: dict[str, str] = {
    "energy s": "normalised:energy",
    "MMD s": "normalised:mmd2",
    "AUC genes": "c2st_trees_gene",
    "AUC PCA": "c2st_trees_pca",
    "mean R2": "mean_r2",
    "change PCC": "change_pcc",
    "slope": "change_slope_significant",
    "zeros": "zero_difference",
    "variance": "variance_ratio",
    "library": "library_ratio",
    "spread": "library_spread_ratio",
}
ALSO_KEPT = (
    "energy",
    "c2st_logistic_gene",
    "c2st_logistic_pca",
    "correlation_error",
    "library_w1",
    "nearest_train_ratio",
    "nearer_train_share",
    "change_slope",
    "change_overlap_significant",
)
"""Metrics of a record that no table shows."""
BASELINES = {
    "gene_shuffle": "gene shuffle",
    "independent_nb": "independent genes, NB",
    "control": "control cells",
    "additive_shift": "additive shift",
    "similarity_shift": "similarity-weighted shift",
    "nearest_seen": "nearest seen",
    "floor": "real, other half",
}


def read(study: str) -> list[Record]:
    """All records of a study."""
    return [json.loads(path.read_text()) for path in sorted((RECORDS / study).glob("*.json"))]


def figure(combination: Mapping[str, Any], candidate: str, key: str) -> float:
    """One number of one combination; NaN where it was not measured."""
    if key.startswith("normalised:"):
        table, key = combination["normalised"], key.removeprefix("normalised:")
    else:
        table = combination["metrics"]
    row = table.get(candidate, {})
    found = [value for name, value in row.items() if name.split(":")[0] == key]
    return float(found[0]) if found else float("nan")


def rows(records: Iterable[Record]) -> dict[str, dict[str, dict[int, list[Any]]]]:
    """Row name -> variant -> seed -> combinations with their candidate."""
    out: dict[str, dict[str, dict[int, list[Any]]]] = defaultdict(lambda: defaultdict(dict))
    for record in records:
        for way, found in record["ways"].items():
            name = f"{record['method']}: {way}"
            out[name][record["variant"]][record["seed"]] = [
                (c, "generated") for c in found["found"]
            ]
            for candidate, title in BASELINES.items():
                has = [(c, candidate) for c in found["found"] if candidate in c["metrics"]]
                if has:
                    out[title][record["variant"]].setdefault(record["seed"], has)
    return out


def mean_of(combinations: Sequence[Any], key: str) -> float:
    """Mean over combinations that have the figure."""
    values = [figure(c, candidate, key) for c, candidate in combinations]
    values = [value for value in values if np.isfinite(value)]
    return float(np.mean(values)) if values else float("nan")


def text(values: Sequence[float]) -> str:
    """Mean over seeds, and their range."""
    known = [value for value in values if np.isfinite(value)]
    if not known:
        return "-"
    spread = f" ({min(known):.3f} to {max(known):.3f})" if len(known) > 1 else ""
    return f"{np.mean(known):.3f}{spread}"


def overall(found: Mapping[str, Mapping[str, Mapping[int, Any]]]) -> Iterator[str]:
    """One row per method, all variants together."""
    yield "| | " + " | ".join(COLUMNS) + " |"
    yield "|---" * (len(COLUMNS) + 1) + "|"
    for name, variants in found.items():
        cells = []
        for key in COLUMNS.values():
            by_seed: dict[int, list[float]] = defaultdict(list)
            for seeds in variants.values():
                for seed, combinations in seeds.items():
                    by_seed[seed].append(mean_of(combinations, key))
            cells.append(
                text([float(np.nanmean(v)) for v in by_seed.values() if np.isfinite(v).any()])
            )
        yield f"| {name} | " + " | ".join(cells) + " |"


def by_variant(found: Mapping[str, Mapping[str, Mapping[int, Any]]], key: str) -> Iterator[str]:
    """One row per method, one column per variant."""
    variants = sorted({v for row in found.values() for v in row})
    yield "| | " + " | ".join([*variants, "mean"]) + " |"
    yield "|---" * (len(variants) + 2) + "|"
    for name, row in found.items():
        values = [
            float(np.mean([mean_of(c, key) for c in row[v].values()])) if v in row else np.nan
            for v in variants
        ]
        shown = [f"{v:.3f}" if np.isfinite(v) else "-" for v in values]
        yield f"| {name} | " + " | ".join([*shown, f"{np.nanmean(values):.3f}"]) + " |"


def main(studies: Sequence[str]) -> None:
    """Print the tables."""
    for study in studies or sorted(path.name for path in RECORDS.iterdir()):
        records = read(study)
        for problem in dict.fromkeys(record["problem"] for record in records):
            found = rows(r for r in records if r["problem"] == problem)
            variants = {v for row in found.values() for v in row}
            lines = [f"\n## {study}: {problem}\n", *overall(found)]
            if len(variants) > 1:
                lines += ["\nEnergy s by held-out set:\n", *by_variant(found, "normalised:energy")]
            sys.stdout.write("\n".join(lines) + "\n")


if __name__ == "__main__":
    main(sys.argv[1:])
