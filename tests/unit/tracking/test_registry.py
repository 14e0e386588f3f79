"""Exported models and checkpoints in MLflow: registered once, scored, promoted, fetched whole."""

import json
import re
import shutil

import pytest
from tiny_model import save_tiny_model
from typer.testing import CliRunner

from save_dist.cli import app
from save_dist.core.durable import digest, publish_folder, read_json
from save_dist.core.errors import CheckpointError, ConfigError, InfrastructureError
from save_dist.tracking.mlflow import sync
from save_dist.tracking.registry import Registry, Requirement, Version, choose, registered_name
from save_dist.tracking.tracker import open_journal


@pytest.fixture
def journal(run_dir, server):
    settings = {"tracking": {"backend": "mlflow", "uri": server.uri, "experiment": "test"}}
    (run_dir / "config.resolved.yaml").write_text(json.dumps(settings))
    return open_journal(run_dir / "metrics.jsonl")


def export(journal, seed, scores=None):
    """Export a model, and evaluate it if there are scores; returns its hash."""
    folder = journal.path.parent / "model"
    model_hash = save_tiny_model(folder, seed=seed)
    journal.model(folder, model_hash, {"git_commit": "abc"})
    if scores is not None:
        # MLflow keeps what lies beyond the last step; jobs start a run of their own instead
        journal.child(f"evaluate-{seed}").metrics(scores, 0, model=model_hash)
    return model_hash


def replay(journal, server):
    return sync(journal.path, server.uri, "test")


def versions(server):
    return Registry(server.uri, "test").versions()


def test_an_exported_model_becomes_a_version_once(journal, server):
    journal.start("h")
    first = export(journal, 0)
    journal.model(journal.path.parent / "model", first, {})
    replay(journal, server)
    shutil.rmtree(journal.path.parent / "tracking")  # what was sent is forgotten
    replay(journal, server)
    (version,) = versions(server)
    assert (version.number, version.model_hash, version.aliases) == (1, first, ("candidate",))
    (run,) = server.runs()
    (output,) = run.outputs.model_outputs
    logged = server.client.get_logged_model(output.model_id)
    assert logged.tags["git_commit"] == "abc" and str(logged.status) == "READY"


def test_the_candidate_is_the_newest_version(journal, server):
    first = export(journal, 0)
    replay(journal, server)
    second = export(journal, 1)
    replay(journal, server)
    found = [(v.number, v.model_hash, v.aliases) for v in versions(server)]
    assert found == [(2, second, ("candidate",)), (1, first, ())]


def test_the_same_model_of_another_run_folder_is_the_same_version(journal, server, tmp_path):
    export(journal, 0)
    replay(journal, server)
    other = open_journal(tmp_path / "other" / "metrics.jsonl")
    export(other, 0)
    replay(other, server)
    assert len(versions(server)) == 1


def test_an_upload_that_broke_off_is_finished_by_the_next(journal, server, monkeypatch):
    import mlflow

    export(journal, 0)
    with monkeypatch.context() as patch:

        def broken(*arguments):
            raise ConnectionError("gone")

        patch.setattr(mlflow.MlflowClient, "log_model_artifacts", broken)
        with pytest.raises(InfrastructureError, match="could not send"):
            replay(journal, server)
    assert versions(server) == []
    replay(journal, server)
    (version,) = versions(server)
    Registry(server.uri, "test").fetch(version, journal.path.parent / "got")
    assert len(server.client.search_logged_models([server.runs()[0].info.experiment_id])) == 1


@pytest.mark.parametrize("what", ["replaced", "gone"])
def test_a_model_that_is_no_longer_there_is_named_and_passed_over(journal, server, caplog, what):
    export(journal, 0)
    folder = journal.path.parent / "model"
    if what == "gone":
        shutil.rmtree(folder)
    else:
        save_tiny_model(folder, seed=1)
    replay(journal, server)
    assert f"event=tracking_model_{what}" in caplog.text
    assert versions(server) == []


