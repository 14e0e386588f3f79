"""The real client's log stream, over a server that is played."""

import asyncio
from dataclasses import dataclass

import pytest

from save_dist.cluster import jobs
from save_dist.cluster.jobs import JobRequest, RayJobs
from save_dist.core.errors import InfrastructureError


@dataclass
class Details:
    submission_id: str | None
    status: str = "RUNNING"
    driver_exit_code: int | None = None
    message: str | None = None


class PlayedServer:
    """Stands in for Ray's own client."""

    def __init__(self, pieces=(), submit_error=None):
        self.pieces, self.submit_error = pieces, submit_error
        self.submitted = {}

    async def tail_job_logs(self, submission_id):
        for piece in self.pieces:
            if isinstance(piece, Exception):
                raise piece
            if isinstance(piece, float):
                await asyncio.sleep(piece)
            else:
                yield piece

    def submit_job(self, **request):
        if self.submit_error:
            raise self.submit_error
        self.submitted = request

    def list_jobs(self):
        return [Details("a", "FAILED", 4, "m"), Details(None)]


def client_of(server):
    client = RayJobs.__new__(RayJobs)
    client.address, client._client = "http://head:8265", server
    return client


def test_log_is_followed_to_its_end():
    assert list(client_of(PlayedServer(["a", "b"])).follow("id")) == ["a", "b"]


def test_silence_is_an_empty_text(monkeypatch):
    monkeypatch.setattr(jobs, "SILENCE_S", 0.01)
    texts = list(client_of(PlayedServer(["a", 0.1, "b"])).follow("id"))
    assert "".join(texts) == "ab" and texts.count("") >= 2


def test_leaving_a_silent_log_early_waits_for_nothing(monkeypatch):
    monkeypatch.setattr(jobs, "SILENCE_S", 0.01)
    texts = client_of(PlayedServer(["a", 3600.0])).follow("id")
    assert [next(texts), next(texts)] == ["a", ""]
    texts.close()


def test_broken_log_is_an_infrastructure_error():
    texts = client_of(PlayedServer(["a", RuntimeError("WebSocket closed")])).follow("id")
    assert next(texts) == "a"
    with pytest.raises(InfrastructureError, match="WebSocket closed"):
        next(texts)


def test_jobs_that_were_not_submitted_are_left_out():
    (found,) = client_of(PlayedServer()).jobs()
    assert (found.submission_id, found.status, found.exit_code, found.is_final) == (
        "a",
        "FAILED",
        4,
        True,
    )


@pytest.mark.parametrize(
    ("error", "taken"),
    [
        pytest.param(None, True, id="free"),
        pytest.param(RuntimeError("Job with submission_id x already exists."), False, id="taken"),
    ],
)
def test_submit_says_whether_the_id_was_free(tmp_path, error, taken):
    server = PlayedServer(submit_error=error)
    request = JobRequest("x", "python", tmp_path, {"A": "b"}, {"verb": "train"}, 1.0)
    assert client_of(server).submit(request) is taken
    if taken:
        assert server.submitted["runtime_env"] == {
            "working_dir": str(tmp_path),
            "env_vars": {"A": "b"},
        }
        assert server.submitted["entrypoint_num_cpus"] == 1.0


def test_server_without_agents_is_worth_another_try(tmp_path):
    server = PlayedServer(submit_error=RuntimeError("500: No available agent to submit job"))
    request = JobRequest("x", "python", tmp_path, {}, {}, 0.0)
    with pytest.raises(InfrastructureError, match="No available agent"):
        client_of(server).submit(request)
