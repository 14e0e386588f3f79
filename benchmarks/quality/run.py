"""How good are the cells, beside floors, baselines and peers, on data whose answer is known?

Runs the cases of a study that have no record yet; a record holds every score of one fit. Real data
sets that are absent are skipped with a line. Run from the project root:

    OMP_NUM_THREADS=1 python benchmarks/quality/run.py STUDY [--problem NAME] [--seeds 0,1,2]

Fits lie in runs/quality, records in benchmarks/results/quality; `python
benchmarks/quality/tables.py` makes tables of them.
"""

import argparse
import json
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from fits import Cells, Fit, Settings, fit, prepare
from methods import CHANGES, Method, Way, methods
from problems import GENE_TEXT, Problem, problems
from scoring import score, table
from tables import ALSO_KEPT, COLUMNS, RECORDS

from save_dist.core.durable import digest, write_bytes
from save_dist.core.errors import SaveDistError
from save_dist.evaluation.catalogue import HELD_OUT
from save_dist.evaluation.scores import CombinationScores, GroupScores, Scores
from save_dist.evaluation.tables import Codes
from save_dist.pipelines.provenance import git_commit, versions

ROOT = Path(__file__).parents[2] / "runs" / "quality"
KEPT = {*ALSO_KEPT, *(key.removeprefix("normalised:") for key in COLUMNS.values())}
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
        return RECORDS / self.study / f"{name.replace(' ', '_')}.json"


@dataclass(frozen=True)
class Study:
    """Methods on problems.

    Args:
        problems: by name.
        methods: by name; `budget` is the one whose CPU seconds a peer may take.
        is_held_out: whether each held-out set of a problem is a case of its own; else nothing is
            kept from training.
        budget: see `methods`.
    """

    problems: tuple[str, ...]
    methods: tuple[str, ...]
    is_held_out: bool = False
    budget: str = "default"

    def variants(self, problem: str) -> list[str]:
        """Held-out sets to go through."""
        return list(problems()[problem].held_out) if self.is_held_out else [""]


SIMULATED = ("simulated-none", "simulated-weak", "simulated-strong")
STUDIES = {
    "held-out": Study(("kang", *SIMULATED, "kang-donors"), ("compose", "MLP cVAE"), True),
    "seen": Study(
        ("kang", *SIMULATED, "pbmc3k", "pbmc-atlas", "onek1k"),
        ("default", "scVI", "CFGen-style", "scDiffusion-style", "paper"),
    ),
    "seen-compose": Study(("kang", *SIMULATED), ("compose",)),
    "ablations": Study(("kang",), tuple(f"ablation: {name}" for name in CHANGES)),
}


def cases(study: str, problem: str | None, seeds: Sequence[int]) -> Iterator[Case]:
    """All cases of a study, seed by seed."""
    chosen = STUDIES[study]
    for seed in seeds:
        for name in chosen.problems:
            if problem in (None, name):
                for variant in chosen.variants(name):
                    for method in chosen.methods:
                        yield Case(study, name, variant, method, seed)


def run(case: Case) -> None:
    """Fit, make cells in every way, score them, and leave the record."""
    problem, method = problems()[case.problem], methods()[case.method]
    _, cells = prepare(problem, case.variant, method.settings, ROOT / "fits")
    fitted = _fitted(case, method, cells)
    held_out = STUDIES[case.study].is_held_out
    wanted = cells.held_out if held_out else cells.test
    codes = list(wanted.rows_by_combination())
    ways = {
        name: _scored(fitted, cells, codes, way, case.seed)
        for name, way in (method.held_out if held_out else method.seen).items()
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
    case.record.parent.mkdir(parents=True, exist_ok=True)
    write_bytes(case.record, json.dumps({**about, "ways": ways}).encode() + b"\n")


@dataclass(frozen=True)
class Peer:
    """A model that is not ours, with the facts of a `Fit`."""

    model: Any
    cpu_seconds: dict[str, float]
    n_steps: dict[str, int]


def _fitted(case: Case, method: Method, cells: Cells) -> Fit | Peer:
    """The trained model; a peer takes the CPU seconds that the study's own method took."""
    problem = problems()[case.problem]

    def own(settings: Settings) -> Fit:
        return fit(problem, case.variant, settings, case.seed, ROOT / "fits")

    if method.peer is None:
        return own(method.settings)
    budget = sum(own(methods()[STUDIES[case.study].budget].settings).cpu_seconds.values())
    peer = method.peer(cells, case.seed, budget)
    return Peer(peer, {"all": peer.cpu_seconds}, {"epochs": peer.n_epochs})


def _scored(
    fitted: Fit | Peer, cells: Cells, codes: Sequence[Codes], way: Way, seed: int
) -> dict[str, Any]:
    start = time.process_time()
    model = fitted.model if isinstance(fitted, Peer) else fitted
    counts = way(model, cells, codes, N_CELLS, seed)
    seconds = time.process_time() - start
    return {"sampling_cpu_s": seconds, **_figures(score(cells, table(counts, codes, N_CELLS)))}


def _figures(scores: Scores) -> dict[str, Any]:
    """Every candidate: means over the seen combinations, and each held-out one by itself."""
    found = []
    if scores.seen is not None:
        found.append(_averaged(scores.seen))
    found += [_single(c) for c in scores.combinations if c.group == HELD_OUT and c.is_averaged]
    return {"protocol": scores.protocol, "seeds": list(scores.config["seeds"]), "found": found}


def _averaged(group: GroupScores) -> dict[str, Any]:
    """Macro means over the combinations that are large enough."""
    tables = {"metrics": group.metrics, "normalised": group.normalised}
    return {
        "n_combinations": group.n_averaged,
        **{
            kind: {name: _kept({m: a.mean for m, a in row.items()}) for name, row in table.items()}
            for kind, table in tables.items()
        },
    }


def _single(combination: CombinationScores) -> dict[str, Any]:
    tables = {"metrics": combination.metrics, "normalised": combination.normalised}
    return {
        "condition": dict(combination.condition),
        "n_used": combination.n_used,
        **{
            kind: {name: _kept(row) for name, row in table.items()}
            for kind, table in tables.items()
        },
    }


def _kept(row: Mapping[str, float]) -> dict[str, float]:
    """What tables show and a little more; four digits say all there is to say."""
    return {
        name: float(f"{value:.4g}") for name, value in row.items() if name.split(":")[0] in KEPT
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
    elif "text blocks" in case.method and not GENE_TEXT.is_file():
        sys.stdout.write(f"{name}: skipped, {GENE_TEXT} is absent\n")
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
