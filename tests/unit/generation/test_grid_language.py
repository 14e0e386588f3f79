"""Patterns, files, cells per condition, masked columns, minimum support."""

import tracemalloc

import numpy as np
import pandas as pd
import pytest
from tiny_model import CONDITIONS, SUPPORT

from save_dist.config.load import parse
from save_dist.config.schema import GridConfig, OutputConfig
from save_dist.core.errors import ConfigError
from save_dist.generation.amounts import Even, Uneven
from save_dist.generation.combinations import all_codes
from save_dist.generation.grid import GridPlan, plan_grid
from save_dist.generation.rows import Segment
from save_dist.generation.tables import cell_table, settle
from save_dist.stores.facts import ModelFacts
from save_dist.vocab.conditions import ConditionVocabulary
from save_dist.vocab.genes import GeneVocabulary

GENES = GeneVocabulary(("g0", "g1"))
OUTPUT = OutputConfig(cells_per_part=8, cells_per_chunk=4, cells_per_minibatch=4)
TYPES = ConditionVocabulary(("t",), (("B", "CD4 T", "CD8 T", "CD*", "[x]", "x"),))
FACTS = ModelFacts("m", CONDITIONS, SUPPORT, GENES, ("condition",))


def plan(facts=FACTS, **grid):
    config = parse(GridConfig, grid, "grid")
    return plan_grid(settle(config, facts), OUTPUT, facts)


def named(found):
    """Conditions of a plan, as text."""
    rows = all_codes(found.conditions).tolist()
    return [" ".join(found.model.conditions.decode_one(row).values()) for row in rows]


def cells(found):
    """Cells per condition, by name."""
    numbers = np.arange(found.n_conditions, dtype=np.int64)
    return dict(
        zip(named(found), found.rows.stretches[0].amounts.of(numbers).tolist(), strict=True)
    )


# ---------------------------------------------------------------- values


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ("all", ["B", "CD4 T", "CD8 T", "CD*", "[x]", "x"]),
        ("B", ["B"]),
        ("CD? T", ["CD4 T", "CD8 T"]),
        (["*T", "B"], ["B", "CD4 T", "CD8 T"]),
        pytest.param(["CD*"], ["CD*"], id="a value that looks like a pattern is itself"),
        pytest.param(["[x]"], ["[x]"], id="brackets"),
        pytest.param(["C*"], ["CD4 T", "CD8 T", "CD*"], id="pattern"),
    ],
)
def test_values_and_patterns(values, expected):
    assert named(plan(ModelFacts("m", TYPES, {}, GENES), columns={"t": values})) == expected


def test_patterns_hold_in_include_and_exclude():
    assert named(plan(exclude=[{"cell_type": "[BN]*"}])) == ["T ctrl", "T stim"]
    one = plan(columns={"cell_type": "B"}, include=[{"cell_type": "N*", "condition": "s*"}])
    assert named(one) == ["B ctrl", "B stim", "NK stim"]


def test_values_from_files(tmp_path):
    (tmp_path / "types.txt").write_text("T\n\n B \nT\n")
    (tmp_path / "types.tsv").write_text("cell_type\tother\nNK\tB\nB\tT\n")
    text = {"cell_type": {"from_file": tmp_path / "types.txt"}}
    assert named(plan(columns=text)) == ["B ctrl", "B stim", "T ctrl", "T stim"]
    table = {"from_file": tmp_path / "types.tsv"}
    assert named(plan(columns={"cell_type": table}))[::2] == ["B ctrl", "NK ctrl"]
    other = plan(columns={"cell_type": {**table, "column": "other"}})
    assert named(other)[::2] == ["B ctrl", "T ctrl"]
    listed = plan(columns={"cell_type": ["T", "B"]})
    assert plan(columns=text).hash == listed.hash, "the hash covers what the file holds"


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("absent.txt", None, r"absent\.txt does not exist .*correct from_file"),
        ("empty.txt", "\n \n", r"empty\.txt holds no value"),
        ("a.csv", "x,y\n1,2\n", r"no column 'cell_type', it has x, y"),
        ("a.txt", "CD*\n", r"knows no cell_type 'CD\*'"),
        ("a.csv", "", r"cannot be read as a table"),
        ("a.txt", b"\xff\xfe", r"cannot be read as text"),
    ],
)
def test_files_that_do_not_hold_values(tmp_path, name, text, message):
    if text is not None:
        (tmp_path / name).write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(ConfigError, match=message):
        plan(columns={"cell_type": {"from_file": tmp_path / name}})


# ---------------------------------------------------------------- cells per condition

