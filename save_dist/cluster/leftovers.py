"""What a killed driver leaves of its private Ray: processes, and a folder in /tmp.

Ray ends most of its own, but its agents ask a head that is gone for another minute (Ray 2.60). A
second process, run from this file alone, outlives the driver by some seconds and ends the rest.
"""

import contextlib
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import psutil

GRACE_S = 5.0
"""Ray's own way out comes first."""


@contextlib.contextmanager
def cleared(folder: str) -> Iterator[None]:
    """For a block in which Ray runs: if this process is killed, so are its children by now.

    Args:
        folder: of Ray; removed with them. Where the block ends by itself, nothing happens.
    """
    # in a session of its own: what is sent to the driver's group does not reach it
    watcher = subprocess.Popen(
        [sys.executable, __file__, folder],
        stdin=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
        text=True,
    )
    assert watcher.stdin is not None
    try:
        with contextlib.suppress(BrokenPipeError):
            for process in psutil.Process().children(recursive=True):
                if process.pid != watcher.pid:
                    print(process.pid, process.create_time(), file=watcher.stdin, flush=True)
        yield
    finally:
        watcher.kill()
        watcher.wait()
        with contextlib.suppress(BrokenPipeError):
            watcher.stdin.close()


def main(folder: Path) -> None:
    """Wait until nobody writes to standard input any more, then clear up."""
    named = [line.split() for line in sys.stdin]
    time.sleep(GRACE_S)
    for pid, created in named:
        with contextlib.suppress(psutil.Error):
            process = psutil.Process(int(pid))
            if process.create_time() == float(created):
                process.kill()
    shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
