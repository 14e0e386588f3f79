"""Scores -> plain sentences: what was won, what was lost, what cannot be said."""

from dataclasses import dataclass

from save_dist.evaluation import catalogue
from save_dist.evaluation.scores import Average, GroupScores

GROUP_TITLES = {catalogue.SEEN: "Seen combinations", catalogue.HELD_OUT: "Held-out combinations"}

LEVEL = 0.02
"""Difference in the energy score below which two methods count as level."""


_TOLD_APART = (
    (0.55, "cannot tell them from real cells"),
    (0.7, "finds small differences"),
    (0.9, "tells them from real cells clearly"),
    (float("inf"), "tells nearly every one from a real cell"),
)


@dataclass(frozen=True)
class Comparison:
    """The model beside one rival, by the normalised energy distance.

    Args:
        rival: key of the baseline.
        ours: score of the model.
        theirs: score of the rival.
        outcome: `better`, `level` or `worse`, from the model's point of view.
    """

    rival: str
    ours: float
    theirs: float
    outcome: str


RIVALS = {
    catalogue.SEEN: (catalogue.SHUFFLE, catalogue.INDEPENDENT, catalogue.GAUSSIAN),
    catalogue.HELD_OUT: (
        catalogue.CONTROL,
        catalogue.ADDITIVE,
        catalogue.SIMILARITY,
        catalogue.NEAREST,
        catalogue.INDEPENDENT,
        catalogue.GAUSSIAN,
    ),
}
"""Baselines that know no more than the model did; others are yardsticks."""


def comparisons(group: GroupScores, name: str) -> list[Comparison]:
    """The model beside every rival that was scored; `name` is that of the group."""
    ours = score_of(group, catalogue.GENERATED)
    if ours is None:
        return []
    found = []
    for rival in RIVALS[name]:
        theirs = score_of(group, rival)
        if theirs is not None:
            gap = ours.mean - theirs.mean
            outcome = "level" if abs(gap) < LEVEL else ("better" if gap < 0 else "worse")
            found.append(Comparison(rival, ours.mean, theirs.mean, outcome))
    return found


def score_of(group: GroupScores, candidate: str, distance: str = "energy") -> Average | None:
    """Normalised score of a candidate; None if it was not measured."""
    return group.normalised.get(candidate, {}).get(distance)


@dataclass(frozen=True)
class Sentence:
    """One statement; `kind` is score, better, level, worse, auc or none."""

    kind: str
    text: str


def sentences(group: GroupScores, name: str) -> list[Sentence]:
    """What there is to say about the averages of a group."""
    ours = score_of(group, catalogue.GENERATED)
    if group.n_averaged == 0:
        text = (
            f"None of the {group.n_combinations} combinations has enough cells for an average; "
            "single figures stand in the list of combinations."
        )
        return [Sentence("none", text)]
    if ours is None:
        text = (
            "Random real cells are no further away than the other half of the test cells, so "
            "there is nothing to normalise by; read the raw distances."
        )
        return [Sentence("none", text), *_told_apart(group)]
    text = (
        f"Energy score {ours.mean:.3f}{interval(ours)} over {_combinations(ours.n_combinations)}: "
        "0 is as close as other real cells, 1 is no better than ignoring the condition."
    )
    return [Sentence("score", text), *_against(group, name), *_told_apart(group)]


def interval(average: Average) -> str:
    """The 95% interval in brackets; nothing for a single combination."""
    if average.low is None or average.high is None:
        return ""
    return f" [{average.low:.3f}, {average.high:.3f}]"


def _against(group: GroupScores, name: str) -> list[Sentence]:
    words = {"better": "Better than", "level": "Level with", "worse": "Worse than"}
    found = []
    for outcome, word in words.items():
        rivals = [
            f"{_name(c.rival)} ({c.theirs:.3f})"
            for c in comparisons(group, name)
            if c.outcome == outcome
        ]
        if rivals:
            found.append(Sentence(outcome, f"{word} {', '.join(rivals)}."))
    return found


def _told_apart(group: GroupScores) -> list[Sentence]:
    row = group.metrics.get(catalogue.GENERATED, {})
    aucs = [row[key].mean for key in row if key.startswith("c2st_")]
    if not aucs:
        return []
    worst = max(aucs)
    how = next(words for limit, words in _TOLD_APART if worst < limit)
    text = f"The best of {len(aucs)} classifiers {how} (AUC {worst:.2f}; 0.5 is chance)."
    return [Sentence("auc", text)]


def _name(candidate: str) -> str:
    title = catalogue.CANDIDATES[candidate][0]
    return title if title.startswith("Gaussian") else title[0].lower() + title[1:]


def _combinations(n: int) -> str:
    return "one combination" if n == 1 else f"{n} combinations"
