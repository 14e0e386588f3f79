import json

import pandas as pd
from hypothesis import given, settings
from hypothesis import strategies as st

from save_dist.config.schema import ConditionsConfig
from save_dist.vocab.conditions import ConditionVocabulary, matches

VALUES = st.text(min_size=1, max_size=4)
NAMES = ["condition", "cell_type", "donor"]


@st.composite
def frames(draw):
    columns = draw(st.permutations(NAMES))[: draw(st.integers(1, 3))]
    n_cells = draw(st.integers(1, 12))
    pools = {c: draw(st.lists(VALUES, min_size=1, max_size=4, unique=True)) for c in columns}
    return pd.DataFrame(
        {c: [draw(st.sampled_from(pool)) for _ in range(n_cells)] for c, pool in pools.items()}
    )


def vocabulary_of(frame):
    return ConditionVocabulary.from_frame(frame, ConditionsConfig(columns=list(frame.columns)))


@settings(deadline=None)
@given(frame=frames())
def test_codes_decode_to_the_cells_values(frame):
    known = vocabulary_of(frame)
    codes = known.encode(frame)
    rows = frame.to_dict("records")
    assert [known.decode_one(row) for row in codes.tolist()] == rows
    assert [known.encode_one(row) for row in rows] == [tuple(row) for row in codes.tolist()]
    assert ConditionVocabulary.from_json(json.loads(json.dumps(known.to_json()))) == known


@settings(deadline=None)
@given(frame=frames(), data=st.data())
def test_identity_survives_growth_and_tells_conditions_apart(frame, data):
    small = vocabulary_of(frame)
    extra = data.draw(frames().filter(lambda f: set(f.columns) == set(frame.columns)))
    grown = vocabulary_of(pd.concat([frame, extra[list(frame.columns)]]))
    seen = {}
    for row in frame.to_dict("records"):
        names = data.draw(st.sets(st.sampled_from(sorted(row))))
        condition = {c: v for c, v in row.items() if c in names}
        identity = small.identity(small.encode_one(condition))
        assert identity == grown.identity(grown.encode_one(condition))
        assert seen.setdefault(identity, condition) == condition


@settings(deadline=None)
@given(frame=frames(), data=st.data())
def test_held_out_is_what_the_patterns_match(frame, data):
    plain = vocabulary_of(frame)
    rows = frame.to_dict("records")
    patterns = []
    for row in data.draw(st.lists(st.sampled_from(rows), max_size=3)):
        names = data.draw(st.sets(st.sampled_from(sorted(row)), min_size=1))
        patterns.append({c: row[c] for c in sorted(names)})
    known = ConditionVocabulary(plain.columns, plain.categories, held_out=tuple(patterns))

    held_out = known.is_held_out(known.encode(frame)).tolist()

    assert held_out == [any(p.items() <= row.items() for p in patterns) for row in rows]
    assert held_out == matches(frame, patterns).tolist()


@settings(deadline=None)
@given(frame=frames())
def test_combinations_count_every_cell_once(frame):
    known = vocabulary_of(frame)
    codes = known.encode(frame)
    rows = [tuple(row) for row in codes.tolist()]
    assert known.combinations(codes) == {row: rows.count(row) for row in set(rows)}
