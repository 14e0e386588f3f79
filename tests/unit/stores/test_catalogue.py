"""The append-only list of a run's atlases."""

import shutil

import pytest
from tiny_atlas import receipt_path

from save_dist.core.errors import InfrastructureError
from save_dist.core.paths import RunPaths
from save_dist.stores import catalogue, receipts
from save_dist.stores.catalogue import entries, newest_complete, note


@pytest.fixture
def run(random_run, tmp_path):
    return shutil.copytree(random_run, tmp_path / "run")


@pytest.fixture
def place(run):
    return run / "catalogue.jsonl"


def enter(place, path, digest="", **changes):
    facts = {"model_hash": "m", "plan_hash": "p", "n_cells": 90, **changes}
    note(place, path, digest=digest, **facts)


def own_plan(run):
    return receipts.read_record(run / "atlas.zarr").plan_hash


def test_lines_are_added_and_none_twice(place, run):
    enter(place, run / "atlas.zarr")
    enter(place, run / "atlas.zarr")
    enter(place, run / "atlas.zarr", "d")
    enter(place, run / "atlas.zarr", "d")
    found = list(entries(place))
    assert [(e.path, e.is_complete, e.digest) for e in found] == [
        ("atlas.zarr", False, ""),
        ("atlas.zarr", True, "d"),
    ]
    assert found[0].time.endswith("+00:00")
    before = place.read_bytes()
    enter(place, run / "elsewhere" / "atlas.zarr")
    assert place.read_bytes().startswith(before)


def test_the_newest_complete_atlas_is_one_that_is_there(place, run):
    plan = own_plan(run)
    assert newest_complete(place) is None
    enter(place, run / "atlas.zarr", plan_hash=plan)
    assert newest_complete(place) is None
    enter(place, run / "atlas.zarr", "d", plan_hash=plan)
    enter(place, run / "gone" / "atlas.zarr", "e", plan_hash="other")
    assert newest_complete(place) == run / "atlas.zarr"
    assert newest_complete(place, model_hash="m", plan_hash=plan) == run / "atlas.zarr"
    assert newest_complete(place, model_hash="n") is None
    assert newest_complete(place, plan_hash="other") is None
    receipt_path(run / "atlas.zarr", 1).unlink()
    assert newest_complete(place) is None


def test_the_run_may_be_moved(place, run, tmp_path):
    enter(place, run / "atlas.zarr", "d", plan_hash=own_plan(run))
    moved = run.rename(tmp_path / "moved")
    assert newest_complete(moved / "catalogue.jsonl") == moved / "atlas.zarr"


def test_a_torn_line_costs_itself_alone(place, run, caplog):
    enter(place, run / "atlas.zarr")
    with place.open("ab") as file:
        file.write(b'{"time": "2026-')
    enter(place, run / "atlas.zarr", "d")
    assert [e.is_complete for e in entries(place)] == [False, True]
    assert "catalogue_line_skipped" in caplog.text


def test_a_disk_that_refuses_is_named(place, run, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(catalogue.os, "write", full)
    with pytest.raises(InfrastructureError, match=r"catalogue\.jsonl: .*No space left"):
        enter(place, run / "atlas.zarr")


def test_scheduled_atlases_stand_in_the_catalogue_of_their_run(tmp_path):
    run = tmp_path / "run"
    assert RunPaths(run).catalogue == run / "catalogue.jsonl"
    assert RunPaths(run / "atlases" / "abc").catalogue == run / "catalogue.jsonl"
