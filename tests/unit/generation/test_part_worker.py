import dataclasses
import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import zarr
from tiny_atlas import GRID, N_PARTS, OUTPUT, begin, fill, stored, tiny_plan
from tiny_model import SUPPORT, save_tiny_model

from save_dist.config.schema import GridConfig, OutputConfig
from save_dist.core.errors import AtlasError
from save_dist.generation import worker as worker_module
from save_dist.generation.sampler import cell_seeds, sample_conditions
from save_dist.generation.worker import PARTS_IN_FLIGHT, PartWorker
from save_dist.stores import atlas, receipts
from save_dist.stores.atlas_reader import choose_cells
from save_dist.stores.bundle import load_bundle


@pytest.fixture(scope="module")
def model(random_model):
    return random_model


@pytest.fixture(scope="module")
def finished(random_run, model):
    """A complete atlas, its parts written in order by one worker; and its plan."""
    return random_run / "atlas.zarr", tiny_plan(load_bundle(model))


def test_columns_say_what_each_cell_is(finished):
    path, plan = finished
    group = zarr.open_group(path, mode="r")
    rows = np.arange(plan.n_cells)
    condition = rows // GRID.cells_per_condition
    np.testing.assert_array_equal(group["obs/cell_type/codes"][:], condition // 2)
    np.testing.assert_array_equal(group["obs/condition/codes"][:], condition % 2)
    support = np.array([SUPPORT.get((c // 2, c % 2), 0) for c in condition])
    np.testing.assert_array_equal(group["obs/n_train_cells"][:], support)
    np.testing.assert_array_equal(group["obs/seen"][:], support > 0)
    np.testing.assert_array_equal(group["obs/part"][:], rows // 32)
    assert set(group["obs/route/codes"][:].tolist()) == {0}


def test_cell_seeds_are_those_of_the_condition(finished, model):
    path, _ = finished
    bundle = load_bundle(model)
    expected = cell_seeds(bundle, (1, 0), np.arange(15, dtype=np.int64), GRID.seed)
    found = zarr.open_group(path, mode="r")["obs/cell_seed"][:]
    np.testing.assert_array_equal(found[30:45], expected)
    assert len(set(found.tolist())) == found.size


def test_the_atlas_holds_the_cells_the_sampler_gives(tmp_path, model):
    grid = GridConfig(cells_per_condition=32, seed=3)
    path, plan = begin(tmp_path, model, grid=grid)
    fill(path, model, [plan.n_parts - 1])
    bundle = load_bundle(model)
    cells = sample_conditions(
        bundle,
        np.array([[2, 1]]),
        32,
        seed=3,
        guidance=grid.guidance,
        solver=grid.solver,
        cells_per_minibatch=OUTPUT.cells_per_minibatch,
    )
    group = zarr.open_group(path, mode="r")
    np.testing.assert_array_equal(group["X"][-32:], cells.counts)


@pytest.mark.parametrize("order", [(2, 1, 0), (1, 0, 2)])
def test_any_order_leaves_the_same_bytes(tmp_path, finished, model, order):
    path, _ = begin(tmp_path, model)
    for part in order:
        fill(path, model, [part])
    atlas.finish(path)
    assert stored(path) == stored(finished[0])


def test_receipts_differ_in_time_alone(tmp_path, finished, model):
    path, _ = begin(tmp_path, model)
    for again in fill(path, model, range(N_PARTS)):
        first = receipts.read_receipt(
            finished[0], receipts.read_record(finished[0]), again.part, deep=True
        )
        assert again.digest == first.digest
        times = {"seconds": first.seconds, "writing_s": first.writing_s}
        assert dataclasses.replace(again, **times) == first
        assert again.digest == first.digest
        assert 0 < again.writing_s <= again.seconds


def test_cells_do_not_depend_on_the_parts_if_minibatches_agree(tmp_path, finished, model):
    """Parts of 30 rows instead of 32: cells 0..30 fall into the same minibatches of 10."""
    output = OutputConfig(cells_per_part=30, cells_per_chunk=10, cells_per_minibatch=10)
    path, _ = begin(tmp_path, model, output=output)
    fill(path, model, [0])
    a, b = (zarr.open_group(p, mode="r") for p in (path, finished[0]))
    np.testing.assert_array_equal(a["X"][:30], b["X"][:30])
    np.testing.assert_array_equal(a["obs/cell_seed"][:30], b["obs/cell_seed"][:30])


def test_cells_around_an_additive_mean_do_not_depend_on_the_parts_either(tmp_path):
    model = tmp_path / "model"
    save_tiny_model(model, centre="additive")
    counts = []
    for size in (30, 60):
        output = OutputConfig(cells_per_part=size, cells_per_chunk=10, cells_per_minibatch=10)
        path, plan = begin(tmp_path / str(size), model, output=output)
        fill(path, model, range(plan.n_parts))
        counts.append(zarr.open_group(path, mode="r")["X"][:])
    np.testing.assert_array_equal(*counts)
    assert counts[0].any()


def test_a_part_is_written_while_the_next_is_sampled(tmp_path, finished, model, monkeypatch):
    path, _ = begin(tmp_path, model)
    worker = PartWorker(model, path)
    n_begun, has_begun, is_sampling = 0, threading.Event(), threading.Lock()
    sample, write = worker.sample, worker_module.write_part

    def watched_sample(part):
        nonlocal n_begun
        assert is_sampling.acquire(blocking=False), "two parts are sampled at once"
        n_begun += 1
        if n_begun == 2:
            has_begun.set()
        columns = sample(part)
        is_sampling.release()
        return columns

    def patient_write(*args, **options):
        assert has_begun.wait(20), "no second part is sampled before the first is written"
        return write(*args, **options)

    monkeypatch.setattr(worker, "sample", watched_sample)
    monkeypatch.setattr(worker_module, "write_part", patient_write)
    with ThreadPoolExecutor(PARTS_IN_FLIGHT) as pool:
        done = list(pool.map(worker.run, range(N_PARTS)))
    assert [receipt.part for receipt in done] == list(range(N_PARTS))
    atlas.finish(path)
    assert stored(path) == stored(finished[0])


def test_a_finished_part_is_not_sampled_again(tmp_path, model, monkeypatch):
    path, _ = begin(tmp_path, model)
    worker = PartWorker(model, path)
    first = worker.run(0)
    monkeypatch.setattr(worker, "sample", lambda part: pytest.fail("sampled again"))
    assert worker.run(0) == first


def test_a_finished_part_with_altered_bytes_is_sampled_again(tmp_path, finished, model):
    path, _ = begin(tmp_path, model)
    worker = PartWorker(model, path)
    for part in range(N_PARTS):
        worker.run(part)
    shard = path / "X/c/1/0"
    data = bytearray(shard.read_bytes())
    data[10] ^= 1
    shard.write_bytes(data)
    worker.run(1)
    atlas.finish(path)
    assert stored(path) == stored(finished[0])


def test_another_model_is_refused_with_both_hashes(tmp_path, finished):
    other = tmp_path / "model"
    other_hash = save_tiny_model(other, seed=9)
    model_hash = finished[1].model.hash
    pattern = f"begun with model {model_hash}, .* is model {other_hash}; finish it with the first"
    with pytest.raises(AtlasError, match=pattern):
        PartWorker(other, finished[0])


def test_evaluations_are_counted_over_minibatches(tmp_path, model):
    path, _ = begin(tmp_path, model)
    receipt = fill(path, model, [0])[0]
    assert receipt.n_evaluations == 4 * 10  # 32 cells in minibatches of 10, midpoint with 5 steps


COMPOSED = GridConfig(cells_per_condition=15, seed=3, unseen="compose", compose={"n_cells": 32})


@pytest.fixture(scope="module")
def carrying(tmp_path_factory):
    folder = tmp_path_factory.mktemp("carrying") / "model"
    save_tiny_model(folder, transport=True)
    return folder


def test_a_composed_atlas_tells_each_cells_route(tmp_path, carrying):
    path, plan = begin(tmp_path, carrying, grid=COMPOSED)
    fill(path, carrying, range(N_PARTS))
    group = zarr.open_group(path, mode="r")
    names = ["direct", "condition: ctrl -> stim"]
    assert group["obs/route/categories"][:].tolist() == names
    is_unseen = np.arange(plan.n_cells) // 15 == 5
    np.testing.assert_array_equal(group["obs/route/codes"][:], is_unseen)
    np.testing.assert_array_equal(group["obs/seen"][:], ~is_unseen)
    support = np.where(is_unseen, SUPPORT[2, 0], group["obs/n_train_cells"][:])
    np.testing.assert_array_equal(group["obs/n_route_cells"][:], support)
    assert group["uns/save_dist/unseen"][()] == "compose"


@pytest.mark.parametrize("order", [(2, 1, 0), (1, 0, 2)])
def test_any_order_of_composed_parts_leaves_the_same_bytes(tmp_path, carrying, order):
    """A worker per part, and one for all: constants are found anew or remembered."""
    whole, _ = begin(tmp_path / "whole", carrying, grid=COMPOSED)
    fill(whole, carrying, range(N_PARTS))
    path, _ = begin(tmp_path / "other", carrying, grid=COMPOSED)
    for part in order:
        fill(path, carrying, [part])
    for atlas_path in (whole, path):
        atlas.finish(atlas_path)
    assert stored(path) == stored(whole)


def test_composing_changes_unseen_cells_alone(tmp_path, carrying):
    made = []
    for name, grid in [("a", COMPOSED), ("b", COMPOSED.model_copy(update={"unseen": "direct"}))]:
        path, _ = begin(tmp_path / name, carrying, grid=grid)
        fill(path, carrying, range(N_PARTS))
        made.append(zarr.open_group(path, mode="r")["X"][:])
    np.testing.assert_array_equal(made[0][:60], made[1][:60])
    assert not np.array_equal(made[0][75:], made[1][75:])


def test_a_masked_column_says_so_in_every_cell(tmp_path, model):
    grid = GridConfig(cells_per_condition=8, masked=["condition"])
    path, plan = begin(tmp_path, model, grid=grid)
    assert plan.n_parts == 1
    fill(path, model, [0])
    group = zarr.open_group(path, mode="r")
    assert group["obs/condition/categories"][:].tolist() == ["ctrl", "stim", "MASK"]
    assert set(group["obs/condition/codes"][:].tolist()) == {2}
    assert group["obs/n_train_cells"][:].tolist() == [70] * 8 + [30] * 8 + [5] * 8
    with pytest.raises(AtlasError, match="leaves 'condition' masked"):
        choose_cells(path, plan.model.conditions, plan.model.genes, 5, 0)


def test_uneven_numbers_of_cells_leave_the_same_cells(tmp_path, finished, model):
    entries = [{"n": 15}, {"condition": {"cell_type": "T"}, "n": 4}]
    grid = GridConfig(cells_per_condition=entries, seed=3)
    path, plan = begin(tmp_path, model, grid=grid)
    fill(path, model, range(plan.n_parts))
    a, b = (zarr.open_group(p, mode="r") for p in (path, finished[0]))
    np.testing.assert_array_equal(a["obs/cell_seed"][60:64], b["obs/cell_seed"][60:64])
    np.testing.assert_array_equal(a["obs/cell_seed"][64:68], b["obs/cell_seed"][75:79])
    np.testing.assert_array_equal(a["X"][:60], b["X"][:60])
