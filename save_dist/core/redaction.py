"""Secrets in text: what URIs may carry, found and blotted out.

Everything that leaves a job as text goes through here: journal, MLflow, logs, errors, summaries.
"""

import logging
import re

# user:password@ of a URI, and query values whose name speaks of a secret
_USERINFO = re.compile(r"(?<=://)[^/\s]+@")
_PASSWORD = re.compile(r"://[^/\s:@]*:[^/\s]*@")
_SECRET_QUERY = re.compile(
    r"([?&][\w.-]*(?:token|password|passwd|secret|signature|credential|api_?key)=)[^&\s]+",
    re.IGNORECASE,
)


def redact(text: str) -> str:
    """Text without the passwords and tokens that URIs may carry.

    >>> redact("postgresql://me:pw@host/db?token=abc")
    'postgresql://***@host/db?token=***'
    """
    return _SECRET_QUERY.sub(r"\1***", _USERINFO.sub("***@", text))


def holds_secret(uri: str) -> bool:
    """Whether a URI carries a password or token; a user name alone is none.

    >>> holds_secret("postgresql://me@host/db"), holds_secret("https://me:pw@host")
    (False, True)
    """
    return bool(_PASSWORD.search(uri) or _SECRET_QUERY.search(uri))


class RedactingFormatter(logging.Formatter):
    """Log lines, tracebacks included, without secrets."""

    def format(self, record: logging.LogRecord) -> str:
        """The line of a record."""
        return redact(super().format(record))
