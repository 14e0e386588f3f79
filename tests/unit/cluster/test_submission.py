"""Submission against a job server that plays scripted states."""

import json
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from save_dist import cli
from save_dist.cluster import submit
from save_dist.cluster.jobs import JobState, RayJobs, _translated
from save_dist.config.load import config_hash, load
from save_dist.config.schema import TrainJob
from save_dist.core.errors import ConfigError, DataError, InfrastructureError, PartialError

TINY = Path(__file__).resolve().parents[3] / "configs" / "tiny"
SUMMARY = {"exit_code": 0, "status": "done", "verb": "train"}


@dataclass
class FakeJobs:
    """A server: `states` are answered one per question, the last one for ever."""

    states: list[JobState | Exception] = field(default_factory=list)
    log: str = "line 1\nline 2\n"
    tails: list[str | Exception] = field(default_factory=list)
    known: list[JobState] = field(default_factory=list)
    hidden: set[str] = field(default_factory=set)
    """Ids that are taken although `jobs` does not list them."""
    requests: list = field(default_factory=list)
    files: dict[str, str] = field(default_factory=dict)

    def jobs(self):
        return self.known

    def submit(self, request):
        if request.submission_id in self.hidden:
            return False
        self.requests.append(request)
        self.files = {p.name: p.read_text() for p in request.folder.iterdir()}
        return True

    def state(self, submission_id):
        found = self.states.pop(0) if len(self.states) > 1 else self.states[0]
        if isinstance(found, Exception):
            raise found
        return found

    def follow(self, submission_id):
        pieces, self.tails = (self.tails[:2], self.tails[2:])
        for piece in pieces:
            if isinstance(piece, Exception):
                raise piece
            yield piece

    def logs(self, submission_id):
        return self.log


def state(status, code=None, submission_id="a", message=""):
    return JobState(submission_id, status, code, message)


def follow(client):
    shown: list[str] = []
    ticks = iter(range(0, 10_000, 10))
    result = submit.follow(
        client, "a", shown.append, pause=lambda s: None, clock=lambda: float(next(ticks))
    )
    return result, "".join(shown)


@pytest.fixture
def config():
    return load(TrainJob, TINY / "train.yaml")


def test_log_is_shown_once_and_success_is_zero():
    log = f"line 1\nline 2\n{json.dumps(SUMMARY)}\n"
    client = FakeJobs(
        [state("PENDING"), state("RUNNING"), state("SUCCEEDED", 0)],
        log,
        tails=["line 1\n", "line 2\n", "line 1\n", log[7:]],
    )
    result, shown = follow(client)
    assert (result.exit_code, result.summary, result.error) == (0, SUMMARY, "")
    assert shown == log


def test_tail_that_dies_early_is_not_the_end():
    broken = InfrastructureError("WebSocket closed")
    client = FakeJobs(
        [state("RUNNING"), state("RUNNING"), state("RUNNING"), state("FAILED", 4)],
        tails=["line 1\n", broken, "line 1\n", "line 2\n"],
    )
    result, shown = follow(client)
    assert result.exit_code == 4
    assert shown == "line 1\nline 2\n"


def test_lines_that_only_the_whole_log_has_repeat_nothing():
    whole = "Runtime env is set up\nline 1\nline 2\nlast\n"
    client = FakeJobs(
        [state("RUNNING"), state("SUCCEEDED", 0)], whole, tails=["line 1\n", "line 2\n"]
    )
    assert follow(client)[1] == "line 1\nline 2\nlast\n"


def test_quiet_tail_of_an_ended_job_is_left():
    client = FakeJobs([state("RUNNING"), state("SUCCEEDED", 0)], tails=["", "never read"])
    result, shown = follow(client)
    assert result.exit_code == 0
    assert shown == client.log


def test_server_that_stays_silent_is_given_up_and_says_the_job_may_run():
    client = FakeJobs([state("RUNNING"), InfrastructureError("refused")])
    with pytest.raises(InfrastructureError, match=r"refused.*may still run.*joins it"):
        follow(client)


def test_short_silence_is_survived():
    quiet = [InfrastructureError("refused")] * 3
    client = FakeJobs([state("RUNNING"), *quiet, state("SUCCEEDED", 0)])
    assert follow(client)[0].exit_code == 0