def test_a_server_without_logged_models_gets_the_rest(journal, server, caplog, monkeypatch):
    import mlflow

    def unknown(*arguments, **options):
        raise mlflow.exceptions.MlflowException("no route", error_code=1001)  # ENDPOINT_NOT_FOUND

    monkeypatch.setattr(mlflow.MlflowClient, "search_logged_models", unknown)
    assert mlflow.exceptions.MlflowException("", error_code=1001).error_code == "ENDPOINT_NOT_FOUND"
    export(journal, 0)
    journal.metrics({"a": 1.0}, 1)
    assert replay(journal, server) == 1
    assert "event=tracking_rejected kind=model" in caplog.text


def test_a_checkpoint_is_a_logged_model_with_the_metrics_of_its_step(journal, server):
    vae = journal.child("vae")
    for step in (10, 20, 30):
        vae.metrics({"train/loss": 100.0 - step}, step)
    vae.metrics({"val/loss": 7.0}, 20)
    vae.metrics({"train/loss": -1.0}, 20)  # a restart repeats a step: MLflow has the first
    place = journal.path.parent / "checkpoints" / "vae" / "step-00000020"
    with publish_folder(place, {"step": 20}) as aside:
        (aside / "tensors").write_bytes(b"x")
    vae.checkpoint(place, 20, digest(read_json(place / "manifest.json")["files"]))
    replay(journal, server)
    shutil.rmtree(journal.path.parent / "tracking")
    replay(journal, server)
    run = server.run("vae")
    (output,) = run.outputs.model_outputs
    logged = server.client.get_logged_model(output.model_id)
    assert (logged.name, output.step, logged.tags["path"]) == ("step-20", 20, str(place))
    assert {(m.key, m.value, m.step) for m in logged.metrics} == {
        ("train/loss", 80.0, 20),
        ("val/loss", 7.0, 20),
    }
    assert server.history("vae", "train/loss") == [(10, 90.0), (20, 80.0), (30, 70.0)]
    assert server.history("vae", "val/loss") == [(20, 7.0)]


def test_what_a_model_scored_stands_beside_it(journal, server):
    export(journal, 0, {"energy": 0.5})
    journal.child("evaluate").metrics({"energy": 0.1}, 0, model="f" * 64)  # of no known model
    journal.child("vae").metrics({"train/loss": 3.0}, 5)
    replay(journal, server)
    (version,) = versions(server)
    assert version.scores == {"energy": 0.5}
    assert server.history("evaluate-0", "energy") == [(0, 0.5)]
    assert server.history("evaluate", "energy") == [(0, 0.1)]


def promote(journal, *words):
    done = CliRunner().invoke(app, ["track", "promote", str(journal.path.parent), *words])
    return json.loads(done.stdout.splitlines()[-1])


@pytest.fixture
def three(journal, server):
    """Versions 1, 2 and 3: sound, poor, not evaluated."""
    hashes = []
    for seed, scores in enumerate(({"energy": 0.1}, {"energy": 0.9}, None)):
        hashes.append(export(journal, seed, scores))
        replay(journal, server)
    return hashes


def test_the_newest_model_that_is_good_enough_becomes_the_champion(journal, server, three):
    first = promote(journal, "--require", "energy<=0.5")
    assert (first["exit_code"], first["model_hash"]) == (0, three[0])
    assert first["did"] == "version 1 of test is now the champion"
    assert first["refused"] == {"3": "has no energy", "2": "energy is 0.9, not <= 0.5"}
    assert Registry(server.uri, "test").champion().model_hash == three[0]
    again = promote(journal, "--require", "energy<=0.5")
    assert again["did"] == "nothing: version 1 stays the champion" and again["exit_code"] == 0
    better = promote(journal, "--require", "energy<=0.95")
    assert better["model_hash"] == three[1]
    by_number = promote(journal, "--version", "1")
    assert Registry(server.uri, "test").champion().model_hash == by_number["model_hash"] == three[0]


