import json

import numpy as np
import pytest

from save_dist.config.schema import EvaluateConfig
from save_dist.core.errors import DataError, VocabMismatchError
from save_dist.evaluation.catalogue import metric_of
from save_dist.evaluation.protocol import CellTable, evaluate

COMBINATIONS = tuple((c, t) for c in range(2) for t in range(3))
HELD_OUT = (1, 2)
GENE_NAMES = tuple(f"GENE{i}" for i in range(60))


def empty_like(table):
    return table.take(np.empty(0, dtype=np.int64))


def test_seen_and_held_out_are_apart(perfect):
    assert (perfect.seen.n_combinations, perfect.seen.n_averaged) == (5, 5)
    assert (perfect.held_out.n_combinations, perfect.held_out.n_averaged) == (1, 1)
    assert [c.group for c in perfect.combinations] == ["seen"] * 5 + ["held_out"]
    assert perfect.combinations[-1].condition == {"condition": "stim", "cell_type": "T"}


def test_every_distance_stands_beside_its_context(perfect):
    for distance in ("energy", "mmd2", "w1", "w2"):
        for candidate in (
            "generated", "floor", "marginal", "gene_shuffle", "independent_nb", "gaussian",
        ):  # fmt: skip
            assert distance in perfect.seen.metrics[candidate]
        assert distance in perfect.seen.normalised["generated"]


def test_held_out_combinations_have_all_simple_rivals(perfect):
    carried_over = {"control", "additive_shift", "similarity_shift", "nearest_seen"}
    assert carried_over | {"gaussian", "independent_nb"} <= set(perfect.held_out.metrics)
    assert not carried_over & set(perfect.seen.metrics)


def test_floor_and_marginal_are_ordered(perfect):
    for distance in ("energy", "mmd2", "w1", "w2"):
        row = {c: perfect.seen.metrics[c][distance].mean for c in ("floor", "marginal")}
        assert row["floor"] < row["marginal"]
    assert abs(perfect.seen.metrics["floor"]["energy"].mean) < 0.2


def test_generated_beats_control_and_shift_when_perfect(perfect):
    scores = {c: row["energy"].mean for c, row in perfect.held_out.normalised.items()}
    assert scores["generated"] < 0.1
    assert scores["generated"] < scores["additive_shift"]
    assert scores["generated"] < scores["control"]


def test_floor_has_the_change_of_the_condition(perfect):
    floor = perfect.seen.metrics["floor"]["change_slope:condition"]
    assert floor.mean == pytest.approx(1, abs=0.15)
    assert floor.n_combinations == 2  # stim combinations that are seen


def test_floor_has_the_change_of_the_significant_genes(perfect):
    floor = perfect.seen.metrics["floor"]
    assert floor["change_slope_significant:condition"].mean == pytest.approx(1, abs=0.15)
    ours = perfect.seen.metrics["generated"]
    assert ours["change_n_significant:condition"].mean > 5
    assert ours["change_overlap_significant:condition"].mean > 0.8


def test_independent_genes_move_with_the_condition(perfect):
    held_out = perfect.held_out.metrics
    assert held_out["independent_nb"]["change_pcc:condition"].mean > 0.5
    assert held_out["independent_nb"]["library_ratio"].mean == pytest.approx(
        held_out["control"]["library_ratio"].mean, rel=0.2
    )


def test_control_cells_have_no_change(perfect):
    assert abs(perfect.held_out.metrics["control"]["change_slope:condition"].mean) < 0.1


def test_every_metric_is_in_the_catalogue(perfect):
    names = {m for c in perfect.combinations for row in c.metrics.values() for m in row}
    assert {metric_of(name)[0].key for name in names} == {name.split(":")[0] for name in names}


def test_scores_are_json_and_the_same_every_time(perfect, world, score):
    again = score(world.table(COMBINATIONS, 100, seed=4), with_classifiers=True)
    text = json.dumps(perfect.to_json(), allow_nan=False)
    assert text == json.dumps(again.to_json(), allow_nan=False)


def test_order_of_generated_cells_of_other_combinations_does_not_matter(perfect, world, score):
    table = world.table(COMBINATIONS, 100, seed=4)
    order = np.argsort(-table.codes[:, 1], kind="stable")
    again = score(table.take(order), with_classifiers=True)
    assert json.dumps(perfect.to_json()) == json.dumps(again.to_json())


@pytest.mark.slow
def test_scores_do_not_depend_on_the_number_of_processes(perfect, world, real, conditions):
    done = []
    config = EvaluateConfig(**{**perfect.config, "n_max": 24, "min_cells": 20, "seeds": [3]})
    generated = world.table(COMBINATIONS, 100, seed=4)
    one, two = (
        evaluate(
            **real, generated=generated, conditions=conditions, gene_names=GENE_NAMES,
            config=config, n_workers=n, progress=lambda n, total: done.append((n, total)),
        )
        for n in (1, 2)
    )  # fmt: skip
    assert one.to_json() == two.to_json()
    assert done == 2 * [(i, 10) for i in range(1, 11)]


