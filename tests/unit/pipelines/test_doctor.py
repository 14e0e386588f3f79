"""The doctor's own looks: token file, address file, MLflow, run folder, configuration."""

import json
import socket
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest
from typer.testing import CliRunner

from save_dist import cli
from save_dist.cluster import facts
from save_dist.config.load import load
from save_dist.config.schema import TrackingConfig, TrainJob
from save_dist.core.errors import InfrastructureError
from save_dist.pipelines import doctor, probes
from save_dist.pipelines.checks import Check

TINY = Path(__file__).resolve().parents[3] / "configs" / "tiny"


@pytest.fixture
def mlflow_server():
    """Answers the status it is told to, on loopback; remembers the login it was given."""
    seen = {"status": 200, "login": None}

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            seen["login"] = self.headers.get("Authorization")
            self.send_response(seen["status"])
            self.end_headers()
            self.wfile.write(b"{}")

        def log_message(self, *words):
            pass

    server = HTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    seen["uri"] = f"http://127.0.0.1:{server.server_port}"
    yield seen
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.mark.parametrize(
    ("status", "level", "remedy"),
    [
        pytest.param(200, "ok", "", id="answers"),
        pytest.param(401, "warning", "set MLFLOW_TRACKING_USERNAME", id="login"),
        pytest.param(403, "warning", "--allowed-hosts", id="host"),
        pytest.param(500, "warning", "save-dist track sync RUN", id="broken"),
    ],
)
def test_mlflow_server(mlflow_server, status, level, remedy):
    mlflow_server["status"] = status
    tracking = TrackingConfig(uri=mlflow_server["uri"])
    login = {"MLFLOW_TRACKING_USERNAME": "me", "MLFLOW_TRACKING_PASSWORD": "pw"}
    check = probes.mlflow(tracking, Path("run"), login)
    assert check.level == level and remedy in check.remedy
    assert mlflow_server["login"] == "Basic bWU6cHc="
    assert "pw" not in check.found


def test_absent_mlflow_server_is_a_warning_within_seconds():
    with socket.socket() as taken:  # bound, not listening: nothing answers there
        taken.bind(("127.0.0.1", 0))
        uri = f"http://127.0.0.1:{taken.getsockname()[1]}"
        check = probes.mlflow(TrackingConfig(uri=uri), Path("run"), {})
    assert check.level == "warning" and "does not answer" in check.found


def test_mlflow_off_or_local_needs_no_server(tmp_path):
    assert "off" in probes.mlflow(TrackingConfig(backend="none"), tmp_path, {}).found
    assert str(tmp_path / "mlflow.db") in probes.mlflow(TrackingConfig(), tmp_path, {}).found


def test_token_file_is_found_but_not_read_out(tmp_path):
    place = tmp_path / "token"
    assert not probes.token_file({"RAY_AUTH_TOKEN_PATH": str(place)}).is_readable
    place.write_text("secret")
    place.chmod(0o644)
    found = probes.token_file({"RAY_AUTH_TOKEN_PATH": str(place)})
    assert (found.is_readable, found.n_bytes, found.is_open) == (True, 6, True)
    place.chmod(0o600)
    assert not probes.token_file({"RAY_AUTH_TOKEN_PATH": str(place)}).is_open


def test_stale_address_file(tmp_path):
    place = tmp_path / "ray_current_cluster"
    assert probes.stale_address(place).level == "ok"
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        place.write_text(f"127.0.0.1:{listener.getsockname()[1]}\n")
        assert probes.stale_address(place).level == "warning"
        listener.listen()
        assert probes.stale_address(place).level == "ok"
    place.write_text("nonsense")
    assert f"remove {place}" in probes.stale_address(place).remedy


def test_missing_store_is_an_error_only_for_jobs_that_read_it(tmp_path):
    config = load(TrainJob, TINY / "train.yaml", [f"run.dir={tmp_path}"])
    found = {c.name: c for c in probes.contents(config, "train")}
    assert {n: c.level for n, c in found.items()} == {"store": "error", "vocabulary": "error"}
    assert "train reads it" in found["store"].found
    assert probes.contents(config, "ingest") == []


def test_altered_model_is_an_error(tmp_path):
    config = load(TrainJob, TINY / "train.yaml", [f"run.dir={tmp_path}"])
    (tmp_path / "model").mkdir()
    (check,) = [c for c in probes.contents(config, "generate") if c.name == "model"]
    assert check.level == "error" and "never completed" in check.found


@pytest.mark.parametrize(
    ("name", "verb", "pairs", "level", "found"),
    [
        pytest.param("train.yaml", None, [], "ok", "a valid TrainJob", id="stem"),
        pytest.param("train.yaml", "train", [], "ok", "a valid TrainJob", id="verb"),
        pytest.param("common.yaml", None, [], "error", "does not say which job", id="no-verb"),
        pytest.param("train.yaml", None, ["vae.widht=3"], "error", "unknown key", id="wrong"),
        pytest.param("none.yaml", "train", [], "error", "does not exist", id="absent"),
    ],
)
def test_configuration(name, verb, pairs, level, found):
    check, patient = doctor.examine(TINY / name, verb, pairs)
    assert check.level == level and found in check.found
    assert (patient.config is None) == (level == "error")


def test_cache_folder_is_looked_at_too(tmp_path):
    pairs = [f"training.stream.cache_dir={tmp_path}", "run.dir=/shared/r"]
    _, patient = doctor.examine(TINY / "train.yaml", None, pairs)
    assert patient.folders == ["/shared/r", str(tmp_path)]


def test_report_names_what_forbids_starting():
    found = [
        Check("a", "ok", ""),
        Check("b", "warning", "w", "r"),
        Check("c", "error", "f", "mend"),
    ]
    assert doctor.report(found[:2]) == {}
    with pytest.raises(InfrastructureError, match=r"1 of 3 checks failed \(c: mend\)"):
        doctor.report(found)


def test_cli_prints_a_table_and_ends_with_five(tmp_path, monkeypatch):
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    arguments = ["doctor", "--config", str(TINY / "train.yaml"), "--set", f"run.dir={tmp_path}"]
    done = CliRunner().invoke(cli.app, arguments)
    summary = json.loads(done.stdout.splitlines()[-1])
    assert done.exit_code == summary["exit_code"] == 5
    levels = {check["name"]: check["level"] for check in summary["checks"]}
    assert levels["config"] == levels["versions"] == "ok" and levels["store"] == "error"
    assert all(name in done.stdout for name in levels)
    assert list(tmp_path.iterdir()) == []


def test_machine_facts_of_this_machine(tmp_path):
    found = facts.machine_facts("here", ["torch", "no-such-package"], [str(tmp_path / "a" / "b")])
    assert found.versions["no-such-package"] == "absent" and found.versions["torch"][0].isdigit()
    assert found.free_bytes[str(tmp_path / "a" / "b")] > 0
    assert not (tmp_path / "a").exists()


def test_probe_of_shared_storage(tmp_path):
    assert "FileNotFoundError" in facts.read_and_answer(str(tmp_path), "n1", "word")
    (tmp_path / "driver").write_text("another")
    assert "the driver wrote 'word'" in facts.read_and_answer(str(tmp_path), "n1", "word")
    (tmp_path / "driver").write_text("word")
    assert facts.read_and_answer(str(tmp_path), "n1", "word") == ""
    assert (tmp_path / "n1").read_text() == "word"
