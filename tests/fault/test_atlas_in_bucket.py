"""Atlases in an object store: the bytes of one on disk, damage found and mended, kills survived."""

import json
import os
import shutil
import signal
import subprocess
import sys

import numpy as np
import pytest
from tiny_atlas import GRID, N_PARTS, OUTPUT, fill, stored, tiny_plan
from typer.testing import CliRunner

import save_dist
from save_dist import cli
from save_dist.cluster.generate import PartOutcome
from save_dist.config.load import load
from save_dist.config.schema import GenerateJob
from save_dist.core.errors import AtlasError, ConfigError, InfrastructureError
from save_dist.generation.audit import check_conditions, check_totals, resample
from save_dist.generation.worker import PartWorker
from save_dist.pipelines import generate
from save_dist.pipelines.schedule import look
from save_dist.pipelines.status import status
from save_dist.pipelines.verify import Resampling, verify
from save_dist.stores import atlas, receipts
from save_dist.stores.bundle import load_bundle
from save_dist.stores.catalogue import newest_complete, note
from save_dist.stores.storage import storage_of

boto3 = pytest.importorskip("boto3", reason="boto3 (comes with moto, extra dev) is absent")

pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
]
BUCKET = "atlases"
VERSIONS = {"save-dist": "0"}


@pytest.fixture
def client(s3_server, monkeypatch):
    """Of the bucket, without what is under test."""
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://{s3_server}")
    monkeypatch.setenv("AWS_REGION", "us-east-1")
    client = boto3.client("s3", endpoint_url=f"http://{s3_server}", region_name="us-east-1")
    client.create_bucket(Bucket=BUCKET)
    return client


@pytest.fixture
def place(client, request):
    """An atlas to be, and what stands in the bucket below it."""
    name = f"{abs(hash(request.node.name))}/atlas.zarr"
    return f"s3://{BUCKET}/{name}"


def objects(client, place):
    """Every object of a store by name, but for the marks that stand for folders."""
    prefix = place.removeprefix(f"s3://{BUCKET}/") + "/"
    pages = client.get_paginator("list_objects_v2").paginate(Bucket=BUCKET, Prefix=prefix)
    keys = [found["Key"] for page in pages for found in page.get("Contents", [])]
    return {
        key.removeprefix(prefix): client.get_object(Bucket=BUCKET, Key=key)["Body"].read()
        for key in keys
        if not key.endswith("/")
    }


def put(client, place, name, data):
    key = f"{place.removeprefix(f's3://{BUCKET}/')}/{name}"
    client.put_object(Bucket=BUCKET, Key=key, Body=data)


def begun(place, model):
    plan = tiny_plan(load_bundle(model))
    atlas.create_template(place, plan.layout(), VERSIONS)
    return plan


def test_an_atlas_in_a_bucket_has_the_bytes_of_one_on_disk(client, place, random_run, tmp_path):
    model, path = random_run / "model", random_run / "atlas.zarr"
    plan = begun(place, model)
    assert receipts.missing_parts(place) == [0, 1, 2]
    with pytest.raises(AtlasError, match=rf"{place} is incomplete"):
        save_dist.open_atlas(place)
    fill(place, model, range(N_PARTS))
    assert atlas.finish(place) == atlas.atlas_digest(path)
    assert objects(client, place) == stored(path)
    assert atlas.is_complete(place) and atlas.verify(place).is_sound
    assert check_conditions(place, range(N_PARTS)) == check_totals(place, range(N_PARTS)) == []
    assert resample(place, PartWorker(model, place), [1]) == []

    cells, same = (
        save_dist.open_atlas(p).select(cell_type="NK", condition="stim").to_memory()
        for p in (place, path)
    )
    assert np.array_equal(cells.X, same.X) and cells.obs.equals(same.obs)

    entry = {"model_hash": plan.model.hash, "plan_hash": plan.hash, "n_cells": plan.n_cells}
    note(tmp_path / "catalogue.jsonl", place, **entry, digest="d")
    assert newest_complete(tmp_path / "catalogue.jsonl") == place


def test_damage_in_a_bucket_is_found_and_mended_alone(client, place, random_run):
    model = random_run / "model"
    begun(place, model)
    fill(place, model, range(N_PARTS))
    atlas.finish(place)
    whole = objects(client, place)
    shard = bytearray(whole["X/c/1/0"])
    shard[len(shard) // 2] ^= 0x10
    put(client, place, "X/c/1/0", bytes(shard))
    put(client, f"{place}.receipts", "000002.json", b"{")
    report = atlas.verify(place)
    assert report.bad_parts == [1, 2]
    assert "X/c/1/0 was altered" in report.problems[0].text
    atlas.discard_parts(place, report.bad_parts)
    assert not atlas.is_complete(place)
    before = objects(client, f"{place}.receipts")["000000.json"]
    assert receipts.missing_parts(place) == [1, 2]
    fill(place, model, [1, 2])
    atlas.finish(place)
    assert objects(client, place) == whole
    assert objects(client, f"{place}.receipts")["000000.json"] == before


KILLED = """
import os, signal, sys
from pathlib import Path
from save_dist.generation.worker import PartWorker
from save_dist.stores import part

worker = PartWorker(Path({model!r}), {place!r})
worker.run(2)
part.write_receipt = lambda *_: os.kill(os.getpid(), signal.SIGKILL)
worker.run(0)
"""


def test_a_worker_killed_before_its_receipt_costs_that_part_alone(client, place, random_run):
    model = random_run / "model"
    begun(place, model)
    code = KILLED.format(model=str(model), place=place)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, timeout=300)
    assert done.returncode == -signal.SIGKILL, done.stderr.decode()
    assert "X/c/0/0" in objects(client, place)
    assert receipts.missing_parts(place) == [0, 1]
    begun(place, model)
    fill(place, model, [0, 1])
    atlas.finish(place)
    assert objects(client, place) == stored(random_run / "atlas.zarr")


