"""What one machine says about itself. Runs on the driver and, as a small task, on every node."""

import importlib.metadata
import os
import platform
import shutil
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

SHARED_MEMORY = Path("/dev/shm")  # noqa: S108 (measured, never written)


@dataclass(frozen=True)
class GpuFacts:
    """GPUs as torch sees them."""

    n_devices: int
    cuda: str
    """Version torch was built for; empty for a build without CUDA."""
    nccl: str
    """Version torch carries; empty without CUDA."""
    driver_error: str
    """Why torch cannot use the devices it was built for; empty if it can, or was not."""


@dataclass(frozen=True)
class MachineFacts:
    """One machine at one moment."""

    node: str
    python: str
    versions: dict[str, str]
    """Package -> version; `absent` if not installed."""
    free_bytes: dict[str, int]
    """Folder asked about -> free bytes where it lies, or will lie; -1 if that cannot be read."""
    shared_memory_bytes: int
    """Free in /dev/shm; -1 if there is none."""
    gpu: GpuFacts
    clock_skew_s: float = 0.0
    """This clock minus the driver's."""
    clock_error_s: float = 0.0
    """Bound on the error of `clock_skew_s`."""


def machine_facts(node: str, packages: Sequence[str], folders: Sequence[str]) -> MachineFacts:
    """Facts of the machine this runs on.

    Args:
        node: its name in messages.
        packages: distributions whose versions matter.
        folders: places whose free space matters; they need not exist yet.
    """
    return MachineFacts(
        node=node,
        python=platform.python_version(),
        versions={name: _version(name) for name in packages},
        free_bytes={folder: _free(Path(folder)) for folder in folders},
        shared_memory_bytes=_free(SHARED_MEMORY) if SHARED_MEMORY.is_dir() else -1,
        gpu=gpu_facts(),
    )


def gpu_facts() -> GpuFacts:
    """GPUs of this machine, and what torch was built for."""
    import torch

    built_for = torch.version.cuda or ""
    if not built_for:
        return GpuFacts(0, "", "", "")
    nccl = ".".join(str(part) for part in torch.cuda.nccl.version())  # type: ignore[no-untyped-call]  # torch
    try:
        torch.cuda.init()  # type: ignore[no-untyped-call]  # torch
        return GpuFacts(torch.cuda.device_count(), built_for, nccl, "")
    except (RuntimeError, AssertionError) as e:
        return GpuFacts(0, built_for, nccl, str(e).splitlines()[0])


def read_and_answer(folder: str, node: str, word: str) -> str:
    """Read the driver's word in a folder and leave an answer; returns why not, or nothing."""
    try:
        found = (Path(folder) / "driver").read_text()
        if found != word:
            return f"read {found!r}, the driver wrote {word!r}"
        (Path(folder) / node).write_text(word)
    except OSError as e:
        return f"{type(e).__name__}: {e.strerror or e}"
    return ""


def now() -> float:
    """This machine's clock."""
    return time.time()


def _version(name: str) -> str:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return "absent"


def _free(folder: Path) -> int:
    """Free bytes for this user at the folder, or at the nearest parent that exists."""
    place = folder.absolute()
    while not place.exists() and place != place.parent:
        place = place.parent
    try:
        return shutil.disk_usage(place).free if os.access(place, os.R_OK) else -1
    except OSError:
        return -1
