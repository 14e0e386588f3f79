"""A run over a store of others: ingest pins it, blocks and the stream read it where it is."""

import numpy as np
import pytest
import yaml
from tiny_run import last_line

from save_dist.cli import run_job
from save_dist.config.load import load
from save_dist.config.schema import BlocksJob, ConditionsConfig, IngestConfig
from save_dist.core.durable import read_json
from save_dist.data.ingest import ingest
from save_dist.data.partition import StreamPlan
from save_dist.data.splits import TRAIN
from save_dist.data.stream import CellStream
from save_dist.pipelines import probes
from save_dist.stores.vocabulary import load_vocabulary

pytestmark = pytest.mark.slow
COLUMNS = ["condition", "cell_type"]


@pytest.fixture(scope="module")
def store(tmp_path_factory, tiny_cells):
    """Somebody's experiment, far from the run."""
    uri = tmp_path_factory.mktemp("elsewhere") / "atlas.soma"
    config = IngestConfig(inputs=[{"path": str(tiny_cells)}], obs_columns=["donor"])
    ingest(config, ConditionsConfig(columns=COLUMNS), uri)
    return uri


def write_config(folder, **source):
    config = {
        "run": {"dir": str(folder / "run")},
        "tracking": {"backend": "none"},
        "conditions": {"columns": COLUMNS},
    }
    for name, more in (
        ("ingest", {"source": source}),
        ("blocks", {"genes": {"n_top": 50}, "blocks": {"genes_per_block": 25}}),
    ):
        (folder / f"{name}.yaml").write_text(yaml.safe_dump(config | more))
    return folder


def test_nothing_is_copied_and_the_filter_holds(store, tmp_path, capsys):
    folder = write_config(tmp_path, uri=str(store), value_filter="donor == 'donor-0'")
    for verb in ("ingest", "blocks", "blocks", "ingest"):
        assert run_job(verb, folder / f"{verb}.yaml", []) == 0, capsys.readouterr().out
    run = folder / "run"
    assert not (run / "store.soma").exists()
    vocabulary = load_vocabulary(run / "vocab")
    assert vocabulary.store.uri == str(store)
    assert vocabulary.store.value_filter == "(donor == 'donor-0')"
    assert (
        vocabulary.store.timestamp
        == read_json(run / "stages/ingest.json")["summary"]["store"]["timestamp"]
    )
    n_cells = read_json(run / "stages/ingest.json")["summary"]["n_cells"]
    assert 0 < vocabulary.index.n_cells == n_cells < 1200

    index = vocabulary.index.where(TRAIN)
    plan = StreamPlan(index.n_cells, 32, 16, 4, n_lanes=2, seed=0)
    with CellStream(vocabulary.store, index, vocabulary.gene_positions, plan) as stream:
        batches = list(stream.batches(0, plan.n_steps_per_epoch))
    assert set(np.concatenate([b.joinids for b in batches])) == set(index.joinids)

    job = load(BlocksJob, folder / "blocks.yaml")
    checks = {check.name: check for check in probes.contents(job, "blocks")}
    assert checks["store"].level == "ok"
    assert str(store) in checks["store"].found


def test_other_cells_in_a_used_run_are_refused(store, tmp_path, capsys):
    folder = write_config(tmp_path, uri=str(store))
    assert run_job("ingest", folder / "ingest.yaml", []) == 0
    arguments = ["source.value_filter=donor == 'donor-1'"]
    assert run_job("ingest", folder / "ingest.yaml", arguments) == 2
    assert "made with other settings" in last_line(capsys.readouterr().out)["error"]


def test_a_dry_run_says_what_is_there(store, tmp_path, capsys):
    folder = write_config(tmp_path, uri=str(store))
    assert run_job("ingest", folder / "ingest.yaml", [], dry_run=True) == 0
    plan = last_line(capsys.readouterr().out)["plan"]
    assert plan == {"n_cells": 1200, "n_genes": 200, "uri": str(store)}
    assert not (folder / "run").exists()


def test_files_or_a_store_but_not_both(store, tmp_path, capsys):
    folder = write_config(tmp_path, uri=str(store))
    both = ['ingest={"inputs": [{"path": "a.h5ad"}]}']
    for arguments in (both, ["source=null"]):
        assert run_job("ingest", folder / "ingest.yaml", arguments) == 2
        assert "give either `ingest`" in last_line(capsys.readouterr().out)["error"]
