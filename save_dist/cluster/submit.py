"""A job sent to a cluster: start it or join the one that runs, follow it, say how it ended.

The submission id is made from the verb and the settings, so it is a lock: the same job is never
started twice at once, by a person and a schedule for instance. A finished one starts again under
the next number and continues from what is in its run folder.
"""

import json
import logging
import os
import re
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from save_dist.cluster.jobs import JobClient, JobRequest, JobState
from save_dist.config.load import config_hash, dump_yaml
from save_dist.config.portable import anchored
from save_dist.config.schema import JobConfig
from save_dist.core.errors import (
    ConfigError,
    DataError,
    InfrastructureError,
    PartialError,
    SaveDistError,
)

logger = logging.getLogger(__name__)

STOPPED = 130
POLL_S = 2.0
LONGEST_POLL_S = 30.0
LOST_AFTER_S = 120.0
"""A server that does not answer for this long is given up; the job may well go on."""
MOST_TAKEN = 20
SUMMARY_LINES = 100
"""The summary of a job stands in the last lines of its log; others may follow it."""
OVERLAP = 500
"""Characters by which the end of what was shown is found again in the whole log."""
PASSED_ON = ("SAVE_DIST_LOG",)
_FAILURES: dict[int, type[SaveDistError]] = {
    error.exit_code: error for error in (ConfigError, DataError, PartialError, InfrastructureError)
}


@dataclass(frozen=True)
class Submission:
    """A job on the cluster."""

    submission_id: str
    is_joined: bool
    """Whether it ran already."""


@dataclass(frozen=True)
class Outcome:
    """How a job ended; `exit_code` is one of ours."""

    exit_code: int
    summary: Mapping[str, Any]
    """The JSON line the job printed last; empty if it was lost."""
    error: str


def prepare(verb: str, config: JobConfig, folder: Path) -> JobConfig:
    """The configuration as the cluster will read it, its paths taken from `folder`.

    Raises:
        ConfigError: if the job would start a second Ray inside the cluster.
    """
    cluster = getattr(config, "cluster", None)
    if cluster is not None and cluster.address == "local":
        raise ConfigError(
            f"cluster.address=local would start a second Ray inside the cluster that runs {verb}; "
            "use --set cluster.address=auto"
        )
    return anchored(config, folder)


def start(verb: str, config: JobConfig, client: JobClient, *, driver_cpus: float) -> Submission:
    """Start the job, or find the same one running.

    Args:
        verb: the job.
        config: as `prepare` made it.
        client: the job server.
        driver_cpus: CPUs reserved for the driver, which then may run on any node; 0: the head.

    Raises:
        InfrastructureError: if the server takes no id.
    """
    base = f"save-{verb}-{config_hash(config)[:16]}"
    with tempfile.TemporaryDirectory(prefix="save-dist-") as name:
        folder = Path(name)
        (folder / f"{verb}.yaml").write_text(dump_yaml(config))
        for n_taken in range(MOST_TAKEN):
            number, newest = _newest(client.jobs(), base)
            if newest is not None and not newest.is_final:
                return Submission(newest.submission_id, is_joined=True)
            number += 1 + n_taken  # an id may be taken by a job that was deleted
            submission_id = base if number == 1 else f"{base}-{number}"
            request = _request(verb, config, submission_id, folder, driver_cpus)
            if client.submit(request):
                return Submission(submission_id, is_joined=False)
            logger.info("event=submission_id_taken id=%s", submission_id)
    raise InfrastructureError(
        f"{MOST_TAKEN} submission ids from {base} on are taken by jobs that the server does not "
        "list; change a setting, or restart the cluster"
    )


def follow(
    client: JobClient,
    submission_id: str,
    show: Callable[[str], object],
    *,
    pause: Callable[[float], None] = time.sleep,
    clock: Callable[[], float] = time.monotonic,
) -> Outcome:
    """Show the log until the job has ended; what counts is its state, never the log's end.

    Raises:
        InfrastructureError: if the server stays silent.
    """
    tail = _Tail(client, submission_id, show)
    answered, wait_s = clock(), POLL_S
    while True:
        try:
            state = client.state(submission_id)
            answered = clock()
            if state.is_final:
                return outcome(state, tail.rest())
            tail.run()
        except InfrastructureError as e:
            if clock() - answered > LOST_AFTER_S:
                raise InfrastructureError(
                    f"{e}. No answer for {LOST_AFTER_S:.0f} s; job {submission_id} may still "
                    "run: the same command joins it"
                ) from e
            logger.warning("event=job_server_silent reason=%r", str(e))
        pause(wait_s)
        wait_s = min(wait_s * 1.5, LONGEST_POLL_S)


