"""A grid that only adds extends the atlas; anything else is refused with both hashes."""

import numpy as np
import pytest
from tiny_model import CONDITIONS, SUPPORT

from save_dist.config.schema import GridConfig, OutputConfig
from save_dist.core.errors import AtlasError, ConfigError
from save_dist.generation.extension import continued
from save_dist.generation.grid import GridPlan, plan_grid, plan_grids
from save_dist.generation.rows import Segment
from save_dist.stores.facts import ModelFacts
from save_dist.vocab.conditions import ConditionVocabulary
from save_dist.vocab.genes import GeneVocabulary

OUTPUT = OutputConfig(cells_per_part=8, cells_per_chunk=4, cells_per_minibatch=4)
FACTS = ModelFacts("m", CONDITIONS, SUPPORT, GeneVocabulary(("g0", "g1")))
B = {"columns": {"cell_type": ["B"]}, "cells_per_condition": 5}
"""B ctrl, B stim: 10 rows, parts of 8 and 2."""


def plan(facts=FACTS, output=OUTPUT, **grid):
    return plan_grid(GridConfig(**grid), output, facts)


def rows(found):
    """(condition, index) of every row."""
    segments = [s for index in range(found.n_parts) for s in found.part(index).segments]
    return [(s.codes, s.first + i) for s in segments for i in range(s.n_cells)]


def test_added_conditions_stand_behind():
    before = plan(**B)
    after = continued(before, plan(**{**B, "columns": {"cell_type": ["B", "NK"]}}))
    assert rows(after)[:10] == rows(before)
    assert rows(after)[10:] == [((1, c), i) for c in (0, 1) for i in range(5)]
    assert after.history == ((10, before.hash),)
    assert (after.n_conditions, after.n_cells, after.n_parts) == (4, 20, 3)
    assert after.part(1).runs == (
        (Segment((0, 1), 3, 2),),
        (Segment((1, 0), 0, 5), Segment((1, 1), 0, 1)),
    )


def test_more_cells_of_a_condition_continue_its_indices():
    before = plan(**B)
    entries = [{"n": 5}, {"condition": {"condition": "stim"}, "n": 7}]
    after = continued(before, plan(**{**B, "cells_per_condition": entries}))
    assert rows(after)[10:] == [((0, 1), 5), ((0, 1), 6)]
    again = continued(after, plan(columns={"cell_type": ["B", "T"]}, cells_per_condition=7))
    assert rows(again)[:12] == rows(after)
    assert rows(again)[12:14] == [((0, 0), 5), ((0, 0), 6)]
    assert len(rows(again)) == len(set(rows(again))) == 28
    assert again.history == ((10, before.hash), (12, after.hash))


def test_a_recorded_extension_is_planned_again():
    after = continued(plan(**B), plan(cells_per_condition=6))
    again = GridPlan.from_json(after.to_json(), FACTS)
    assert (again.hash, again.history, rows(again)) == (after.hash, after.history, rows(after))
    assert after.hash != plan(cells_per_condition=6).hash, "rows stand in another order"
    assert sorted(rows(after)) == sorted(rows(plan(cells_per_condition=6)))


def test_the_same_grid_in_other_words_extends_nothing():
    before = plan(**B)
    assert continued(before, plan(**B)) is before
    same = plan(columns={}, exclude=[{"cell_type": "[NT]*"}], cells_per_condition=[{"n": 5}])
    assert continued(before, same) is before
    extended = continued(before, plan(cells_per_condition=5))
    assert continued(extended, plan(cells_per_condition=5)) is extended


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"columns": {"cell_type": ["NK", "T"]}}, r"2 conditions are no longer asked for.*'B'"),
        ({"cells_per_condition": 4}, r"2 conditions ask for fewer cells than before"),
        ({"seed": 1}, r"grid\.seed changed"),
        ({"guidance": {"scale": 2.0}, "solver": {"n_steps": 9}}, "guidance, grid.solver changed"),
        ({"masked": ["condition"]}, r"grid\.masked changed"),
        ({"unseen": "refuse", "exclude": [{"cell_type": "T"}]}, r"grid\.unseen changed"),
        ({"facts": ModelFacts("n", CONDITIONS, SUPPORT, FACTS.genes)}, "model is m, the present"),
        ({"output": OutputConfig(cells_per_part=16, cells_per_chunk=4)}, r"output\.cells_per_part"),
    ],
)
def test_anything_else_is_refused_with_both_hashes(change, reason):
    before, asked = plan(**B), plan(**{**B, **change})
    with pytest.raises(AtlasError, match=reason) as error:
        continued(before, asked)
    assert before.hash in str(error.value) and asked.hash in str(error.value)


def test_an_extension_keeps_the_chunks():
    """However many cells a condition has by then."""
    before = plan(**{**B, "output": OutputConfig()})
    after = continued(before, plan(cells_per_condition=1000, output=OutputConfig()))
    assert plan(cells_per_condition=1000, output=OutputConfig()).cells_per_chunk == 128
    assert after.layout().cells_per_chunk == before.layout().cells_per_chunk == 32


def test_an_extension_takes_nothing_back():
    """What was added may not be left out by the next grid."""
    after = continued(plan(**B), plan(cells_per_condition=6))
    with pytest.raises(AtlasError, match="no longer asked for"):
        continued(after, plan(**B))
    with pytest.raises(ConfigError, match="fewer cells than before"):
        plan_grids(
            [GridConfig(cells_per_condition=3), GridConfig(cells_per_condition=2)], OUTPUT, FACTS
        )


def test_a_million_conditions_may_be_added_to():
    names = tuple(tuple(f"v{i:03d}" for i in range(100)) for _ in range(3))
    facts = ModelFacts("m", ConditionVocabulary(("a", "b", "c"), names), {}, FACTS.genes)
    before = plan(facts, OutputConfig(), exclude=[{"a": "v000"}], cells_per_condition=1000)
    after = continued(before, plan(facts, OutputConfig(), cells_per_condition=1000))
    assert after.n_cells == 10**9
    assert after.part(after.n_parts - 1).segments[-1] == Segment((0, 99, 99), 0, 1000)
    assert after.rows.stretches[1].conditions.rows.dtype == np.int16
