"""Atlases that grow: what stands keeps its bytes, and a crash leaves the old or a new one."""

import shutil

import numpy as np
import pytest
import zarr
from tiny_atlas import GRID, N_PARTS, OUTPUT, begin, fill, receipt_path, stored, tiny_plan

import save_dist
from save_dist.core.errors import AtlasError, InfrastructureError
from save_dist.generation.extension import continued
from save_dist.generation.worker import PartWorker
from save_dist.stores import atlas, receipts
from save_dist.stores.bundle import load_bundle

LESS = GRID.model_copy(update={"columns": {"cell_type": ["B", "T"]}})
"""4 of the 6 conditions of 15 cells: 60 rows, the second part of 32 is short by 4."""
VERSIONS = {"save-dist": "0"}


@pytest.fixture(scope="module")
def model(random_model):
    return random_model


@pytest.fixture(scope="module")
def plan(model):
    """60 rows, then the 30 of the added cell type."""
    bundle = load_bundle(model)
    return continued(tiny_plan(bundle, grid=LESS), tiny_plan(bundle))


@pytest.fixture(scope="module")
def small_(tmp_path_factory, model):
    path, _ = begin(tmp_path_factory.mktemp("small"), model, grid=LESS)
    fill(path, model, range(2))
    atlas.finish(path)
    return path


@pytest.fixture
def small(small_, tmp_path):
    """A complete atlas of the smaller grid."""
    for name in ("atlas.zarr", "atlas.zarr.receipts"):
        shutil.copytree(small_.with_name(name), tmp_path / name)
    return tmp_path / "atlas.zarr"


@pytest.fixture(scope="module")
def in_one_go(tmp_path_factory, model, plan):
    """The larger plan, generated into an empty place."""
    path = tmp_path_factory.mktemp("whole") / "atlas.zarr"
    atlas.create_template(path, plan.layout(), VERSIONS)
    fill(path, model, range(N_PARTS))
    atlas.finish(path)
    return path


def finish(path, model, plan):
    """What the next run does."""
    atlas.create_template(path, plan.layout(), {"save-dist": "0"})
    fill(path, model, receipts.missing_parts(path))
    atlas.finish(path)


def test_an_extended_atlas_is_the_one_made_in_one_go(small, model, plan, in_one_go):
    before, kept = stored(small), receipt_path(small, 0).read_bytes()
    record = atlas.create_template(small, plan.layout(), VERSIONS)
    assert (record.n_cells, record.n_parts) == (90, 3)
    assert receipts.missing_parts(small) == [1, 2], "the short part is filled up"
    assert not atlas.is_complete(small)
    finish(small, model, plan)
    assert stored(small) == stored(in_one_go)
    assert stored(small)["X/c/0/0"] == before["X/c/0/0"]
    assert receipt_path(small, 0).read_bytes() == kept
    assert atlas.verify(small).is_sound and atlas.verify(small).is_marked_complete
    assert atlas.atlas_digest(small) == atlas.atlas_digest(in_one_go)


def test_cells_that_were_there_keep_rows_and_counts(small_, in_one_go):
    a, b = (zarr.open_group(path, mode="r") for path in (small_, in_one_go))
    for name in ("X", "obs/cell_seed", "obs/cell_type/codes", "obs/part", "obs/_index"):
        np.testing.assert_array_equal(a[name][:], b[name][:60])
    found = save_dist.open_atlas(in_one_go)
    assert found.ranges(cell_type="T").tolist() == [[30, 60]]
    assert found.ranges(cell_type="NK").tolist() == [[60, 90]]
    assert found.ranges(condition="ctrl").tolist() == [[0, 15], [30, 45], [60, 75]]
    cells = found.select(cell_type="NK", condition="stim")
    assert cells.obs_names.tolist() == [f"cell-{row}" for row in range(75, 90)]
    assert set(cells.obs["cell_type"]) == {"NK"}


