"""Routes against their definition, for any set of seen combinations."""

import itertools

from hypothesis import given
from hypothesis import strategies as st

from save_dist.generation.routes import Routes
from save_dist.vocab.conditions import ConditionVocabulary

VOCABULARY = ConditionVocabulary(
    ("a", "b", "c"),
    (("a0", "a1", "a2"), ("b0", "b1"), ("c0", "c1", "c2", "c3")),
    reference={"a": "a1", "b": "b0"},
)
REFERENCE = {0: 1, 1: 0}
COMBINATIONS = list(itertools.product(range(3), range(2), range(4)))

supports = st.dictionaries(st.sampled_from(COMBINATIONS), st.integers(1, 99))
columns = st.sampled_from([(), ("a",), ("b",), ("a", "b")])


def differing(x, y):
    return [i for i, (p, q) in enumerate(zip(x, y, strict=True)) if p != q]


def controls_of(codes, support, names):
    """Seen combinations that differ in one transported column, at its reference, and its trained
    values."""
    positions = [VOCABULARY.columns.index(name) for name in names]
    trained = {
        (d[0], y[d[0]])
        for x, y in itertools.product(support, support)
        if len(d := differing(x, y)) == 1 and x[d[0]] == REFERENCE.get(d[0])
    }
    return [
        x
        for x in support
        if len(d := differing(x, codes)) == 1
        and d[0] in positions
        and x[d[0]] == REFERENCE[d[0]]
        and (d[0], codes[d[0]]) in trained
    ]


@given(support=supports, names=columns)
def test_unseen_combinations_start_at_their_best_supported_control(support, names):
    routes = Routes(VOCABULARY, support, names)
    for codes in COMBINATIONS:
        route = routes.of(codes)
        controls = [] if codes in support else controls_of(codes, support, names)
        assert route.is_composed == bool(controls)
        assert route.n_start_cells == support.get(route.start, 0)
        if controls:
            assert route.start in controls
            assert route.n_start_cells == max(support[control] for control in controls)
            assert differing(route.start, codes) == [route.column]
        else:
            assert route.start == codes and route.number == 0


@given(support=supports, names=columns)
def test_composed_lists_each_combination_with_a_way_once(support, names):
    routes = Routes(VOCABULARY, support, names)
    found = list(routes.composed())
    assert sorted(found) == [codes for codes in COMBINATIONS if routes.of(codes).is_composed]


@given(support=supports, names=columns)
def test_numbers_name_what_changes(support, names):
    routes = Routes(VOCABULARY, support, names)
    for codes in COMBINATIONS:
        route = routes.of(codes)
        if route.is_composed:
            column = VOCABULARY.columns[route.column]
            values = VOCABULARY.categories[route.column]
            change = f"{VOCABULARY.reference[column]} -> {values[codes[route.column]]}"
            assert routes.names[route.number] == f"{column}: {change}"