@pytest.mark.parametrize(
    ("words", "code", "error"),
    [
        pytest.param([], 2, r"give one of the two", id="neither"),
        pytest.param(["--version", "1", "--require", "a<1"], 2, "give one of the two", id="both"),
        pytest.param(["--version", "9"], 2, r"has no version 9; it has 1, 2, 3", id="unknown"),
        pytest.param(["--require", "energy"], 2, r"not of the form METRIC<=NUMBER", id="malformed"),
        pytest.param(
            ["--require", "energy<0"],
            3,
            r"version 3 has no energy; version 2 energy is 0\.9, not < 0;",
            id="none",
        ),
    ],
)
def test_a_promotion_that_cannot_be_says_why(journal, three, words, code, error):
    summary = promote(journal, *words)
    assert summary["exit_code"] == code
    assert re.search(error, summary["error"])


def test_models_of_an_experiment_are_listed(journal, three):
    done = CliRunner().invoke(app, ["track", "models", str(journal.path.parent)])
    found = json.loads(done.stdout.splitlines()[-1])["versions"]
    assert [v["number"] for v in found] == [3, 2, 1]
    assert [v["model_hash"] for v in found] == three[::-1]
    assert three[2][:16] in done.stdout and "candidate" in done.stdout


def test_fetching_gives_the_registered_bytes_or_an_error(journal, server, tmp_path):
    model_hash = export(journal, 0)
    replay(journal, server)
    known, (version,) = Registry(server.uri, "test"), versions(server)
    target = tmp_path / "got"
    known.fetch(version, target)
    assert digest(read_json(target / "manifest.json")["files"]) == model_hash
    (target / "vae.safetensors").unlink()  # a torn copy is fetched anew
    known.fetch(version, target)
    stored = next(p for p in tmp_path.rglob("vae.safetensors") if "mlartifacts" in str(p))
    stored.write_bytes(b"other")
    known.fetch(version, target)  # the sound copy is used
    shutil.rmtree(target)
    with pytest.raises(CheckpointError, match="does not match its manifest"):
        known.fetch(version, target)
    shutil.rmtree(stored.parent)
    save_tiny_model(stored.parent, seed=7)
    with pytest.raises(CheckpointError, match=r"registered with model hash .*; do not use it"):
        known.fetch(version, target)
    assert not target.exists() and not list(tmp_path.glob(".got.*"))


@pytest.mark.parametrize("text", ["a<=1e-3", " a <= 0.001 "])
def test_a_requirement_is_read(text):
    assert Requirement.parse(text) == Requirement("a", "<=", 0.001)


@pytest.mark.parametrize(
    ("sign", "holds"), [("<=", True), ("<", False), (">=", True), (">", False)]
)
def test_a_requirement_compares(sign, holds):
    assert (Requirement("a", sign, 1.0).misses({"a": 1.0}) == "") == holds


def test_an_undefined_score_reaches_nothing():
    version = Version(1, "h", (), "s", {"a": float("nan")})
    chosen, refused = choose([version], [Requirement("a", "<=", 1.0)])
    assert chosen is None and refused == {1: "a is nan, not <= 1"}


def test_names_that_a_registry_refuses_are_made_to_fit():
    assert registered_name("save/a:b") == "save-a-b"


def test_a_database_that_was_never_made_is_not_made_by_asking(tmp_path):
    with pytest.raises(CheckpointError, match=r"alias 'champion'.*track promote"):
        Registry(f"sqlite:///{tmp_path}/mlflow.db", "save").champion()
    assert not list(tmp_path.iterdir())


def test_a_server_that_is_away_is_worth_another_try():
    with pytest.raises(InfrastructureError, match=r"127\.0\.0\.1:1 did not answer about 'save'"):
        Registry("http://127.0.0.1:1", "save").champion()


def test_a_requirement_needs_a_number():
    with pytest.raises(ConfigError, match="'a<=b' is not of the form"):
        Requirement.parse("a<=b")
