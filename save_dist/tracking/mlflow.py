"""MLflow as a mirror of the journal, kept by a thread of the driver.

The job never talks to MLflow: the thread tails metrics.jsonl and replays it. Whether the server
is fast, slow, down or absent, the job runs the same; what was not sent is sent by the next run of
the same folder or by `sync`.
"""

import fcntl
import logging
import threading
from pathlib import Path
from types import TracebackType
from typing import IO, Any

from save_dist.core.durable import digest
from save_dist.core.errors import InfrastructureError
from save_dist.core.redaction import redact
from save_dist.tracking.connection import default_uri, quiet
from save_dist.tracking.replay import MirrorState, Replayer, first_line_digest, read_chunk

_log = logging.getLogger(__name__)

POLL_S = 1.0
LONGEST_WAIT_S = 60.0
_KIND = {"mlflow.experimentKind": "custom_model_development"}
"""Makes the UI open an experiment on its runs, not on the traces of language models."""


class Mirror:
    """Replays a journal to MLflow in the background, from where the last mirror stopped.

    Use as a context manager around a job. Nothing here raises into the job.

    Args:
        journal: the metrics.jsonl of a run folder; it may not exist yet.
        uri: MLflow server or database; None for a sqlite file beside the journal.
        experiment: MLflow experiment, made if absent.
        poll_s: seconds between looks at the journal.
    """

    def __init__(
        self, journal: Path, uri: str | None, experiment: str, *, poll_s: float = POLL_S
    ) -> None:
        self._link = _Link(journal, uri or default_uri(journal.parent), experiment)
        self._poll_s = poll_s
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._work, name="mlflow-mirror", daemon=True)

    def __enter__(self) -> "Mirror":
        self.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.stop()

    def start(self) -> None:
        """Begin to mirror; returns at once."""
        quiet()
        self._thread.start()

    def stop(self, timeout_s: float = 60.0) -> bool:
        """Send what is left; True if the server now has all of the journal.

        Waits until all is sent, one more attempt has failed, or `timeout_s` has passed.
        """
        self._stop.set()
        self._thread.join(timeout_s)
        n_pending = self._link.n_bytes_pending()
        if n_pending:
            _log.warning(
                "event=tracking_pending bytes=%d journal=%s uri=%s; metrics.jsonl is complete; "
                "send the rest with `save-dist track sync` or by running the same command again",
                n_pending,
                self._link.journal,
                redact(self._link.uri),
            )
        return n_pending == 0

    def _work(self) -> None:
        wait_s, failing = self._poll_s, False
        while True:
            last = self._stop.is_set()  # looked at first: what came before stop() is still sent
            try:
                self._link.send_all()
                wait_s, failing = self._poll_s, False
            except Exception as e:  # noqa: BLE001 (tracking must never fail a job)
                if not failing:
                    uri = redact(self._link.uri)
                    _log.warning("event=tracking_unreachable uri=%s error=%s", uri, _short(e))
                wait_s, failing = min(2 * wait_s, LONGEST_WAIT_S), True
            if last:
                self._link.close()
                return
            self._stop.wait(wait_s)


def sync(journal: Path, uri: str | None, experiment: str) -> int:
    """Replay what a server does not have yet of a journal; returns the metric points sent.

    Raises:
        InfrastructureError: if the server cannot be reached, or a job is mirroring just now.
    """
    quiet()
    link = _Link(journal, uri or default_uri(journal.parent), experiment)
    try:
        return link.send_all()
    except InfrastructureError:
        raise
    except Exception as e:
        raise InfrastructureError(
            f"could not send {journal} to MLflow at {redact(link.uri)}: {_short(e)}; "
            "start the server or name another with tracking.uri, then run again"
        ) from e
    finally:
        link.close()


class _Link:
    """One journal, one server, and the durable state between them. Used by one thread."""

    def __init__(self, journal: Path, uri: str, experiment: str) -> None:
        self.journal, self.uri, self.experiment = journal, uri, experiment
        target = digest([redact(uri), experiment])[:12]
        self._state_path = journal.parent / "tracking" / f"{target}.json"
        self._state = MirrorState()
        self._lock: IO[bytes] | None = None
        self._replayer: Replayer | None = None

    def send_all(self) -> int:
        """Send all complete lines; returns the number of metric points sent."""
        n_points = 0
        while True:
            placed, end = read_chunk(self.journal, self._state.offset)
            if end == self._state.offset:
                return n_points
            if self._replayer is None:
                self._replayer = self._connect()
                continue  # the state just loaded may lie further on
            try:
                n_points += self._replayer.replay(placed)
                self._state.offset = end
            finally:
                self._state.save(self._state_path)

    def n_bytes_pending(self) -> int:
        """Bytes of the journal that the server is not known to have."""
        size = self.journal.stat().st_size if self.journal.is_file() else 0
        return max(0, size - self._state.offset)

    def close(self) -> None:
        """Let another mirror take over."""
        if self._lock is not None:
            self._lock.close()
            self._lock = None
        self._replayer = None

    def _connect(self) -> Replayer:
        import mlflow

        self._take_lock()
        client = mlflow.MlflowClient(tracking_uri=self.uri)
        experiment_id = self._experiment_id(client)
        self._state = MirrorState.load(self._state_path, first_line_digest(self.journal))
        return Replayer(client, experiment_id, self.journal.parent, self._state)

    def _experiment_id(self, client: Any) -> str:
        from mlflow.exceptions import MlflowException

        found = client.get_experiment_by_name(self.experiment)
        if found is None:
            try:
                root = self._artifact_root()
                return str(client.create_experiment(self.experiment, root, tags=_KIND))
            except MlflowException:  # another job made it in between
                found = client.get_experiment_by_name(self.experiment)
                if found is None:
                    raise
        return str(found.experiment_id)

    def _artifact_root(self) -> str | None:
        """A server decides itself; a bare database would use the working folder."""
        if self.uri.startswith(("http://", "https://")):
            return None
        home = self.journal.parent
        if self.uri.startswith("sqlite:///"):
            home = Path(self.uri.removeprefix("sqlite:///")).parent
        return (home.resolve() / "mlartifacts").as_uri()

    def _take_lock(self) -> None:
        if self._lock is not None:
            return
        self._state_path.parent.mkdir(parents=True, exist_ok=True)
        lock = self._state_path.with_suffix(".lock").open("wb")
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as e:
            lock.close()
            raise InfrastructureError(
                f"another process is sending {self.journal} to {redact(self.uri)}; "
                "wait for it to end"
            ) from e
        self._lock = lock


def _short(error: BaseException) -> str:
    return f"{type(error).__name__}: {redact(str(error))[:200]}"
