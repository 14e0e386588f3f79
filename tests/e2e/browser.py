"""MLflow's compare page in a headless Chromium: what it shows, and a picture of it."""

import contextlib
import http.server
import json
import os
import shutil
import subprocess
import threading
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator
from functools import partial
from pathlib import Path

from services import Mlflow

NAMES = ("chromium", "chromium-browser", "chromium-headless-shell", "google-chrome", "chrome")
VARIABLE = "SAVE_DIST_CHROMIUM"
LIMIT_S = 180
LOAD_MS = 30_000
"""Time the page gets to load, on its own clock."""
_KEPT = ("Content-Type", "Accept")


def find_chromium() -> str | None:
    """The browser named by SAVE_DIST_CHROMIUM, or one that is installed."""
    named = os.environ.get(VARIABLE)
    return named or next((found for name in NAMES if (found := shutil.which(name))), None)


def compare_runs(
    browser: str, mlflow: Mlflow, experiment: str, run_ids: list[str], picture: Path
) -> str:
    """Open the compare page and take `picture` of it; returns the page as HTML."""
    runs = urllib.parse.quote(json.dumps(run_ids))
    place = f"#/compare-runs?runs={runs}&experiments={urllib.parse.quote(json.dumps([experiment]))}"
    picture.parent.mkdir(parents=True, exist_ok=True)
    with _logged_in(mlflow) as uri:
        _run(browser, f"--screenshot={picture}", f"{uri}/{place}")
        return _run(browser, "--dump-dom", f"{uri}/{place}")


def _run(browser: str, what: str, url: str) -> str:
    """One page, without a profile; the sandbox needs rights that containers lack."""
    command = [browser, "--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars"]
    size = ["--window-size=1400,1500", f"--virtual-time-budget={LOAD_MS}"]
    done = subprocess.run(
        [*command, *size, what, url], capture_output=True, text=True, timeout=LIMIT_S, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


@contextlib.contextmanager
def _logged_in(mlflow: Mlflow) -> Iterator[str]:
    """A way to the server on loopback that adds the login, which a headless browser cannot type."""
    handler = partial(_Forward, mlflow)
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()
            thread.join()


class _Forward(http.server.BaseHTTPRequestHandler):
    """Passes requests on."""

    def __init__(self, mlflow: Mlflow, *arguments: object) -> None:
        self._mlflow = mlflow
        super().__init__(*arguments)  # type: ignore[arg-type]

    def do_GET(self) -> None:
        """A page, a script or a question."""
        self._pass_on(None)

    def do_POST(self) -> None:
        """A question with a body."""
        self._pass_on(self.rfile.read(int(self.headers.get("Content-Length", 0))))

    def log_message(self, *arguments: object) -> None:
        """Say nothing."""

    def _pass_on(self, body: bytes | None) -> None:
        headers = {name: self.headers[name] for name in _KEPT if name in self.headers}
        headers["Authorization"] = self._mlflow.authorization
        request = urllib.request.Request(f"{self._mlflow.uri}{self.path}", body, headers)
        try:
            with urllib.request.urlopen(request, timeout=60) as answer:
                self._answer(answer.status, answer.headers.get("Content-Type"), answer.read())
        except urllib.error.HTTPError as e:
            self._answer(e.code, e.headers.get("Content-Type"), e.read())

    def _answer(self, status: int, kind: str | None, content: bytes) -> None:
        self.send_response(status)
        self.send_header("Content-Type", kind or "application/octet-stream")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        with contextlib.suppress(ConnectionError):
            self.wfile.write(content)