def outcome(state: JobState, log: str) -> Outcome:
    """Our exit code and the job's own summary, from its final state and its log."""
    assert state.is_final, state
    summary = last_summary(log)
    known = {0, STOPPED, *_FAILURES}
    said = [code for code in (state.exit_code, summary.get("exit_code")) if code in known - {0}]
    ending = {"SUCCEEDED": 0, "STOPPED": STOPPED}
    code = ending.get(state.status, said[0] if said else InfrastructureError.exit_code)
    text = str(summary.get("error", "")) or state.message
    return Outcome(code, summary, "" if code == 0 else text)


def last_summary(log: str) -> dict[str, Any]:
    r"""The JSON summary in the last lines of a log; empty if there is none.

    >>> last_summary('working\n{"exit_code": 4, "verb": "generate"}\n')["exit_code"]
    4
    """
    for line in reversed(log.splitlines()[-SUMMARY_LINES:]):
        if line.startswith("{") and '"exit_code"' in line:
            try:
                value = json.loads(line)
            except ValueError:
                continue
            return dict(value)
    return {}


def raise_failure(result: Outcome, submission_id: str) -> None:
    """End this process as the job ended.

    Raises:
        SaveDistError: of the class whose exit code the job had.
        KeyboardInterrupt: if it was stopped.
    """
    if result.exit_code == STOPPED:
        raise KeyboardInterrupt
    if result.exit_code:
        error = _FAILURES[result.exit_code]
        raise error(f"job {submission_id} failed: {result.error.strip()}")


class _Tail:
    """Shows each piece of a log once, however often the log is opened anew."""

    def __init__(self, client: JobClient, submission_id: str, show: Callable[[str], object]):
        self._client, self._id, self._show = client, submission_id, show
        self._n_shown = 0
        self._last = ""
        """The last characters shown."""

    def run(self) -> None:
        """Until the log ends, breaks, or the job has ended while it was quiet."""
        position = 0
        for text in self._client.follow(self._id):
            if not text and self._client.state(self._id).is_final:
                return
            position += len(text)
            new = position - self._n_shown
            if new > 0:
                self._show_new(text[-new:])
                self._n_shown = position

    def rest(self) -> str:
        """Show what has not been shown; returns the whole log, empty if it is lost.

        The whole log may hold lines that following it leaves out, so that positions in the two
        differ; what was shown last tells where to go on.
        """
        try:
            log = self._client.logs(self._id)
        except InfrastructureError as e:
            logger.warning("event=job_log_lost reason=%r", str(e))
            return ""
        place = log.rfind(self._last) if self._last else 0
        if place >= 0:
            self._show_new(log[place + len(self._last) :])
        return log

    def _show_new(self, text: str) -> None:
        if text:
            self._show(text)
            self._last = (self._last + text)[-OVERLAP:]


def _newest(jobs: list[JobState], base: str) -> tuple[int, JobState | None]:
    """The last of the jobs named `base`, `base-2`, `base-3`, ... and its number."""
    pattern = re.compile(re.escape(base) + r"(?:-(\d+))?")
    found = [(int(m[1] or 1), job) for job in jobs if (m := pattern.fullmatch(job.submission_id))]
    return max(found, key=lambda pair: pair[0], default=(0, None))


def _request(
    verb: str, config: JobConfig, submission_id: str, folder: Path, driver_cpus: float
) -> JobRequest:
    return JobRequest(
        submission_id=submission_id,
        command=f"python -m save_dist.cli {verb} --config {verb}.yaml",
        folder=folder,
        environment={name: os.environ[name] for name in PASSED_ON if name in os.environ},
        metadata={
            "verb": verb,
            "config_hash": config_hash(config),
            "run_dir": str(config.run.dir),
        },
        driver_cpus=driver_cpus,
    )
