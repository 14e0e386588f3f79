"""How good are the cells, beside floors, baselines and peers, on data whose answer is known?

Runs the cases of a study that have no record yet; a record holds every score of one fit. Real data
sets that are absent are skipped with a line. Run from the project root:

    OMP_NUM_THREADS=1 python benchmarks/quality/run.py STUDY [--problem NAME] [--seeds 0,1,2]

Records lie in runs/quality/records; `python benchmarks/quality/tables.py` makes tables of them.
"""

import argparse
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from fits import Cells, Fit, fit, prepare
from methods import Method, Way, methods
from problems import Problem, problems
from scoring import score, table

from save_dist.core.durable import digest, write_json
from save_dist.core.errors import SaveDistError
from save_dist.evaluation.scores import Scores
from save_dist.evaluation.tables import Codes
from save_dist.pipelines.provenance import git_commit, versions

ROOT = Path(__file__).parents[2] / "runs" / "quality"
N_CELLS = 1000


@dataclass(frozen=True)
class Case:
    """One fit and all that is made from it."""

    study: str
    problem: str
    variant: str
    method: str
    seed: int

    @property
    def record(self) -> Path:
        """Where its scores lie."""
        name = "-".join([self.problem, self.variant or "all", self.method, str(self.seed)])
        return ROOT / "records" / self.study / f"{name.replace(' ', '_')}.json"


STUDIES: dict[str, dict[str, Sequence[str]]] = {
    "held-out": {
        "problems": ("kang", "simulated-none", "simulated-weak", "simulated-strong"),
        "methods": ("compose", "MLP cVAE"),
    },
}


def cases(study: str, problem: str | None, seeds: Sequence[int]) -> Iterator[Case]:
    """All cases of a study, seed by seed."""
    chosen = STUDIES[study]
    for seed in seeds:
        for name in chosen["problems"]:
            if problem not in (None, name):
                continue
            for variant in problems()[name].held_out or [""]:
                for method in chosen["methods"]:
                    yield Case(study, name, variant, method, seed)


def run(case: Case) -> None:
    """Fit, make cells in every way, score them, and leave the record."""
    problem, method = problems()[case.problem], methods()[case.method]
    fitted = fit(problem, case.variant, method.settings, case.seed, ROOT / "fits")
    _, cells = prepare(problem, case.variant, method.settings, ROOT / "fits")
    groups = {
        "held_out": (list(cells.held_out.rows_by_combination()), method.held_out),
        "seen": (list(cells.test.rows_by_combination()), method.seen),
    }
    ways = {
        f"{group}: {name}": _scored(fitted, cells, codes, way, case.seed)
        for group, (codes, named) in groups.items()
        if codes
        for name, way in named.items()
    }
    about = {
        "study": case.study,
        "problem": case.problem,
        "variant": case.variant,
        "method": case.method,
        "seed": case.seed,
        "n_steps": fitted.n_steps,
        "cpu_seconds": fitted.cpu_seconds,
        "config_hash": digest(dict(method.settings)),
        "n_cells": N_CELLS,
        "versions": versions_and_commit(),
    }
    write_json(case.record, {**about, "ways": ways})


def _scored(
    fitted: Fit, cells: Cells, codes: Sequence[Codes], way: Way, seed: int
) -> dict[str, Any]:
    start = time.process_time()
    counts = way(fitted, cells, codes, N_CELLS, seed)
    seconds = time.process_time() - start
    return {"sampling_cpu_s": seconds, **_figures(score(cells, table(counts, codes, N_CELLS)))}


def _figures(scores: Scores) -> dict[str, Any]:
    """Every candidate of every combination; the shape of the tables."""
    return {
        "protocol": scores.protocol,
        "seeds": list(scores.config["seeds"]),
        "combinations": [
            {
                "condition": dict(c.condition),
                "is_averaged": c.is_averaged,
                "n_used": c.n_used,
                "metrics": {k: dict(v) for k, v in c.metrics.items()},
                "normalised": {k: dict(v) for k, v in c.normalised.items()},
            }
            for c in scores.combinations
        ],
    }


def versions_and_commit() -> dict[str, str]:
    """What the numbers were made with."""
    return {"git_commit": git_commit(), **versions()}


def main() -> None:
    """Run what has no record."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("study", choices=[*STUDIES, "all"])
    parser.add_argument("--problem", help="only this one")
    parser.add_argument("--variants", help="only these held-out sets, comma-separated")
    parser.add_argument("--methods", help="only these, comma-separated")
    parser.add_argument("--seeds", default="0,1,2", help="training seeds, comma-separated")
    chosen = parser.parse_args()
    torch.set_num_threads(1)
    seeds = [int(seed) for seed in chosen.seeds.split(",")]
    for study in STUDIES if chosen.study == "all" else [chosen.study]:
        for case in cases(study, chosen.problem, seeds):
            if chosen.methods and case.method not in chosen.methods.split(","):
                continue
            if chosen.variants and case.variant not in chosen.variants.split(","):
                continue
            _run_or_say(case)


def _run_or_say(case: Case) -> None:
    problem: Problem = problems()[case.problem]
    name = " / ".join([case.study, case.problem, case.variant, case.method, f"seed {case.seed}"])
    if not problem.is_here:
        sys.stdout.write(f"{name}: skipped, {problem.file} is absent\n")
    elif not case.record.is_file():
        start = time.perf_counter()
        try:
            run(case)
            sys.stdout.write(f"{name}: {time.perf_counter() - start:.0f} s\n")
        except SaveDistError as e:
            sys.stdout.write(f"{name}: failed, {e}\n")
    sys.stdout.flush()


if __name__ == "__main__":
    main()