ENTRIES = [
    {"n": 3},
    {"condition": {"cell_type": "N*"}, "n": 5},
    {"condition": {"cell_type": "T", "condition": "stim"}, "n": 7},
]
COUNTED = {"B ctrl": 3, "B stim": 3, "NK ctrl": 5, "NK stim": 5, "T ctrl": 3, "T stim": 7}


def test_the_last_entry_that_matches_counts():
    found = plan(cells_per_condition=ENTRIES)
    assert cells(found) == COUNTED
    assert (found.n_cells, found.n_parts) == (26, 4)
    assert found.part(1).segments == (
        Segment((1, 0), 2, 3),
        Segment((1, 1), 0, 5),
    )
    assert found.part(3).segments == (Segment((2, 1), 5, 2),)


def test_a_constant_stays_arithmetic():
    assert isinstance(plan(cells_per_condition=4).rows.stretches[0].amounts, Even)
    assert isinstance(plan(cells_per_condition=ENTRIES).rows.stretches[0].amounts, Uneven)


TABLE = "condition,cell_type,n\nstim,T,7\nctrl,B,3\nstim,B,3\nctrl,NK,5\nstim,NK,5\nctrl,T,3\n"


@pytest.mark.parametrize("name", ["cells.csv", "cells.tsv"])
def test_cells_from_a_table(tmp_path, name):
    path = tmp_path / name
    path.write_text(TABLE if name.endswith("csv") else TABLE.replace(",", "\t"))
    found = plan(cells_per_condition={"from_file": path})
    assert cells(found) == COUNTED
    header, *rows = TABLE.splitlines()
    path.write_text(
        "\n".join([header, *reversed(rows)]).replace(",", "," if "csv" in name else "\t")
    )
    assert plan(cells_per_condition={"from_file": path}).hash == found.hash, "order of the rows"
    path.unlink()
    assert GridPlan.from_json(found.to_json(), found.model).part(2) == found.part(2)


def test_a_table_of_some_columns_and_a_number_for_the_others(tmp_path):
    path = tmp_path / "cells.csv"
    path.write_text("cell_type,n\nNK,5\nT,9\n")
    found = plan(cells_per_condition={"from_file": path}, cells_otherwise=2)
    assert list(cells(found).values()) == [2, 2, 5, 5, 9, 9]


def test_as_many_as_real():
    real = plan(cells_per_condition="as_many_as_real", cells_otherwise=6)
    assert list(cells(real).values()) == [*SUPPORT.values(), 6]
    seen = plan(cells_per_condition="as_many_as_real", columns={"cell_type": ["NK"]})
    assert cells(seen) == {"NK ctrl": 20, "NK stim": 10}
    masked = plan(cells_per_condition="as_many_as_real", masked=["condition"])
    assert cells(masked) == {"B": 70, "NK": 30, "T": 5}
    everything = plan(cells_per_condition="as_many_as_real", masked=["condition", "cell_type"])
    assert everything.n_cells == sum(SUPPORT.values())


@pytest.mark.parametrize(
    ("grid", "message"),
    [
        ({"cells_per_condition": ENTRIES[1:]}, r"no number of cells to 3 conditions: .*'B'"),
        ({"cells_per_condition": "as_many_as_real"}, r"no number of cells to 1 conditions: .*'T'"),
        (
            {"cells_per_condition": ENTRIES, "columns": {"cell_type": ["B", "T"]}},
            r"names \{'cell_type': 'N\*'\}, which matches no condition of the grid",
        ),
        ({"cells_per_condition": [{"condition": {"x": "y"}, "n": 1}]}, r"unknown condition column"),
        (
            {"cells_per_condition": [{"condition": {"cell_type": "y"}, "n": 1}]},
            "knows no cell_type",
        ),
        ({"cells_per_condition": 0}, r"cells_per_condition"),
        ({"cells_per_condition": "many"}, r"cells_per_condition.*as_many_as_real"),
        ({"cells_per_condition": 5, "cells_otherwise": 2}, r"cells_otherwise=2 is never used"),
    ],
)
def test_numbers_of_cells_that_cannot_be_planned(grid, message):
    with pytest.raises(ConfigError, match=f"(?s){message}"):
        plan(**grid)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("cell_type,n\nB,3\nB,4\n", r"names \{'cell_type': 'B'\} more than once"),
        ("cell_type,n\nB,0\n", r"row 1 has n = '0', expected a whole number above 0"),
        ("cell_type,n\nB,2.5\n", r"n = '2\.5'"),
        ("cell_type,n\nB,x\n", r"n = 'x'"),
        ("cell_type,m\nB,2\n", r"columns cell_type, m; expected .* a column 'n'"),
        ("n\n2\n", r"columns n; expected"),
        ("cell_type,n\nX,2\n", r"the model knows no cell_type 'X'"),
        ("tissue,n\nX,2\n", r"unknown condition column 'tissue'"),
        ("cell_type,condition,n\nT,stim,2\n", r"1 rows of the table .* e\.g\. .*'T'.*'stim'"),
    ],
)
def test_tables_that_cannot_be_used(tmp_path, text, message):
    path = tmp_path / "cells.csv"
    path.write_text(text)
    grid = {"exclude": [{"cell_type": "T"}], "cells_otherwise": 1}
    with pytest.raises(ConfigError, match=message):
        plan(cells_per_condition={"from_file": path}, **grid)


