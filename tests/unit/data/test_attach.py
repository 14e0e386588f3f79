"""Stores of others: shaped like the CELLxGENE Census, filtered, pinned, refused."""

import sys
import time
import types

import numpy as np
import pyarrow as pa
import pytest
import tiledbsoma
from helpers_soma import add_entries

from save_dist.config.schema import SourceConfig
from save_dist.core.errors import ConfigError, DataError, InfrastructureError
from save_dist.data.attach import attach
from save_dist.data.partition import StreamPlan
from save_dist.data.source import SomaSource, StoreLocator
from save_dist.data.splits import CellIndex
from save_dist.data.stream import CellStream

N_CELLS, N_GENES = 600, 2100
COLUMNS = ("cell_type", "disease")
NOW = 2**42  # milliseconds: a time in the far future


def joinids():
    """Gaps everywhere, as after a new version of the Census."""
    return np.arange(N_CELLS, dtype=np.int64) * 3 + 1


def counts_of(ids):
    """Counts that name cell and gene; every 11th cell has none."""
    counts = (ids[:, None] * 31 + np.arange(N_GENES) * 17) % 197
    counts[counts > 5] = 0
    counts[ids % 11 == 0] = 0
    return counts


def is_primary(ids):
    return ids % 4 != 0


def cell_types(ids):
    return np.array(["B cell", "T cell", "monocyte"])[ids % 3 - 1 + (ids % 5 > 2)]


def write_frame(parent, name, top, columns):
    table = pa.table(columns)
    frame = parent.add_new_dataframe(
        name, schema=table.schema, index_column_names=["soma_joinid"], domain=[(0, top)]
    )
    # New categories change the schema: at the very time of its creation they would be lost.
    time.sleep(0.002)
    with tiledbsoma.DataFrame.open(frame.uri, "w") as later:
        later.write(table)


def write_census(root, version, ids):
    """census_data/homo_sapiens of a Census of these cells, below root/version."""
    tiles = {f"soma_dim_{i}": {"tile": 2048} for i in (0, 1)}
    options = tiledbsoma.TileDBCreateOptions(dims=tiles, capacity=2**16, allows_duplicates=True)
    (root / version).mkdir(parents=True)
    with tiledbsoma.Collection.create(str(root / version / "soma")) as census:
        data = census.add_new_collection("census_data")
        human = data.add_new_collection("homo_sapiens", kind=tiledbsoma.Experiment)
        obs = {
            "soma_joinid": ids,
            "observation_joinid": [f"o{i}" for i in ids],
            "cell_type": pa.array(cell_types(ids)).dictionary_encode(),
            "disease": pa.array(np.where(ids % 2, "normal", "flu")).dictionary_encode(),
            "is_primary_data": is_primary(ids),
        }
        write_frame(human, "obs", int(ids[-1]), obs)
        rna = human.add_new_collection("ms").add_new_collection("RNA", kind=tiledbsoma.Measurement)
        var = {
            "soma_joinid": np.arange(N_GENES),
            "feature_id": [f"ENSG{i}" for i in range(N_GENES)],
            "feature_name": [f"N{i // 2}" for i in range(N_GENES)],
        }
        write_frame(rna, "var", N_GENES - 1, var)
        x = rna.add_new_collection("X").add_new_sparse_ndarray(
            "raw", type=pa.float32(), shape=(int(ids[-1]) + 1, N_GENES), platform_config=options
        )
        rows, genes = np.nonzero(counts_of(ids))
        order = np.random.default_rng(0).permutation(rows.size)  # neither by cell nor by gene
        rows, genes = rows[order], genes[order]
        add_entries(x, ids[rows], genes, counts_of(ids)[rows, genes].astype(np.float32))
    return root / version / "soma/census_data/homo_sapiens"


@pytest.fixture(scope="module")
def census_root(tmp_path_factory):
    root = tmp_path_factory.mktemp("census")
    write_census(root, "2025-01-30", joinids())
    return root


@pytest.fixture(scope="module")
def uri(census_root):
    return str(census_root / "2025-01-30/soma/census_data/homo_sapiens")


