"""The encoder from a folder. What needs sentence-transformers is skipped where it is absent."""

import importlib.util
import json
import socket

import numpy as np
import pytest

from save_dist.core.errors import ConfigError
from save_dist.vocab import sentences
from save_dist.vocab.sentences import check_installed, load_encoder, model_digest, model_folder

WORDS = ["a", "gene", "receptor", "of", "cells", "kinase"]


@pytest.fixture
def folder(tmp_path):
    """Looks like a model: weights, settings, and a text that decides nothing."""
    path = tmp_path / "model"
    (path / "1_Pooling").mkdir(parents=True)
    (path / "model.safetensors").write_bytes(b"weights")
    (path / "1_Pooling" / "config.json").write_text("{}")
    (path / "README.md").write_text("read me")
    return path


def test_folders_are_found(folder, tmp_path, monkeypatch):
    assert model_folder(str(folder)) == folder
    (tmp_path / "packed" / "inner").mkdir(parents=True)
    (tmp_path / "packed" / "__init__.py").write_text("raise RuntimeError('imported')")
    (tmp_path / "packed" / "inner" / "model.safetensors").write_bytes(b"")
    monkeypatch.syspath_prepend(tmp_path)
    assert model_folder("package:packed/inner") == tmp_path / "packed" / "inner"


@pytest.mark.parametrize("model", ["sentence-transformers/some-name", "package:no_such_pack/model"])
def test_names_that_would_need_a_download_are_refused(model):
    with pytest.raises(ConfigError, match=r"is no folder here .*never downloaded; give a folder"):
        model_folder(model)


def test_pickled_weights_are_refused(folder):
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    with pytest.raises(ConfigError, match=r"holds no .safetensors weights; give a folder"):
        model_folder(str(folder))


def test_digest_covers_what_decides(folder):
    before = model_digest(folder)
    (folder / "README.md").write_text("another")
    assert model_digest(folder) == before
    (folder / "1_Pooling" / "config.json").write_text('{"a": 1}')
    assert model_digest(folder) != before


def test_absent_extra_says_what_to_install(folder, monkeypatch):
    monkeypatch.setattr(sentences.importlib.util, "find_spec", lambda name: None)
    for call in (check_installed, lambda: load_encoder(folder)):
        with pytest.raises(ConfigError, match=r"pip install 'save-dist\[text\]'"):
            call()


needs_extra = pytest.mark.skipif(
    importlib.util.find_spec("sentence_transformers") is None,
    reason="the extra `text` (sentence-transformers) is not installed",
)


@needs_extra
@pytest.mark.filterwarnings("ignore")
def test_a_model_folder_encodes_without_a_network(tmp_path, monkeypatch):
    path = random_model(tmp_path)

    def refuse(*args):
        raise AssertionError("the encoder used the network")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    encoder = load_encoder(path)
    vectors = encoder.encode(["a gene of cells", "receptor kinase", "a gene of cells"])
    assert vectors.shape == (3, 16)
    assert vectors.dtype == np.float32
    np.testing.assert_allclose(vectors[0], vectors[2], atol=1e-6)
    assert np.abs(vectors[0] - vectors[1]).max() > 1e-3


@needs_extra
@pytest.mark.filterwarnings("ignore")
def test_a_folder_that_is_no_model(folder):
    with pytest.raises(ConfigError, match="cannot be read as a sentence encoder"):
        load_encoder(folder)


def random_model(tmp_path):
    """A sentence encoder with random weights and six words."""
    from sentence_transformers import SentenceTransformer, models
    from transformers import BertConfig, BertModel, BertTokenizerFast

    source = tmp_path / "bert"
    source.mkdir()
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS]
    (source / "vocab.txt").write_text("\n".join(words))
    BertTokenizerFast(vocab=str(source / "vocab.txt")).save_pretrained(source)
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    BertModel(BertConfig(vocab_size=len(words), intermediate_size=16, **sizes)).save_pretrained(
        source
    )
    transformer = models.Transformer(str(source))
    SentenceTransformer(modules=[transformer, models.Pooling(16)], device="cpu").save(
        str(tmp_path / "model")
    )
    assert json.loads((tmp_path / "model" / "modules.json").read_text())
    return tmp_path / "model"
