import logging
import shutil
import threading

import pytest
import torch
from safetensors.torch import save_file

from save_dist.core.durable import publish_folder, write_json
from save_dist.core.errors import CheckpointError, InfrastructureError
from save_dist.stores import checkpoint as checkpoint_module
from save_dist.stores.checkpoint import (
    FORMAT,
    CheckpointStore,
    flatten_optimizer,
    unflatten_optimizer,
)

ABOUT = {"config_hash": "aaa"}


def tensors(step):
    return {"weight": torch.full((3, 2), float(step)), "count": torch.tensor(step)}


@pytest.fixture
def store(tmp_path):
    with CheckpointStore.open(tmp_path / "vae", 2, expect="aaa") as opened:
        yield opened


def test_an_empty_store_has_no_checkpoint(store, tmp_path):
    assert store.newest() is None
    assert CheckpointStore(tmp_path / "absent", 2).newest() is None


def test_the_newest_comes_back_whole(store):
    for step in (100, 200):
        store.save(step, tensors(step), {**ABOUT, "loss": 0.5})
    found = store.newest()
    assert found.step == 200
    assert found.about == {**ABOUT, "loss": 0.5}
    for name, value in tensors(200).items():
        assert torch.equal(found.tensors[name], value)
        assert found.tensors[name].dtype == value.dtype


def test_only_the_newest_are_kept(store):
    for step in (1, 2, 3, 4):
        store.save(step, tensors(step), ABOUT)
    assert store.steps() == [3, 4]


def test_one_is_kept_beside_the_newest(store):
    for step in (1, 2, 3, 4, 5):
        store.save_async(step, tensors(step), ABOUT, keep_step=min(step, 2))
    store.wait()
    assert store.steps() == [2, 4, 5]
    assert store.about(2) == ABOUT
    assert store.about(3) == {}


def test_a_torn_later_checkpoint_never_costs_a_good_one(store, tmp_path):
    store.save(300, tensors(300), ABOUT)
    shutil.copytree(tmp_path / "vae/step-00000300", tmp_path / "vae/step-00000900")
    (tmp_path / "vae/step-00000900/tensors.safetensors").write_bytes(b"torn")
    store.save(400, tensors(400), ABOUT)
    assert store.steps() == [300, 400]


