"""How a command ends: the JSON summary on stdout, `result.json`, and the exit code.

The only place where logging is configured and exit codes are made.
"""

import contextlib
import logging
import os
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path

from save_dist.core.durable import write_json
from save_dist.core.errors import InfrastructureError, PartialError, SaveDistError, StoppedError
from save_dist.core.paths import RunPaths
from save_dist.core.redaction import RedactingFormatter, redact
from save_dist.pipelines.context import Summary
from save_dist.tracking.progress import print_summary

STOPPED = StoppedError.exit_code
_STATUS = {PartialError.exit_code: "partial", STOPPED: "stopped"}


def ending(work: Callable[[], Summary], summary: Summary, *, writes_result: bool = False) -> int:
    """Do the work and turn however it ends into a summary and an exit code."""
    _configure_logging()
    started = time.monotonic()
    code = 0
    summary["status"] = "done"
    try:
        summary |= work()
    except SaveDistError as e:
        code, text = e.exit_code, redact(str(e))
        summary |= {"status": _STATUS.get(code, "failed"), "error": text}
        sys.stderr.write(f"error: {text}\n")
    except (KeyboardInterrupt, SystemExit):
        code = STOPPED
        summary |= {"status": "stopped", "error": "stopped by a signal; run again to continue"}
    except Exception as e:  # noqa: BLE001  # the last place that can say how the job ended
        code = InfrastructureError.exit_code
        summary |= {"status": "failed", "error": redact(f"unexpected {type(e).__name__}: {e}")}
        sys.stderr.write(redact(traceback.format_exc()))
    summary |= {"exit_code": code, "seconds": round(time.monotonic() - started, 1)}
    if writes_result and "run_dir" in summary:
        with contextlib.suppress(InfrastructureError):  # the summary is on stdout as well
            write_json(RunPaths(Path(summary["run_dir"])).result, summary)
    print_summary(summary)
    return code


def _configure_logging() -> None:
    level = os.environ.get("SAVE_DIST_LOG", "WARNING").upper()
    handler = logging.StreamHandler()
    handler.setFormatter(RedactingFormatter("%(asctime)s %(levelname)s %(name)s %(message)s"))
    logging.basicConfig(handlers=[handler])
    logging.getLogger("save_dist").setLevel(level)
