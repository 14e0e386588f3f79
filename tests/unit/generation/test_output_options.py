"""Some genes, expected counts as a layer, latents: part of plan, receipts and digests."""

import numpy as np
import pytest
import zarr
from tiny_atlas import GRID, N_PARTS, OUTPUT, begin, fill, stored

import save_dist
from save_dist.api import Model
from save_dist.config.schema import FromFile
from save_dist.core.errors import AtlasError, ConfigError
from save_dist.stores import atlas
from save_dist.stores.atlas_reader import choose_cells
from save_dist.stores.bundle import load_bundle

ALL = OUTPUT.model_copy(update={"layers": ["mean"], "latents": True, "genes": ["gene1*", "gene3"]})
GENES = ["gene1", "gene3", "gene10", "gene11"]
"""In the order of the model."""
PLACES = [1, 3, 10, 11]


@pytest.fixture(scope="module")
def model(random_model):
    return random_model


def generate(folder, model, output):
    path, plan = begin(folder, model, output=output)
    fill(path, model, range(N_PARTS))
    atlas.finish(path)
    return path, plan


@pytest.fixture(scope="module")
def plain(tmp_path_factory, model):
    return generate(tmp_path_factory.mktemp("plain"), model, OUTPUT)


@pytest.fixture(scope="module")
def rich(tmp_path_factory, model):
    return generate(tmp_path_factory.mktemp("rich"), model, ALL)


def test_counts_are_those_of_the_whole_atlas(plain, rich):
    a, b = (zarr.open_group(path, mode="r") for path, _ in (plain, rich))
    assert b["var/_index"][:].tolist() == GENES
    np.testing.assert_array_equal(b["X"][:], a["X"][:][:, PLACES])
    assert b["layers/mean"].dtype == np.float32 and b["obsm/X_save"].shape == (90, 4)
    assert plain[1].hash != rich[1].hash


def test_means_and_latents_are_those_of_the_cells(rich, model):
    view, cells = save_dist.open_atlas(rich[0]), Model(load_bundle(model))
    found = view.to_anndata().to_memory()
    made = cells.sample(cells.plan(GRID, ALL))
    np.testing.assert_array_equal(found.layers["mean"], made.layers["mean"])
    np.testing.assert_array_equal(found.obsm["X_save"], made.obsm["X_save"])
    assert made.var_names.tolist() == GENES
    ratio = found.X.mean(axis=0) / found.layers["mean"].mean(axis=0)
    np.testing.assert_allclose(ratio, 1, atol=0.5)
    some = view.select(cell_type="NK").to_memory()
    np.testing.assert_array_equal(
        some.layers["mean"], found[found.obs["cell_type"] == "NK"].layers["mean"]
    )


@pytest.mark.parametrize("name", ["layers/mean/c/1/0", "obsm/X_save/c/1/0"])
def test_they_are_covered_by_receipts_and_written_alike(tmp_path, rich, model, name):
    path, _ = begin(tmp_path, model, output=ALL)
    fill(path, model, [2, 0, 1])
    atlas.finish(path)
    assert stored(path) == stored(rich[0])
    data = bytearray((path / name).read_bytes())
    data[len(data) // 2] ^= 1
    (path / name).write_bytes(data)
    (problem,) = atlas.verify(path).problems
    assert problem.part == 1 and name in problem.text


def test_genes_from_a_file(tmp_path, model):
    (tmp_path / "genes.txt").write_text("gene3\ngene1*\n")
    output = OUTPUT.model_copy(update={"genes": FromFile(from_file=tmp_path / "genes.txt")})
    _, plan = begin(tmp_path, model, output=output)
    assert list(plan.gene_ids) == GENES
    _, every = begin(tmp_path / "every", model, output=OUTPUT.model_copy(update={"genes": ["*"]}))
    assert every.output.genes is None


@pytest.mark.parametrize(
    ("genes", "message"),
    [
        (["gene1", "MALAT1"], r"output\.genes: the model knows no gene 'MALAT1'"),
        ([], r"output\.genes is empty"),
    ],
)
def test_genes_that_are_not_there(tmp_path, model, genes, message):
    with pytest.raises(ConfigError, match=message):
        begin(tmp_path, model, output=OUTPUT.model_copy(update={"genes": genes}))


def test_some_genes_are_not_evaluated_as_if_they_were_all(rich, model):
    bundle = load_bundle(model)
    with pytest.raises(AtlasError, match=r"holds 4 genes, expected the 12 of the run"):
        choose_cells(rich[0], bundle.conditions, bundle.genes, 5, 0)


def test_bytes_are_estimated_with_them(plain, rich):
    assert rich[1].summary().bytes_estimate > plain[1].summary().bytes_estimate