@pytest.mark.parametrize(
    ("settings", "chosen"),
    [
        pytest.param({}, is_primary, id="primary cells"),
        pytest.param({"primary_only": False}, lambda ids: ids > 0, id="all cells"),
        pytest.param(
            {"value_filter": "cell_type == 'B cell' or disease == 'flu'"},
            lambda ids: is_primary(ids) & ((cell_types(ids) == "B cell") | (ids % 2 == 0)),
            id="filtered, in brackets",
        ),
        pytest.param(
            {"value_filter": "is_primary_data == False", "primary_only": False},
            lambda ids: ~is_primary(ids),
            id="copies alone",
        ),
    ],
)
def test_the_cells_meant_are_those_of_the_filter(uri, settings, chosen):
    want = joinids()[chosen(joinids())]
    found = attach(SourceConfig(uri=uri, **settings), COLUMNS, NOW)
    assert (found.n_cells, found.n_genes) == (want.size, N_GENES)
    with SomaSource(found.locator) as source:
        assert np.array_equal(source.joinids, want)
        obs = source.obs(list(COLUMNS))
        assert np.array_equal(obs.index, want)
        assert obs["cell_type"].tolist() == cell_types(want).tolist()
        assert source.cell_names.loc[want[5]] == f"o{want[5]}"
        assert source.gene_ids[-1] == f"ENSG{N_GENES - 1}"
        csr = source.read_counts(want)
    rows = np.repeat(np.arange(want.size), np.diff(csr.indptr))
    dense = np.zeros((want.size, N_GENES), dtype=int)
    np.add.at(dense, (rows, csr.genes), csr.counts.astype(int))
    assert np.array_equal(dense, counts_of(want))


def test_a_stream_over_the_census_gives_every_cell_meant_once(uri):
    locator = attach(SourceConfig(uri=uri), COLUMNS, NOW).locator
    with SomaSource(locator) as source:
        ids = source.joinids
    index = CellIndex(ids, np.zeros((ids.size, 2), np.int16), np.zeros(ids.size, np.uint8))
    genes = np.array([7, 2050, 3, 2099])
    plan = StreamPlan(ids.size, 40, 16, 8, n_lanes=4, seed=1)
    seen = []
    for rank in (0, 1):
        with CellStream(locator, index, genes, plan, rank=rank, world_size=2) as stream:
            for batch in stream.batches(0, plan.n_steps_per_epoch):
                assert np.array_equal(batch.counts, counts_of(batch.joinids)[:, genes])
                seen.append(batch.joinids)
    counts = np.unique(np.concatenate(seen), return_counts=True)
    assert np.array_equal(counts[0], ids)
    assert counts[1].sum() - ids.size < 40


def test_what_is_meant_is_pinned_and_survives_a_file(uri, tmp_path):
    config = SourceConfig(uri=uri, value_filter="disease == 'flu'", tiledb={"vfs.s3.region": "x"})
    locator = attach(config, COLUMNS, NOW).locator
    assert locator.timestamp == NOW
    assert locator.value_filter == "(disease == 'flu') and (is_primary_data == True)"
    assert locator.tiledb == (("vfs.s3.region", "x"),)
    assert StoreLocator.from_json(locator.to_json(tmp_path), tmp_path) == locator
    assert attach(SourceConfig(uri=uri, timestamp=NOW - 5), COLUMNS, NOW).locator.timestamp < NOW


def test_a_store_inside_the_run_moves_with_it(tmp_path):
    inside = StoreLocator(str(tmp_path / "run/store.soma"), timestamp=3)
    facts = inside.to_json(tmp_path / "run")
    assert facts["uri"] == "store.soma"
    moved = StoreLocator.from_json(facts, tmp_path / "other")
    assert moved.uri == str(tmp_path / "other/store.soma")
    remote = StoreLocator("s3://bucket/key")
    assert StoreLocator.from_json(remote.to_json(tmp_path), tmp_path) == remote


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        pytest.param({"value_filter": "cell_type == 'X'"}, r"no cell of .* matches", id="empty"),
        pytest.param(
            {"value_filter": "cell_type = 'B cell'"},
            r"cannot be filtered by .*columns: .*cell_type.*correct source\.value_filter",
            id="syntax",
        ),
        pytest.param(
            {"value_filter": "tissue == 'lung'"}, r"cannot be filtered by", id="unknown column"
        ),
        pytest.param({"layer": "counts"}, r"no layer 'counts'; it has: raw", id="layer"),
        pytest.param({"measurement": "ATAC"}, r"no measurement 'ATAC'", id="measurement"),
        pytest.param({"gene_column": "symbol"}, r"none of the columns symbol", id="gene column"),
        pytest.param(
            {"gene_column": "feature_name"}, r"holds 'N0' more than once", id="genes twice"
        ),
        pytest.param({"cell_column": "cell_id"}, r"no column cell_id; it has", id="cell column"),
    ],
)
def test_refused(uri, settings, message):
    with pytest.raises(DataError, match=message):
        attach(SourceConfig(uri=uri, **settings), COLUMNS, NOW)