@pytest.mark.parametrize(
    ("file", "damage"),
    [
        pytest.param("tensors.safetensors", "truncate", id="truncated tensors"),
        pytest.param("tensors.safetensors", "flip", id="flipped byte"),
        pytest.param("tensors.safetensors", "remove", id="missing tensors"),
        pytest.param("about.json", "flip", id="altered facts"),
        pytest.param("manifest.json", "truncate", id="truncated manifest"),
        pytest.param("manifest.json", "flip", id="manifest is no text"),
        pytest.param("manifest.json", "remove", id="missing manifest"),
    ],
)
def test_a_torn_checkpoint_is_skipped_and_named(store, tmp_path, caplog, file, damage):
    for step in (100, 200):
        store.save(step, tensors(step), ABOUT)
    path = tmp_path / "vae/step-00000200" / file
    data = bytearray(path.read_bytes())
    data[len(data) // 2] = 0xFF
    path.unlink()
    if damage != "remove":
        path.write_bytes(data if damage == "flip" else data[: len(data) // 2])
    with caplog.at_level(logging.WARNING):
        assert store.newest().step == 100
    assert "event=checkpoint_skipped step=200" in caplog.text
    assert str(path if damage != "remove" else path.parent) in caplog.text
    with pytest.raises(CheckpointError, match="step-00000200"):
        store.load(200)


def test_another_configuration_is_refused_with_both_hashes(store, tmp_path):
    store.save(5, tensors(5), ABOUT)
    other = CheckpointStore(tmp_path / "vae", 2, expect="bbb")
    for read in (other.newest, lambda: other.load(5)):
        with pytest.raises(CheckpointError, match=r"hash aaa, this run has bbb; restore"):
            read()
    assert CheckpointStore(tmp_path / "vae", 2).newest().step == 5


def test_leftovers_of_a_killed_save_are_removed_by_the_writer_alone(tmp_path):
    left = tmp_path / ".step-00000100.4711.part"
    left.mkdir()
    (left / "tensors.safetensors").write_bytes(b"half")
    CheckpointStore(tmp_path, 2)
    assert left.exists()
    CheckpointStore.open(tmp_path, 2)
    assert not left.exists()


def test_a_checkpoint_set_aside_by_a_crash_comes_back(tmp_path):
    CheckpointStore.open(tmp_path, 2).save(100, tensors(100), ABOUT)
    (tmp_path / "step-00000100").rename(tmp_path / ".step-00000100.old")
    assert CheckpointStore.open(tmp_path, 2).newest().step == 100


def test_a_background_save_holds_the_state_of_its_step(store):
    state = tensors(100)
    store.save_async(100, state, ABOUT)
    state["weight"].zero_()
    store.wait()
    assert torch.equal(store.newest().tensors["weight"], tensors(100)["weight"])


def test_the_next_save_waits_for_the_previous(store, monkeypatch):
    gate = threading.Event()
    real = checkpoint_module.save_file

    def slow(*arguments):
        assert gate.wait(10)
        real(*arguments)

    monkeypatch.setattr(checkpoint_module, "save_file", slow)
    store.save_async(1, tensors(1), ABOUT)
    assert store.steps() == []
    threading.Timer(0.05, gate.set).start()
    store.save(2, tensors(2), ABOUT)
    assert store.steps() == [1, 2]


@pytest.mark.parametrize("finish", ["wait", "close", "save_async"])
def test_the_error_of_a_background_save_surfaces(tmp_path, monkeypatch, finish):
    store = CheckpointStore.open(tmp_path, 2)
    monkeypatch.setattr(checkpoint_module, "_SPARE_BYTES", 2**60)
    store.save_async(1, tensors(1), ABOUT)
    arguments = (2, tensors(2), ABOUT) if finish == "save_async" else ()
    with pytest.raises(InfrastructureError, match=r"needs \d+ bytes, the disk has \d+"):
        getattr(store, finish)(*arguments)
    store.close()


def fail_in_training(store):
    with store:
        store.save_async(1, tensors(1), ABOUT)
        raise KeyError("first")


def test_leaving_by_an_error_shows_that_error_and_logs_the_other(tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(checkpoint_module, "_SPARE_BYTES", 2**60)
    with pytest.raises(KeyError, match="first"):
        fail_in_training(CheckpointStore.open(tmp_path, 2))
    assert "event=checkpoint_failed" in caplog.text


def rewrite_about(folder, step, about):
    with publish_folder(folder / f"step-{step:08d}", {"step": step}) as aside:
        save_file(tensors(step), aside / "tensors.safetensors")
        write_json(aside / "about.json", about)


def test_a_checkpoint_of_the_first_format_has_no_standing(store, tmp_path):
    rewrite_about(tmp_path / "vae", 1, ABOUT)
    assert store.newest().about == store.about(1) == {**ABOUT, "standing": {}}


def test_a_checkpoint_of_a_later_format_is_refused_and_not_skipped(store, tmp_path):
    store.save(1, tensors(1), ABOUT)
    rewrite_about(tmp_path / "vae", 2, {**ABOUT, "format": FORMAT + 1})
    message = rf"step-00000002 has format {FORMAT + 1} .* reads up to {FORMAT}; use the version"
    with pytest.raises(CheckpointError, match=message):
        store.newest()
    with pytest.raises(CheckpointError, match=message):
        store.load(2)
    assert store.steps() == [1, 2]


def test_a_full_disk_leaves_the_older_checkpoint(store, monkeypatch):
    store.save(1, tensors(1), ABOUT)

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(checkpoint_module, "save_file", full)
    with pytest.raises(InfrastructureError, match=r"No space left on device.*free space"):
        store.save(2, tensors(2), ABOUT)
    assert store.newest().step == 1
    assert store.steps() == [1]


def test_optimizer_state_survives_the_round_trip(store):
    model = torch.nn.Linear(3, 2)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1)
    model(torch.ones(1, 3)).sum().backward()
    optimizer.step()
    flat, rest = flatten_optimizer(optimizer.state_dict())
    assert set(flat) >= {"0.exp_avg", "0.step", "1.exp_avg_sq"}
    store.save(1, flat, {**ABOUT, "optimizer": rest})
    found = store.newest()
    restored = torch.optim.AdamW(model.parameters(), lr=0.7)
    restored.load_state_dict(unflatten_optimizer(found.tensors, found.about["optimizer"]))
    assert restored.param_groups[0]["lr"] == 0.1
    for old, new in zip(optimizer.state.values(), restored.state.values(), strict=True):
        assert all(torch.equal(old[name], new[name]) for name in old)


def test_numbers_in_an_optimizer_state_go_beside_the_tensors():
    state = {"state": {0: {"step": 7, "sum": torch.ones(2)}}, "param_groups": [{"params": [0]}]}
    flat, rest = flatten_optimizer(state)
    assert list(flat) == ["0.sum"]
    assert unflatten_optimizer(flat, rest)["state"][0]["step"] == 7
