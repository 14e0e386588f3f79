import tracemalloc

import numpy as np
import pytest
from tiny_model import CONDITIONS, SUPPORT

from save_dist.config.schema import GridConfig, GuidanceConfig, OutputConfig
from save_dist.core.errors import AtlasError, ConfigError
from save_dist.generation import combinations
from save_dist.generation.combinations import Listed, Product
from save_dist.generation.grid import GridPlan, plan_grid
from save_dist.generation.rows import Segment
from save_dist.generation.tables import settle
from save_dist.stores.facts import ModelFacts
from save_dist.vocab.conditions import ConditionVocabulary
from save_dist.vocab.genes import GeneVocabulary

GENES = GeneVocabulary(("g0", "g1"))
OUTPUT = OutputConfig(cells_per_part=8, cells_per_chunk=4, cells_per_minibatch=4)


def plan(grid=None, output=OUTPUT, vocabulary=CONDITIONS, support=SUPPORT, model="m", columns=()):
    facts = ModelFacts(model, vocabulary, support, GENES, columns)
    return plan_grid(settle(grid or GridConfig(), facts), output, facts)


def rows(found):
    numbers = np.arange(found.n_conditions, dtype=np.int64)
    return [tuple(row) for row in found.conditions.codes(numbers).tolist()]


ALL = [(0, 0), (0, 1), (1, 0), (1, 1), (2, 0), (2, 1)]


@pytest.mark.parametrize(
    ("grid", "expected"),
    [
        pytest.param({}, ALL, id="all by default"),
        pytest.param({"columns": {"cell_type": "all"}}, ALL, id="all named"),
        pytest.param(
            {"columns": {"cell_type": ["T", "B"]}}, [ALL[i] for i in (0, 1, 4, 5)], id="list"
        ),
        pytest.param({"columns": {"cell_type": ["B", "B"]}}, ALL[:2], id="a value twice"),
        pytest.param({"exclude": [{"condition": "stim"}]}, ALL[::2], id="exclude a value"),
        pytest.param(
            {"exclude": [{"condition": "stim", "cell_type": "T"}]}, ALL[:5], id="exclude one"
        ),
        pytest.param(
            {"columns": {"cell_type": ["B"]}, "include": [{"cell_type": "T", "condition": "stim"}]},
            [(0, 0), (0, 1), (2, 1)],
            id="include one",
        ),
        pytest.param(
            {"columns": {"cell_type": []}, "include": [{"condition": "stim"}]},
            ALL[1::2],
            id="include alone, a missing column stands for all",
        ),
        pytest.param(
            {"exclude": [{"cell_type": "T"}], "include": [{"cell_type": "T", "condition": "ctrl"}]},
            ALL[:5],
            id="include after exclude",
        ),
        pytest.param({"include": [{"cell_type": "B"}]}, ALL, id="include what is there"),
    ],
)
def test_conditions_of_a_grid(grid, expected):
    assert rows(plan(GridConfig(**grid))) == expected


def test_a_plain_product_is_not_listed():
    assert isinstance(plan().conditions, Product)
    assert isinstance(plan(GridConfig(exclude=[{"cell_type": "T"}])).conditions, Listed)


@pytest.mark.parametrize(
    ("grid", "message"),
    [
        (
            {"columns": {"tissue": "all"}},
            r"grid\.columns: unknown condition column 'tissue'.*cell_",
        ),
        ({"columns": {"cell_type": ["B", "X"]}}, r"knows no cell_type 'X'; known values: B, NK, T"),
        ({"include": [{"tissue": "a"}]}, r"grid\.include: unknown condition column 'tissue'"),
        ({"include": [{"cell_type": "X"}]}, r"grid\.include: the model knows no cell_type 'X'"),
        ({"exclude": [{"condition": "x"}]}, r"grid\.exclude: .* no condition 'x'.*ctrl, stim"),
        ({"columns": {"cell_type": []}}, r"the grid is empty: .*name at least one"),
        ({"exclude": [{"condition": "ctrl"}, {"condition": "stim"}]}, r"the grid is empty"),
        (
            {"guidance": GuidanceConfig(columns={"tissue": 2.0})},
            r"grid\.guidance\.columns: unknown condition column 'tissue'",
        ),
        (
            {"unseen": "refuse"},
            r"1 of 6 combinations were never trained on.*'T', 'condition': 'stim'.*unseen=direct",
        ),
    ],
)
def test_what_cannot_be_planned(grid, message):
    with pytest.raises(ConfigError, match=message):
        plan(GridConfig(**grid))


