"""Kills, torn files, flipped bytes, full disks, double work: same bytes in the end, or a word."""

import json
import shutil
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from tiny_atlas import GRID, begin, fill, receipt_path, receipts_folder, stored

from save_dist.core.errors import AtlasError, InfrastructureError
from save_dist.generation.worker import PartWorker
from save_dist.stores import atlas, receipts
from save_dist.stores import part as part_module

TESTS = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="module")
def model(random_model):
    return random_model


@pytest.fixture(scope="module")
def undisturbed(random_run):
    return random_run / "atlas.zarr"


@pytest.fixture
def finished(undisturbed, tmp_path):
    """A complete atlas of one's own, to damage."""
    for name in ("atlas.zarr", "atlas.zarr.receipts"):
        shutil.copytree(undisturbed.with_name(name), tmp_path / name)
    return tmp_path / "atlas.zarr"


def complete(path, model):
    """What the next run does: write what is missing, mark complete."""
    fill(path, model, receipts.missing_parts(path))
    atlas.finish(path)
    return stored(path)


def flip(file):
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 0x10
    file.write_bytes(data)


# ---------------------------------------------------------------- kills

KILLED = """
import os, signal, sys
sys.path.insert(0, {tests!r})
from pathlib import Path
from save_dist.generation.worker import PartWorker
from save_dist.stores import part

def killed(*arguments):
    {before}
    os.kill(os.getpid(), signal.SIGKILL)
worker = PartWorker(Path({model!r}), Path({path!r}))
worker.run(2)
part.{function} = killed
worker.run(0)
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("function", "before"),
    [
        pytest.param("write_receipt", "pass", id="shard written, no receipt"),
        pytest.param("file_facts", "pass", id="shard written aside"),
        pytest.param(
            "file_facts",
            "(Path({path!r}) / 'X/c/0').mkdir(parents=True); "
            "(Path({path!r}) / 'X/c/0/0').write_bytes(b'half')",
            id="torn shard in place",
        ),
    ],
)
def test_a_worker_killed_mid_part_costs_that_part_alone(
    tmp_path, undisturbed, model, function, before
):
    path, _ = begin(tmp_path, model)
    places = {"tests": str(TESTS), "model": str(model), "path": str(path)}
    code = KILLED.format(function=function, before=before.format(**places), **places)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, timeout=300)
    assert done.returncode == -signal.SIGKILL, done.stderr.decode()
    assert receipts.missing_parts(path) == [0, 1]
    assert not atlas.is_complete(path)
    assert complete(path, model) == stored(undisturbed)
    assert not list(receipts_folder(path).glob(".*"))


def test_a_driver_killed_while_finishing_is_run_again(finished, undisturbed, monkeypatch):
    atlas.discard_parts(finished, [])
    (finished.with_name("atlas.zarr.receipts") / "complete.json").unlink()
    report = atlas.verify(finished)
    assert not report.is_marked_complete
    assert report.is_sound
    atlas.finish(finished)
    assert atlas.verify(finished).is_marked_complete
    assert stored(finished) == stored(undisturbed)


def test_a_driver_killed_between_plan_and_template_is_run_again(tmp_path, model, undisturbed):
    path, plan = begin(tmp_path, model)
    shutil.rmtree(path)
    atlas.create_template(path, plan.layout(), {"save-dist": "0"})
    assert complete(path, model) == stored(undisturbed)


# ---------------------------------------------------------------- double work


def test_parts_written_twice_at_the_same_time_are_written_alike(tmp_path, model, undisturbed):
    path, _ = begin(tmp_path, model)
    workers = [PartWorker(model, path) for _ in range(2)]
    errors = []

    def work(worker, parts):
        try:
            for part in parts:
                worker.run(part)
        except Exception as e:  # noqa: BLE001
            errors.append(e)

    orders = [(0, 1, 2), (0, 2, 1)]
    threads = [
        threading.Thread(target=work, args=pair) for pair in zip(workers, orders, strict=True)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []
    assert complete(path, model) == stored(undisturbed)
    assert atlas.verify(path).is_sound


def test_a_second_driver_adopts_the_atlas(finished, model, undisturbed):
    begin(finished.parent, model)
    assert receipts.missing_parts(finished) == []
    assert stored(finished) == stored(undisturbed)


# ---------------------------------------------------------------- damage

PART_FILES = [
    "X/c/1/0",
    "obs/_index/c/1",
    "obs/cell_type/codes/c/1",
    "obs/condition/codes/c/1",
    "obs/seen/c/1",
    "obs/n_train_cells/c/1",
    "obs/route/codes/c/1",
    "obs/part/c/1",
    "obs/cell_seed/c/1",
]


@pytest.mark.parametrize("name", PART_FILES)
@pytest.mark.parametrize("damage", ["flip", "truncate", "remove"])
def test_a_damaged_file_is_found_named_and_mended(finished, undisturbed, model, name, damage):
    file = finished / name
    if damage == "flip":
        flip(file)
    elif damage == "truncate":
        file.write_bytes(file.read_bytes()[:-3])
    else:
        file.unlink()
    report = atlas.verify(finished)
    assert not report.is_sound
    assert report.bad_parts == [1]
    assert str(file) in report.problems[0].text
    assert (receipts.missing_parts(finished) == [1]) == (damage != "flip")
    atlas.discard_parts(finished, report.bad_parts)
    assert not atlas.is_complete(finished)
    assert complete(finished, model) == stored(undisturbed)
    assert atlas.verify(finished).is_sound


def edited(place, **changes):
    place.write_text(json.dumps({**json.loads(place.read_text()), **changes}))


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        pytest.param(lambda p: p.write_bytes(p.read_bytes()[:200]), "truncated", id="truncated"),
        pytest.param(lambda p: p.write_bytes(b""), "truncated", id="empty"),
        pytest.param(lambda p: p.write_bytes(b"\xff\xfe"), "truncated", id="no text"),
        pytest.param(lambda p: p.write_text("{}"), "truncated or no receipt", id="no receipt"),
        pytest.param(lambda p: edited(p, files=3), "truncated or no receipt", id="wrong type"),
        pytest.param(lambda p: edited(p, n_cells=7), "was altered", id="altered"),
        pytest.param(lambda p: p.unlink(), "never finished", id="missing"),
        pytest.param(
            lambda p: shutil.copy(p.with_name("000000.json"), p), "another plan", id="other part"
        ),
    ],
)
def test_a_damaged_receipt_is_found_named_and_mended(finished, undisturbed, model, damage, message):
    damage(receipt_path(finished, 1))
    report = atlas.verify(finished)
    assert report.bad_parts == receipts.missing_parts(finished) == [1]
    assert message in report.problems[0].text
    with pytest.raises(AtlasError, match="lacks 1 of 3 parts, the first is 1"):
        atlas.finish(finished)
    assert complete(finished, model) == stored(undisturbed)


def test_a_receipt_of_another_plan_is_found(finished, tmp_path, model):
    other = tmp_path / "other"
    other.mkdir()
    path, plan = begin(other, model, grid=GRID.model_copy(update={"seed": 4}))
    fill(path, model, [1])
    shutil.copy(receipt_path(path, 1), receipt_path(finished, 1))
    (problem,) = atlas.verify(finished).problems
    assert problem.part == 1
    assert plan.hash in problem.text
    assert receipts.read_record(finished).plan_hash in problem.text


@pytest.mark.parametrize(
    "name",
    ["X/zarr.json", "var/_index/c/0", "obs/cell_type/categories/c/0", "uns/save_dist/plan_hash/c"],
)
@pytest.mark.parametrize("damage", [flip, Path.unlink])
def test_damage_to_the_template_is_found(finished, name, damage):
    damage(finished / name)
    (problem,) = atlas.verify(finished).problems
    assert problem.part is None
    assert str(finished / name) in problem.text


@pytest.mark.parametrize("name", ["zarr.json", "uns/save_dist/complete/c"])
def test_damage_to_what_finishing_writes_is_found(finished, name):
    flip(finished / name)
    (problem,) = atlas.verify(finished).problems
    assert str(finished / name) in problem.text


@pytest.mark.parametrize("text", ["{}", "[", '{"files": 3}'])
def test_a_damaged_end_record_is_found(finished, text):
    place = receipts_folder(finished) / "complete.json"
    place.write_text(text)
    (problem,) = atlas.verify(finished).problems
    assert "complete.json is truncated or altered" in problem.text


@pytest.mark.parametrize("text", ["{}", "[", '{"arrays": [], "other": 1}'])
def test_a_damaged_plan_record_is_refused(finished, model, text):
    place = receipts_folder(finished) / "plan.json"
    place.write_text(text)
    for use in (
        lambda: atlas.verify(finished),
        lambda: PartWorker(model, finished),
        lambda: begin(finished.parent, model),
    ):
        with pytest.raises(AtlasError, match=r"plan\.json is not a plan record"):
            use()


def test_nothing_is_verified_where_there_is_no_atlas(tmp_path):
    with pytest.raises(AtlasError, match=r"there is no plan record .*absent\.zarr is no atlas"):
        atlas.verify(tmp_path / "absent.zarr")


# ---------------------------------------------------------------- full disk, other plans


@pytest.mark.parametrize("function", ["_check_x", "write_receipt", "file_facts"])
def test_a_full_disk_keeps_finished_parts(tmp_path, model, undisturbed, monkeypatch, function):
    path, _ = begin(tmp_path, model)
    fill(path, model, [0])

    def full(*_):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(part_module, function, full)
        with pytest.raises(InfrastructureError, match=r"part 1 of .*No space left.*free space"):
            fill(path, model, [1])
    assert receipts.missing_parts(path) == [1, 2]
    assert complete(path, model) == stored(undisturbed)


def test_a_template_that_cannot_be_written_leaves_nothing(tmp_path, model, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(atlas, "lay_out", full)
    with pytest.raises(InfrastructureError, match=r"could not lay out .*No space left"):
        begin(tmp_path, model)
    assert [p.name for p in tmp_path.iterdir()] == []


def test_another_grid_does_not_touch_the_atlas(finished, model, undisturbed):
    with pytest.raises(AtlasError, match="holds an atlas of plan"):
        begin(finished.parent, model, grid=GRID.model_copy(update={"cells_per_condition": 16}))
    assert stored(finished) == stored(undisturbed)
