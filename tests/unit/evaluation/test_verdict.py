import re
from dataclasses import replace

import pytest

from save_dist.evaluation.scores import Average, GroupScores
from save_dist.evaluation.verdict import comparisons, interval, sentences


def average(mean, low=None, high=None, n=3):
    return Average(mean=mean, low=low, high=high, weighted=mean, n_combinations=n)


def group(scores, aucs=(), n_averaged=3):
    return GroupScores(
        n_combinations=5,
        n_averaged=n_averaged,
        metrics={"generated": {f"c2st_{i}": average(a) for i, a in enumerate(aucs)}},
        normalised={c: {"energy": average(v)} for c, v in scores.items()},
        pooled={},
    )


def test_outcome_for_every_rival():
    found = comparisons(
        group({"generated": 0.2, "control": 0.9, "additive_shift": 0.21, "nearest_seen": 0.1}),
        "held_out",
    )
    assert {c.rival: c.outcome for c in found} == {
        "control": "better", "additive_shift": "level", "nearest_seen": "worse",
    }  # fmt: skip


def test_yardsticks_are_no_rivals():
    scores = {"generated": 0.2, "gene_shuffle": 0.0}
    assert comparisons(group(scores), "held_out") == []
    assert [c.outcome for c in comparisons(group(scores), "seen")] == ["worse"]


def test_losses_are_said_plainly():
    said = sentences(group({"generated": 0.5, "similarity_shift": 0.2, "control": 0.9}), "held_out")
    by_kind = {s.kind: s.text for s in said}
    assert by_kind["worse"] == "Worse than similarity-weighted shift (0.200)."
    assert by_kind["better"] == "Better than control cells (0.900)."


@pytest.mark.parametrize(
    ("aucs", "says"),
    [
        pytest.param((0.5, 0.52), r"best of 2 classifiers cannot tell.*AUC 0.52", id="chance"),
        pytest.param((0.5, 0.65), "finds small differences", id="small"),
        pytest.param((0.8, 0.65), "tells them from real cells clearly", id="clear"),
        pytest.param((0.8, 0.99), "nearly every one", id="all"),
    ],
)
def test_worst_classifier_is_quoted(aucs, says):
    said = sentences(group({"generated": 0.1}, aucs), "seen")[-1]
    assert said.kind == "auc"
    assert re.search(says, said.text)


def test_nothing_averaged_is_said():
    (said,) = sentences(group({}, n_averaged=0), "seen")
    assert "None of the 5 combinations has enough cells" in said.text


def test_no_score_is_said():
    said = sentences(group({}, aucs=(0.6,)), "seen")
    assert "nothing to normalise by" in said[0].text
    assert said[1].kind == "auc"


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        pytest.param(average(0.5, 0.1, 0.9), " [0.100, 0.900]", id="interval"),
        pytest.param(average(0.5), "", id="one combination"),
    ],
)
def test_interval(given, expected):
    assert interval(given) == expected


def test_single_combination_in_words():
    alone = group({"generated": 0.1})
    alone = replace(alone, normalised={"generated": {"energy": average(0.1, n=1)}})
    assert "over one combination" in sentences(alone, "seen")[0].text
