import pytest
from tiny_model import CONDITIONS, SUPPORT

from save_dist.core.errors import ConfigError
from save_dist.generation.routes import Route, Routes, check_composable
from save_dist.vocab.conditions import ConditionVocabulary

VOCABULARY = ConditionVocabulary(
    ("drug", "time", "donor"),
    (("a", "b", "none"), ("0h", "6h"), ("x", "y")),
    reference={"drug": "none", "time": "0h"},
)
NAMES = (
    "direct",
    "drug: none -> a",
    "drug: none -> b",
    "time: 0h -> 6h",
)
# at 0h: donor x saw all drugs, donor y none of them; at 6h: donor x saw none and a
KNOWN = {
    (2, 0, 0): 50,
    (0, 0, 0): 30,
    (1, 0, 0): 8,
    (2, 0, 1): 40,
    (2, 1, 0): 20,
    (0, 1, 0): 9,
}


def routes(columns=("drug", "time"), support=KNOWN):
    return Routes(VOCABULARY, support, columns)


def test_every_route_has_a_name():
    assert routes().names == NAMES
    assert routes(("time",)).names == ("direct", "time: 0h -> 6h")
    assert routes(()).names == ("direct",)


@pytest.mark.parametrize(
    ("codes", "name", "start", "n_cells"),
    [
        pytest.param((0, 0, 0), "direct", (0, 0, 0), 30, id="seen"),
        pytest.param((0, 0, 1), "drug: none -> a", (2, 0, 1), 40, id="from its control"),
        pytest.param((1, 1, 0), "drug: none -> b", (2, 1, 0), 20, id="better supported of two"),
        pytest.param((2, 1, 1), "time: 0h -> 6h", (2, 0, 1), 40, id="the other column"),
        pytest.param((0, 1, 1), "direct", (0, 1, 1), 0, id="two steps away"),
        pytest.param((3, 0, 1), "direct", (3, 0, 1), 40, id="masked drug, seen"),
        pytest.param((3, 1, 1), "time: 0h -> 6h", (3, 0, 1), 40, id="masked drug"),
        pytest.param((0, 0, 2), "direct", (0, 0, 2), 30, id="masked donor, seen"),
        pytest.param((1, 1, 2), "drug: none -> b", (2, 1, 2), 20, id="masked donor"),
    ],
)
def test_route_of_a_combination(codes, name, start, n_cells):
    table = routes()
    route = table.of(codes)
    assert table.names[route.number] == name
    assert (route.start, route.n_start_cells) == (start, n_cells)
    assert route.is_composed == (name != "direct")
    if route.is_composed:
        assert VOCABULARY.columns[route.column] == name.split(":")[0]


def test_the_nearest_neighbour_has_most_cells():
    few = {**KNOWN, (2, 1, 0): 5}
    assert routes(support=few).of((1, 1, 0)).start == (1, 0, 0)


def test_a_value_no_pair_showed_is_not_carried_to():
    """A drug seen in a donor without control cells trained nothing."""
    support = {(2, 0, 0): 50, (0, 0, 1): 30}
    assert routes(("drug",), support).of((0, 0, 0)) == Route(0, (0, 0, 0), None, 0)


def test_without_columns_everything_goes_direct():
    assert routes(()).of((0, 0, 1)) == Route(0, (0, 0, 1), None, 0)


@pytest.mark.parametrize(
    ("start", "target", "number"),
    [
        pytest.param((2, 0, 0), (0, 0, 0), 1, id="to a seen one"),
        pytest.param((2, 0, 1), (1, 0, 1), 2, id="to an unseen one"),
        pytest.param((2, 1, 1), (1, 1, 1), 2, id="from an unseen one"),
        pytest.param((0, 0, 0), (1, 0, 0), None, id="not at the reference"),
        pytest.param((2, 0, 0), (2, 0, 1), None, id="no transport of this column"),
        pytest.param((2, 0, 0), (0, 1, 0), None, id="two columns"),
        pytest.param((2, 0, 0), (2, 0, 0), None, id="no change"),
    ],
)
def test_between(start, target, number):
    route = routes().between(start, target)
    assert (None if route is None else route.number) == number


def test_composing_without_a_transport_says_what_to_train():
    with pytest.raises(
        ConfigError, match=r"asked, but .*training\.stages: \[vae, flow, transport\]"
    ):
        check_composable((), "asked")
    check_composable(("drug",), "asked")


def test_tiny_model_is_composed_from_its_control():
    table = Routes(CONDITIONS, SUPPORT, ("condition",))
    assert table.of((2, 1)) == Route(1, (2, 0), 1, 5)
    assert list(table.composed()) == [(2, 1)]


def test_routes_of_a_large_grid():
    names = tuple(f"v{i:05d}" for i in range(10_000))
    vocabulary = ConditionVocabulary(("a", "b"), (names, ("ctrl", "stim")), {"b": "ctrl"})
    support = {(i, 0): 10 for i in range(10_000)} | {(i, 1): 10 for i in range(0, 10_000, 2)}
    table = Routes(vocabulary, support, ("b",))
    assert all(table.of((i, 1)).start == (i, i % 2 == 0) for i in range(10_000))