def test_composing_needs_a_transport():
    with pytest.raises(ConfigError, match=r"grid\.unseen=compose, but .* no transport; train one"):
        plan(GridConfig(unseen="compose"))


COMPOSED = GridConfig(unseen="compose")


def test_a_composed_plan_knows_its_routes():
    found = plan(COMPOSED, columns=("condition",))
    assert found.layout().routes == ("direct", "condition: ctrl -> stim")
    assert found.layout().about["compose"]["blend"] == 0.5
    assert [found.routes.of(row).number for row in rows(found)] == [0, 0, 0, 0, 0, 1]
    summary = found.summary()
    assert (summary.n_unseen, summary.n_composed) == (1, 1)
    again = GridPlan.from_json(found.to_json(), found.model)
    assert again.hash == found.hash


def test_a_direct_plan_ignores_the_transport():
    found = plan(columns=("condition",))
    assert found.hash == plan().hash
    assert found.layout().routes == ("direct",)
    assert found.summary().n_composed == 0


@pytest.mark.parametrize(
    "grid",
    [
        pytest.param(GridConfig(), id="direct"),
        pytest.param(GridConfig(unseen="compose", compose={"anchor": False}), id="no anchor"),
        pytest.param(GridConfig(unseen="compose", compose={"blend": 0}), id="no matching"),
        pytest.param(GridConfig(unseen="compose", compose={"n_cells": 99}), id="fewer cells"),
    ],
)
def test_how_unseen_cells_come_about_is_in_the_hash(grid):
    columns = ("condition",)
    assert plan(grid, columns=columns).hash != plan(COMPOSED, columns=columns).hash


def test_refusal_names_five_and_says_there_are_more():
    with pytest.raises(ConfigError, match=r"6 of 6 combinations") as error:
        plan(GridConfig(unseen="refuse"), support={})
    assert str(error.value).count("cell_type") == 5
    assert " ...; exclude" in str(error.value)
    seen = GridConfig(unseen="refuse", exclude=[{"cell_type": "T", "condition": "stim"}])
    assert plan(seen).n_conditions == 5


@pytest.mark.parametrize("name", ["seen", "part", "route", "n_route_cells", "tissue/organ"])
def test_a_condition_named_like_an_atlas_column_is_refused(name):
    vocabulary = ConditionVocabulary((name,), (("a",),))
    with pytest.raises(ConfigError, match=f"condition column '{name}' cannot be a column"):
        plan(vocabulary=vocabulary, support={})


def test_a_grid_too_large_is_refused(monkeypatch):
    monkeypatch.setattr(combinations, "MAX_LISTED", 5)
    assert plan().n_conditions == 6
    with pytest.raises(ConfigError, match=r"asks for 6 combinations, at most 5 are possible"):
        plan(GridConfig(exclude=[{"cell_type": "T"}]))
    monkeypatch.setattr(combinations, "MAX_CONDITIONS", 5)
    with pytest.raises(ConfigError, match="at most 5"):
        plan()


def test_parts_are_cut_where_the_condition_changes():
    found = plan(GridConfig(cells_per_condition=5))
    assert (found.n_cells, found.n_parts) == (30, 4)
    assert found.part(0).segments == (Segment(ALL[0], 0, 5), Segment(ALL[1], 0, 3))
    assert found.part(1).segments == (
        Segment(ALL[1], 3, 2),
        Segment(ALL[2], 0, 5),
        Segment(ALL[3], 0, 1),
    )
    last = found.part(3)
    assert (last.start, last.n_cells, last.segments) == (
        24,
        6,
        (Segment(ALL[4], 4, 1), Segment(ALL[5], 0, 5)),
    )
    assert found.n_cells_in([0, 3]) == 14


def test_summary():
    found = plan(GridConfig(cells_per_condition=5)).summary()
    assert (found.n_conditions, found.n_seen, found.n_unseen) == (6, 5, 1)
    assert (found.n_cells, found.n_parts) == (30, 4)
    assert found.bytes_estimate > 0
    listed = plan(GridConfig(exclude=[{"cell_type": "B"}])).summary()
    assert (listed.n_seen, listed.n_unseen) == (3, 1)


BASE = plan().hash
RENAMED = ConditionVocabulary(CONDITIONS.columns, (("B", "NK", "U"), ("ctrl", "stim")))


