import logging
import shutil
from collections import namedtuple

import anndata
import h5py
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
import tiledbsoma
import tiledbsoma.io

from save_dist.config.schema import ConditionsConfig, IngestConfig
from save_dist.core.errors import ConfigError, DataError, InfrastructureError
from save_dist.data import ingest as ingest_module
from save_dist.data.ingest import check_inputs, ingest
from save_dist.data.opening import SAFE_READS
from save_dist.data.readers import base, frames
from save_dist.data.readers.anndata import AnndataReader
from save_dist.data.source import SomaSource, StoreLocator

CONDITIONS = ConditionsConfig(columns=["condition"])


def encoded(n_cells, n_genes, first=0):
    """Counts that name their cell and gene, two thirds zero; cell 2 is empty."""
    cell, gene = np.indices((n_cells, n_genes))
    counts = (first + cell) * n_genes + gene + 1
    return np.where(((cell + gene) % 3 == 0) & (cell != 2), counts, 0).astype(np.float32)


def write_h5ad(path, x, *, genes=None, cells=None, obs=None, make=sp.csr_matrix, **layers):
    n_cells, n_genes = x.shape
    frame = pd.DataFrame(obs or {}, index=cells or [f"c{i}" for i in range(n_cells)])
    var = pd.DataFrame(index=genes or [f"g{i}" for i in range(n_genes)])
    anndata.AnnData(make(x), frame, var, layers=layers).write_h5ad(path)
    return str(path)


def configured(*paths, constants=({"condition": "ctrl"}, {"condition": "stim"}), **settings):
    inputs = [{"path": p, "obs": c} for p, c in zip(paths, constants, strict=False)]
    return IngestConfig.model_validate({"inputs": inputs, **settings})


def read_back(uri):
    with SomaSource(StoreLocator(str(uri))) as source:
        csr = source.read_counts(source.joinids)
        names = source.obs(["cell_id", "input", "condition", "n_counts"])
        shape = (source.n_obs, source.n_genes)
        genes = source.gene_ids
    dense = sp.csr_array((csr.counts.astype(np.int64), csr.genes, csr.indptr), shape).toarray()
    return pd.DataFrame(dense, columns=genes), names


@pytest.fixture
def two_files(tmp_path):
    """Two files of 7 and 5 cells; genes 2 to 5 of six are common, in another order."""
    own = ["g5", "g4", "g3", "g2", "g6"]
    return (
        write_h5ad(tmp_path / "a.h5ad", encoded(7, 6)),
        write_h5ad(tmp_path / "b.h5ad", encoded(5, 5, first=7), genes=own),
    )


@pytest.mark.parametrize("rows_per_block", [1, 3, 100])
def test_the_store_holds_the_files(two_files, tmp_path, rows_per_block):
    seen = []
    config = configured(*two_files, rows_per_block=rows_per_block, rows_per_tile=2)
    uri = tmp_path / "out" / "s.soma"
    summary = ingest(config, CONDITIONS, uri, progress=lambda *done: seen.append(done))
    counts, obs = read_back(uri)

    a, b = encoded(7, 6), encoded(5, 5, first=7)
    want = pd.concat(
        [
            pd.DataFrame(a, columns=[f"g{i}" for i in range(6)]),
            pd.DataFrame(b, columns=["g5", "g4", "g3", "g2", "g6"]),
        ],
        ignore_index=True,
    ).fillna(0)
    pd.testing.assert_frame_equal(counts, want.astype(np.int64), check_names=False)
    assert (summary.n_cells, summary.n_genes, summary.n_inputs) == (12, 7, 2)
    assert summary.nnz == np.count_nonzero(a) + np.count_nonzero(b)
    assert obs["cell_id"].tolist()[6:9] == ["a:c6", "b:c0", "b:c1"]
    assert obs["condition"].tolist() == ["ctrl"] * 7 + ["stim"] * 5
    assert obs["n_counts"].tolist() == want.sum(axis=1).astype(int).tolist()
    assert seen[-1] == (12, 12)
    assert seen == sorted(seen)


