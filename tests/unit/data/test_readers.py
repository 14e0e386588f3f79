"""Inputs of every kind give the same cells; each way of being malformed is named."""

import gzip
import tracemalloc

import anndata
import h5py
import numpy as np
import pandas as pd
import pytest
import scipy.io
import scipy.sparse as sp
import zarr

from save_dist.config.schema import ConditionsConfig, IngestConfig, InputConfig
from save_dist.core.errors import ConfigError, DataError
from save_dist.data.ingest import check_inputs, ingest
from save_dist.data.inputs import ingest_key
from save_dist.data.readers import base, content_digest, open_cells
from save_dist.data.source import SomaSource, StoreLocator

CONDITIONS = ConditionsConfig(columns=["condition"])
N_CELLS, N_GENES = 9, 5
GENES = [f"ENSG{i}" for i in range(N_GENES)]
SYMBOLS = ["CD3D", "CD4", "GNLY", "LYZ", "MS4A1"]
CELLS = [f"AAC{i}-1" for i in range(N_CELLS)]


def encoded():
    """Counts that name their cell and gene; cells 2 and 8 are empty."""
    cell, gene = np.indices((N_CELLS, N_GENES))
    counts = np.where((cell + gene) % 3 == 0, cell * N_GENES + gene + 1, 0)
    counts[[2, 8]] = 0
    return counts


def to_anndata(make=sp.csr_matrix):
    obs = pd.DataFrame({"state": pd.Categorical(["rest"] * 5 + ["stim"] * 4)}, index=CELLS)
    obs["age"] = np.arange(N_CELLS) / 2
    obs["note"] = pd.array([None, *"bcdefghi"], dtype="string")
    obs["ok"] = pd.array([True, None, *[False] * 7], dtype="boolean")
    var = pd.DataFrame({"symbol": SYMBOLS}, index=GENES)
    return anndata.AnnData(make(encoded().astype(np.float32)), obs, var)


def write_text(path, text, *, packed):
    if packed:
        path.with_name(f"{path.name}.gz").write_bytes(gzip.compress(text.encode()))
    else:
        path.write_text(text)


def write_10x(folder, *, packed=True, version=3, header="integer", extra=0):
    """A 10x folder; `extra` antibodies stand before the genes."""
    folder.mkdir()
    counts = np.hstack([np.full((N_CELLS, extra), 7), encoded()])
    rows = [f"AB{i}\tab{i}\tAntibody Capture" for i in range(extra)]
    kind = "\tGene Expression" * (version == 3)
    rows += [f"{gene}\t{name}{kind}" for gene, name in zip(GENES, SYMBOLS, strict=True)]
    write_text(
        folder / ("features.tsv" if version == 3 else "genes.tsv"),
        "\n".join(rows) + "\n",
        packed=packed,
    )
    write_text(folder / "barcodes.tsv", "\n".join(CELLS) + "\n", packed=packed)
    cells, genes = np.nonzero(counts)
    lines = [f"{g + 1} {c + 1} {counts[c, g]}" for c, g in zip(cells, genes, strict=True)]
    sizes = f"{counts.shape[1]} {N_CELLS} {len(lines)}"
    text = [f"%%MatrixMarket matrix coordinate {header} general", "% a comment", sizes, *lines]
    write_text(folder / "matrix.mtx", "\n".join(text) + "\n", packed=packed)
    return folder


