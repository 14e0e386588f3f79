import numpy as np
import pytest

from save_dist.config.schema import EvaluateConfig
from save_dist.evaluation import classify
from save_dist.evaluation.discrimination import own_place
from save_dist.evaluation.protocol import CellTable, evaluate
from save_dist.vocab.conditions import ConditionVocabulary

REAL = np.eye(4, dtype=np.float32)
DRUGS = ("ctrl", "d1", "d2", "d3", "d4")


@pytest.mark.parametrize(
    ("predicted", "own", "expected"),
    [
        pytest.param(REAL[2], 2, 1, id="itself"),
        pytest.param(0.2 * REAL[2], 2, 1, id="weak but right"),
        pytest.param(REAL[1], 2, 1 - (1 + 1) / 3, id="another one, the rest level"),
        pytest.param(np.zeros(4), 2, 0.5, id="no change at all"),
        pytest.param(REAL[0] + REAL[1] + REAL[3], 2, 0, id="all others"),
        pytest.param(np.array([3, 2, 1, 0]), 1, 1 - 1 / 3, id="second"),
    ],
)
def test_place_of_the_own_target(predicted, own, expected):
    assert own_place(np.asarray(predicted, dtype=np.float64), REAL, own) == pytest.approx(expected)


def test_random_predictions_are_at_chance():
    rng = np.random.default_rng(0)
    real = rng.normal(size=(9, 30)).astype(np.float32)
    places = [own_place(rng.normal(size=30), real, i % 9) for i in range(900)]
    assert np.mean(places) == pytest.approx(0.5, abs=0.05)


def drug_cells(drugs, n, seed, shown=None):
    """Counts of cells under each drug; `shown` maps a drug to the one whose effect it has."""
    effects = (
        np.random.default_rng(9).normal(0, 0.8, (len(DRUGS), 40)) * (np.arange(5) > 0)[:, None]
    )
    rng = np.random.default_rng(seed)
    means = [np.exp(1 + effects[(shown or {}).get(d, d)]) for d in drugs]
    counts = np.concatenate([rng.poisson(mean, (n, 40)) for mean in means]).astype(np.uint16)
    return CellTable(counts, np.repeat(np.array(drugs, dtype=np.int16), n)[:, None])


def scored(generated, drugs=range(5)):
    table = {name: drug_cells(drugs, 40, seed) for seed, name in enumerate(("train", "test"))}
    nothing = table["test"].take(np.empty(0, dtype=np.int64))
    conditions = ConditionVocabulary(("drug",), (DRUGS,), reference={"drug": "ctrl"})
    config = EvaluateConfig(n_max=30, min_cells=20, seeds=[0], n_components=4, umap_cells=8)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(classify, "MIN_CELLS", 10**9)
        scores = evaluate(
            **table, held_out=nothing, generated=generated, conditions=conditions,
            gene_names=[f"g{i}" for i in range(40)], config=config,
        )  # fmt: skip
    return scores.seen.metrics


def test_every_target_is_recognised():
    found = scored(drug_cells(range(5), 40, 7))
    for candidate in ("generated", "floor", "gene_shuffle", "independent_nb"):
        assert found[candidate]["change_discrimination:drug"].mean == 1
    assert found["generated"]["change_discrimination:drug"].n_combinations == 4
    assert "change_discrimination:drug" not in found["gaussian"]  # has no genes


def test_mixed_up_targets_are_seen():
    mixed = drug_cells(range(5), 40, 7, shown={1: 2, 2: 1, 3: 4, 4: 3})
    assert scored(mixed)["generated"]["change_discrimination:drug"].mean < 0.7


def test_two_targets_have_no_order():
    found = scored(drug_cells(range(3), 40, 7), drugs=range(3))
    assert "change_slope:drug" in found["generated"]
    assert not any(name.startswith("change_discrimination") for name in found["generated"])