def test_obs_travels_some_rows_at_a_time(tmp_path, monkeypatch):
    """Values that come late, missing ones among them, and names longer than others."""
    monkeypatch.setattr(ingest_module, "_OBS_ROWS_AT_ONCE", 3)
    monkeypatch.setattr(frames, "_ROWS_AT_ONCE", 2)
    kinds = ["u", "u", "u", "v", None, "u", "w" * 99]
    cells = [f"cell {'n' * i}" for i in range(7)]
    obs = {"condition": list("aaaabbb"), "kind": pd.Categorical(kinds), "size": range(7)}
    path = write_h5ad(tmp_path / "a.h5ad", encoded(7, 6), cells=cells, obs=obs)
    config = configured(path, constants=({},), obs_columns=["kind", "size"])
    ingest(config, CONDITIONS, tmp_path / "s")
    with SomaSource(StoreLocator(str(tmp_path / "s"))) as source:
        found = source.obs(["cell_id", "condition", "kind", "size", "n_counts"])
    assert found["cell_id"].tolist() == [f"a:{name}" for name in cells]
    assert found["condition"].tolist() == obs["condition"]
    assert found["kind"].astype(object).where(found["kind"].notna(), None).tolist() == kinds
    assert found["size"].tolist() == list(range(7))
    assert found["n_counts"].tolist() == encoded(7, 6).sum(axis=1).astype(int).tolist()


def test_intersection_keeps_common_genes_in_the_order_of_the_first_file(two_files, tmp_path):
    ingest(configured(*two_files, genes="intersection"), CONDITIONS, tmp_path / "s")
    counts, obs = read_back(tmp_path / "s")
    assert list(counts.columns) == ["g2", "g3", "g4", "g5"]
    np.testing.assert_array_equal(counts[:7], encoded(7, 6)[:, 2:6])
    np.testing.assert_array_equal(counts[7:], encoded(5, 5, first=7)[:, [3, 2, 1, 0]])
    assert obs["n_counts"].tolist() == counts.sum(axis=1).tolist()


def test_tiledbsoma_itself_opens_the_store(tmp_path):
    counts = encoded(9, 4)
    obs = {"condition": pd.Categorical(list("xyxyxyxyx")), "age": np.arange(9) / 2, "ok": True}
    path = write_h5ad(tmp_path / "a.h5ad", counts, obs=obs)
    config = configured(path, constants=({},), obs_columns=["age", "ok"])
    ingest(config, CONDITIONS, tmp_path / "s")
    context = tiledbsoma.SOMATileDBContext(tiledb_config=SAFE_READS)
    with tiledbsoma.open(str(tmp_path / "s"), context=context) as experiment:
        adata = tiledbsoma.io.to_anndata(experiment, "RNA", X_layer_name="raw")
        x = experiment.ms["RNA"].X["raw"]
        assert x.nnz == np.count_nonzero(counts)
        assert x.shape == (9, 4)
        assert not x.schema_config_options().allows_duplicates
    np.testing.assert_array_equal(adata.X.toarray(), counts)
    assert adata.obs_names.tolist() == [f"a:c{i}" for i in range(9)]
    assert adata.var_names.tolist() == [f"g{i}" for i in range(4)]
    assert list(adata.obs.columns) == ["input", "condition", "age", "ok", "n_counts"]
    assert adata.obs["condition"].tolist() == list("xyxyxyxyx")
    assert adata.obs["age"].tolist() == (np.arange(9) / 2).tolist()
    assert adata.obs["ok"].dtype == bool


def test_the_layout_is_what_reading_needs(tmp_path):
    path = write_h5ad(tmp_path / "a.h5ad", np.ones((100, 30)))
    ingest(configured(path, rows_per_tile=16), CONDITIONS, tmp_path / "s")
    with tiledbsoma.open(str(tmp_path / "s")) as experiment:
        options = experiment.ms["RNA"].X["raw"].schema_config_options()
    assert options.capacity == 16 * 30
    assert (options.tile_order, options.cell_order) == ("row-major", "row-major")
    assert '"tile":"16"' in str(options.dims).replace(" ", "")
    assert '"tile":"30"' in str(options.dims).replace(" ", "")


@pytest.mark.parametrize(
    ("largest", "arrow_type"),
    [pytest.param(65_535, "uint16", id="16 bits"), pytest.param(65_536, "uint32", id="32 bits")],
)
def test_counts_take_the_narrowest_type(tmp_path, largest, arrow_type):
    path = write_h5ad(tmp_path / "a.h5ad", np.array([[largest, 0.0], [1.0, 2.0]]))
    ingest(configured(path), CONDITIONS, tmp_path / "s")
    with tiledbsoma.open(str(tmp_path / "s")) as experiment:
        assert experiment.ms["RNA"].X["raw"].schema.field("soma_data").type == arrow_type
    assert read_back(tmp_path / "s")[0].to_numpy().tolist() == [[largest, 0], [1, 2]]


