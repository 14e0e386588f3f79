"""Planner against brute force: every cell of the declared grid stands in exactly one row."""

import itertools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from save_dist.config.schema import GridConfig, OutputConfig
from save_dist.core.errors import ConfigError
from save_dist.generation.grid import plan_grid
from save_dist.stores.facts import ModelFacts
from save_dist.vocab.conditions import ConditionVocabulary
from save_dist.vocab.genes import GeneVocabulary

VOCABULARY = ConditionVocabulary(
    ("a", "b", "c"), (("a0", "a1", "a2"), ("b0", "b1"), ("c0", "c1", "c2", "c3"))
)
GENES = GeneVocabulary(("g",))
VALUES = dict(zip(VOCABULARY.columns, VOCABULARY.categories, strict=True))

patterns = st.fixed_dictionaries({}, optional={c: st.sampled_from(v) for c, v in VALUES.items()})
grids = st.builds(
    GridConfig,
    columns=st.fixed_dictionaries(
        {}, optional={c: st.just("all") | st.lists(st.sampled_from(v)) for c, v in VALUES.items()}
    ),
    include=st.lists(patterns, max_size=2),
    exclude=st.lists(patterns, max_size=2),
    cells_per_condition=st.integers(1, 30),
)
outputs = st.builds(
    lambda chunk, n_chunks: OutputConfig(cells_per_chunk=chunk, cells_per_part=chunk * n_chunks),
    st.integers(1, 9),
    st.integers(1, 9),
)


def matches(condition, pattern):
    return all(condition[column] == value for column, value in pattern.items())


def brute_force(grid):
    """Conditions of the grid in the order of their names, from the definition."""
    wanted = {
        c: v if grid.columns.get(c, "all") == "all" else grid.columns[c] for c, v in VALUES.items()
    }
    found = []
    for values in itertools.product(*VALUES.values()):
        condition = dict(zip(VALUES, values, strict=True))
        in_product = all(condition[c] in wanted[c] for c in VALUES)
        is_excluded = any(matches(condition, p) for p in grid.exclude)
        is_included = any(matches(condition, p) for p in grid.include)
        if (in_product and not is_excluded) or is_included:
            found.append(condition)
    return found


@settings(deadline=None)
@given(grid=grids, output=outputs)
def test_rows_are_the_cells_of_the_grid_in_order(grid, output):
    expected = brute_force(grid)
    if not expected:
        with pytest.raises(ConfigError, match="the grid is empty"):
            plan_grid(grid, output, ModelFacts("m", VOCABULARY, {}, GENES))
        return
    plan = plan_grid(grid, output, ModelFacts("m", VOCABULARY, {}, GENES))
    rows = []
    for index in range(plan.n_parts):
        part = plan.part(index)
        assert part.start == len(rows) == index * output.cells_per_part
        for segment in part.segments:
            condition = VOCABULARY.decode_one(segment.codes)
            rows += [(condition, segment.first + i) for i in range(segment.n_cells)]
        assert len(rows) == part.start + part.n_cells
    n = grid.cells_per_condition
    assert rows == [(condition, i) for condition in expected for i in range(n)]
    assert plan.n_cells == len(rows)


@given(
    grid=grids, support=st.sets(st.tuples(st.integers(0, 2), st.integers(0, 1), st.integers(0, 3)))
)
def test_seen_and_unseen_add_up(grid, support):
    expected = brute_force(grid)
    if not expected:
        return
    plan = plan_grid(
        grid, OutputConfig(), ModelFacts("m", VOCABULARY, dict.fromkeys(support, 3), GENES)
    )
    n_seen = sum(VOCABULARY.encode_one(condition) in support for condition in expected)
    summary = plan.summary()
    assert (summary.n_seen, summary.n_unseen) == (n_seen, len(expected) - n_seen)


entries = st.lists(st.fixed_dictionaries({"condition": patterns, "n": st.integers(1, 9)}))


@settings(deadline=None)
@given(
    grid=grids.filter(lambda grid: brute_force(grid) != []),
    entries=entries,
    otherwise=st.integers(1, 5),
    output=outputs,
)
def test_rows_follow_the_last_entry_that_matches(grid, entries, otherwise, output):
    conditions = brute_force(grid)
    entries = [e for e in entries if any(matches(c, e["condition"]) for c in conditions)]
    values = {**grid.model_dump(), "cells_per_condition": entries, "cells_otherwise": otherwise}
    plan = plan_grid(
        GridConfig.model_validate(values), output, ModelFacts("m", VOCABULARY, {}, GENES)
    )
    wanted = [
        next((e["n"] for e in reversed(entries) if matches(c, e["condition"])), otherwise)
        for c in conditions
    ]
    rows = [
        (VOCABULARY.decode_one(segment.codes), segment.first + i)
        for index in range(plan.n_parts)
        for segment in plan.part(index).segments
        for i in range(segment.n_cells)
    ]
    assert rows == [(c, i) for c, n in zip(conditions, wanted, strict=True) for i in range(n)]
    assert plan.n_cells == sum(wanted)