def write_10x_h5(path, *, version=3, extra=0, shape=None):
    counts = sp.csr_array(np.hstack([np.full((N_CELLS, extra), 7), encoded()]))
    ids = [f"AB{i}" for i in range(extra)] + GENES
    names = [f"ab{i}" for i in range(extra)] + SYMBOLS
    kinds = ["Antibody Capture"] * extra + ["Gene Expression"] * N_GENES
    with h5py.File(path, "w") as file:
        group = file.create_group("matrix" if version == 3 else "GRCh38")
        for name in ("data", "indices", "indptr"):
            group[name] = getattr(counts, name)
        group["shape"] = shape or [counts.shape[1], N_CELLS]
        group["barcodes"] = np.array(CELLS, dtype="S")
        if version == 3:
            group["features/id"] = np.array(ids, dtype="S")
            group["features/name"] = np.array(names, dtype="S")
            group["features/feature_type"] = np.array(kinds, dtype="S")
        else:
            group["genes"], group["gene_names"] = np.array(ids, "S"), np.array(names, "S")
    return path


def write_zarr(path, make=sp.csr_matrix, version=3):
    with anndata.settings.override(zarr_write_format=version):
        to_anndata(make).write_zarr(path)
    return path


KINDS = {
    "zarr v3 csr": lambda p: write_zarr(p / "a.zarr"),
    "zarr v3 dense": lambda p: write_zarr(p / "a.zarr", np.asarray),
    "zarr v2 csr": lambda p: write_zarr(p / "a.zarr", version=2),
    "zarr v2 dense": lambda p: write_zarr(p / "a.zarr", np.asarray, version=2),
    "zarr v2 csc": lambda p: write_zarr(p / "a.zarr", sp.csc_matrix, version=2),
    "10x folder v3": lambda p: write_10x(p / "a"),
    "10x folder v3 plain": lambda p: write_10x(p / "a", packed=False),
    "10x folder v2": lambda p: write_10x(p / "a", packed=False, version=2),
    "10x folder real": lambda p: write_10x(p / "a", header="real"),
    "10x folder with antibodies": lambda p: write_10x(p / "a", extra=2),
    "10x h5 v3": lambda p: write_10x_h5(p / "a.h5"),
    "10x h5 v2": lambda p: write_10x_h5(p / "a.h5", version=2),
    "10x h5 with antibodies": lambda p: write_10x_h5(p / "a.h5", extra=2),
}
pytestmark = [
    pytest.mark.filterwarnings("ignore:Writing zarr v2:UserWarning"),
    pytest.mark.filterwarnings("ignore:zarr v3 autosharding:UserWarning"),
    pytest.mark.filterwarnings("ignore:Consolidated metadata is currently not:UserWarning"),
]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("n_rows", [2, 100])
def test_every_kind_gives_the_same_blocks(kind, n_rows, tmp_path, monkeypatch):
    monkeypatch.setattr(base, "ENTRIES_PER_RUN", 12)
    with open_cells(KINDS[kind](tmp_path), None, None) as reader:
        assert (reader.n_obs, reader.n_vars) == (N_CELLS, N_GENES)
        assert reader.gene_ids.tolist() == GENES
        assert reader.cell_names.tolist() == CELLS
        for _ in range(2):  # a second pass begins anew
            blocks = [block.toarray() for block in reader.blocks(n_rows)]
            assert [len(b) for b in blocks[:-1]] == [n_rows] * (len(blocks) - 1)
            np.testing.assert_array_equal(np.concatenate(blocks), encoded())
        facts = reader.scan_counts()
    assert facts.max_count == encoded().max()
    assert facts.nnz >= np.count_nonzero(encoded())


@pytest.mark.parametrize("version", [2, 3])
def test_obs_of_a_zarr_store(version, tmp_path):
    with open_cells(write_zarr(tmp_path / "a.zarr", version=version), None, "symbol") as reader:
        assert reader.gene_ids.tolist() == SYMBOLS
        assert sorted(reader.obs_columns) == ["age", "note", "ok", "state"]
        assert reader.obs_column("state").tolist() == ["rest"] * 5 + ["stim"] * 4
        assert reader.obs_column("age").tolist() == (np.arange(N_CELLS) / 2).tolist()
        assert reader.obs_column("note").isna().tolist() == [True] + [False] * 8
        assert reader.obs_column("ok").isna().tolist() == [False, True] + [False] * 7