# ---------------------------------------------------------------- kinds of files


def unsorted_with_zeros(dense):
    """Compressed rows with genes in falling order and a stored zero in each row."""
    falling = sp.csr_matrix(dense[:, ::-1] + 1)
    falling.indices = dense.shape[1] - 1 - falling.indices
    falling.data -= 1
    return falling


@pytest.mark.parametrize(
    "make",
    [
        pytest.param(sp.csr_matrix, id="csr"),
        pytest.param(sp.csc_matrix, id="csc"),
        pytest.param(np.asarray, id="dense"),
        pytest.param(lambda x: sp.csr_matrix(x.astype(np.int64)), id="int64"),
        pytest.param(lambda x: sp.csr_matrix(x.astype(np.uint8)), id="uint8"),
        pytest.param(unsorted_with_zeros, id="unsorted, with stored zeros"),
    ],
)
def test_every_matrix_format_reads_the_same(tmp_path, make, monkeypatch):
    monkeypatch.setattr(base, "ENTRIES_PER_RUN", 5)
    counts = encoded(8, 6)
    path = write_h5ad(tmp_path / "a.h5ad", counts, make=make)
    summary = ingest(configured(path, rows_per_block=3), CONDITIONS, tmp_path / "s")
    np.testing.assert_array_equal(read_back(tmp_path / "s")[0], counts)
    assert summary.nnz == np.count_nonzero(counts)


@pytest.mark.parametrize("layer", ["counts", "raw"])
def test_counts_may_lie_in_a_layer(tmp_path, layer):
    counts = encoded(5, 4)
    path = write_h5ad(tmp_path / "a.h5ad", counts / 10, **{layer: sp.csr_matrix(counts)})
    ingest(configured(path, layer=layer), CONDITIONS, tmp_path / "s")
    np.testing.assert_array_equal(read_back(tmp_path / "s")[0], counts)


def test_counts_may_lie_in_raw_with_more_genes(tmp_path):
    counts = encoded(5, 4)
    genes = pd.DataFrame(index=list("abcd"))
    whole = anndata.AnnData(sp.csr_matrix(counts), var=genes)
    whole.obs_names = [f"c{i}" for i in range(5)]
    small = whole[:, :2].copy()
    small.X = small.X / 10
    small.raw = whole
    small.write_h5ad(tmp_path / "a.h5ad")
    ingest(configured(str(tmp_path / "a.h5ad"), layer="raw"), CONDITIONS, tmp_path / "s")
    found = read_back(tmp_path / "s")[0]
    assert list(found.columns) == list("abcd")
    np.testing.assert_array_equal(found, counts)


def write_legacy(path, counts, *, compound):
    """Files as AnnData before 0.7 wrote them: no encoding attributes."""
    matrix = sp.csr_matrix(counts)
    cells = np.array([f"c{i}" for i in range(len(counts))], dtype="S4")
    genes = np.array([f"g{i}" for i in range(counts.shape[1])], dtype="S4")
    with h5py.File(path, "w") as file:
        x = file.create_group("X")
        for name in ("data", "indices", "indptr"):
            x[name] = getattr(matrix, name)
        if compound:
            x.attrs["h5sparse_format"], x.attrs["h5sparse_shape"] = "csr", counts.shape
            codes = np.arange(len(counts), dtype="i1") % 2
            kind = [("index", "S4"), ("condition", "i1")]
            file["obs"] = np.array(list(zip(cells, codes, strict=True)), dtype=kind)
            file["var"] = np.array([(g,) for g in genes], dtype=[("index", "S4")])
            file["uns/condition_categories"] = np.array([b"ctrl", b"stim"])
        else:
            file["obs/barcodes"], file["var/gene_name"] = cells, genes
            file["obs"].attrs["_index"], file["var"].attrs["_index"] = "barcodes", "gene_name"
            file["obs/condition"] = np.arange(len(counts), dtype="i1") % 2
            file["obs/__categories/condition"] = np.array([b"ctrl", b"stim"])
            reference = file["obs/__categories/condition"].ref
            file["obs/condition"].attrs["categories"] = reference
    return str(path)