def test_another_plan_is_refused(place, random_run):
    begun(place, random_run / "model")
    plan = tiny_plan(load_bundle(random_run / "model"), grid=GRID.model_copy(update={"seed": 4}))
    with pytest.raises(AtlasError, match=r"holds an atlas of plan .*generate into another"):
        atlas.create_template(place, plan.layout(), VERSIONS)


def test_mistakes_are_named(client, place, random_run, monkeypatch):
    with pytest.raises(AtlasError, match=r"there is no plan record s3://.*plan\.json"):
        atlas.verify(place)
    with pytest.raises(ConfigError, match="names a bucket alone"):
        storage_of("s3://atlases")
    with pytest.raises(InfrastructureError, match=r"s3://absent/a\.zarr.*AWS_ENDPOINT_URL"):
        storage_of("s3://absent/a.zarr").write("x", b"1")
    begun(place, random_run / "model")
    fill(place, random_run / "model", range(N_PARTS))
    atlas.finish(place)
    with pytest.raises(ConfigError, match="add --model"):
        verify(place, mend=False, resampling=Resampling(1, None, 0))
    again = Resampling(1, random_run / "model", 0)
    assert verify(place, mend=False, resampling=again)["n_parts"] == N_PARTS
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    with pytest.raises(InfrastructureError, match="AWS_ENDPOINT_URL"):
        receipts.missing_parts(place)


@pytest.fixture
def config(place, random_run, tmp_path):
    """A generate job whose atlas goes to the bucket."""
    run = tmp_path / "run"
    shutil.copytree(random_run / "model", run / "model")
    settings = {
        "run": {"dir": str(run), "atlas": place},
        "tracking": {"backend": "none"},
        "cluster": {"address": "local", "n_workers": 1},
        "grid": GRID.model_dump(mode="json", exclude_unset=True),
        "output": OUTPUT.model_dump(mode="json", exclude_unset=True),
    }
    config = tmp_path / "generate.yaml"
    config.write_text(json.dumps(settings))
    return config


def assert_written(client, place, random_run, run):
    """Parts in the bucket, and only there; the run says so."""
    found, disk = objects(client, place), stored(random_run / "atlas.zarr")
    parts = [name for name in disk if name.startswith(("X/", "obs/"))]
    assert all(found[name] == disk[name] for name in parts)
    assert not (run / "atlas.zarr").exists()
    (generated,) = [s for s in status(run).stages if s.stage == "generate"]
    assert (generated.state, generated.durable) == ("done", N_PARTS)
    assert newest_complete(run / "catalogue.jsonl") == place


def test_the_command_writes_into_a_bucket(client, place, config, random_run, monkeypatch):
    """Its parts are sampled in this process; a timer finds what it made."""

    def sample(parts, cells, bundle, atlas, cluster, progress):
        fill(atlas, bundle, parts)
        return [PartOutcome(part, 1, 0.1, 1, "") for part in parts]

    monkeypatch.setattr(generate.cluster_generate, "generate", sample)
    for dry in ([], ["--dry-run"], []):
        done = CliRunner().invoke(cli.app, ["generate", "--config", str(config), *dry])
        assert done.exit_code == 0, done.output
    assert_written(client, place, random_run, config.parent / "run")
    out = config.parent / "cells.h5ad"
    for command in (["verify", place], ["export", place, str(out), "--to", "h5ad"]):
        done = CliRunner().invoke(cli.app, command)
        assert done.exit_code == 0, done.output
    tick = look(load(GenerateJob, config), config.parent / "run" / "model")
    assert tick.paths.atlas == f"{place.removesuffix('.zarr')}-{tick.plan_hash[:16]}.zarr"
    assert tick.atlas == place


@pytest.mark.chaos
def test_workers_write_into_a_bucket(client, place, config, random_run):
    """On a private Ray, whose workers have the environment of the job."""
    command = [sys.executable, "-m", "save_dist.cli", "generate", "--config", str(config)]
    done = subprocess.run(command, env=os.environ, capture_output=True, timeout=240)
    assert done.returncode == 0, done.stdout.decode() + done.stderr.decode()
    assert_written(client, place, random_run, config.parent / "run")