@pytest.mark.parametrize("kind", ["10x folder v3", "10x folder v2", "10x h5 v3", "10x h5 v2"])
def test_10x_genes_by_symbol(kind, tmp_path):
    with open_cells(KINDS[kind](tmp_path), None, "symbol") as reader:
        assert reader.gene_ids.tolist() == SYMBOLS


def test_kinds_mix_in_one_store(tmp_path):
    """Genes by symbol, conditions from renamed columns and constants."""
    inputs = [
        {"path": str(write_zarr(tmp_path / "a.zarr")), "rename": {"state": "condition"}},
        {"path": str(write_10x(tmp_path / "b")), "obs": {"condition": "other"}},
        {"path": str(write_10x_h5(tmp_path / "c.h5")), "obs": {"condition": "other"}},
    ]
    config = IngestConfig(inputs=[{**i, "gene_column": "symbol"} for i in inputs], rows_per_block=4)
    ingest(config, CONDITIONS, tmp_path / "s")
    with SomaSource(StoreLocator(str(tmp_path / "s"))) as source:
        csr = source.read_counts(source.joinids)
        obs = source.obs(["cell_id", "condition"])
        assert source.gene_ids == tuple(SYMBOLS)
    dense = sp.csr_array((csr.counts, csr.genes, csr.indptr), (3 * N_CELLS, N_GENES)).toarray()
    np.testing.assert_array_equal(dense, np.concatenate([encoded()] * 3))
    assert obs["condition"].tolist() == ["rest"] * 5 + ["stim"] * 4 + ["other"] * 18
    assert obs["cell_id"].tolist()[::9] == ["a:AAC0-1", "b:AAC0-1", "c:AAC0-1"]


def test_a_market_file_is_not_loaded_whole(tmp_path, monkeypatch):
    """Peak memory of a pass stays far below the size of the matrix."""
    monkeypatch.setattr(base, "ENTRIES_PER_RUN", 4096)
    n_cells, n_genes = 6000, 20
    folder = tmp_path / "a"
    folder.mkdir()
    counts = sp.csr_array(np.ones((n_cells, n_genes), dtype=np.int32))
    scipy.io.mmwrite(folder / "matrix.mtx", sp.csc_array(counts.T), field="integer")
    (folder / "barcodes.tsv").write_text("".join(f"c{i}\n" for i in range(n_cells)))
    (folder / "features.tsv").write_text("".join(f"g{i}\tG{i}\n" for i in range(n_genes)))
    with open_cells(folder, None, None) as reader:
        for block in reader.blocks(128):  # first pass: imports and caches of pandas
            n_last = block.nnz
        tracemalloc.start()
        n_seen = sum(block.nnz for block in reader.blocks(128))
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
    assert (n_seen, n_last) == (counts.nnz, 112 * n_genes)
    assert peak < counts.nnz * 24 / 2  # three numbers of 8 bytes an entry


# ---------------------------------------------------------------- malformed


def rewritten(name, change):
    """Harm to one text file of a plain 10x folder."""

    def harm(folder):
        path = folder / name
        path.write_text(change(path.read_text()))

    return harm


def replaced(old, new):
    return lambda text: text.replace(old, new, 1)


