"""The Python interface on a model with a transport."""

import anndata
import numpy as np
import pandas as pd
import pytest
from tiny_model import load_tiny_model

from save_dist.api import Model
from save_dist.config.schema import ComposeConfig
from save_dist.core.errors import ConfigError

FEW = ComposeConfig(n_cells=32)
HELD_OUT = {"cell_type": "T", "condition": "stim"}


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return Model(load_tiny_model(tmp_path_factory.mktemp("api") / "model", transport=True))


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    return Model(load_tiny_model(tmp_path_factory.mktemp("api") / "plain"))


def cells(condition="ctrl", cell_type="T", n=6):
    counts = np.random.default_rng(0).poisson(3, (n, 12)).astype(np.float32)
    obs = pd.DataFrame({"cell_type": cell_type, "condition": condition}, index=list("abcdefgh")[:n])
    return anndata.AnnData(counts, obs=obs, var=pd.DataFrame(index=[f"gene{i}" for i in range(12)]))


def test_a_model_with_a_transport_composes_by_default(model):
    made = model.generate([HELD_OUT, {"cell_type": "B", "condition": "stim"}], 4, compose=FEW)
    assert made.obs["route"].tolist() == ["condition: ctrl -> stim"] * 4 + ["direct"] * 4
    assert made.obs["seen"].tolist() == [False] * 4 + [True] * 4
    direct = model.generate(HELD_OUT, 4, unseen="direct")
    assert set(direct.obs["route"]) == {"direct"}
    assert not np.array_equal(direct.X, made.X[:4])


def test_a_model_without_goes_direct_and_says_what_composing_needs(plain):
    assert set(plain.generate(HELD_OUT, 2).obs["route"]) == {"direct"}
    with pytest.raises(ConfigError, match=r"unseen='compose', but the model has no transport"):
        plain.generate(HELD_OUT, 2, unseen="compose")


def test_control_cells_are_carried(model):
    moved = model.transfer(cells(), {"condition": "stim"}, compose=FEW)
    assert moved.uns["save_dist"]["method"] == "transport"
    assert set(moved.obs["condition"]) == {"stim"} and moved.obs_names.tolist() == list("abcdef")
    again = model.transfer(cells(), {"condition": "stim"}, compose=FEW)
    np.testing.assert_array_equal(moved.X, again.X)
    reencoded = model.transfer(cells(), {"condition": "stim"}, method="reencode")
    assert reencoded.uns["save_dist"]["method"] == "reencode"
    assert not np.allclose(moved.layers["mean"], reencoded.layers["mean"])


def test_a_carried_cell_is_its_own_whatever_the_size_of_the_call(model, monkeypatch):
    whole = model.transfer(cells(), {"condition": "stim"}, compose=FEW)
    monkeypatch.setattr("save_dist.api.MINIBATCH", 2)
    parts = model.transfer(cells(), {"condition": "stim"}, compose=FEW)
    np.testing.assert_allclose(whole.layers["mean"], parts.layers["mean"], rtol=1e-4)


@pytest.mark.parametrize(
    ("source", "target"),
    [
        pytest.param({"condition": "stim"}, {"condition": "ctrl"}, id="towards the reference"),
        pytest.param({"cell_type": "B"}, {"cell_type": "NK"}, id="no transported column"),
        pytest.param({}, {"cell_type": "B", "condition": "stim"}, id="two columns"),
    ],
)
def test_what_no_transport_reaches_is_reencoded_or_refused(model, source, target):
    moved = model.transfer(cells(**source), target)
    assert moved.uns["save_dist"]["method"] == "reencode"
    with pytest.raises(ConfigError, match=r"every cell must be at the reference of one of cond"):
        model.transfer(cells(**source), target, method="transport")


def test_one_cell_off_the_reference_is_enough(model):
    mixed = cells(condition=["ctrl"] * 5 + ["stim"])
    assert model.transfer(mixed, {"condition": "stim"}).uns["save_dist"]["method"] == "reencode"


def test_a_transfer_by_transport_needs_one(plain):
    with pytest.raises(ConfigError, match=r"method='transport', but the model has no transport"):
        plain.transfer(cells(), {"condition": "stim"}, method="transport")


GRID = {"columns": {"cell_type": ["N*"]}, "cells_per_condition": 5, "seed": 2}


def test_a_planned_grid_gives_the_cells_of_generate(plain):
    plan = plain.plan(GRID)
    assert (plan.summary().n_conditions, plan.n_cells) == (2, 10)
    made = plain.sample(plan)
    conditions = [{"cell_type": "NK", "condition": c} for c in ("ctrl", "stim")]
    np.testing.assert_array_equal(made.X, plain.generate(conditions, 5, seed=2).X)
    assert made.obs["condition"].tolist() == ["ctrl"] * 5 + ["stim"] * 5
    assert set(made.obs["route"]) == {"direct"}


def test_a_plan_of_another_model_or_a_wrong_setting_is_refused(plain, model):
    with pytest.raises(ConfigError, match=r"the plan is of model .*plan with this one"):
        model.sample(plain.plan(GRID))
    with pytest.raises(ConfigError, match=r"grid is not a valid GridConfig:\n  cels: unknown key"):
        plain.plan({"cels": 3})


def test_masked_columns_say_so(plain):
    made = plain.generate([{"cell_type": "B"}, {"cell_type": "B", "condition": "ctrl"}], 2)
    assert made.obs["condition"].tolist() == ["MASK"] * 2 + ["ctrl"] * 2
    assert made.obs["n_train_cells"].tolist() == [70, 70, 40, 40]
    by_plan = plain.sample(plain.plan({"masked": ["condition"], "cells_per_condition": 2}))
    np.testing.assert_array_equal(by_plan.X[:2], made.X[:2])
