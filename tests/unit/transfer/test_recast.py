"""What the decoder is told: targets, masked columns, averages."""

import anndata
import numpy as np
import pandas as pd
import pytest
import torch
from tiny_model import SUPPORT, load_tiny_model

from save_dist.api import Model
from save_dist.core.errors import ConfigError

COUNTS = np.random.default_rng(0).poisson(3, (5, 12)).astype(np.float32)


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return Model(load_tiny_model(tmp_path_factory.mktemp("recast") / "model", transport=True))


def cells():
    obs = pd.DataFrame({"cell_type": "T", "condition": "ctrl"}, index=list("abcde"))
    var = pd.DataFrame(index=[f"gene{i}" for i in range(12)])
    return anndata.AnnData(COUNTS, obs=obs, var=var)


def decoded(model, *told):
    """Expected counts of the cells under given codes."""
    z = torch.from_numpy(model.encode(cells()))
    codes = torch.tensor([told]).expand(len(COUNTS), -1)
    library = torch.from_numpy(COUNTS.sum(1))
    with torch.inference_mode():
        return model.bundle.vae.decode(z, codes, library).mean.numpy()


def test_a_masked_column_is_not_told(model):
    found = model.transfer(cells(), masked=["cell_type"])
    np.testing.assert_allclose(found.layers["mean"], decoded(model, 3, 0), rtol=1e-5)
    assert set(found.obs["cell_type"]) == {"MASK"} and set(found.obs["condition"]) == {"ctrl"}
    assert found.uns["save_dist"]["method"] == "reencode"


def test_averages_are_over_the_values_training_saw(model):
    found = model.transfer(cells(), {"condition": "stim"}, averaged=["cell_type"])
    kinds = sorted({kind for kind, _ in SUPPORT})
    expected = np.mean([decoded(model, kind, 1) for kind in kinds], axis=0)
    np.testing.assert_allclose(found.layers["mean"], expected, rtol=1e-5)
    np.testing.assert_allclose(found.layers["mean"].sum(1), COUNTS.sum(1), rtol=1e-4)


def test_the_latent_is_the_encoded_one(model):
    found = model.transfer(cells(), masked=["condition"])
    np.testing.assert_allclose(found.obsm["X_save"], model.encode(cells()), rtol=1e-6)


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        pytest.param({}, r"names no column; name at least one", id="nothing"),
        pytest.param(
            {"target": {"cell_type": "B"}, "masked": ["cell_type"]}, r"each in one of", id="twice"
        ),
        pytest.param({"averaged": ["tissue"]}, r"unknown condition column 'tissue'", id="unknown"),
        pytest.param(
            {"masked": ["cell_type"], "method": "inversion"},
            r"which method='inversion' cannot do; use method: reencode",
            id="method",
        ),
    ],
)
def test_what_cannot_be_meant_is_refused(model, asked, message):
    with pytest.raises(ConfigError, match=message):
        model.transfer(cells(), **asked)