def test_condition_columns_must_be_there(uri):
    with pytest.raises(DataError, match=r"no column donor; it has: .*conditions\.columns"):
        attach(SourceConfig(uri=uri), ["donor", "disease"], NOW)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        pytest.param({}, "needs a uri or a census version", id="neither"),
        pytest.param({"uri": "a", "census": "b"}, "needs a uri or a census version", id="both"),
        pytest.param(
            {"uri": "a", "tiledb": {"vfs.s3.aws_secret_access_key": "x"}},
            "configurations are stored beside results; set AWS_ACCESS_KEY_ID",
            id="credentials",
        ),
    ],
)
def test_configurations_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        SourceConfig(**settings)


# ---------------------------------------------------------------- through cellxgene_census


def stand_in(monkeypatch, root, stable):
    """In the place of cellxgene_census: the versions below `root`, one of them called `stable`."""
    versions = {place.name: place.name for place in root.iterdir()} | {"stable": stable}

    def open_soma(*, census_version):
        if census_version == "2024-07-01":
            raise ConnectionError("no network")
        if census_version not in versions:
            raise ValueError(f'The "{census_version}" Census version is not valid.')
        settings = {"vfs.s3.region": "us-west-2", "vfs.s3.no_sign_request": "true"}
        context = tiledbsoma.SOMATileDBContext(tiledb_config=settings)
        place = root / versions[census_version] / "soma"
        return tiledbsoma.Collection.open(str(place), context=context)

    package = types.ModuleType("cellxgene_census")
    package.open_soma = open_soma
    monkeypatch.setitem(sys.modules, "cellxgene_census", package)


@pytest.fixture
def census_package(census_root, monkeypatch):
    stand_in(monkeypatch, census_root, "2025-01-30")


def test_a_pinned_census_is_read_beside_a_newer_one(census_root, tmp_path, monkeypatch):
    (tmp_path / "2025-01-30").symlink_to(census_root / "2025-01-30")
    newer_ids = joinids()[:200] * 2
    write_census(tmp_path, "2025-11-08", newer_ids)
    locators = []
    for stable in ("2025-01-30", "2025-11-08"):
        stand_in(monkeypatch, tmp_path, stable)
        locators.append(attach(SourceConfig(census="stable"), COLUMNS, NOW).locator)
    again = attach(SourceConfig(census="2025-01-30"), COLUMNS, NOW).locator
    assert again == locators[0] != locators[1]
    for locator, ids in zip(locators, (joinids(), newer_ids), strict=True):
        want = ids[is_primary(ids)]
        with SomaSource(locator) as source:
            assert np.array_equal(source.joinids, want)
            csr = source.read_counts(want)
        assert np.array_equal(np.diff(csr.indptr), np.count_nonzero(counts_of(want), axis=1))
        assert np.array_equal(csr.counts, counts_of(want)[counts_of(want) > 0])


@pytest.mark.usefixtures("census_package")
@pytest.mark.parametrize("version", ["stable", "2025-01-30"])
def test_a_census_version_is_pinned_by_its_uri(uri, version):
    settings = {"vfs.s3.region": "eu-1"}  # the configuration has the last word
    config = SourceConfig(census=version, tiledb=settings)
    found = attach(config, COLUMNS, NOW)
    assert found.locator.uri.removeprefix("file://") == uri
    assert dict(found.locator.tiledb) == settings | {"vfs.s3.no_sign_request": "true"}
    assert found.n_cells == is_primary(joinids()).sum()


@pytest.mark.usefixtures("census_package")
@pytest.mark.parametrize(
    ("settings", "error", "message"),
    [
        pytest.param({"census": "1999"}, DataError, 'The "1999" Census', id="version"),
        pytest.param(
            {"census": "stable", "organism": "human"},
            DataError,
            r"no organism 'human'; it has: homo_sapiens",
            id="organism",
        ),
        pytest.param(
            {"census": "2024-07-01"}, InfrastructureError, "cannot be reached", id="network"
        ),
    ],
)
def test_census_errors(settings, error, message):
    with pytest.raises(error, match=message):
        attach(SourceConfig(**settings), COLUMNS, NOW)


def test_without_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "cellxgene_census", None)
    with pytest.raises(ConfigError, match=r"save-dist\[census\]"):
        attach(SourceConfig(census="stable"), COLUMNS, NOW)
