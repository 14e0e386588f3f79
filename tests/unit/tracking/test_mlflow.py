import json
import logging
import os
import shutil
import socket
import sqlite3
import subprocess
import sys
import time

import pytest

from save_dist.core.errors import InfrastructureError
from save_dist.tracking.connection import default_uri
from save_dist.tracking.mlflow import Mirror, sync
from save_dist.tracking.replay import MirrorState, Replayer, read_chunk
from save_dist.tracking.tracker import open_journal


@pytest.fixture
def journal(run_dir):
    return open_journal(run_dir / "metrics.jsonl")


def mirror(journal, uri):
    return Mirror(journal.path, uri, "test", poll_s=0.02)


def log_steps(journal, first, stop, run="vae"):
    for step in range(first, stop):
        journal.child(run).metrics({"train/loss": 100.0 - step, "val/kl": float(step)}, step)


def states(journal):
    return list((journal.path.parent / "tracking").glob("*.json"))


def test_a_pipeline_becomes_a_parent_with_children(journal, server):
    (journal.path.parent / "config.resolved.yaml").write_text("run: {}\n")
    bundle = journal.path.parent / "model"
    bundle.mkdir()
    (bundle / "manifest.json").write_text("{}")
    with mirror(journal, server.uri) as running:
        with journal.running("hash"):
            journal.params({"run": {"seed": 3}})
            journal.tags({"mlflow.source.git.commit": "abc"})
            journal.artifact(journal.path.parent / "config.resolved.yaml")
            with journal.child("vae").running("vae-hash") as vae:
                vae.params({"vae": {"width": 8}})
                vae.metrics({"train/loss": 2.5, "val/kl": float("nan")}, 10)
                vae.artifact(bundle)
            journal.child("flow").start()
            journal.child("flow").end("FAILED")
        assert running.stop()
    parent, vae = server.run("pipeline"), server.run("vae")
    assert parent.info.run_name == "run"
    assert parent.data.params == {"run.seed": "3"}
    assert parent.data.tags["mlflow.source.git.commit"] == "abc"
    assert parent.data.tags["attempt"] == "0"
    assert "mlflow.parentRunId" not in parent.data.tags
    assert vae.data.tags["mlflow.parentRunId"] == parent.info.run_id
    assert vae.data.params == {"vae.width": "8"}
    assert server.history("vae", "train/loss") == [(10, 2.5)]
    assert [r.info.status for r in (parent, vae, server.run("flow"))] == [
        "FINISHED",
        "FINISHED",
        "FAILED",
    ]
    assert server.files("pipeline") == ["config.resolved.yaml"]
    assert server.files("vae", "model") == ["model/manifest.json"]


def test_the_time_of_a_point_is_the_time_it_was_written(journal, server):
    log_steps(journal, 0, 1)
    (written,), _ = read_chunk(journal.path, 0)
    sync(journal.path, server.uri, "test")
    (point,) = server.client.get_metric_history(server.run("vae").info.run_id, "val/kl")
    assert point.timestamp == written.record.time_ms


def test_a_dataset_is_an_input_with_a_soma_source(journal, server):
    from mlflow.data import dataset_source_registry

    from save_dist.tracking.soma_source import SomaDatasetSource

    journal.child("vae").dataset("pbmc", "/data/store.soma", "d" * 64, "training", {"n_cells": 7})
    sync(journal.path, server.uri, "test")
    (used,) = server.run("vae").inputs.dataset_inputs
    assert (used.dataset.name, used.dataset.digest) == ("pbmc", "d" * 36)
    assert json.loads(used.dataset.profile) == {"n_cells": 7}
    assert {tag.key: tag.value for tag in used.tags} == {"mlflow.data.context": "training"}
    registry = dataset_source_registry.DatasetSourceRegistry()
    registry.register(SomaDatasetSource)
    source = registry.get_source_from_json(used.dataset.source, used.dataset.source_type)
    assert source.load() == "/data/store.soma"
    assert registry.resolve("soma:///data/x").to_dict() == {"uri": "soma:///data/x"}


