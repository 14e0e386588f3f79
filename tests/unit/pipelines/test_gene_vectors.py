"""Blocks from descriptions through the stage's own code, with an encoder that needs no weights."""

import hashlib
from types import SimpleNamespace

import numpy as np
import pytest

from save_dist.config.schema import EmbeddingConfig
from save_dist.core.errors import CheckpointError, ConfigError, DataError
from save_dist.core.paths import RunPaths
from save_dist.pipelines import gene_vectors as stage
from save_dist.pipelines.context import Context
from save_dist.pipelines.gene_vectors import check_embedding, gene_vectors, input_digests
from save_dist.tracking.progress import LineProgress
from save_dist.tracking.tracker import open_journal
from save_dist.vocab import embeddings
from save_dist.vocab.blocks import build_blocks
from save_dist.vocab.genes import GeneVocabulary

GENES = GeneVocabulary(("IL2", "CD4", "cd8a", "RPL3", "NOVEL", "RPS2"))
TABLE = """symbol\tdescription
CD4\treceptor of cells
CD8A\treceptor of cells
IL2\treceptor of cells
RPL3\tribosome part
RPS2\tribosome part
OTHER\tsomething else
"""


class Hashing:
    """A vector per text from its bytes; remembers what it was asked."""

    def __init__(self):
        self.texts = []

    def encode(self, texts):
        self.texts += texts
        digests = [hashlib.sha256(text.encode()).digest()[:8] for text in texts]
        return np.array([[byte - 127.5 for byte in d] for d in digests], dtype=np.float32)


@pytest.fixture
def case(tmp_path):
    """A configuration whose files exist, a context, and an encoder."""
    (tmp_path / "genes.tsv").write_text(TABLE)
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "model.safetensors").write_bytes(b"weights")
    config = EmbeddingConfig(
        source="text", path=tmp_path / "genes.tsv", model=str(tmp_path / "model")
    )
    lines = []
    context = Context(
        RunPaths(tmp_path / "run"), open_journal(tmp_path / "m.jsonl"), LineProgress(lines.append)
    )
    return SimpleNamespace(config=config, context=context, encoder=Hashing(), lines=lines)


def vectors_of(case, **changes):
    config = case.config.model_copy(update=changes)
    return gene_vectors(config, GENES, None, case.context, 0, load=lambda _: case.encoder)


def test_vectors_are_those_of_the_descriptions(case, caplog):
    embedding = vectors_of(case)
    expected = Hashing().encode(["receptor of cells", "ribosome part"])
    for gene, row in (("IL2", 0), ("CD4", 0), ("cd8a", 0), ("RPL3", 1), ("RPS2", 1)):
        assert embedding.vectors[GENES.ids.index(gene)].tolist() == expected[row].tolist()
    mean = (3 * expected[0] + 2 * expected[1]) / 5
    np.testing.assert_allclose(embedding.vectors[4], mean, rtol=1e-6)
    assert embedding.n_found == 5
    assert embedding.source == "text:genes.tsv:model"
    assert "n_genes=1 of=6 placed=mean_of_others examples=NOVEL" in caplog.text
    assert "OTHER" not in case.encoder.texts
    assert "5" in case.lines[-1] and "gene descriptions" in case.lines[-1]
    blocks = build_blocks(embedding.vectors, 3, n_iterations=5, seed=0)
    assert sorted(map(sorted, blocks.members.tolist())) == [[0, 1, 2], [3, 4, 5]]


def test_made_once_per_table_model_and_genes(case, tmp_path):
    first, n_texts = vectors_of(case), len(case.encoder.texts)
    again = vectors_of(case)
    assert len(case.encoder.texts) == n_texts
    assert again.vectors.tobytes() == first.vectors.tobytes()
    assert (again.source, again.digest, again.n_found) == (first.source, first.digest, 5)
    (tmp_path / "model" / "model.safetensors").write_bytes(b"others")
    other_model = vectors_of(case)
    (tmp_path / "genes.tsv").write_text(TABLE.replace("ribosome", "of the ribosome"))
    other_table = vectors_of(case)
    assert len({first.digest, other_model.digest, other_table.digest}) == 3
    assert len(case.encoder.texts) == 3 * n_texts


def test_what_was_kept_serves_other_runs_as_a_file(case):
    made = vectors_of(case)
    path = case.context.paths.gene_vectors / "vectors.npz"
    read = embeddings.from_file(path, GENES.ids)
    np.testing.assert_array_equal(read.vectors, made.vectors)


def test_altered_vectors_are_refused(case):
    vectors_of(case)
    path = case.context.paths.gene_vectors / "vectors.npz"
    path.write_bytes(path.read_bytes()[:-1] + b"x")
    with pytest.raises(CheckpointError, match=r"vectors.npz does not match its manifest"):
        vectors_of(case)


def test_long_tables_are_encoded_in_pieces(case, monkeypatch):
    whole = vectors_of(case).vectors
    monkeypatch.setattr(embeddings, "TEXTS_AT_ONCE", 2)
    (case.context.paths.gene_vectors / "manifest.json").unlink()
    assert vectors_of(case).vectors.tobytes() == whole.tobytes()


@pytest.mark.parametrize(
    ("table", "encoder", "text"),
    [
        pytest.param(
            "symbol\tdescription\nIL2\tx\nCD4\ty\n",
            Hashing(),
            "knows 2 of 6 genes, expected at least 50%; its ids look like IL2, CD4",
            id="few genes",
        ),
        pytest.param(
            TABLE,
            SimpleNamespace(encode=lambda t: np.full((len(t), 2), np.nan, dtype=np.float32)),
            "gave NaN or infinity",
            id="nan",
        ),
    ],
)
def test_refused(case, tmp_path, table, encoder, text):
    (tmp_path / "genes.tsv").write_text(table)
    case.encoder = encoder
    with pytest.raises(DataError, match=text):
        vectors_of(case)
    assert not case.context.paths.gene_vectors.exists()


def test_what_a_stage_depends_on(case, tmp_path):
    assert input_digests(EmbeddingConfig()) == []
    table, model = input_digests(case.config)
    as_file = EmbeddingConfig(source="file", path=tmp_path / "genes.tsv")
    assert input_digests(as_file) == [table]
    (tmp_path / "model" / "model.safetensors").write_bytes(b"others")
    assert input_digests(case.config)[0] == table
    assert input_digests(case.config)[1] != model


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        pytest.param({"id_column": "gene"}, "have no column gene", id="column"),
        pytest.param({"model": "some/name"}, "never downloaded", id="model"),
        pytest.param({"path": "nowhere.tsv"}, "nowhere.tsv does not exist", id="table"),
    ],
)
def test_a_check_finds_it_before_cells_are_read(case, monkeypatch, changes, text):
    monkeypatch.setattr(stage, "check_installed", lambda: None)
    assert check_embedding(case.config) == "text: 6 genes are described in genes.tsv"
    assert check_embedding(EmbeddingConfig()) == "coexpression"
    config = EmbeddingConfig.model_validate(case.config.model_dump() | changes)
    with pytest.raises(ConfigError, match=text):
        check_embedding(config)
