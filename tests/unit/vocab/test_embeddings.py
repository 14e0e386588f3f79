import hashlib

import numpy as np
import pandas as pd
import pytest

from save_dist.core.errors import ConfigError, DataError
from save_dist.vocab.embeddings import coexpression, from_file, random

GENES = ["A", "B", "C", "D"]
TABLE = pd.DataFrame(
    {"x": [1.0, 3.0, 5.0, 9.0], "y": [0.0, 2.0, 4.0, 8.0]},
    index=pd.Index(["C", "A", "B", "Z"], name="gene"),
)


def covariance(n_genes=6, n_cells=50, seed=0):
    cells = np.random.default_rng(seed).normal(size=(n_cells, n_genes))
    cells[:, 1] = 3 * cells[:, 0] + 0.1 * cells[:, 1]
    return np.cov(cells.T)


def write(table, path):
    match path.suffix:
        case ".csv":
            table.to_csv(path)
        case ".tsv":
            table.to_csv(path, sep="\t")
        case ".parquet":
            table.to_parquet(path)
        case ".npz":
            genes = table.index.to_numpy(dtype=str)
            np.savez(path, genes=genes, vectors=table.to_numpy(np.float32))
    return path


def test_full_loadings_reproduce_the_correlations():
    matrix = covariance()
    embedding = coexpression(matrix, dim=6)
    sd = np.sqrt(np.diag(matrix))
    np.testing.assert_allclose(
        embedding.vectors @ embedding.vectors.T, matrix / np.outer(sd, sd), atol=1e-5
    )
    assert embedding.vectors.dtype == np.float32
    assert embedding.source == "coexpression"
    assert embedding.n_found == 6


def test_columns_fall_in_size_and_their_signs_are_fixed():
    vectors = coexpression(covariance(), dim=3).vectors
    sizes = np.square(vectors).sum(axis=0)
    assert (np.diff(sizes) < 0).all()
    largest = np.abs(vectors).argmax(axis=0)
    assert (vectors[largest, np.arange(3)] > 0).all()
    np.testing.assert_allclose(vectors, coexpression(covariance(), dim=5).vectors[:, :3], atol=1e-5)


def test_units_of_a_gene_do_not_matter():
    scale = np.array([1, 10, 0.1, 1, 5, 1])
    matrix = covariance()
    a, b = coexpression(matrix, 3), coexpression(matrix * np.outer(scale, scale), 3)
    np.testing.assert_allclose(a.vectors, b.vectors, atol=1e-5)


@pytest.mark.parametrize("rounding", [0, 1e-18])
def test_silent_genes_get_the_zero_vector(rounding):
    matrix = covariance()
    matrix[2], matrix[:, 2] = rounding, rounding
    embedding = coexpression(matrix, dim=5)
    assert (embedding.vectors[2] == 0).all()
    assert (np.abs(embedding.vectors[[0, 1, 3, 4, 5]]).sum(axis=1) > 0.5).all()
    assert embedding.n_found == 5


def test_dim_beyond_the_genes_is_filled_with_zeros():
    vectors = coexpression(covariance(), dim=9).vectors
    assert vectors.shape == (6, 9)
    assert (vectors[:, 6:] == 0).all()


@pytest.mark.parametrize(
    "matrix",
    [
        pytest.param(np.zeros((3, 3)), id="no variance"),
        pytest.param(np.full((3, 3), np.nan), id="nan"),
    ],
)
def test_covariance_that_says_nothing_is_refused(matrix):
    with pytest.raises(DataError, match="covariance of 3 genes is not finite or zero throughout"):
        coexpression(matrix, dim=2)


def test_random_vectors_come_from_the_seed():
    a, b, c = random(10, 4, seed=1), random(10, 4, seed=1), random(10, 4, seed=2)
    assert a.vectors.shape == (10, 4)
    assert a.digest == b.digest == hashlib.sha256(a.vectors.tobytes()).hexdigest()
    assert a.digest != c.digest


@pytest.mark.parametrize("suffix", [".csv", ".tsv", ".parquet", ".npz"])
def test_table_rows_follow_the_vocabulary(tmp_path, suffix):
    path = write(TABLE, tmp_path / f"table{suffix}")
    embedding = from_file(path, GENES)
    mean = [3.0, 2.0]  # of A, B, C; Z is not in the vocabulary
    assert embedding.vectors.tolist() == [[3.0, 2.0], [5.0, 4.0], [1.0, 0.0], mean]
    assert embedding.vectors.dtype == np.float32
    assert embedding.n_found == 3
    assert embedding.source == f"file:table{suffix}"
    assert embedding.digest == hashlib.sha256(path.read_bytes()).hexdigest()


def test_parquet_with_gene_ids_in_the_first_column(tmp_path):
    path = tmp_path / "table.parquet"
    TABLE.reset_index().to_parquet(path)
    assert from_file(path, ["B", "A"]).vectors.tolist() == [[5.0, 4.0], [3.0, 2.0]]


def test_genes_without_a_vector_are_counted_in_a_warning(tmp_path, caplog):
    from_file(write(TABLE, tmp_path / "table.csv"), GENES)
    assert "genes_without_vector source=table.csv n_genes=1 of=4" in caplog.text
    assert "examples=D" in caplog.text
    caplog.clear()
    from_file(tmp_path / "table.csv", ["A", "B"])
    assert not caplog.text


def test_half_of_the_genes_is_enough_and_less_is_not(tmp_path):
    path = write(TABLE, tmp_path / "table.csv")
    assert from_file(path, ["A", "B", "q", "r"]).n_found == 2
    with pytest.raises(
        DataError,
        match=r"table.csv knows 2 of 5 genes, expected at least 50%; its ids look like C, A, B "
        r"and 1 more, the data's like A, B, q and 2 more",
    ):
        from_file(path, ["A", "B", "q", "r", "s"])


@pytest.mark.parametrize(
    ("name", "text", "error", "expected"),
    [
        pytest.param("t.pkl", "", ConfigError, r"end in '.pkl'; use .csv, .tsv", id="suffix"),
        pytest.param("t.csv", None, ConfigError, r"do not exist; correct blocks", id="absent"),
        pytest.param("t.csv", "g,x\nA,one\n", DataError, r"is not a table of gene id", id="words"),
        pytest.param("t.csv", "", DataError, r"is not a table of gene id", id="empty file"),
        pytest.param("t.csv", "g\nA\nB\n", DataError, r"table of shape \(2, 0\)", id="no numbers"),
        pytest.param("t.csv", "g,x\nA,1\nA,2\n", DataError, r"lists genes twice: A;", id="twice"),
        pytest.param("t.csv", "g,x\nA,1\nB,\n", DataError, r"for 1 genes, e.g. B;", id="hole"),
        pytest.param("t.npz", "x", DataError, r"is not a table of gene id", id="no npz"),
    ],
)
def test_files_that_cannot_be_used(tmp_path, name, text, error, expected):
    path = tmp_path / name
    if text is not None:
        path.write_text(text)
    with pytest.raises(error, match=expected):
        from_file(path, GENES)


def test_pickled_arrays_are_refused(tmp_path):
    path = tmp_path / "table.npz"
    np.savez(path, genes=np.array(GENES, dtype=object), vectors=np.ones((4, 2)))
    with pytest.raises(DataError, match="allow_pickle=False"):
        from_file(path, GENES)