@pytest.mark.parametrize("compound", [True, False], ids=["AnnData 0.6", "AnnData 0.7"])
def test_files_without_encoding_attributes(tmp_path, compound):
    path = write_legacy(tmp_path / "old.h5ad", encoded(6, 4), compound=compound)
    ingest(configured(path, constants=({},)), CONDITIONS, tmp_path / "s")
    counts, obs = read_back(tmp_path / "s")
    np.testing.assert_array_equal(counts, encoded(6, 4))
    assert list(counts.columns) == ["g0", "g1", "g2", "g3"]
    assert obs["cell_id"].tolist()[:2] == ["old:c0", "old:c1"]
    assert obs["condition"].tolist() == ["ctrl", "stim"] * 3


def test_a_file_inside_a_package_is_found_without_importing_it(tmp_path, monkeypatch):
    (tmp_path / "cellbox/sub").mkdir(parents=True)
    (tmp_path / "cellbox/__init__.py").write_text("raise RuntimeError('imported')")
    write_h5ad(tmp_path / "cellbox/sub/a.h5ad", encoded(4, 3))
    monkeypatch.syspath_prepend(tmp_path)
    plan = check_inputs(configured("package:cellbox/sub/a.h5ad"), CONDITIONS)
    assert [(i.name, i.n_cells) for i in plan.inputs] == [("a", 4)]


# ---------------------------------------------------------------- obs columns


def test_columns_of_mixed_kinds_fall_back_to_one_that_holds_all(tmp_path):
    one = {"age": [1, 2], "tag": [1, 2], "note": pd.Categorical(["u", None])}
    two = {"age": [1.5, np.nan], "tag": ["p", "q"], "note": pd.Categorical([None, None])}
    paths = [
        write_h5ad(tmp_path / f"{name}.h5ad", np.ones((2, 2)), obs=obs)
        for name, obs in (("a", one), ("b", two))
    ]
    config = configured(*paths, obs_columns=["age", "tag", "note"])
    plan = check_inputs(config, CONDITIONS)
    assert plan.layout.obs_types["age"] == "float64"
    assert plan.layout.obs_types["tag"] == "string"
    ingest(config, CONDITIONS, tmp_path / "s")
    with SomaSource(StoreLocator(str(tmp_path / "s"))) as source:
        obs = source.obs(["age", "tag", "note"])
    np.testing.assert_array_equal(obs["age"], [1, 2, 1.5, np.nan])
    assert obs["tag"].tolist() == ["1", "2", "p", "q"]
    assert obs["note"].isna().tolist() == [False, True, True, True]


def test_numbers_as_conditions_become_text(tmp_path):
    path = write_h5ad(tmp_path / "a.h5ad", np.ones((3, 2)), obs={"condition": [0.5, 10, 0.5]})
    ingest(configured(path, constants=({},)), CONDITIONS, tmp_path / "s")
    assert read_back(tmp_path / "s")[1]["condition"].tolist() == ["0.5", "10.0", "0.5"]


def test_the_input_itself_may_be_a_condition(two_files, tmp_path):
    ingest(configured(*two_files), ConditionsConfig(columns=["input", "condition"]), tmp_path / "s")
    assert read_back(tmp_path / "s")[1]["input"].tolist() == ["a"] * 7 + ["b"] * 5


def test_files_of_one_name_keep_their_folders(tmp_path):
    paths = []
    for folder in ("p", "q"):
        (tmp_path / folder).mkdir()
        paths.append(write_h5ad(tmp_path / folder / "x.h5ad", np.ones((1, 2))))
    names = [item.name for item in check_inputs(configured(*paths), CONDITIONS).inputs]
    assert names == [f"{tmp_path}/p/x", f"{tmp_path}/q/x"]


