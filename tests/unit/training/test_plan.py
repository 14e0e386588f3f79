from pathlib import Path

import pytest

from save_dist.config.schema import (
    FlowConfig,
    ReflowConfig,
    TrainingConfig,
    TransportConfig,
    VaeConfig,
)
from save_dist.training.plan import TrainPlan

STAGES = ("vae", "flow", "reflow", "transport")


def make_plan(**changes):
    sections = {
        "training": TrainingConfig(),
        "vae": VaeConfig(),
        "flow": FlowConfig(),
        "reflow": ReflowConfig(),
        "transport": TransportConfig(columns=["condition"]),
    }
    return TrainPlan(root=Path("run"), seed=0, vocabulary_hash="v", **(sections | changes))


@pytest.mark.parametrize(
    ("changes", "other"),
    [
        ({"vae": VaeConfig(width=32)}, STAGES),
        ({"flow": FlowConfig(centre="additive")}, ("flow", "reflow")),
        ({"reflow": ReflowConfig(n_times=2)}, ("reflow",)),
        ({"transport": TransportConfig(columns=["donor"])}, ("transport",)),
        ({"training": TrainingConfig(log_every_steps=3, max_hours=1.0)}, ()),
        ({"training": TrainingConfig(stopping={"patience": 3})}, STAGES),
    ],
    ids=lambda value: " ".join(value) or "none",
)
def test_a_stage_is_another_one_if_what_it_builds_on_is(changes, other):
    before, after = make_plan(), make_plan(**changes)
    assert tuple(s for s in STAGES if before.hash_of(s) != after.hash_of(s)) == other
    assert len({before.hash_of(stage) for stage in STAGES}) == len(STAGES)


@pytest.mark.parametrize(
    ("stages", "expected"), [(["vae", "flow"], "flow"), (["flow", "reflow"], "reflow")]
)
def test_the_last_stage_of_the_flow_is_exported(stages, expected):
    assert make_plan(training=TrainingConfig(stages=stages)).flow_stage == expected