def test_flat_names_for_a_tracker(perfect):
    flat = perfect.flat()
    assert flat["seen/generated/energy_s"] == perfect.seen.normalised["generated"]["energy"].mean
    assert flat["held_out/control/w2"] == perfect.held_out.metrics["control"]["w2"].mean
    assert flat["seen/generated/label_accuracy.cell_type"] > 0.9
    energy = perfect.seen.metrics["generated"]["energy"]
    assert flat["seen/generated/energy.low"] == energy.low < energy.mean
    assert flat["seen/generated/energy.weighted"] == energy.weighted
    assert flat["seen/generated/change_slope.condition.n"] == 2
    assert "held_out/generated/energy.low" not in flat  # one combination has no interval
    assert flat["seen/n_averaged"] == 5
    assert all(np.isfinite(value) for value in flat.values())


def test_headline(perfect):
    headline = perfect.headline()
    assert headline["n_combinations"] == 6
    assert headline["seen"]["n_averaged"] == 5
    assert {"energy_s", "c2st_trees_gene", "mean_r2"} <= set(headline["held_out"])
    json.dumps(headline, allow_nan=False)


def test_small_combinations_are_listed_not_averaged(world, real, score):
    rows = real["test"].rows_by_combination()
    few = np.concatenate([r[:12] if codes == (0, 0) else r for codes, r in rows.items()])
    scores = score(world.table(COMBINATIONS, 100, seed=4), test=real["test"].take(few))
    assert (scores.seen.n_combinations, scores.seen.n_averaged) == (5, 4)
    small = scores.combinations[0]
    assert (small.n_test, small.n_used, small.is_averaged) == (12, 12, False)
    assert "energy" in small.metrics["generated"]
    assert small.normalised == {}


def test_tiny_combinations_have_counts_alone(world, real, score):
    rows = real["test"].rows_by_combination()
    few = np.concatenate([r[:3] if codes == (0, 0) else r for codes, r in rows.items()])
    scores = score(world.table(COMBINATIONS, 100, seed=4), test=real["test"].take(few))
    assert scores.combinations[0].n_test == 3
    assert scores.combinations[0].metrics == {}


def test_fewer_generated_than_real_cells(world, score):
    scores = score(world.table(COMBINATIONS, 44, seed=4))
    assert {c.n_used for c in scores.combinations} == {44}
    assert scores.seen.n_averaged == 5


def test_without_held_out_cells(world, real, score):
    scores = score(world.table(COMBINATIONS, 60, seed=4), held_out=empty_like(real["held_out"]))
    assert scores.held_out is None
    assert not scores.picture.is_held_out.any()


def test_held_out_baselines_know_nothing_of_held_out_cells(world, real, score, perfect):
    other = world.table([HELD_OUT], 80, seed=30, strength=2.0)
    scores = score(world.table(COMBINATIONS, 100, seed=4), held_out=other)
    for candidate in ("control", "additive_shift", "similarity_shift", "nearest_seen"):
        before, after = (
            s.combinations[-1].metrics[candidate]["label_accuracy:cell_type"]
            for s in (perfect, scores)
        )
        assert before == after  # of the candidate's own cells alone


def test_missing_combinations_are_named(world, score, caplog):
    scores = score(world.table([(0, 0), (1, 1)], 60, seed=4))
    assert "event=combinations_not_generated n=4" in caplog.text
    assert len(scores.combinations) == 2
    assert {"condition": "stim", "cell_type": "T"} in scores.missing
    assert len(scores.missing) == 4


def test_picture_has_equal_numbers_of_both_sides(perfect):
    picture = perfect.picture
    assert picture.points.shape == (20, 2)
    real, made = (picture.codes[picture.is_generated == side] for side in (False, True))
    assert sorted(map(tuple, real.tolist())) == sorted(map(tuple, made.tolist()))


def test_profiles_per_group(perfect):
    assert set(perfect.profiles) == {"seen", "held_out"}
    profile = perfect.profiles["seen"]
    assert np.corrcoef(profile.real.mean, profile.generated.mean)[0, 1] > 0.98


def test_remarks_say_how_the_numbers_were_made(perfect):
    text = " ".join(perfect.remarks)
    assert "PCA with 8 components fitted on 800 training cells" in text
    assert "first seed" in text
    assert "n/2" in text


def test_rivals_stand_beside_the_baselines(world, score, perfect):
    rivals = {
        "as good": world.table([HELD_OUT], 100, seed=4),
        "much too weak": world.table([HELD_OUT], 100, seed=4, strength=0.0),
    }
    scores = score(world.table(COMBINATIONS, 100, seed=4), rivals=rivals)
    found = scores.held_out.normalised
    assert found["as good"]["energy"].mean < 0.1 < found["much too weak"]["energy"].mean
    assert "as good" not in scores.seen.metrics  # it has no such cells
    ours = perfect.held_out.metrics["generated"]["energy"]
    assert scores.held_out.metrics["generated"]["energy"] == ours  # rivals change nothing


def test_nothing_to_compare_is_an_error(world, real, score):
    test = real["test"].take(real["test"].rows_by_combination()[0, 0])
    with pytest.raises(DataError, match=r"none of the 1 combinations .* was generated"):
        score(
            world.table([(1, 1)], 60, seed=4),
            test=test,
            held_out=empty_like(real["held_out"]),
        )


def test_too_few_training_cells(world, real, score):
    with pytest.raises(DataError, match=r"7 training cells are too few.*expected 50"):
        score(world.table(COMBINATIONS, 60, seed=4), train=real["train"].take(np.arange(7)))


def test_genes_that_do_not_match(world, real, score):
    table = world.table(COMBINATIONS, 60, seed=4)
    with pytest.raises(VocabMismatchError, match="different numbers of genes"):
        score(CellTable(table.counts[:, :50], table.codes))