FOLDER_HARMS = {
    "no barcodes": (
        lambda f: (f / "barcodes.tsv").unlink(),
        r"must hold one file barcodes\.tsv, plain or \.gz; it has none of them",
    ),
    "features twice": (
        lambda f: (f / "genes.tsv").write_text("x\n"),
        r"one file features\.tsv or genes\.tsv.*it has features\.tsv and genes\.tsv",
    ),
    "a barcode less": (
        rewritten("barcodes.tsv", replaced("AAC3-1\n", "")),
        r"5 features x 9 cells, but the folder names 5 features and 8 barcodes",
    ),
    "no barcodes in the file": (
        rewritten("barcodes.tsv", lambda _: ""),
        r"barcodes\.tsv is not a readable table",
    ),
    "transposed": (
        rewritten("matrix.mtx", replaced("5 9 ", "9 5 ")),
        r"9 features x 5 cells; it is transposed",
    ),
    "another banner": (
        rewritten("matrix.mtx", replaced("integer", "pattern")),
        r"begins with '%%matrixmarket matrix coordinate pattern general', expected",
    ),
    "no sizes": (
        rewritten("matrix.mtx", replaced("5 9 ", "five nine ")),
        r"line of sizes is 'five nine 11', expected the numbers",
    ),
    "cut short": (
        rewritten("matrix.mtx", lambda text: text[: text.rindex("\n", 0, -1) + 1]),
        r"holds 10 entries, its header promises 11; it was cut short",
    ),
    "cut within a line": (
        rewritten("matrix.mtx", lambda text: text[: text.rindex(" ")]),
        r"holds nan, which is NaN",
    ),
    "not a number": (
        rewritten("matrix.mtx", replaced("\n1 1 1\n", "\n1 x 1\n")),
        r"matrix\.mtx is torn: .*x",
    ),
    "negative": (
        rewritten("matrix.mtx", replaced("\n1 1 1\n", "\n1 1 -1\n")),
        r"holds -1\.0, which is negative; expected raw counts",
    ),
    "fraction": (
        rewritten("matrix.mtx", replaced("\n1 1 1\n", "\n1 1 0.5\n")),
        r"holds 0\.5, which is not an integer",
    ),
    "gene out of range": (
        rewritten("matrix.mtx", replaced("\n1 1 1\n", "\n6 1 1\n")),
        r"entry 1 is of feature 6, expected 1 to 5",
    ),
    "cell out of range": (
        rewritten("matrix.mtx", replaced("\n1 1 1\n", "\n1 0 1\n")),
        r"entry 1 is of cell 0, expected 1 to 9",
    ),
    "out of order": (
        rewritten("matrix.mtx", replaced("\n1 1 1\n", "\n1 9 1\n")),
        r"entry 2 is of cell 1, after one of a later cell; entries must stand cell by cell",
    ),
    "genes twice": (
        rewritten("features.tsv", replaced("ENSG1", "ENSG0")),
        r"1 gene names occur more than once.*gene_column",
    ),
    "antibodies alone": (
        rewritten("features.tsv", lambda t: t.replace("Gene Expression", "Antibody Capture")),
        r"no feature of type Gene Expression; its types: Antibody Capture",
    ),
}


@pytest.mark.parametrize("name", FOLDER_HARMS)
def test_malformed_10x_folders(name, tmp_path):
    harm, message = FOLDER_HARMS[name]
    folder = write_10x(tmp_path / "a", packed=False)
    harm(folder)
    refused(folder, tmp_path, message)


def test_a_torn_gz(tmp_path):
    folder = write_10x(tmp_path / "a")
    path = folder / "matrix.mtx.gz"
    path.write_bytes(path.read_bytes()[:-12])
    refused(folder, tmp_path, r"matrix\.mtx\.gz is torn")


def refused(path, tmp_path, message, **item):
    entry = {"path": str(path), "obs": {"condition": "x"}, **item}
    with pytest.raises(DataError, match=message):
        ingest(IngestConfig(inputs=[entry]), CONDITIONS, tmp_path / "out" / "s")
    assert not (tmp_path / "out").exists()


def test_malformed_10x_h5(tmp_path):
    refused(write_10x_h5(tmp_path / "a.h5", shape=[5, 8]), tmp_path, r"says 8 cells x 5 features")
    with h5py.File(tmp_path / "a.h5", "a") as file:
        file.copy("matrix", "mm10")
    refused(tmp_path / "a.h5", tmp_path, r"holds 2 genomes \(matrix, mm10\), expected one")