def test_a_restart_goes_on_without_doubles(journal, server):
    log_steps(journal, 0, 3)
    log_steps(journal, 2, 5)
    with mirror(journal, server.uri):
        pass
    log_steps(journal, 3, 8)  # a restarted worker repeats the steps since its checkpoint
    with mirror(journal, server.uri):
        pass
    assert server.history("vae", "val/kl") == [(step, float(step)) for step in range(8)]
    assert len(server.runs()) == 2


@pytest.mark.parametrize("lost", ["the last save", "all"])
def test_a_state_that_lags_behind_the_server_makes_no_doubles(journal, server, lost):
    journal.start("h")
    log_steps(journal, 0, 5)
    sync(journal.path, server.uri, "test")
    (state,) = states(journal)
    old = state.read_bytes()
    log_steps(journal, 5, 9)
    sync(journal.path, server.uri, "test")
    if lost == "all":
        state.unlink()
    else:
        state.write_bytes(old)
    log_steps(journal, 9, 10)
    assert sync(journal.path, server.uri, "test") == 2
    assert server.history("vae", "val/kl") == [(step, float(step)) for step in range(10)]
    assert len(server.runs()) == 2


def test_a_call_that_fails_half_way_is_repeated_alone(journal, server, run_dir):
    log_steps(journal, 0, 3)
    log_steps(journal, 0, 3, run="flow")
    client = server.client
    experiment = client.create_experiment("test")
    state = MirrorState("j")
    real, calls = client.log_batch, []

    def log_batch(run_id, **kwargs):
        calls.append(kwargs)
        if len(calls) == 2:
            raise ConnectionError("gone")
        real(run_id, **kwargs)

    client.log_batch = log_batch
    replayer = Replayer(client, experiment, run_dir, state)
    placed, end = read_chunk(journal.path, 0)
    with pytest.raises(ConnectionError):
        replayer.replay(placed)
    assert 0 < state.offset < end
    rest, _ = read_chunk(journal.path, state.offset)
    assert {item.record.run for item in rest} == {"flow"}
    assert replayer.replay(rest) == 6
    for run in ("vae", "flow"):
        assert server.history(run, "val/kl") == [(0, 0.0), (1, 1.0), (2, 2.0)]


_KILLED = """
import sys
from pathlib import Path
from save_dist.tracking import replay
from save_dist.tracking.mlflow import sync
replay.BYTES_PER_CHUNK = 2000
sync(Path(sys.argv[1]), sys.argv[2], "test")
"""


@pytest.mark.slow
def test_a_killed_mirror_is_continued_without_doubles(journal, server):
    log_steps(journal, 0, 1500)
    database = server.uri.removeprefix("sqlite:///")
    process = subprocess.Popen([sys.executable, "-c", _KILLED, journal.path, server.uri])
    try:
        while process.poll() is None:
            with sqlite3.connect(database) as connection:
                (n_points,) = connection.execute("select count(*) from metrics").fetchone()
            if n_points > 300:
                break
            time.sleep(0.02)
        assert process.poll() is None, "the mirror ended before it could be killed"
    finally:
        process.kill()
        process.wait()
    n_sent = sync(journal.path, server.uri, "test")
    assert 0 < n_sent < 3000 - 300
    assert server.history("vae", "val/kl") == [(step, float(step)) for step in range(1500)]
    assert len(server.runs()) == 2


def test_an_absent_server_costs_a_job_nothing(journal, server, caplog):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        uri = f"http://me:hunter2@127.0.0.1:{free.getsockname()[1]}"
    began = time.monotonic()
    running = mirror(journal, uri)
    running.start()
    log_steps(journal, 0, 100)
    assert time.monotonic() - began < 10  # answers of a server are waited for much longer
    assert not running.stop()
    assert "event=tracking_unreachable" in caplog.text
    assert "event=tracking_pending" in caplog.text
    assert "hunter2" not in caplog.text
    with pytest.raises(InfrastructureError, match=r"could not send .* start the server or name"):
        sync(journal.path, uri, "test")
    assert not states(journal)
    assert sync(journal.path, server.uri, "test") == 200


