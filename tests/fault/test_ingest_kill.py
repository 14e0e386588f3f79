"""An ingest killed at any point continues: its finished store equals an undisturbed one."""

import json
import subprocess
import sys

import anndata
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
import tiledbsoma
from spread_work import KilledOnce

from save_dist.cluster.spread import RaySpread
from save_dist.config.schema import ClusterConfig, ConditionsConfig, IngestConfig
from save_dist.core.errors import DataError
from save_dist.data.ingest import ingest
from save_dist.data.source import SomaSource, StoreLocator

pytestmark = pytest.mark.slow

CONDITIONS = ConditionsConfig(columns=["condition"])

# Forks one child per kill, before the parent has used TileDB, so that imports are paid for once.
KILLER = """
import importlib, json, os, signal, sys, time
from pathlib import Path
from save_dist.config.schema import ConditionsConfig, IngestConfig
from save_dist.data import ingest, receipts, writer

def arm(place, call, when):
    module, name = place.split(".")
    module = importlib.import_module("save_dist.data." + module)
    original, calls = getattr(module, name), [0]
    def armed(*args, **kwargs):
        calls[0] += 1
        if calls[0] == call and when == "before":
            os.kill(os.getpid(), signal.SIGKILL)
        result = original(*args, **kwargs)
        if calls[0] == call:
            os.kill(os.getpid(), signal.SIGKILL)
        return result
    setattr(module, name, armed)

def run(uri, kill):
    if "place" in kill:
        arm(kill["place"], kill["call"], kill["when"])
    config = IngestConfig.model_validate(json.loads(sys.argv[1]))
    ingest.ingest(config, ConditionsConfig(columns=["condition"]), Path(uri))

ends = []
for uri, kill in json.loads(sys.argv[2]):
    child = os.fork()
    if child == 0:
        run(uri, kill)
        os._exit(0)
    if "after_s" in kill:
        time.sleep(kill["after_s"])
        os.kill(child, signal.SIGKILL)
    ends.append(os.waitpid(child, 0)[1])
print(json.dumps(ends))
"""


def at(place, call, when):
    return {"place": place, "call": call, "when": when}


KILLS = {
    "before anything": at("receipts.write_json", 1, "before"),
    "plan receipt without a store": at("receipts.write_json", 1, "after"),
    "store half made": at("writer._add_var", 1, "before"),
    "store empty": at("writer.create_store", 1, "after"),
    "first block of the first input": at("writer.write_counts", 1, "after"),
    "last block of the first input": at("writer.write_counts", 3, "after"),
    "first input without obs": at("writer.write_obs", 1, "before"),
    "first input without receipt": at("writer.write_obs", 1, "after"),
    "first input with receipt": at("receipts.write_json", 2, "after"),
    "amid the second input": at("writer.write_counts", 5, "after"),
    "all inputs with receipts": at("receipts.write_json", 3, "after"),
    "marked complete, without receipt": at("writer.mark_complete", 1, "after"),
    "finished": at("receipts.write_json", 4, "after"),
}
COMPLETE = {"marked complete, without receipt", "finished"}
N_TIMED = 6


