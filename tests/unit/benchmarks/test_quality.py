"""The quality benchmark: every setting is valid, and its tables say what its records say."""

import sys
from pathlib import Path

import pytest

FOLDER = Path(__file__).parents[3] / "benchmarks" / "quality"


@pytest.fixture(autouse=True)
def importable(monkeypatch):
    monkeypatch.syspath_prepend(FOLDER)
    before = set(sys.modules)
    yield
    for name in set(sys.modules) - before:
        if str(FOLDER) in str(getattr(sys.modules[name], "__file__", "")):
            del sys.modules[name]


def test_every_case_has_a_valid_configuration(tmp_path):
    from fits import job
    from methods import methods
    from problems import problems
    from run import STUDIES, cases

    found = [case for study in STUDIES for case in cases(study, None, [0])]
    assert len({case.record for case in found}) == len(found)
    for case in found:
        method, problem = methods()[case.method], problems()[case.problem]
        assert method.peer or method.seen or method.held_out
        config = job(problem, case.variant, tmp_path / "x.h5ad", tmp_path, method.settings)
        assert len(config.conditions.held_out) == len(problem.held_out.get(case.variant, []))


def test_held_out_values_are_seen_elsewhere():
    from problems import problems

    for problem in problems().values():
        if problem.simulation is None:
            continue
        cells = problem.read()
        for held_out in problem.held_out.values():
            for condition in held_out:
                others = cells.obs
                for other in held_out:
                    match = (others[list(other)] == list(other.values())).all(axis=1)
                    others = others[~match]
                for column, value in condition.items():
                    assert (others[column] == value).any()


def combination(energy, slope):
    return {
        "metrics": {"generated": {"change_slope_significant:condition": slope}, "control": {}},
        "normalised": {"generated": {"energy": energy}},
    }


def record(variant, seed, energy):
    ways = {"composed": {"found": [combination(energy, 0.9)]}}
    return {"method": "compose", "variant": variant, "seed": seed, "ways": ways, "problem": "x"}


def row_of(lines, name):
    return next(line for line in lines if line.startswith(f"| {name}"))


def test_a_table_averages_over_variants_and_shows_the_range_over_seeds():
    from tables import by_variant, overall, rows

    found = rows([record(v, seed, e) for v, seed, e in [("a", 0, 0.1), ("b", 0, 0.3)]])
    row = row_of(overall(found), "compose: composed")
    assert "| 0.200 |" in row and "| 0.900 |" in row and row.endswith("| 2 |")
    found = rows(
        [
            record(v, seed, e)
            for seed, es in [(0, (0.1, 0.3)), (1, (0.2, 0.4))]
            for v, e in zip("ab", es, strict=True)
        ]
    )
    row = row_of(overall(found), "compose: composed")
    assert "0.250 (0.200 to 0.300)" in row and row.endswith("| 4 |")
    narrow = row_of(by_variant(found, "normalised:energy"), "compose: composed")
    assert "0.150 (0.100 to 0.200)" in narrow and "0.350 (0.300 to 0.400)" in narrow


def test_a_seed_that_lacks_a_held_out_set_does_not_count_in_the_mean_over_sets():
    from tables import overall, rows

    found = rows([record("a", 0, 0.1), record("b", 0, 0.3), record("a", 1, 0.9)])
    row = row_of(overall(found), "compose: composed")
    assert "| 0.200 |" in row and row.endswith("| 2 |")


def test_what_is_made_from_the_answer_wins_nothing():
    from tables import by_variant, rows

    shuffled = combination(0.2, 0.9)
    shuffled["metrics"]["gene_shuffle"] = {}
    shuffled["normalised"]["gene_shuffle"] = {"energy": 0.01}
    made = record("a", 0, 0.2) | {"ways": {"composed": {"found": [shuffled]}}}
    lines = list(by_variant(rows([made]), "normalised:energy"))
    assert "**0.200**" in row_of(lines, "compose: composed")
    assert "**" not in row_of(lines, "gene shuffle")
