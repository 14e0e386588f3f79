"""Where MLflow is, and how its client behaves in a job: quiet, offline, without patience."""

import logging
import os
from pathlib import Path

_ENVIRONMENT = {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_LOGGING_LEVEL": "WARNING",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",  # stdout ends with the JSON summary
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0",  # the mirror itself tries again, for ever
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "10",
    "GIT_PYTHON_REFRESH": "quiet",
}


def default_uri(run_dir: Path) -> str:
    """The database used when no server is named: one file in the run folder."""
    return f"sqlite:///{run_dir.resolve() / 'mlflow.db'}"


def quiet() -> None:
    """Settings MLflow reads from the environment, at its import and at every call."""
    for name, value in _ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    logging.getLogger("alembic").setLevel(logging.WARNING)
