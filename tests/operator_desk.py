"""An operator's desk, and the mistakes made at it: each plants one and returns the command."""

import dataclasses
import errno
import json
import os
import pickle
import shutil
import warnings
import zipfile
from pathlib import Path

import anndata
import numpy as np
from tiny_atlas import begin
from tiny_run import CONFIGS, settings

from save_dist.cluster.facts import machine_facts
from save_dist.cluster.nodes import ClusterFacts
from save_dist.core.durable import MANIFEST, file_digest, write_json
from save_dist.pipelines import doctor
from save_dist.pipelines.provenance import PACKAGES

BOMB = "a: &a [x, x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"{new}: &{new} [{', '.join(10 * ['*' + old])}]\n"
    for old, new in zip("abcdefgh", "bcdefghi", strict=True)
)
NOBODY = "http://127.0.0.1:1"


@dataclasses.dataclass(frozen=True)
class Desk:
    """Where an operator works: cells, a run with a model, an atlas that is half done."""

    folder: Path

    @property
    def run(self) -> Path:
        return self.folder / "run"

    @property
    def cells(self) -> Path:
        return self.folder / "cells.h5ad"

    def ingest(self, **more: object) -> list[str]:
        return arguments("ingest", settings(self.folder / "new", self.cells, **more))

    def generate(self, *pairs: str) -> list[str]:
        grid = ["grid.columns={cell_type: all, condition: all}", "grid.cells_per_condition=15"]
        return arguments("generate", [f"run.dir={self.run}", *grid, *pairs])

    def write(self, name: str, content: str | bytes) -> Path:
        path = self.folder / name
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return path


def arguments(verb: str, pairs: list[str]) -> list[str]:
    sets = [word for pair in pairs for word in ("--set", pair)]
    return [verb, "--config", str(CONFIGS / f"{verb}.yaml"), *sets]


def from_file(desk: Desk, content: str | bytes, verb: str = "train") -> list[str]:
    return [verb, "--config", str(desk.write(f"{verb}.yaml", content))]


def changed_cells(change):
    def plant(desk, monkeypatch):
        adata = anndata.read_h5ad(desk.cells)
        change(adata)
        adata.write_h5ad(desk.cells)
        return desk.ingest()

    return plant


def as_logarithms(adata):
    adata.X = np.log1p(adata.X)


def without_a_column(adata):
    del adata.obs["cell_type"]


def with_a_gene_twice(adata):
    adata.var_names = ["g0", *adata.var_names[:-1]]


def a_text_as_cells(desk, monkeypatch):
    desk.cells.write_text("gene,cell\n")
    return desk.ingest()


def a_zip_as_cells(desk, monkeypatch):
    with zipfile.ZipFile(desk.cells, "w") as archive:
        archive.writestr("../../outside", "x")
    return desk.ingest()


def a_pickle_as_cells(desk, monkeypatch):
    """A Zarr store whose chunks say that they were pickled."""
    store = desk.folder / "cells.zarr"
    with warnings.catch_warnings(action="ignore"):  # of the format's age
        anndata.read_h5ad(desk.cells).write_zarr(store)
    place = store / "X" / ".zarray"
    codec = {"compressor": {"id": "pickle"}, "filters": [{"id": "vlen-utf8"}], "dtype": "|O"}
    changed = json.loads(place.read_text()) | codec
    place.write_text(json.dumps(changed))
    (store / ".zmetadata").unlink(missing_ok=True)
    (store / "X" / "0.0").write_bytes(pickle.dumps(Planted(desk.folder / "planted")))
    return desk.ingest(**{"ingest.inputs": json.dumps([{"path": str(store)}])})


def a_zip_as_model(desk, monkeypatch):
    model = desk.run / "model"
    shutil.rmtree(model)
    with zipfile.ZipFile(model, "w") as archive:
        archive.writestr("../planted", "x")
    return desk.generate()


def a_flipped_byte(desk, monkeypatch):
    weights = desk.run / "model" / "vae.safetensors"
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1
    weights.write_bytes(data)
    return desk.generate()


def pickled_weights(desk, monkeypatch):
    """A stranger's model whose manifest fits."""
    model = desk.run / "model"
    (model / "vae.safetensors").write_bytes(pickle.dumps(Planted(desk.folder / "planted")))
    return reseal(desk, "vae.safetensors")