def test_few_cells_without_condition_are_left_out_with_a_warning(tmp_path, caplog):
    counts = encoded(40, 5)
    condition = ["ctrl"] * 40
    condition[7], condition[31] = None, ""
    path = write_h5ad(tmp_path / "a.h5ad", counts, obs={"condition": pd.Categorical(condition)})
    config = configured(path, constants=({},), rows_per_block=8)
    with caplog.at_level(logging.WARNING):
        summary = ingest(config, CONDITIONS, tmp_path / "s")
    found, obs = read_back(tmp_path / "s")
    kept = np.delete(np.arange(40), [7, 31])
    np.testing.assert_array_equal(found, counts[kept])
    assert obs["cell_id"].tolist() == [f"a:c{i}" for i in kept]
    assert summary.n_cells == 38
    assert "event=cells_left_out input=a.h5ad n_cells=2 share=0.0500" in caplog.text


def write_table(path, rows):
    pd.DataFrame(rows).to_csv(path, index=False, sep="\t" if ".tsv" in path.name else ",")
    return path


@pytest.mark.parametrize("name", ["l.csv", "l.csv.gz", "l.tsv", "l.parquet"])
def test_labels_join_by_name_and_constants(two_files, tmp_path, name):
    rows = [
        {"barcode": f"c{i}", "condition": c, "cell_type": f"{c}{i}", "donor": 1000 + i}
        for c in ("stim", "ctrl")
        for i in reversed(range(9))
    ]
    table = tmp_path / name
    if name.endswith("parquet"):
        pd.DataFrame(rows).to_parquet(table)
    else:
        write_table(table, rows)
    config = configured(*two_files, labels=table, obs_columns=["donor"])
    summary = ingest(config, ConditionsConfig(columns=["condition", "cell_type"]), tmp_path / "s")
    with SomaSource(StoreLocator(str(tmp_path / "s"))) as source:
        obs = source.obs(["cell_type", "donor"])
        origin = source.label_origin
    want = [f"ctrl{i}" for i in range(7)] + [f"stim{i}" for i in range(5)]
    assert obs["cell_type"].tolist() == want
    assert obs["donor"].tolist()[:2] == ["1000", "1001"]
    assert origin == dict.fromkeys(["cell_type", "donor"], f"label table {name}")
    assert summary.label_origin == origin


# ---------------------------------------------------------------- bad input


def bad(name, message, *, settings=None, columns=("condition",), constants=None, **file):
    return pytest.param(file, settings or {}, columns, constants, message, id=name)


ONES = np.ones((4, 3))


@pytest.mark.parametrize(
    ("file", "settings", "columns", "constants", "message"),
    [
        bad("fraction", r"X.*holds 0\.5, which is not an integer.*ingest\.layer", counts=ONES / 2),
        bad("negative", r"holds -1\.0, which is negative; expected raw counts", counts=-ONES),
        bad("nan", r"holds nan, which is NaN or infinite", counts=ONES * np.nan),
        bad("infinite", r"holds inf, which is NaN or infinite", counts=ONES * np.inf),
        bad("too large", r"which is too large", counts=ONES * 2.0**32),
        bad(
            "no condition",
            r"column 'condition' of conditions\.columns is nowhere: obs of the file has age, sex",
            counts=ONES,
            obs={"age": [1] * 4, "sex": ["f"] * 4},
            constants={},
        ),
        bad(
            "no obs column",
            r"column 'donor' of ingest\.obs_columns is nowhere: .* has no columns",
            counts=ONES,
            settings={"obs_columns": ["donor"]},
        ),
        bad(
            "genes twice",
            r"1 gene names occur more than once, e\.g\. 'g0'.*var_names_make_unique",
            counts=ONES,
            genes=["g0", "g1", "g0"],
        ),
        bad(
            "cells twice",
            r"1 cell names occur more than once, e\.g\. 'c0'.*obs_names_make_unique",
            counts=ONES,
            cells=["c0", "c1", "c0", "c2"],
        ),
        bad(
            "many unlabelled",
            r"1 of 4 cells \(25\.0%\) have no condition; at most 5%",
            counts=ONES,
            obs={"condition": pd.Categorical(["x", None, "x", "x"])},
            constants={},
        ),
        bad("no cells", r"has 0 cells and 3 genes, expected at least one", counts=ONES[:0]),
        bad(
            "no such layer",
            r"has no layer 'spliced'; it has: X, counts; correct ingest\.layer",
            counts=ONES,
            layers={"counts": ONES},
            settings={"layer": "spliced"},
        ),
        bad(
            "no such marker",
            r"no marker gene of T, B is among its 3 genes, named like 'g0'",
            counts=ONES,
            settings={"markers": {"column": "kind", "genes": {"T": ["CD3D"], "B": ["CD19"]}}},
        ),
        bad(
            "fewer cells than clusters",
            r"4 cells are too few for ingest\.markers\.n_clusters=9",
            counts=ONES,
            settings={"markers": {"column": "k", "genes": {"T": ["g1"]}, "n_clusters": 9}},
        ),
        bad(
            "no label table",
            r"label table nowhere\.csv does not exist",
            counts=ONES,
            settings={"labels": "nowhere.csv"},
        ),
    ],
)
@pytest.mark.filterwarnings("ignore:.*names are not unique:UserWarning")
def test_bad_input_is_named_before_anything_is_written(
    tmp_path, file, settings, columns, constants, message
):
    counts, layers = file.pop("counts"), file.pop("layers", {})
    path = write_h5ad(tmp_path / "a.h5ad", counts, **file, **layers)
    given = {"condition": "ctrl"} if constants is None else constants
    config = configured(path, constants=(given,), **settings)
    with pytest.raises(DataError, match=message):
        ingest(config, ConditionsConfig(columns=list(columns)), tmp_path / "out" / "s")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("make", [sp.csc_matrix, np.asarray], ids=["csc", "dense"])
