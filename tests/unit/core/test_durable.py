import errno
import json
import os
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from save_dist.core import durable
from save_dist.core.durable import (
    MANIFEST,
    canonical_json,
    digest,
    file_digest,
    publish_folder,
    read_json,
    recover_folder,
    verify_folder,
    write_bytes,
    write_json,
)
from save_dist.core.errors import CheckpointError, InfrastructureError


def publish(target, text, **about):
    with publish_folder(target, about) as aside:
        (aside / "sub").mkdir()
        (aside / "a.txt").write_text(text)
        (aside / "sub" / "b.bin").write_bytes(b"\x00\xff")


def publish_half(target):
    with publish_folder(target, {}) as aside:
        (aside / "a.txt").write_text("half")
        raise KeyError("user")


def names(folder):
    return sorted(p.name for p in folder.iterdir())


def killed_in_rename(target, nth):
    """Replace `target` in another process that dies instead of its nth folder rename."""
    code = f"""
        import os, pathlib
        from save_dist.core.durable import publish_folder
        done, rename = [], pathlib.Path.rename
        def dying(self, to):
            done.append(self)
            if len(done) == {nth}:
                os._exit(9)
            return rename(self, to)
        pathlib.Path.rename = dying
        with publish_folder(pathlib.Path({str(target)!r}), {{}}) as aside:
            (aside / "a.txt").write_text("new")
    """
    assert subprocess.run([sys.executable, "-c", textwrap.dedent(code)]).returncode == 9


def test_equal_values_have_equal_digests():
    assert digest({"a": 1, "b": [2, None]}) == digest({"b": [2, None], "a": 1})
    assert digest({"a": 1}) != digest({"a": 1.5})
    assert canonical_json({"b": 1, "a": "x y"}) == '{"a":"x y","b":1}'
    with pytest.raises(ValueError, match="not JSON compliant"):
        digest({"a": float("nan")})


def test_digest_of_a_file_is_that_of_its_bytes(tmp_path):
    path = tmp_path / "x"
    path.write_bytes(b"abc")
    assert file_digest(path) == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"


def test_write_replaces_and_leaves_nothing_aside(tmp_path):
    path = tmp_path / "deep" / "er" / "x.json"
    write_bytes(path, b"old, longer")
    write_json(path, {"b": 2, "a": [1]})
    assert read_json(path) == {"a": [1], "b": 2}
    assert names(path.parent) == ["x.json"]


@pytest.mark.parametrize("step", ["fsync", "replace"])
def test_a_refused_write_keeps_the_old_bytes(tmp_path, monkeypatch, step):
    path = tmp_path / "x"
    write_bytes(path, b"old")

    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(*{"fsync": (os, "fsync"), "replace": (Path, "replace")}[step], full)
    with pytest.raises(InfrastructureError, match=r"could not write .*/x: .*No space left.*free"):
        write_bytes(path, b"new")
    assert path.read_bytes() == b"old"
    assert names(tmp_path) == ["x"]


@pytest.mark.parametrize(
    ("data", "text"),
    [
        pytest.param(b"{", "is not valid JSON", id="torn"),
        pytest.param(b"", "is not valid JSON", id="empty"),
        pytest.param(b"\xff\xfe\x00", "is not valid JSON", id="no text"),
        pytest.param(b"[1]", "holds a list, expected a JSON object", id="list"),
        pytest.param(None, "does not exist; run the job that writes it", id="absent"),
    ],
)
def test_read_json_names_the_file_that_is_no_object(tmp_path, data, text):
    path = tmp_path / "x.json"
    if data is not None:
        path.write_bytes(data)
    with pytest.raises(CheckpointError, match=rf"x\.json {text}"):
        read_json(path)


def test_a_published_folder_verifies_and_carries_its_facts(tmp_path):
    target = tmp_path / "deep" / "model"
    publish(target, "hello", kind="vae")
    manifest = verify_folder(target)
    assert manifest["kind"] == "vae"
    assert set(manifest["files"]) == {"a.txt", "sub/b.bin"}
    assert manifest["files"]["a.txt"] == file_digest(target / "a.txt")
    assert names(target.parent) == ["model"]


def test_publishing_replaces_the_whole_folder(tmp_path):
    target = tmp_path / "model"
    publish(target, "old")
    with publish_folder(target, {}) as aside:
        (aside / "only.txt").write_text("new")
    assert names(target) == [MANIFEST, "only.txt"]
    assert names(tmp_path) == ["model"]