def a_model_of_another_format(desk, monkeypatch):
    facts = json.loads((desk.run / "model" / "model.json").read_text())
    write_json(desk.run / "model" / "model.json", facts | {"format": 1})
    return reseal(desk, "model.json")


def a_model_that_reaches_out(desk, monkeypatch):
    return reseal(desk, "../../../../etc/hostname")


def reseal(desk, name):
    place = desk.run / "model" / MANIFEST
    manifest = json.loads(place.read_text())
    file = desk.run / "model" / name
    manifest["files"][name] = file_digest(file) if file.is_file() else "0"
    write_json(place, manifest)
    return desk.generate()


class Planted:
    """Makes a file when it is unpickled."""

    def __init__(self, place):
        self.place = place

    def __reduce__(self):
        return Path.touch, (self.place,)


def another_grid(desk, monkeypatch):
    begin(desk.run, desk.run / "model")
    return desk.generate("grid.seed=4")


def an_atlas_without_its_parts(desk, monkeypatch):
    path, _ = begin(desk.run, desk.run / "model")
    return ["verify", str(path)]


def an_expired_store(desk, monkeypatch):
    """A time that the store's history no longer holds."""
    import tiledbsoma

    place = desk.folder / "old.soma"
    tiledbsoma.Experiment.create(str(place)).close()
    pairs = [f"run.dir={desk.folder / 'new'}", "ingest=null"]
    return arguments("ingest", [*pairs, f"source={{uri: {place}, timestamp: 1000}}"])


def a_file_in_the_way(desk, monkeypatch):
    (desk.folder / "new").write_text("")
    return desk.ingest()


def a_full_disk(desk, monkeypatch):
    def full(handle):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    return desk.ingest()


# Ray is imported late: it reads once how it authenticates, and `ray_session` sets that.
def a_wrong_token(desk, monkeypatch):
    import ray.exceptions
    import ray.job_submission

    def refuse(address):
        raise ray.exceptions.AuthenticationError("Authentication required: Unauthorized\n\nlong")

    monkeypatch.setattr(ray.job_submission, "JobSubmissionClient", refuse)
    return ["submit", *arguments("train", []), "--address", "http://head:8265"]


def a_wrong_cluster(desk, monkeypatch):
    import ray

    def refuse(**options):
        raise ConnectionError("Failed to connect to GCS at 127.0.0.1:1")

    monkeypatch.setattr(ray, "is_initialized", lambda: False)  # as in a process of its own
    monkeypatch.setattr(ray, "init", refuse)
    monkeypatch.setattr(ray, "shutdown", lambda: None)  # the Ray that tests share lives on
    return desk.generate("cluster.address=127.0.0.1:1")


def sick_cluster(change):
    """The doctor looks at a cluster that has one node, changed."""

    def plant(desk, monkeypatch):
        node = dataclasses.replace(machine_facts("n1", PACKAGES, [str(desk.folder)]), node="n1")
        facts = ClusterFacts((node,), (), 4.0, 0.0, {"n1": ""})
        monkeypatch.setenv("RAY_ADDRESS", "10.0.0.1:6379")
        monkeypatch.setattr(doctor, "cluster_facts", lambda *arguments: change(facts, node))
        return ["doctor", *arguments("ingest", settings(desk.folder / "new", desk.cells))[1:]]

    return plant


def older_ray(facts, node):
    old = dataclasses.replace(node, versions=node.versions | {"ray": "2.50.0"})
    return dataclasses.replace(facts, nodes=(old,))


def unshared_folder(facts, node):
    return dataclasses.replace(facts, storage={"n1": "the driver's file is not there"})


def full_node(facts, node):
    return dataclasses.replace(facts, nodes=(dataclasses.replace(node, free_bytes={"/d": 1000}),))


def with_pairs(*pairs):
    return lambda desk, monkeypatch: desk.generate(*pairs)


def with_file(content, verb="train"):
    return lambda desk, monkeypatch: from_file(desk, content, verb)


def words(*texts):
    return lambda desk, monkeypatch: [text.format(desk=desk.folder) for text in texts]