@pytest.mark.parametrize(
    ("final", "log", "code", "error"),
    [
        pytest.param(state("FAILED", 4), '{"exit_code": 4, "error": "2 parts"}', 4, "2 parts"),
        pytest.param(state("FAILED", 3, message="rc 3"), "", 3, "rc 3", id="log-lost"),
        pytest.param(state("FAILED"), '{"exit_code": 2}', 2, "", id="driver-code-lost"),
        pytest.param(state("FAILED", message="node died"), "", 5, "node died", id="all-lost"),
        pytest.param(state("FAILED", 1, message="ImportError"), "", 5, "ImportError", id="crash"),
        pytest.param(state("FAILED", -9, message="killed"), "", 5, "killed", id="signal"),
        pytest.param(state("FAILED"), '{"exit_code": 0}', 5, "", id="failed-is-never-success"),
        pytest.param(state("STOPPED", -15, message="stopped"), "", 130, "stopped", id="stopped"),
        pytest.param(state("SUCCEEDED", 0), "", 0, "", id="success-without-log"),
    ],
)
def test_exit_codes(final, log, code, error):
    result = submit.outcome(final, log)
    assert (result.exit_code, result.error) == (code, error)


@pytest.mark.parametrize(
    ("code", "error"),
    [(2, ConfigError), (3, DataError), (4, PartialError), (5, InfrastructureError)],
)
def test_failure_is_raised_as_what_it_was(code, error):
    with pytest.raises(error, match="job a failed: why"):
        submit.raise_failure(submit.Outcome(code, {}, "why\n"), "a")


def test_stopped_job_stops_and_finished_job_does_not_raise():
    with pytest.raises(KeyboardInterrupt):
        submit.raise_failure(submit.Outcome(130, {}, ""), "a")
    submit.raise_failure(submit.Outcome(0, {}, ""), "a")


@pytest.mark.parametrize(
    ("log", "found"),
    [
        pytest.param("", {}, id="empty"),
        pytest.param('{"exit_code": 3}\nRay is leaving\n', {"exit_code": 3}, id="not-last"),
        pytest.param('{"exit_code": 3}\n{"exit_code": 4', {"exit_code": 3}, id="torn"),
        pytest.param('{"step": 3}\n', {}, id="another-json"),
    ],
)
def test_last_summary(log, found):
    assert submit.last_summary(log) == found


def test_first_submission_uploads_one_whole_config(config):
    client = FakeJobs()
    sent = submit.prepare("train", config, Path("/lab/here"))
    started = submit.start("train", sent, client, driver_cpus=2.0)
    (request,) = client.requests
    assert started == submit.Submission(request.submission_id, is_joined=False)
    assert request.submission_id == f"save-train-{config_hash(sent)[:16]}"
    assert request.command == "python -m save_dist.cli train --config train.yaml"
    assert request.driver_cpus == 2.0
    assert request.metadata["run_dir"] == "/lab/here/runs/tiny"
    assert list(client.files) == ["train.yaml"]
    assert "extends" not in client.files["train.yaml"]
    assert not request.folder.exists()


def test_id_depends_on_verb_and_settings_alone(config):
    ids = []
    for values in ({}, {}, {"run": {"dir": "runs/tiny", "seed": 1}}):
        client = FakeJobs()
        changed = TrainJob.model_validate(config.model_dump() | values)
        submit.start("train", changed, client, driver_cpus=0.0)
        ids.append(client.requests[0].submission_id)
    assert ids[0] == ids[1] != ids[2]


@pytest.mark.parametrize("status", ["PENDING", "RUNNING"])
def test_running_job_is_joined(config, status):
    base = f"save-train-{config_hash(config)[:16]}"
    known = [state("FAILED", 5, base), state(status, None, f"{base}-2"), state("RUNNING")]
    client = FakeJobs(known=known)
    assert submit.start("train", config, client, driver_cpus=0.0) == submit.Submission(
        f"{base}-2", is_joined=True
    )
    assert client.requests == []


@pytest.mark.parametrize("status", ["FAILED", "STOPPED", "SUCCEEDED"])
def test_finished_job_starts_again_under_the_next_number(config, status):
    base = f"save-train-{config_hash(config)[:16]}"
    numbered = [state(status, 5, base), *(state("FAILED", 5, f"{base}-{n}") for n in (9, 10, 2))]
    client = FakeJobs(known=numbered)
    assert submit.start("train", config, client, driver_cpus=0.0).submission_id == f"{base}-11"


def test_id_taken_between_looking_and_starting_is_joined(config):
    base = f"save-train-{config_hash(config)[:16]}"

    class Raced(FakeJobs):
        def submit(self, request):
            self.known.append(state("RUNNING", None, request.submission_id))
            return False

    started = submit.start("train", config, Raced(), driver_cpus=0.0)
    assert started == submit.Submission(base, is_joined=True)


