"""The jobs of a Ray cluster, seen through its job server.

`JobClient` is all that submission asks for; `RayJobs` is the real one and turns what the server
and the network do into our errors.
"""

import asyncio
import contextlib
import logging
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from save_dist.core.errors import ConfigError, InfrastructureError

DEFAULT_ADDRESS = "http://127.0.0.1:8265"
ADDRESS_VARIABLES = ("RAY_API_SERVER_ADDRESS", "RAY_ADDRESS")
FINAL = frozenset({"SUCCEEDED", "FAILED", "STOPPED"})
SILENCE_S = 10.0
"""A quiet log yields an empty text this often, so that its reader can look at the state."""

_CHATTY = (
    "ray.dashboard.modules.dashboard_sdk",
    "ray.dashboard.modules.job.sdk",
    "ray._private.runtime_env.packaging",
)
HOW_TO_AUTHENTICATE = (
    "the cluster asks for a token. Set RAY_AUTH_MODE=token and RAY_AUTH_TOKEN_PATH=FILE (or "
    "RAY_AUTH_TOKEN) on both sides, here and where the cluster was started, with the same token"
)


@dataclass(frozen=True)
class JobState:
    """What the job server says of one job."""

    submission_id: str
    status: str
    """PENDING, RUNNING, SUCCEEDED, FAILED or STOPPED."""
    exit_code: int | None
    """Of the driver process; None while it runs, or if it was lost."""
    message: str

    @property
    def is_final(self) -> bool:
        """Whether the status cannot change any more."""
        return self.status in FINAL


@dataclass(frozen=True)
class JobRequest:
    """A job to start: a command in a folder that is uploaded."""

    submission_id: str
    command: str
    folder: Path
    environment: Mapping[str, str]
    metadata: Mapping[str, str]
    driver_cpus: float


@runtime_checkable
class JobClient(Protocol):
    """A job server. Every method raises InfrastructureError if it does not answer."""

    def jobs(self) -> list[JobState]:
        """Every job the server knows."""

    def submit(self, request: JobRequest) -> bool:
        """Start a job; False if its submission id is taken."""

    def state(self, submission_id: str) -> JobState:
        """One job."""

    def follow(self, submission_id: str) -> Iterator[str]:
        """The log from its beginning, as it grows; may end before the job does."""

    def logs(self, submission_id: str) -> str:
        """The whole log."""


class RayJobs:
    """The job server of a Ray cluster.

    Args:
        address: of the dashboard, e.g. http://HEAD:8265. None: what RAY_API_SERVER_ADDRESS or
            RAY_ADDRESS say, else the local machine.

    Raises:
        InfrastructureError: if no server answers.
        ConfigError: if it refuses the token, or there is none.
    """

    def __init__(self, address: str | None) -> None:
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        from ray.job_submission import JobSubmissionClient

        for name in _CHATTY:  # they speak of uploads and sockets on every call
            logging.getLogger(name).setLevel(logging.WARNING)
        named = next((os.environ[v] for v in ADDRESS_VARIABLES if os.environ.get(v)), None)
        self.address = address or named or DEFAULT_ADDRESS
        with _translated(self.address), _without_variables(if_=address is not None):
            self._client = JobSubmissionClient(self.address)

    def jobs(self) -> list[JobState]:
        """Every job the server knows that was submitted to it."""
        with _translated(self.address):
            return [_state(job) for job in self._client.list_jobs() if job.submission_id]

    def submit(self, request: JobRequest) -> bool:
        """Upload the folder and start the command in it; False if the id is taken."""
        try:
            with _translated(self.address):
                self._client.submit_job(
                    entrypoint=request.command,
                    submission_id=request.submission_id,
                    runtime_env={
                        "working_dir": str(request.folder),
                        "env_vars": dict(request.environment),
                    },
                    metadata=dict(request.metadata),
                    entrypoint_num_cpus=request.driver_cpus,
                )
        except InfrastructureError as e:
            if "already exists" in str(e):
                return False
            raise
        return True

    def state(self, submission_id: str) -> JobState:
        """One job."""
        with _translated(self.address):
            return _state(self._client.get_job_info(submission_id))

    def follow(self, submission_id: str) -> Iterator[str]:
        """The log as it grows; an empty text after some silence."""
        loop = asyncio.new_event_loop()
        stream = self._client.tail_job_logs(submission_id)
        try:
            while True:
                task = loop.create_task(_next_text(stream))
                while not loop.run_until_complete(asyncio.wait({task}, timeout=SILENCE_S))[0]:
                    yield ""
                with _translated(self.address):
                    text = task.result()
                if text is None:
                    return
                yield text
        finally:
            _close(loop)

    def logs(self, submission_id: str) -> str:
        """The whole log."""
        with _translated(self.address):
            return str(self._client.get_job_logs(submission_id))


async def _next_text(stream: Any) -> str | None:
    """The next piece of a log; None at its end."""
    text: str | None = await anext(stream, None)
    return text


def _close(loop: asyncio.AbstractEventLoop) -> None:
    """Cancel what still waits for the log, so that leaving early warns of nothing."""
    left = asyncio.all_tasks(loop)
    for task in left:
        task.cancel()
    if left:
        loop.run_until_complete(asyncio.wait(left))
    loop.run_until_complete(loop.shutdown_asyncgens())
    loop.close()


def _state(details: Any) -> JobState:
    return JobState(
        submission_id=details.submission_id,
        status=str(getattr(details.status, "value", details.status)),
        exit_code=details.driver_exit_code,
        message=details.message or "",
    )


@contextlib.contextmanager
def _translated(address: str) -> Iterator[None]:
    """What the client of the job server raises, as our errors."""
    import aiohttp
    import ray.exceptions
    import requests

    try:
        yield
    except ray.exceptions.AuthenticationError as e:
        reason = str(e).strip().splitlines()[0]
        raise ConfigError(f"{address} answered: {reason}: {HOW_TO_AUTHENTICATE}") from e
    except (
        requests.RequestException,
        aiohttp.ClientError,
        ConnectionError,
        RuntimeError,
        TimeoutError,
    ) as e:
        raise InfrastructureError(
            f"the job server at {address} failed: {str(e)[:500]}. Check that the cluster runs and "
            "that --address (or RAY_ADDRESS) is its dashboard, e.g. http://HEAD:8265"
        ) from e


@contextlib.contextmanager
def _without_variables(*, if_: bool) -> Iterator[None]:
    """Hide the address variables, which would silently win over an address given."""
    hidden = {v: os.environ.pop(v) for v in ADDRESS_VARIABLES if if_ and v in os.environ}
    try:
        yield
    finally:
        os.environ.update(hidden)
