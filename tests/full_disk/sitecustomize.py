"""Found by Python at start: while the file FULL_DISK exists, its folder is on a full disk.

What a file was given may still lie in memory; when it is to be on the disk for certain (fsync), or
at once (a line of the journal), there is no space.
"""

import errno
import os
from pathlib import Path

_FLAG = os.environ.get("FULL_DISK")


def _refusing(real):
    def call(handle, *rest):
        if os.path.exists(_FLAG):
            place = os.readlink(f"/proc/self/fd/{handle}")
            if place.startswith(str(Path(_FLAG).parent)):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), place)
        return real(handle, *rest)

    return call


if _FLAG:
    os.fsync, os.write = _refusing(os.fsync), _refusing(os.write)