def test_bad_values_are_found_in_every_format(tmp_path, make):
    counts = encoded(6, 4)
    counts[5, 1] = 1.25
    path = write_h5ad(tmp_path / "a.h5ad", counts, make=make)
    with pytest.raises(DataError, match=r"holds 1\.25, which is not an integer"):
        check_inputs(configured(path), CONDITIONS)


@pytest.mark.parametrize(
    ("path", "message"),
    [
        pytest.param("nowhere.h5ad", r"file nowhere\.h5ad does not exist", id="file"),
        pytest.param("package:nobox/a.h5ad", r"'nobox', which is not installed", id="package"),
        pytest.param("package:json/a.h5ad", r"json/a\.h5ad does not exist", id="in package"),
    ],
)
def test_missing_files(tmp_path, path, message):
    with pytest.raises(DataError, match=message):
        ingest(configured(path), CONDITIONS, tmp_path / "s")


def test_a_file_that_is_no_h5ad(tmp_path):
    (tmp_path / "a.h5ad").write_text("cells")
    with pytest.raises(DataError, match=r"a\.h5ad is not a readable h5ad \(HDF5\) file"):
        check_inputs(configured(str(tmp_path / "a.h5ad")), CONDITIONS)


def remove(file, name):
    del file[name]


def shorten(file):
    obs = file["obs/_index"][:3]
    del file["obs/_index"]
    file["obs/_index"] = obs


@pytest.mark.parametrize(
    ("harm", "message"),
    [
        pytest.param(lambda f: remove(f, "X"), r"has no X; it has: no counts at all", id="no X"),
        pytest.param(
            lambda f: remove(f, "obs"), r"h5ad has no obs; write it with AnnData", id="no obs"
        ),
        pytest.param(
            lambda f: remove(f["var"].attrs, "_index") or f["var"].move("_index", "name"),
            r"var has no index",
            id="no index",
        ),
        pytest.param(shorten, r"matrix of shape .*expected csr, csc or dense with 3", id="shape"),
    ],
)
def test_torn_files(tmp_path, harm, message):
    path = write_h5ad(tmp_path / "a.h5ad", encoded(5, 4))
    with h5py.File(path, "a") as file:
        harm(file)
    with pytest.raises(DataError, match=message):
        check_inputs(configured(path), CONDITIONS)


def test_files_without_a_common_gene(tmp_path):
    a = write_h5ad(tmp_path / "a.h5ad", ONES, genes=["CD3D", "CD4", "CD8A"])
    b = write_h5ad(tmp_path / "b.h5ad", ONES, genes=["ENSG1", "ENSG2", "ENSG3"])
    for how in ("union", "intersection"):
        with pytest.raises(DataError, match=r"no gene in common with .*'ENSG1' against 'CD3D'"):
            check_inputs(configured(a, b, genes=how), CONDITIONS)


