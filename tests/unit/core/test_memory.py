import subprocess
import sys

import pytest

from save_dist.core import memory
from save_dist.core.memory import keep_freed_memory

FAULTS = """
import resource, sys
import numpy as np
from save_dist.core.memory import keep_freed_memory

if sys.argv[1] == "keep":
    assert keep_freed_memory()
    assert keep_freed_memory()

def faults():
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt

def use():
    arrays = [np.empty(600_000, dtype=np.uint8) for _ in range(40)]
    for array in arrays:
        array[::4096] = 1

for _ in range(3):
    use()
before = faults()
for _ in range(20):
    use()
print((faults() - before) // 20)
"""


def faults_per_use(how):
    command = [sys.executable, "-c", FAULTS, how]
    return int(subprocess.run(command, capture_output=True, text=True, check=True).stdout)


@pytest.mark.skipif(not keep_freed_memory(), reason="the C library is not glibc")
def test_freed_memory_is_used_again_without_page_faults():
    assert faults_per_use("default") > 1000  # 24 MB in pages of 4 KiB are 5860
    assert faults_per_use("keep") < 10


def test_another_c_library_is_left_alone(monkeypatch):
    monkeypatch.setattr(memory.ctypes, "CDLL", lambda name: object())
    assert not keep_freed_memory()
