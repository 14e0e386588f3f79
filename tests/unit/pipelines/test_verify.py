"""`save-dist verify`: bytes, conditions, and parts sampled again."""

import dataclasses
import json
import shutil

import numpy as np
import pytest
import zarr
from tiny_model import save_tiny_model
from typer.testing import CliRunner

from save_dist import cli
from save_dist.stores.part import PartColumns, write_part
from save_dist.stores.receipts import missing_parts, read_receipt, read_record, write_receipt


@pytest.fixture
def run(random_run, tmp_path):
    return shutil.copytree(random_run, tmp_path / "run")


def verify(path, *options):
    done = CliRunner().invoke(cli.app, ["verify", str(path), *options])
    summary = json.loads(done.stdout.splitlines()[-1])
    assert done.exit_code == summary["exit_code"]
    return summary


def forge(path, part, change):
    """Write a part whose receipt is sound and whose cells are not those of the plan."""
    record = read_record(path)
    start, stop = record.rows(part)
    group = zarr.open_group(path, mode="r")
    obs = group["obs"]
    columns = {
        "counts": group["X"][start:stop],
        "codes": np.stack([obs[f"{c}/codes"][start:stop] for c in ("cell_type", "condition")], 1),
        "n_train_cells": obs["n_train_cells"][start:stop],
        "route": obs["route/codes"][start:stop],
        "n_route_cells": obs["n_route_cells"][start:stop],
        "cell_seed": obs["cell_seed"][start:stop],
    }
    columns = {**columns, "codes": columns["codes"].astype(np.int16)}
    columns["route"] = columns["route"].astype(np.int16)
    change(columns)
    write_part(path, record, part, PartColumns(**columns), n_evaluations=1, start_s=0.0)


def one_count_more(columns):
    columns["counts"][3, 4] += 1


def one_other_type(columns):
    columns["codes"][5, 0] = 2


def test_a_sound_atlas_comes_out_alike(run):
    found = verify(run / "atlas.zarr", "--resample", "2")
    assert (found["status"], found["n_parts"], len(found["resampled"])) == ("done", 3, 2)
    assert verify(run / "atlas.zarr")["resampled"] == []
    every = verify(run / "atlas.zarr", "--resample", "9", "--model", str(run / "model"))
    assert every["resampled"] == [0, 1, 2]


def test_another_seed_chooses_other_parts(run):
    options = ["--resample", "1", "--seed"]
    chosen = {verify(run / "atlas.zarr", *options, str(seed))["resampled"][0] for seed in range(6)}
    assert len(chosen) > 1


def test_a_count_that_the_model_does_not_give_is_found_and_mended(run):
    path = run / "atlas.zarr"
    forge(path, 1, one_count_more)
    assert verify(path)["exit_code"] == 0, "its receipt fits"
    found = verify(path, "--resample", "3", "--mend")
    assert found["exit_code"] == 4
    assert "part 1, sampled again here, differs in 1 of 384 values of X" in found["error"]
    assert missing_parts(path) == [1]


def test_a_row_of_another_condition_is_found_without_sampling(run):
    forge(run / "atlas.zarr", 0, one_other_type)
    found = verify(run / "atlas.zarr")
    assert found["exit_code"] == 4
    assert "part 0: 1 of 32 rows have other conditions than planned" in found["error"]


def test_cells_with_other_counts_than_were_sampled_are_found(run):
    """A writer that lost a count before it took the digests."""
    path = run / "atlas.zarr"
    receipt = read_receipt(path, read_record(path), 2, deep=True)
    write_receipt(path, dataclasses.replace(receipt, n_counts=receipt.n_counts + 1))
    found = verify(path)
    assert found["exit_code"] == 4
    n = receipt.n_counts
    assert f"part 2: its cells have {n} counts in all, {n + 1} were sampled" in found["error"]


def test_sampling_again_needs_the_model(run, tmp_path):
    shutil.rmtree(run / "model")
    missing = verify(run / "atlas.zarr", "--resample", "1")
    assert missing["exit_code"] == 3 and "model does not exist" in missing["error"]
    other_hash = save_tiny_model(tmp_path / "other", seed=9)
    other = verify(run / "atlas.zarr", "--resample", "1", "--model", str(tmp_path / "other"))
    assert other["exit_code"] == 3 and other_hash in other["error"]