def test_two_counts_for_one_gene(tmp_path):
    twice = sp.csr_matrix((np.ones(4), [0, 2, 1, 1], [0, 2, 4]), shape=(2, 3))
    path = write_h5ad(tmp_path / "a.h5ad", ONES[:2])
    with h5py.File(path, "a") as file:
        for name in ("data", "indices", "indptr"):
            remove(file["X"], name)
            file["X"][name] = getattr(twice, name)
    with pytest.raises(DataError, match=r"a\.h5ad: row 1 of a block holds two counts.*sum_dup"):
        ingest(configured(path), CONDITIONS, tmp_path / "s")


@pytest.mark.parametrize("column", ["cell_id", "n_counts", "soma_joinid"])
def test_columns_the_store_writes_itself(two_files, tmp_path, column):
    with pytest.raises(ConfigError, match=rf"columns {column} are written by the ingest itself"):
        check_inputs(configured(*two_files, obs_columns=[column]), CONDITIONS)
    markers = {"column": column, "genes": {"T": ["g3"]}}
    with pytest.raises(ConfigError, match=rf"columns {column} are written by the ingest itself"):
        check_inputs(configured(*two_files, markers=markers), CONDITIONS)


def test_an_unwritable_place(two_files, tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(InfrastructureError, match=r"could not write .*s\.receipts"):
        ingest(configured(*two_files), CONDITIONS, tmp_path / "file" / "s")
    assert (tmp_path / "file").read_text() == "in the way"


def test_a_disk_that_is_too_small(two_files, tmp_path, monkeypatch):
    usage = namedtuple("usage", "total used free")(10, 10, 0)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage)
    with pytest.raises(InfrastructureError, match=r"has 0 bytes free, the store .* needs about"):
        ingest(configured(*two_files), CONDITIONS, tmp_path / "s")
    assert not (tmp_path / "s").exists()


# ---------------------------------------------------------------- running again


def test_a_finished_store_is_not_written_again(two_files, tmp_path):
    config, uri = configured(*two_files), tmp_path / "s"
    first = ingest(config, CONDITIONS, uri)
    before = {p: p.stat().st_mtime_ns for p in uri.rglob("*")}
    assert ingest(config, CONDITIONS, uri) == first
    assert {p: p.stat().st_mtime_ns for p in uri.rglob("*")} == before


def changed_file(config, tmp_path):
    write_h5ad(tmp_path / "b.h5ad", encoded(5, 5))
    return config


@pytest.mark.parametrize(
    "change",
    [
        pytest.param(changed_file, id="file"),
        pytest.param(lambda c, _: c.model_copy(update={"genes": "intersection"}), id="setting"),
    ],
)
def test_another_ingest_into_the_same_place_is_refused(two_files, tmp_path, change):
    config, uri = configured(*two_files), tmp_path / "s"
    ingest(config, CONDITIONS, uri)
    with pytest.raises(DataError, match=r"holds the cells of another ingest \(identity \w+, this"):
        ingest(change(config, tmp_path), CONDITIONS, uri)
    assert read_back(uri)[0].shape == (12, 7)


def test_a_store_of_others_is_not_touched(two_files, tmp_path):
    tiledbsoma.Experiment.create(str(tmp_path / "s")).close()
    with pytest.raises(DataError, match=r"another ingest \(identity none"):
        ingest(configured(*two_files), CONDITIONS, tmp_path / "s")


def test_a_removed_store_is_written_anew(two_files, tmp_path):
    config, uri = configured(*two_files), tmp_path / "s"
    first = ingest(config, CONDITIONS, uri)
    shutil.rmtree(uri)
    assert ingest(config, CONDITIONS, uri) == first
    assert read_back(uri)[0].shape == (12, 7)


def test_held_out_combinations_and_block_size_do_not_make_another_store(two_files, tmp_path):
    uri = tmp_path / "s"
    first = ingest(configured(*two_files), CONDITIONS, uri)
    other = ConditionsConfig(columns=["condition"], held_out=[{"condition": "stim"}])
    assert ingest(configured(*two_files, rows_per_block=2), other, uri) == first


def test_a_plan_made_before_is_used(two_files, tmp_path, monkeypatch):
    config = configured(*two_files)
    plan = check_inputs(config, CONDITIONS)
    monkeypatch.setattr(AnndataReader, "scan_counts", None)
    summary = ingest(config, CONDITIONS, tmp_path / "s", plan=plan)
    assert (plan.n_cells, plan.n_genes, plan.nnz) == (12, 7, summary.nnz)
    assert plan.n_bytes > 0