@pytest.mark.parametrize(
    "changed",
    [
        pytest.param(lambda: plan(model="n"), id="model"),
        pytest.param(lambda: plan(GridConfig(seed=1)), id="seed"),
        pytest.param(lambda: plan(GridConfig(cells_per_condition=7)), id="cells per condition"),
        pytest.param(lambda: plan(GridConfig(exclude=[{"cell_type": "B"}])), id="conditions"),
        pytest.param(lambda: plan(GridConfig(solver={"n_steps": 9})), id="solver"),
        pytest.param(lambda: plan(GridConfig(guidance={"scale": 2})), id="guidance"),
        pytest.param(
            lambda: plan(output=OutputConfig(cells_per_part=16, cells_per_chunk=4)), id="parts"
        ),
        pytest.param(lambda: plan(vocabulary=RENAMED), id="names"),
    ],
)
def test_whatever_changes_a_cell_or_its_place_changes_the_hash(changed):
    assert changed().hash != BASE


def test_equal_requests_have_equal_hashes():
    assert plan().hash == BASE


def test_a_recorded_plan_is_planned_again():
    found = plan(GridConfig(exclude=[{"cell_type": "B"}], cells_per_condition=3))
    again = GridPlan.from_json(found.to_json(), found.model)
    assert again.hash == found.hash
    assert again.part(0) == found.part(0)
    with pytest.raises(AtlasError, match=f"has hash {found.hash}.*begun with another model"):
        GridPlan.from_json(found.to_json(), ModelFacts("m", RENAMED, SUPPORT, GENES))


def test_the_layout_carries_names_and_request():
    vocabulary = ConditionVocabulary(
        CONDITIONS.columns, CONDITIONS.categories, notes={"cell_type": "marker-derived"}
    )
    layout = plan(vocabulary=vocabulary).layout()
    assert layout.categories == {"cell_type": ("B", "NK", "T"), "condition": ("ctrl", "stim")}
    assert layout.gene_ids == ("g0", "g1")
    assert layout.about["label_origin"] == {"cell_type": "marker-derived"}
    assert layout.about["solver"]["method"] == "midpoint"
    assert layout.n_cells == 6000


def test_a_billion_cells_are_planned_in_little_memory():
    names = tuple(tuple(f"v{i:03d}" for i in range(100)) for _ in range(3))
    vocabulary = ConditionVocabulary(("a", "b", "c"), names)
    support = {(i, i, j): 7 for i in range(100) for j in range(100)}
    grid, output = GridConfig(cells_per_condition=1000), OutputConfig()
    tracemalloc.start()
    found = plan(grid, output, vocabulary, support)
    n_cells = at = 0
    for index in range(0, found.n_parts, 100):
        part = found.part(index)
        n_cells += sum(segment.n_cells for segment in part.segments)
        assert part.start >= at
        at = part.start
    last = found.part(found.n_parts - 1)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert found.n_cells == 10**9
    assert last.start + last.n_cells == 10**9
    assert found.conditions.codes(np.array([123_456])).tolist() == [[12, 34, 56]]
    assert found.summary().n_seen == 10_000
    assert peak < 20e6


def test_a_million_conditions_may_be_listed():
    names = tuple(tuple(f"v{i:03d}" for i in range(100)) for _ in range(3))
    vocabulary = ConditionVocabulary(("a", "b", "c"), names)
    grid = GridConfig(cells_per_condition=1000, exclude=[{"a": "v000"}, {"b": "v001", "c": "v002"}])
    found = plan(grid, OutputConfig(), vocabulary, {})
    assert found.n_conditions == 99 * (10_000 - 1)
    assert found.part(found.n_parts - 1).segments[-1].codes == (99, 99, 99)
    assert found.conditions.rows.dtype == np.int16


@pytest.mark.parametrize(
    ("n_cells", "expected"),
    [(1, 32), (64, 32), (127, 32), (128, 64), (255, 64), (256, 128), (10_000, 128)],
)
def test_chunks_are_at_most_half_a_condition(n_cells, expected):
    found = plan(GridConfig(cells_per_condition=n_cells), OutputConfig())
    assert found.layout().cells_per_chunk == found.cells_per_chunk == expected
    if n_cells < 64:
        return
    starts = np.arange(expected)  # every way in which a condition may lie in its chunks
    touched = (-(-(starts + n_cells) // expected)) * expected
    assert touched.max() <= 2 * n_cells


def test_chunks_follow_the_mean_condition_unless_they_are_set():
    cells = [{"n": 300}, {"condition": {"cell_type": "T"}, "n": 30}]  # 4 of 300, 2 of 30: 210
    assert plan(GridConfig(cells_per_condition=cells), OutputConfig()).cells_per_chunk == 64
    fixed = OutputConfig(cells_per_chunk=16)
    assert plan(GridConfig(cells_per_condition=cells), fixed).cells_per_chunk == 16
