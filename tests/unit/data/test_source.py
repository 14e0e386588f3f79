import json
import time

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
import tiledbsoma

from save_dist.core.errors import DataError
from save_dist.data import opening
from save_dist.data.csr import CsrCounts
from save_dist.data.source import SomaSource, StoreLocator
from save_dist.data.writer import (
    StoreLayout,
    create_store,
    mark_complete,
    obs_table,
    write_counts,
    write_obs,
)

N_CELLS, N_GENES = 23, 11


def encoded(n_cells=N_CELLS, n_genes=N_GENES):
    """Counts that name their cell and gene; a third of the entries, cells 4 and 5 empty."""
    cell, gene = np.indices((n_cells, n_genes))
    return np.where(((cell + gene) % 3 == 0) & ~np.isin(cell, (4, 5)), cell * n_genes + gene + 1, 0)


def as_csr(dense, dtype=np.uint16):
    rows, genes = np.nonzero(dense)
    indptr = np.concatenate([[0], np.cumsum(np.bincount(rows, minlength=len(dense)))])
    return CsrCounts(indptr, genes.astype(np.int32), dense[rows, genes].astype(dtype))


def as_dense(csr, n_genes=N_GENES):
    out = np.zeros((csr.n_cells, n_genes), dtype=np.int64)
    np.add.at(out, (np.repeat(np.arange(csr.n_cells), np.diff(csr.indptr)), csr.genes), csr.counts)
    return out


def make_store(uri, dense, count_type="uint16", complete=True):
    genes = tuple(f"g{i}" for i in range(dense.shape[1]))
    layout = StoreLayout(len(dense), genes, count_type, {"kind": "string"}, 4, 3.0)
    create_store(uri, layout, {})
    for start in range(0, len(dense), 10):
        write_counts(uri, as_csr(dense[start : start + 10], count_type), start)
    obs = pd.DataFrame(
        {
            "cell_id": [f"c{i}" for i in range(len(dense))],
            "input": "x",
            "kind": [("a", "b")[i % 2] for i in range(len(dense))],
            "n_counts": dense.sum(axis=1),
        }
    )
    write_obs(uri, [obs_table(obs, layout.obs_types, 0)])
    if complete:
        mark_complete(uri, {"kind": "marker-derived"})
    return StoreLocator(str(uri))


def make_foreign(uri, entries, shape, *, tile=4, joinids=None, var=None, duplicates=False):
    """A store of other makers: float counts, tiles narrower than the matrix, own var column."""
    joinids = np.arange(shape[0]) if joinids is None else joinids
    if var is None:
        var = {"soma_joinid": np.arange(shape[1]), "var_id": [f"v{i}" for i in range(shape[1])]}
    options = tiledbsoma.TileDBCreateOptions(
        allows_duplicates=duplicates,
        dims={"soma_dim_0": {"tile": tile}, "soma_dim_1": {"tile": tile}},
    )
    with tiledbsoma.Experiment.create(str(uri)) as experiment:
        add_frame(experiment, "obs", pa.table({"soma_joinid": pa.array(joinids)}))
        rna = experiment.add_new_collection("ms").add_new_collection(
            "RNA", kind=tiledbsoma.Measurement
        )
        add_frame(rna, "var", pa.table(var))
        x = rna.add_new_collection("X").add_new_sparse_ndarray(
            "raw", type=pa.float32(), shape=shape, platform_config=options
        )
        rows, genes, counts = (np.array(column) for column in zip(*entries, strict=True))
        x.write(
            pa.table(
                {
                    "soma_dim_0": rows.astype(np.int64),
                    "soma_dim_1": genes.astype(np.int64),
                    "soma_data": counts.astype(np.float32),
                }
            )
        )
    return StoreLocator(str(uri))


def add_frame(parent, name, table):
    top = int(max(table["soma_joinid"].to_pylist()))
    frame = parent.add_new_dataframe(
        name, schema=table.schema, index_column_names=["soma_joinid"], domain=[(0, top)]
    )
    frame.write(table)


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    return make_store(tmp_path_factory.mktemp("store") / "s.soma", encoded())