def test_10x_has_no_other_gene_column(tmp_path):
    folder = write_10x(tmp_path / "a")
    refused(folder, tmp_path, r"id and symbol, not by 'name'", gene_column="name")


def remove(root, name):
    del root[name]


ZARR_HARMS = {
    "no var": (lambda root: remove(root, "var"), r"has no var; write it with AnnData"),
    "no X": (lambda root: remove(root, "X"), r"has no X; it has: no counts at all"),
    "no indptr": (lambda root: remove(root["X"], "indptr"), r"has no indptr: it is no matrix"),
    "short indptr": (
        lambda root: root["X"].create_array("indptr", data=np.arange(4), overwrite=True),
        r"csr matrix of shape \(3,\), expected csr, csc or dense with 9 cells",
    ),
    "genes beyond": (
        lambda root: root["X/indices"].__setitem__(slice(0, 1), 99),
        r"rows from 0: torn matrix: it has genes 0 to 99, expected 0 to 4",
    ),
    "negative": (
        lambda root: root["X/data"].__setitem__(slice(0, 1), -3),
        r"a\.zarr: /X holds -3\.0, which is negative",
    ),
}


@pytest.mark.parametrize("name", ZARR_HARMS)
def test_malformed_zarr_stores(name, tmp_path):
    harm, message = ZARR_HARMS[name]
    path = write_zarr(tmp_path / "a.zarr")
    harm(zarr.open_group(path, mode="a", use_consolidated=False))
    zarr.consolidate_metadata(path)
    entry = {"path": str(path), "obs": {"condition": "x"}}
    with pytest.raises(DataError, match=message):
        ingest(IngestConfig(inputs=[entry]), CONDITIONS, tmp_path / "s")


def test_a_folder_that_is_no_input(tmp_path):
    (tmp_path / "a").mkdir()
    refused(tmp_path / "a", tmp_path, r"is no input that can be read; expected an h5ad file")


def test_an_unknown_gene_column(tmp_path):
    path = write_zarr(tmp_path / "a.zarr")
    refused(path, tmp_path, r"var has no column 'name'; it has: symbol;", gene_column="name")


def test_a_renamed_column_must_exist(tmp_path):
    path = write_zarr(tmp_path / "a.zarr")
    message = r"obs has no column sate to rename; it has: \w+, \w+"
    refused(path, tmp_path, message, obs={}, rename={"sate": "condition"})


def test_a_renamed_column_must_be_read(tmp_path):
    entry = {"path": str(write_zarr(tmp_path / "a.zarr")), "rename": {"state": "cond"}}
    with pytest.raises(ConfigError, match=r"renames columns to cond, which nobody reads.*rename"):
        check_inputs(IngestConfig(inputs=[entry]), CONDITIONS)


def test_one_origin_per_column():
    for obs, rename in (({"a": "1"}, {"x": "a"}), ({}, {"x": "a", "y": "a"})):
        with pytest.raises(ValueError, match=r"gives a twice, in obs and rename"):
            InputConfig(path="p", obs=obs, rename=rename)


# ---------------------------------------------------------------- identity


@pytest.mark.parametrize("kind", ["zarr v3 csr", "10x folder v3"])
def test_identity_follows_the_content_of_a_folder(kind, tmp_path):
    path = KINDS[kind](tmp_path)
    before = content_digest(path)
    assert content_digest(path) == before
    file = next(p for p in sorted(path.rglob("*")) if p.is_file() and p.stat().st_size > 20)
    file.write_bytes(file.read_bytes()[:-1] + b"?")
    assert content_digest(path) != before


def test_identity_follows_the_settings_of_an_input(tmp_path):
    path = str(write_zarr(tmp_path / "a.zarr"))
    keys = {
        ingest_key(IngestConfig(inputs=[{"path": path, **more}]), CONDITIONS, 0)
        for more in ({}, {"gene_column": "symbol"}, {"rename": {"state": "condition"}})
    }
    assert len(keys) == 3
