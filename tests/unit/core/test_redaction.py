import logging

import pytest

from save_dist.core.redaction import RedactingFormatter, holds_secret, redact


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        pytest.param("plain a@b text", "plain a@b text", id="no uri"),
        pytest.param("sqlite:///a@b/c.db", "sqlite:///a@b/c.db", id="at in a path"),
        pytest.param("see http://u:p@ss@h:1/x", "see http://***@h:1/x", id="user and password"),
        pytest.param("https://tok@host", "https://***@host", id="token alone"),
        pytest.param(
            "s3://b/k?X-Amz-Signature=ab&v=1&auth_token=x",
            "s3://b/k?X-Amz-Signature=***&v=1&auth_token=***",
            id="query",
        ),
    ],
)
def test_redact(text, expected):
    assert redact(text) == expected


@pytest.mark.parametrize(
    ("uri", "is_secret"),
    [
        pytest.param("http://me:pw@host:5000", True, id="password"),
        pytest.param("postgresql://:pw@host/db", True, id="password without a name"),
        pytest.param("https://host/x?api_key=1", True, id="query"),
        pytest.param("postgresql://me@host/db", False, id="name alone"),
        pytest.param("http://127.0.0.1:5000", False, id="port"),
        pytest.param("sqlite:///runs/a:b@c.db", False, id="path"),
    ],
)
def test_what_counts_as_a_secret(uri, is_secret):
    assert holds_secret(uri) is is_secret


def test_log_lines_and_their_tracebacks_are_redacted():
    try:
        raise OSError("no answer from http://me:hunter2@host")
    except OSError:
        import sys

        record = logging.LogRecord(
            "save_dist", logging.ERROR, "x", 1, "to %s", ("s3://k:hunter2@b",), sys.exc_info()
        )
    line = RedactingFormatter("%(message)s").format(record)
    assert "hunter2" not in line and "http://***@host" in line and "to s3://***@b" in line
