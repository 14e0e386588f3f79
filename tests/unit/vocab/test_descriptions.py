import gzip

import pandas as pd
import pytest

from save_dist.core.errors import ConfigError, DataError
from save_dist.vocab.descriptions import match, read_descriptions

TABLE = pd.DataFrame(
    {
        "symbol": ["CD4", "NA", "C1orf1", "EMPTY", ""],
        "entrez": [1, 2, 3, 4, 5],
        "description": ["a receptor", " a gene called NA ", "an open frame", " ", "of none"],
    }
)
TEXTS = {"CD4": "a receptor", "NA": "a gene called NA", "C1orf1": "an open frame"}


def write(table, path):
    match path.name.partition(".")[2]:
        case "csv" | "csv.gz":
            table.to_csv(path, index=False)
        case "tsv" | "tsv.gz":
            table.to_csv(path, index=False, sep="\t")
        case "parquet":
            table.to_parquet(path, index=False)
    return path


@pytest.mark.parametrize("ending", ["csv", "csv.gz", "tsv", "tsv.gz", "parquet"])
def test_genes_with_a_text(tmp_path, ending):
    path = write(TABLE, tmp_path / f"t.{ending}")
    assert read_descriptions(path, "symbol", "description") == TEXTS


def test_other_columns(tmp_path):
    path = write(TABLE, tmp_path / "t.tsv")
    assert read_descriptions(path, "entrez", "symbol") == {
        "1": "CD4",
        "2": "NA",
        "3": "C1orf1",
        "4": "EMPTY",
    }


def test_missing_texts_of_a_parquet_are_empty(tmp_path):
    path = write(TABLE.assign(description=["x", None, None, None, "y"]), tmp_path / "t.parquet")
    assert read_descriptions(path, "symbol", "description") == {"CD4": "x"}


@pytest.mark.parametrize(
    ("gene", "text"),
    [
        pytest.param("Abc", "exact", id="its very id"),
        pytest.param("ABC", "upper", id="its very id, though another differs in case alone"),
        pytest.param("abc", None, id="two differ in case alone"),
        pytest.param("xyz", "only", id="one differs in case alone"),
        pytest.param("Xyz.1", None, id="version"),
        pytest.param("q", None, id="absent"),
    ],
)
def test_matching(gene, text):
    found = match({"Abc": "exact", "ABC": "upper", "Xyz": "only"}, [gene])
    assert found == ({} if text is None else {gene: text})


@pytest.mark.parametrize(
    ("name", "content", "error", "text"),
    [
        pytest.param("t.txt", b"", ConfigError, "end in '.txt'; use .csv, .tsv", id="ending"),
        pytest.param("t.gz", b"", ConfigError, "end in '.gz'; use .csv, .tsv", id="bare gz"),
        pytest.param("t.tsv", None, ConfigError, "do not exist; correct blocks", id="absent"),
        pytest.param("t.tsv", b"", DataError, "is not a table of gene ids", id="empty"),
        pytest.param("t.tsv.gz", b"no", DataError, "is not a table of gene ids", id="no gzip"),
        pytest.param(
            "t.tsv.gz", gzip.compress(b"a" * 99)[:9], DataError, "is not a table", id="cut gzip"
        ),
        pytest.param("t.parquet", b"no", DataError, "is not a table of gene ids", id="no parquet"),
        pytest.param(
            "t.tsv",
            b"gene\tdescription\nA\tx\n",
            ConfigError,
            "have no column symbol; they have gene, description: correct blocks.embedding.id_col",
            id="column",
        ),
        pytest.param(
            "t.tsv",
            b"symbol\tdescription\nA\tx\nA\ty\n",
            DataError,
            "lists genes twice: A; keep one",
            id="twice",
        ),
        pytest.param(
            "t.tsv", b"symbol\tdescription\nA\t\n", DataError, "describes no gene", id="no text"
        ),
    ],
)
def test_files_that_cannot_be_used(tmp_path, name, content, error, text):
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(error, match=text):
        read_descriptions(tmp_path / name, "symbol", "description")


@pytest.mark.shared_data
def test_a_real_table_describes_most_genes_of_real_cells(shared_data):
    texts = read_descriptions(shared_data / "gene_text.tsv.gz", "symbol", "description")
    assert len(texts) > 23_000
    with_text = match(texts, ["IFIT1", "isg15", "CD14", "RP11-486G15.2"])
    assert list(with_text) == ["IFIT1", "isg15", "CD14"]
    assert "nterferon" in with_text["isg15"]