@pytest.mark.parametrize(
    "joinids",
    [
        pytest.param(range(N_CELLS), id="all"),
        pytest.param(range(7, 13), id="range over fragments"),
        pytest.param([0, 3, 4, 11, 22], id="scattered, one empty"),
        pytest.param([22], id="last"),
        pytest.param([4, 5], id="empty rows only"),
        pytest.param([], id="nothing"),
    ],
)
def test_rows_come_as_asked(store, joinids):
    ids = np.array(joinids, dtype=np.int64)
    with SomaSource(store) as source:
        csr = source.read_counts(ids)
    assert csr.n_cells == ids.size
    assert (csr.genes.dtype, csr.counts.dtype) == (np.uint16, np.uint16)
    np.testing.assert_array_equal(as_dense(csr), encoded()[ids])


def test_facts_of_a_store(store):
    with SomaSource(store) as source:
        assert source.n_obs == N_CELLS
        assert source.n_genes == N_GENES
        assert source.gene_ids == tuple(f"g{i}" for i in range(N_GENES))
        np.testing.assert_array_equal(source.joinids, np.arange(N_CELLS))
        assert source.joinids.dtype == np.int64
        assert source.label_origin == {"kind": "marker-derived"}


def test_obs_is_indexed_by_joinid_and_holds_only_what_is_asked(store):
    with SomaSource(store) as source:
        obs = source.obs(["n_counts", "kind"])
    assert list(obs.columns) == ["n_counts", "kind"]
    np.testing.assert_array_equal(obs.index, np.arange(N_CELLS))
    np.testing.assert_array_equal(obs["n_counts"], encoded().sum(axis=1))
    assert obs["kind"].tolist()[:3] == ["a", "b", "a"]


def test_a_row_split_over_arrow_tables_is_whole(store, monkeypatch):
    monkeypatch.setattr(opening, "_LOCAL_BUFFER_BYTES", 64)
    ids = np.arange(N_CELLS, dtype=np.int64)
    with SomaSource(store) as source:
        assert sum(1 for _ in source.read_entries(ids)) > 5
        np.testing.assert_array_equal(as_dense(source.read_counts(ids)), encoded())


def test_wide_counts_come_as_float32(tmp_path):
    dense = encoded(3) * 70_000
    with SomaSource(make_store(tmp_path / "s", dense, "uint32")) as source:
        csr = source.read_counts(source.joinids)
    assert csr.counts.dtype == np.float32
    np.testing.assert_array_equal(as_dense(csr), dense)


def test_a_store_of_others_gives_sorted_rows(tmp_path):
    entries = [(r, g, 100 * r + g + 1) for r in range(9) for g in range(13) if (r + g) % 2]
    with SomaSource(make_foreign(tmp_path / "s", entries, (9, 13))) as source:
        csr = source.read_counts(np.array([0, 2, 3, 7], dtype=np.int64))
        assert source.gene_ids[:2] == ("v0", "v1")
        assert source.label_origin == {}
    want = np.array([[100 * r + g + 1 if (r + g) % 2 else 0 for g in range(13)] for r in range(9)])
    np.testing.assert_array_equal(as_dense(csr, 13), want[[0, 2, 3, 7]])
    for start, end in zip(csr.indptr, csr.indptr[1:], strict=False):
        assert np.all(np.diff(csr.genes[start:end].astype(int)) > 0)


def test_joinids_may_have_gaps_and_pass_32_bits(tmp_path):
    far = 5_000_000_000
    entries = [(3, 1, 7), (far, 0, 8)]
    joinids = np.array([3, 17, far])
    locator = make_foreign(tmp_path / "s", entries, (far + 1, 2), joinids=joinids)
    with SomaSource(locator) as source:
        np.testing.assert_array_equal(source.joinids, joinids)
        csr = source.read_counts(source.joinids)
    np.testing.assert_array_equal(as_dense(csr, 2), [[0, 7], [0, 0], [8, 0]])


