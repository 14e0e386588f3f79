"""The records of the quality studies as tables.

    python benchmarks/quality/tables.py [STUDY ...] > benchmarks/results/quality.md

Figures are means over training seeds, with the range over seeds behind them where there are two or
more; of methods whose seeds do not all have every held-out set, only the seeds that have most count
in means over sets. s is the normalised energy distance: 0 is as close as other real cells, 1 no
better than ignoring the condition.
"""

import json
import sys
from collections import Counter, defaultdict
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


FROM_THE_ANSWER = (BASELINES["gene_shuffle"], BASELINES["independent_nb"], BASELINES["floor"])
"""Made from the very cells that are asked for, so they win nothing."""


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
    spread = f" ({min(known):.3f} to {max(known):.3f})" if min(known) < max(known) else ""
    return f"{np.mean(known):.3f}{spread}"


def whole_seeds(variants: Mapping[str, Mapping[int, Any]]) -> list[int]:
    """Seeds that have every held-out set of a method; without one, those that have most of them.

    A mean over sets that differ from seed to seed would compare sets, not seeds.
    """
    n_sets = Counter(seed for seeds in variants.values() for seed in seeds)
    most = max(n_sets.values())
    return sorted(seed for seed, n in n_sets.items() if n == most)


def overall(found: Mapping[str, Mapping[str, Mapping[int, Any]]]) -> Iterator[str]:
    """One row per method, all variants together; how many fits it stands on comes last."""
    yield "| | " + " | ".join([*COLUMNS, "fits"]) + " |"
    yield "|---" * (len(COLUMNS) + 2) + "|"
    for name, variants in found.items():
        chosen = whole_seeds(variants)
        fits = [[row[seed] for row in variants.values() if seed in row] for seed in chosen]
        cells = [
            text([mean_of([c for fit in fits_of_seed for c in fit], key) for fits_of_seed in fits])
            for key in COLUMNS.values()
        ]
        yield f"| {name} | " + " | ".join([*cells, str(sum(map(len, fits)))]) + " |"


def by_variant(found: Mapping[str, Mapping[str, Mapping[int, Any]]], key: str) -> Iterator[str]:
    """One row per method, one column per variant; the least of a column is bold."""
    variants = sorted({v for row in found.values() for v in row})
    means = {
        name: {v: [mean_of(c, key) for c in row[v].values()] for v in variants if v in row}
        for name, row in found.items()
    }
    means = {
        name: row
        for name, row in means.items()
        if np.isfinite([x for v in row.values() for x in v]).any()
    }
    least = {
        v: min(
            np.mean(row[v])
            for name, row in means.items()
            if v in row and name not in FROM_THE_ANSWER
        )
        for v in variants
    }
    yield "| | " + " | ".join(variants) + " |"
    yield "|---" * (len(variants) + 1) + "|"
    for name, row in means.items():
        shown = [text(row.get(v, [])) for v in variants]
        is_best = [v in row and np.mean(row[v]) == least[v] for v in variants]
        cells = [f"**{x}**" if best else x for x, best in zip(shown, is_best, strict=True)]
        yield f"| {name} | " + " | ".join(cells) + " |"


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