def run_killer(config, jobs):
    """Run one ingest per job, each killed in its way; the ends the children came to."""
    arguments = [config.model_dump_json(), json.dumps(jobs)]
    done = subprocess.run(
        [sys.executable, "-c", KILLER, *arguments], capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def content(uri):
    """Everything a reader can see of a store."""
    with SomaSource(StoreLocator(str(uri))) as source:
        csr = source.read_counts(source.joinids)
        obs = source.obs(["cell_id", "input", "condition", "n_counts"])
        genes = source.gene_ids
    with tiledbsoma.open(str(uri)) as experiment:
        nnz = experiment.ms["RNA"].X["raw"].nnz
    return csr, obs, genes, nnz


def assert_equal_stores(uri, reference):
    csr, obs, genes, nnz = content(uri)
    want_csr, want_obs, want_genes, want_nnz = content(reference)
    for found, want in zip(csr, want_csr, strict=True):
        np.testing.assert_array_equal(found, want)
    pd.testing.assert_frame_equal(obs.astype(str), want_obs.astype(str))
    assert (genes, nnz) == (want_genes, want_nnz)


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    """Two files of 60 cells, three blocks each, with partly other genes."""
    folder = tmp_path_factory.mktemp("cells")
    rng = np.random.default_rng(0)
    inputs = []
    for name, first in (("a", 0), ("b", 3)):
        counts = sp.csr_matrix(rng.poisson(0.7, (60, 9)).astype(np.float32))
        adata = anndata.AnnData(counts, var=pd.DataFrame(index=[f"g{first + i}" for i in range(9)]))
        adata.obs_names = [f"c{i}" for i in range(60)]
        adata.write_h5ad(folder / f"{name}.h5ad")
        inputs.append({"path": str(folder / f"{name}.h5ad"), "obs": {"condition": name}})
    return IngestConfig.model_validate({"inputs": inputs, "rows_per_block": 20})


@pytest.fixture(scope="module")
def reference(config, tmp_path_factory):
    uri = tmp_path_factory.mktemp("undisturbed") / "s"
    return uri, ingest(config, CONDITIONS, uri)


@pytest.fixture(scope="module")
def killed(config, tmp_path_factory):
    """One store per kill, as the kill left it."""
    folder = tmp_path_factory.mktemp("killed")
    kills = {**KILLS, "for receipts": KILLS["amid the second input"]}
    stores = {name: folder / f"{i}" / "s" for i, name in enumerate(kills)}
    ends = run_killer(config, [(str(stores[name]), kill) for name, kill in kills.items()])
    assert ends == [9] * len(kills)
    return stores


@pytest.mark.parametrize("name", KILLS)
def test_a_killed_ingest_continues(name, killed, config, reference):
    uri = killed[name]
    if name not in COMPLETE:
        with pytest.raises(DataError, match=r"incomplete|not a SOMA experiment"):
            SomaSource(StoreLocator(str(uri)))
    assert ingest(config, CONDITIONS, uri) == reference[1]
    assert_equal_stores(uri, reference[0])
    names = {p.name for p in uri.parent.iterdir()}
    assert names == {"s", "s.receipts"}
    assert len(list(uri.parent.glob("s.receipts/*.json"))) == 4


def test_finished_inputs_are_kept(killed, config, reference):
    uri = killed["for receipts"]
    receipts = uri.with_name("s.receipts")
    first = (receipts / "000000.json").stat().st_mtime_ns
    assert not (receipts / "000001.json").exists()
    assert ingest(config, CONDITIONS, uri) == reference[1]
    assert (receipts / "000000.json").stat().st_mtime_ns == first


def test_an_ingest_killed_again_and_again_gets_there(config, reference, tmp_path):
    """Kills by the clock, wherever they fall, also within TileDB."""
    uri = tmp_path / "s"
    delays = np.linspace(0.03, 0.4, N_TIMED)
    ends = run_killer(config, [(str(uri), {"after_s": delay}) for delay in delays])
    assert ends.count(9) >= 1
    assert ingest(config, CONDITIONS, uri) == reference[1]
    assert_equal_stores(uri, reference[0])


# ---------------------------------------------------------------- inputs side by side


def test_side_by_side_gives_the_same_store(config, reference, tmp_path, ray_session):
    """Two processes write into one matrix, and one of them is killed."""
    spread = RaySpread(ClusterConfig(n_workers=2))
    mark = tmp_path / "killed"

    def killing(work, items):
        return spread(KilledOnce(work, mark), items)

    assert ingest(config, CONDITIONS, tmp_path / "s", spread=killing) == reference[1]
    assert mark.exists()
    assert_equal_stores(tmp_path / "s", reference[0])
    assert not list(tmp_path.glob("s.receipts/*.arrow"))


@pytest.mark.parametrize("n_committed", [0, 1])
def test_a_driver_that_dies_side_by_side_continues(config, reference, tmp_path, n_committed):
    """All inputs are written, but not all are committed."""

    def dying(work, items):
        results = list(map(work, items))
        yield from results[:n_committed] if items == [0, 1] else results
        if items == [0, 1]:
            raise KeyboardInterrupt

    uri = tmp_path / "s"
    with pytest.raises(KeyboardInterrupt):
        ingest(config, CONDITIONS, uri, spread=dying)
    assert len(list(tmp_path.glob("s.receipts/0*.json"))) == n_committed
    with pytest.raises(DataError, match="incomplete"):
        SomaSource(StoreLocator(str(uri)))
    assert ingest(config, CONDITIONS, uri) == reference[1]
    assert_equal_stores(uri, reference[0])
    assert not list(tmp_path.glob("s.receipts/*.arrow"))