def test_more_genes_than_16_bits(tmp_path):
    n_genes = 70_000
    var = {"soma_joinid": np.arange(n_genes), "feature_id": np.arange(n_genes).astype(str)}
    entries = [(0, 69_999, 5), (1, 65_536, 6)]
    locator = make_foreign(tmp_path / "s", entries, (2, n_genes), tile=2048, var=var)
    with SomaSource(locator) as source:
        csr = source.read_counts(source.joinids)
        assert source.gene_ids[-1] == "69999"
    assert csr.genes.dtype == np.int32
    np.testing.assert_array_equal(csr.genes, [69_999, 65_536])


def test_two_entries_for_one_gene_are_refused(tmp_path):
    entries = [(0, 1, 3), (1, 0, 1), (1, 2, 4), (1, 2, 4)]
    with SomaSource(make_foreign(tmp_path / "s", entries, (2, 3), duplicates=True)) as source:
        with pytest.raises(DataError, match=r"cell 1 of .* has two entries for one gene"):
            source.read_counts(source.joinids)
        assert source.read_counts(np.array([0], dtype=np.int64)).counts.tolist() == [3]


@pytest.mark.parametrize(
    ("var", "message"),
    [
        pytest.param(
            {"soma_joinid": [0, 1], "symbol": ["a", "b"]},
            r"none of the columns gene_id, var_id, feature_id; it has: soma_joinid, symbol",
            id="no name column",
        ),
        pytest.param(
            {"soma_joinid": [0, 2], "var_id": ["a", "b"]}, r"gaps in its joinids", id="gap"
        ),
    ],
)
def test_genes_without_names_are_refused(tmp_path, var, message):
    with (
        SomaSource(make_foreign(tmp_path / "s", [(0, 0, 1)], (1, 3), var=var)) as source,
        pytest.raises(DataError, match=message),
    ):
        _ = source.gene_ids


@pytest.mark.parametrize(
    ("change", "message"),
    [
        pytest.param({"uri": "nowhere"}, r"nowhere is not a SOMA experiment.*ingest job", id="uri"),
        pytest.param({"measurement": "ATAC"}, r"no measurement 'ATAC'; it has: RNA", id="ms"),
        pytest.param({"layer": "scaled"}, r"no layer 'scaled'; it has: raw", id="layer"),
        pytest.param({"timestamp": 1000}, r"at timestamp 1000 ms", id="before it was made"),
    ],
)
def test_a_store_that_is_not_there(store, change, message):
    with pytest.raises(DataError, match=message):
        SomaSource(StoreLocator(**{**vars(store), **change}))


def test_another_kind_of_store_is_refused(store):
    with pytest.raises(DataError, match="is not a SOMA experiment"):
        SomaSource(StoreLocator(f"{store.uri}/obs"))


def test_missing_obs_columns_are_named(store):
    with (
        SomaSource(store) as source,
        pytest.raises(DataError, match=r"no column donor, sex; it has: cell_id, input, kind"),
    ):
        source.obs(["kind", "donor", "sex"])


def test_an_interrupted_ingest_is_refused(tmp_path):
    locator = make_store(tmp_path / "s", encoded(), complete=False)
    with pytest.raises(DataError, match=r"is incomplete: .* run the same ingest job again"):
        SomaSource(locator)


def test_a_timestamp_shows_the_store_as_it_was(tmp_path):
    locator = make_store(tmp_path / "s", encoded())
    with tiledbsoma.Experiment.open(locator.uri) as experiment:
        then = experiment.tiledb_timestamp_ms
    later = as_csr(np.full((1, N_GENES), 9))
    while time.time_ns() // 1_000_000 <= then:  # a write in the same millisecond is not later
        time.sleep(0.001)
    write_counts(tmp_path / "s", later, 0)
    first = np.array([0], dtype=np.int64)
    with SomaSource(StoreLocator(locator.uri, timestamp=then)) as source:
        np.testing.assert_array_equal(as_dense(source.read_counts(first)), encoded()[:1])
    with SomaSource(locator) as source:
        assert np.all(as_dense(source.read_counts(first)) == 9)


def test_closing_twice_is_harmless(store):
    source = SomaSource(store)
    source.close()
    source.close()


def test_origin_is_json_in_the_metadata(store):
    with tiledbsoma.Experiment.open(store.uri) as experiment:
        assert json.loads(experiment.metadata["save_dist_label_origin"]) == {
            "kind": "marker-derived"
        }