def test_a_list_is_no_table(tmp_path):
    with pytest.raises(ConfigError, match=r"a\.txt is no table"):
        plan(cells_per_condition={"from_file": tmp_path / "a.txt"})


# ---------------------------------------------------------------- masked columns


def test_a_masked_column_has_the_code_of_mask_and_all_its_training_cells():
    found = plan(masked=["condition"], cells_per_condition=4)
    assert all_codes(found.conditions).tolist() == [[0, 2], [1, 2], [2, 2]]
    assert [found.routes.n_train_cells((i, 2)) for i in range(3)] == [70, 30, 5]
    summary = found.summary()
    assert (summary.n_conditions, summary.n_seen) == (3, 3)
    categories = found.layout().categories
    assert categories == {"cell_type": ("B", "NK", "T"), "condition": ("ctrl", "stim", "MASK")}


@pytest.mark.parametrize(
    ("grid", "message"),
    [
        ({"masked": ["tissue"]}, r"grid\.masked: unknown condition column 'tissue'"),
        (
            {"masked": ["cell_type"], "columns": {"cell_type": "all"}},
            r"both name 'cell_type'",
        ),
        (
            {"masked": ["cell_type"], "exclude": [{"cell_type": "B"}]},
            r"grid\.exclude names 'cell_type', which grid\.masked leaves without",
        ),
        (
            {"masked": ["cell_type"], "cells_per_condition": ENTRIES[1:]},
            r"grid\.cells_per_condition names 'cell_type'",
        ),
    ],
)
def test_a_masked_column_has_no_values(grid, message):
    with pytest.raises(ConfigError, match=message):
        plan(**grid)


def test_a_table_may_not_name_a_masked_column(tmp_path):
    path = tmp_path / "cells.csv"
    path.write_text(TABLE)
    with pytest.raises(ConfigError, match=r"has a column 'cell_type', which grid\.masked"):
        plan(masked=["cell_type"], cells_per_condition={"from_file": path})


def test_a_value_named_like_the_mask_is_refused():
    facts = ModelFacts("m", ConditionVocabulary(("t",), (("B", "MASK"),)), {}, GENES)
    assert plan(facts).n_conditions == 2
    with pytest.raises(ConfigError, match="has a value 'MASK' of its own"):
        plan(facts, masked=["t"])


# ---------------------------------------------------------------- minimum support


def test_a_control_with_too_few_cells_is_not_used():
    """T at rest, the control of the held-out T stim, has 5 training cells."""
    enough = plan(unseen="compose", compose={"min_support": 5})
    assert (enough.summary().n_composed, enough.summary().n_poorly_supported) == (1, 0)
    few = plan(unseen="compose", compose={"min_support": 6})
    assert (few.summary().n_composed, few.summary().n_poorly_supported) == (0, 1)
    assert few.routes.of((2, 1)).number == 0
    assert few.hash != enough.hash


# ---------------------------------------------------------------- size

LARGE = ConditionVocabulary(
    ("a", "b", "c"), tuple(tuple(f"v{i:03d}" for i in range(100)) for _ in range(3))
)


def test_a_billion_cells_by_a_table_of_a_million_conditions():
    codes = np.indices((100, 100, 100)).reshape(3, -1)
    names = np.array(LARGE.categories[0])
    frame = pd.DataFrame({c: names[codes[i]] for i, c in enumerate(LARGE.columns)})
    n = 500 + np.arange(10**6, dtype=np.int64) % 1001
    facts = ModelFacts("m", LARGE, {}, GENES)
    tracemalloc.start()
    grid = GridConfig(cells_per_condition=cell_table(LARGE.columns, frame, n))
    found = plan_grid(grid, OutputConfig(), facts)
    total = found.part(found.n_parts - 1)
    n_cells = sum(
        segment.n_cells
        for index in range(0, found.n_parts, 100)
        for segment in found.part(index).segments
    )
    again = GridPlan.from_json(found.to_json(), facts)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert found.n_cells == int(n.sum()) and abs(found.n_cells / 10**9 - 1) < 0.01
    assert total.start + total.n_cells == found.n_cells
    assert n_cells == found.n_cells_in(range(0, found.n_parts, 100))
    assert again.hash == found.hash
    assert peak < 500e6