def until(condition):
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline, "waited a minute"
        time.sleep(0.02)


def test_a_server_that_comes_back_gets_everything_once(journal, server, caplog, monkeypatch):
    import mlflow

    real, down = mlflow.MlflowClient.log_batch, []

    def log_batch(client, *args, **kwargs):
        if down:
            raise ConnectionError("refused")
        real(client, *args, **kwargs)

    monkeypatch.setattr(mlflow.MlflowClient, "log_batch", log_batch)
    with mirror(journal, server.uri) as running:
        log_steps(journal, 0, 10)
        until(lambda: states(journal))
        down.append(True)
        log_steps(journal, 10, 20)
        until(lambda: "event=tracking_unreachable" in caplog.text)
        time.sleep(0.2)
        log_steps(journal, 15, 25)
        down.clear()
        assert running.stop()
    assert caplog.text.count("event=tracking_unreachable") == 1
    assert server.history("vae", "val/kl") == [(step, float(step)) for step in range(25)]


def test_stop_does_not_wait_for_a_server_that_hangs(journal, caplog):
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        log_steps(journal, 0, 1)
        running = mirror(journal, f"http://127.0.0.1:{silent.getsockname()[1]}")
        running.start()
        began = time.monotonic()
        assert not running.stop(timeout_s=0.3)
        assert time.monotonic() - began < 10
        assert "event=tracking_pending" in caplog.text


def test_another_identity_opens_a_new_family(journal, server):
    for identity in ("a", "b"):
        journal.start(identity)
        journal.child("vae").start("same")
        journal.child("vae").metrics({"loss": 1.0}, 5)
    sync(journal.path, server.uri, "test")
    runs = server.runs()
    parents = [r.info.run_id for r in runs if r.data.tags["stage"] == "pipeline"]
    children = [r for r in runs if r.data.tags["stage"] == "vae"]
    assert [r.data.tags["mlflow.parentRunId"] for r in children] == parents
    assert [r.data.metrics for r in children] == [{"loss": 1.0}] * 2
    status = {r.info.run_id: r.info.status for r in runs}
    assert [status[run_id] for run_id in parents] == ["KILLED", "RUNNING"]


def test_the_same_identity_continues_its_run(journal, server):
    for status in ("FAILED", "FINISHED"):
        open_journal(journal.path).start("a")
        journal.end(status)
    sync(journal.path, server.uri, "test")
    run = server.run("pipeline")
    assert run.info.status == "FINISHED"
    assert run.data.tags["attempt"] == "1"


@pytest.mark.parametrize("status", ["FINISHED", "FAILED"])
def test_a_stage_that_did_not_say_how_it_ended_ended_with_its_job(journal, server, status):
    journal.start("a")
    journal.child("evaluate").metrics({"seen/energy": 0.5}, 0)
    journal.end(status)
    sync(journal.path, server.uri, "test")
    assert server.run("evaluate").info.status == status


def test_long_params_are_cut_and_changed_ones_kept_with_a_warning(journal, server, caplog):
    journal.params({"columns": "x" * 600, "seed": 1})
    journal.params({"seed": 1})
    sync(journal.path, server.uri, "test")
    journal.params({"columns": "x" * 600, "seed": 2, "new": "y"})
    sync(journal.path, server.uri, "test")
    assert server.run("pipeline").data.params == {"columns": "x" * 500, "seed": "1", "new": "y"}
    assert "event=tracking_param_truncated key=columns length=600" in caplog.text
    assert "event=tracking_param_kept key=seed old='1' new='2'" in caplog.text


def test_names_mlflow_refuses_are_made_to_fit(journal, server):
    journal.metrics({"eval/CD14+ Mono|stim": 1.0, "k" * 300: 2.0, "/a//../b": 3.0}, 1)
    journal.tags({"a=b": "v"})
    sync(journal.path, server.uri, "test")
    run = server.run("pipeline")
    assert run.data.metrics == {"eval/CD14_ Mono_stim": 1.0, "k" * 250: 2.0, "a/b": 3.0}
    assert run.data.tags["a_b"] == "v"