def test_facts_may_not_hide_the_digests(tmp_path):
    with pytest.raises(AssertionError, match="the manifest keeps its digests there"):
        publish(tmp_path / "model", "x", files={})


def test_an_error_while_filling_leaves_the_old_folder(tmp_path):
    target = tmp_path / "model"
    publish(target, "old")
    with pytest.raises(KeyError, match="user"):
        publish_half(target)
    assert (target / "a.txt").read_text() == "old"
    assert names(tmp_path) == ["model"]


@pytest.mark.parametrize("nth", [1, 2], ids=["step out", "step in"])
def test_a_refused_rename_leaves_the_old_folder(tmp_path, monkeypatch, nth):
    target = tmp_path / "model"
    publish(target, "old")
    rename, done = Path.rename, []

    def failing(self, to):
        done.append(to)
        if len(done) == nth:
            raise OSError(errno.EIO, "Input/output error")
        return rename(self, to)

    monkeypatch.setattr(Path, "rename", failing)
    with pytest.raises(InfrastructureError, match=r"could not write .*/model: .*Input/output"):
        publish(target, "new")
    monkeypatch.undo()
    assert verify_folder(target)
    assert (target / "a.txt").read_text() == "old"
    assert names(tmp_path) == ["model"]


@pytest.mark.parametrize("nth", [1, 2], ids=["before the renames", "between the renames"])
def test_a_kill_while_replacing_leaves_the_old_folder(tmp_path, nth):
    target = tmp_path / "model"
    publish(target, "old")
    killed_in_rename(target, nth)
    assert verify_folder(target)
    assert (target / "a.txt").read_text() == "old"


def test_writing_again_after_a_kill_between_the_renames(tmp_path):
    target = tmp_path / "model"
    publish(target, "old")
    killed_in_rename(target, 2)
    assert not target.exists()
    with pytest.raises(KeyError, match="user"):
        publish_half(target)
    assert (target / "a.txt").read_text() == "old"
    publish(target, "new")
    assert (target / "a.txt").read_text() == "new"
    assert not (tmp_path / ".model.old").exists()


def test_recovery_never_touches_a_folder_that_stands(tmp_path):
    publish(tmp_path / "model", "new")
    publish(tmp_path / ".model.old", "old")
    recover_folder(tmp_path / "model")
    assert (tmp_path / "model" / "a.txt").read_text() == "new"


def test_a_folder_without_manifest_is_not_recovered(tmp_path):
    (tmp_path / ".model.old").mkdir()
    with pytest.raises(CheckpointError, match="model does not exist; run the job"):
        verify_folder(tmp_path / "model")


def test_everything_is_synced_before_it_is_published(tmp_path, monkeypatch):
    """Order of file system calls: files, their folders, manifest, rename, parent folder."""
    calls = []

    def note(name):
        return lambda path: calls.append((name, path.name))

    monkeypatch.setattr(durable, "_sync_file", note("file"))
    monkeypatch.setattr(durable, "_sync_folder", note("folder"))
    monkeypatch.setattr(durable, "write_json", lambda path, _: calls.append(("json", path.name)))
    publish(tmp_path / "model", "x")
    assert calls == [
        ("file", "a.txt"),
        ("file", "b.bin"),
        ("folder", "sub"),
        ("json", MANIFEST),
        ("folder", tmp_path.name),
    ]


def spoil_byte(folder):
    (folder / "sub" / "b.bin").write_bytes(b"\x00\xfe")


def remove_file(folder):
    (folder / "a.txt").unlink()


def remove_manifest(folder):
    (folder / MANIFEST).unlink()


def empty_manifest(folder):
    (folder / MANIFEST).write_text(json.dumps({"kind": "x"}))


@pytest.mark.parametrize(
    ("spoil", "text"),
    [
        pytest.param(spoil_byte, r"sub/b\.bin does not match its manifest: sha256 ", id="byte"),
        pytest.param(remove_file, r"a\.txt does not match its manifest: sha256 missing", id="file"),
        pytest.param(remove_manifest, r"has no manifest\.json: it was never comp", id="manifest"),
        pytest.param(empty_manifest, r"manifest\.json lists no files; remove", id="no entries"),
    ],
)
def test_a_spoilt_folder_is_refused(tmp_path, spoil, text):
    target = tmp_path / "model"
    publish(target, "x")
    spoil(target)
    with pytest.raises(CheckpointError, match=text):
        verify_folder(target)