def test_id_of_a_deleted_job_is_stepped_over(config):
    base = f"save-train-{config_hash(config)[:16]}"
    client = FakeJobs(hidden={base, f"{base}-2"})
    assert submit.start("train", config, client, driver_cpus=0.0).submission_id == f"{base}-3"


def test_server_that_takes_no_id_is_an_error(config):
    base = f"save-train-{config_hash(config)[:16]}"
    hidden = {base, *(f"{base}-{n}" for n in range(2, 100))}
    with pytest.raises(InfrastructureError, match="are taken by jobs that the server does not"):
        submit.start("train", config, FakeJobs(hidden=hidden), driver_cpus=0.0)


def test_a_second_ray_inside_the_cluster_is_refused(config):
    local = load(TrainJob, TINY / "train.yaml", ["cluster.address=local"])
    with pytest.raises(ConfigError, match=r"second Ray.*--set cluster\.address=auto"):
        submit.prepare("train", local, Path("/"))


def test_cli_ends_with_the_code_of_the_job(monkeypatch, capsys):
    from typer.testing import CliRunner

    log = json.dumps({"exit_code": 4, "status": "partial", "error": "2 of 9 parts"}) + "\n"
    client = FakeJobs([state("FAILED", 4)], log)
    monkeypatch.setattr(cli, "RayJobs", lambda address: client)
    done = CliRunner().invoke(cli.app, ["submit", "train", "--config", str(TINY / "train.yaml")])
    summary = json.loads(done.stdout.splitlines()[-1])
    assert done.exit_code == summary["exit_code"] == 4
    assert summary["status"] == "partial" and summary["job"]["error"] == "2 of 9 parts"
    assert summary["submission_id"] == client.requests[0].submission_id
    assert log in done.stderr and "2 of 9 parts" in summary["error"]


def test_cli_without_waiting_returns_at_once(monkeypatch):
    from typer.testing import CliRunner

    client = FakeJobs()
    monkeypatch.setattr(cli, "RayJobs", lambda address: client)
    config = str(TINY / "train.yaml")
    done = CliRunner().invoke(cli.app, ["submit", "train", "--config", config, "--no-wait"])
    summary = json.loads(done.stdout.splitlines()[-1])
    assert (done.exit_code, summary["status"], summary["is_joined"]) == (0, "submitted", False)


def test_a_timer_submits_what_makes_the_atlas_of_the_champion(monkeypatch):
    from typer.testing import CliRunner

    client = FakeJobs()
    monkeypatch.setattr(cli, "RayJobs", lambda address: client)
    words = ["submit", "schedule-tick", "--config", str(TINY / "generate.yaml"), "--no-wait"]
    ids = []
    for _ in range(2):
        done = CliRunner().invoke(cli.app, words)
        assert done.exit_code == 0, done.stderr
        ids.append(json.loads(done.stdout.splitlines()[-1])["submission_id"])
        client.known = [state("RUNNING", submission_id=ids[0])]
    (request,) = client.requests
    assert request.command == "python -m save_dist.cli schedule-tick --config schedule-tick.yaml"
    assert ids[0] == ids[1] and ids[0].startswith("save-schedule-tick-")


def test_cli_names_the_jobs_there_are():
    from typer.testing import CliRunner

    done = CliRunner().invoke(cli.app, ["submit", "trian", "--config", "x.yaml"])
    assert done.exit_code == 2
    assert "'trian' is no job; choose one of ingest" in done.stderr


def test_refused_token_says_what_to_set():
    import ray.exceptions

    with (
        pytest.raises(ConfigError, match=r"RAY_AUTH_MODE=token and RAY_AUTH_TOKEN_PATH.*both"),
        _translated("http://head:8265"),
    ):
        raise ray.exceptions.AuthenticationError("Authentication required: Unauthorized\n\nlong")


def test_absent_server_says_how_to_name_it(monkeypatch):
    for name in ("RAY_ADDRESS", "RAY_API_SERVER_ADDRESS"):
        monkeypatch.setenv(name, "http://127.0.0.1:2")
    with pytest.raises(InfrastructureError, match=r"127\.0\.0\.1:1 failed.*--address"):
        RayJobs("http://127.0.0.1:1")
    with pytest.raises(InfrastructureError, match=r"127\.0\.0\.1:2 failed"):
        RayJobs(None)