def test_what_the_server_refuses_does_not_hold_up_the_rest(journal, server, caplog, monkeypatch):
    import mlflow

    def log_inputs(*args, **kwargs):
        raise mlflow.exceptions.MlflowException.invalid_parameter_value("no such thing")

    monkeypatch.setattr(mlflow.MlflowClient, "log_inputs", log_inputs)
    journal.dataset("pbmc", "uri", "d", "training", {})
    journal.metrics({"a": 1.0}, 1)
    assert sync(journal.path, server.uri, "test") == 1
    assert "event=tracking_rejected kind=dataset error=no such thing" in caplog.text


def test_an_artifact_that_is_gone_is_named_and_passed_over(journal, server, caplog):
    journal.artifact(journal.path.parent / "report" / "index.html")
    journal.metrics({"a": 1.0}, 1)
    assert sync(journal.path, server.uri, "test") == 1
    assert "event=tracking_artifact_gone" in caplog.text


def test_more_points_than_one_call_takes(journal, server):
    for step in range(3):
        journal.metrics({f"m{n}": float(n) for n in range(700)}, step)
    assert sync(journal.path, server.uri, "test") == 2100
    assert server.history("pipeline", "m699") == [(0, 699.0), (1, 699.0), (2, 699.0)]


def test_a_torn_last_line_waits_until_it_is_whole(journal, server):
    log_steps(journal, 0, 1)
    whole = journal.path.read_bytes()
    journal.path.write_bytes(whole + whole[:40])
    assert sync(journal.path, server.uri, "test") == 2
    journal.path.write_bytes(whole + whole.replace(b'"step": 0', b'"step": 1'))
    assert sync(journal.path, server.uri, "test") == 2


def test_a_line_that_is_no_record_is_passed_over(journal, server):
    journal.path.write_bytes(b"garbage\n")
    assert sync(journal.path, server.uri, "test") == 0
    log_steps(journal, 0, 1)
    assert sync(journal.path, server.uri, "test") == 2


def test_a_new_journal_in_an_old_folder_starts_anew(journal, server):
    log_steps(journal, 0, 3)
    sync(journal.path, server.uri, "test")
    journal.path.unlink()
    log_steps(journal, 0, 3)
    assert sync(journal.path, server.uri, "test") == 6
    assert len(server.runs()) == 4


def test_two_mirrors_of_one_journal_do_not_mix(journal, server, caplog):
    log_steps(journal, 0, 3)
    with mirror(journal, server.uri):
        until(lambda: states(journal))
        log_steps(journal, 3, 4)
        with pytest.raises(InfrastructureError, match="another process is sending"):
            sync(journal.path, server.uri, "test")
    assert server.history("vae", "val/kl") == [(step, float(step)) for step in range(4)]


def test_without_a_uri_everything_stays_in_the_run_folder(
    journal, template_db, tmp_path, monkeypatch
):
    elsewhere = tmp_path / "cwd"
    elsewhere.mkdir()
    monkeypatch.chdir(elsewhere)
    home = journal.path.parent
    shutil.copy(template_db, home / "mlflow.db")
    (home / "note.txt").write_text("x")
    journal.artifact(home / "note.txt")
    assert default_uri(home) == f"sqlite:///{home}/mlflow.db"
    with Mirror(journal.path, None, "test", poll_s=0.02):
        pass
    assert list((home / "mlartifacts").rglob("note.txt"))
    assert not list(elsewhere.iterdir())


def test_telemetry_is_off_and_a_users_own_setting_stays(journal, server, monkeypatch):
    monkeypatch.delenv("MLFLOW_DISABLE_TELEMETRY", raising=False)
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "33")
    with mirror(journal, server.uri):
        pass
    assert os.environ["MLFLOW_DISABLE_TELEMETRY"] == "true"
    assert os.environ["MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT"] == "true"
    assert os.environ["MLFLOW_HTTP_REQUEST_TIMEOUT"] == "33"
    assert logging.getLogger("alembic").level == logging.WARNING