def test_the_smaller_grid_is_refused_afterwards(small, model, plan):
    finish(small, model, plan)
    with pytest.raises(AtlasError, match=f"holds an atlas of plan {plan.hash}"):
        begin(small.parent, model, grid=LESS)


@pytest.mark.parametrize("moment", ["lay_out", "write_record"])
def test_a_crash_before_the_record_leaves_the_older_atlas(small, plan, monkeypatch, moment):
    before = stored(small)

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(atlas, moment, full)
    with pytest.raises(InfrastructureError, match="No space left"):
        atlas.create_template(small, plan.layout(), VERSIONS)
    assert stored(small) == before
    assert atlas.verify(small).is_sound and atlas.is_complete(small)


class Killed(BaseException):
    """Ends a run as a kill does: no handler for errors sees it."""


@pytest.mark.parametrize("n_files", [0, 1, 2, 9, 30, -1])
def test_a_crash_after_the_record_is_continued(small, model, plan, in_one_go, monkeypatch, n_files):
    """Killed after some files of the template: readers of the root still see equal lengths."""
    replace, done = type(small).replace, []

    def sometimes(self, target):
        if small in target.parents:
            if len(done) == n_files:
                raise Killed
            done.append(target)
        return replace(self, target)

    with monkeypatch.context() as patch:
        patch.setattr(type(small), "replace", sometimes)
        if n_files >= 0:
            with pytest.raises(Killed):
                atlas.create_template(small, plan.layout(), VERSIONS)
        else:
            atlas.create_template(small, plan.layout(), VERSIONS)
    assert receipts.read_record(small).plan_hash == plan.hash
    group = zarr.open_group(small, mode="r")
    assert group["X"].shape[0] == group["obs/cell_seed"].shape[0] == (90 if n_files < 0 else 60)
    assert not atlas.verify(small).is_sound
    finish(small, model, plan)
    assert stored(small) == stored(in_one_go)
    assert atlas.verify(small).is_sound
    assert [p.name for p in small.parent.glob(".*")] == []


def test_an_unfinished_atlas_may_grow(tmp_path, model, plan, in_one_go):
    path, _ = begin(tmp_path, model, grid=LESS)
    fill(path, model, [1])
    finish(path, model, plan)
    assert stored(path) == stored(in_one_go)


def test_a_part_from_before_is_mended_as_it_was(small, model, plan, in_one_go):
    finish(small, model, plan)
    atlas.discard_parts(small, [0])
    finish(small, model, plan)
    assert stored(small) == stored(in_one_go)
    assert receipt_path(small, 0).read_text().count(plan.history[0][1]) == 1


def test_a_worker_of_the_older_plan_stops(small, model, plan):
    worker = PartWorker(model, small)
    atlas.discard_parts(small, [1])
    atlas.create_template(small, plan.layout(), VERSIONS)
    with pytest.raises(AtlasError, match=f"has grown .* its plan is {plan.hash}"):
        worker.run(1)


def test_a_damaged_template_is_put_back(small, model):
    before = stored(small)
    (small / "X" / "zarr.json").write_text("{}")
    (small / "var" / "_index" / "c" / "0").unlink()
    begin(small.parent, model, grid=LESS)
    atlas.finish(small)
    assert stored(small) == before


def test_a_template_of_another_version_is_not_put_back(small, model, monkeypatch):
    (small / "X" / "zarr.json").write_text("{}")
    lay_out = atlas.lay_out

    def other(store, layout, versions):
        return lay_out(store, layout, {**versions, "zarr": "9"})

    monkeypatch.setattr(atlas, "lay_out", other)
    with pytest.raises(AtlasError, match="this version lays out another one"):
        begin(small.parent, model, grid=LESS)


def test_the_second_part_was_short_and_minibatches_end_there(plan):
    runs = plan.part(1).runs
    assert [sum(s.n_cells for s in run) for run in runs] == [28, 4]
    assert OUTPUT.cells_per_minibatch == 10, "28 cells end within a minibatch"
