"""Where a result comes from: versions, commit, machine."""

import importlib.metadata
import platform
import subprocess
from pathlib import Path

from save_dist.core.paths import RunPaths

PACKAGES = (
    "save-dist", "torch", "ray", "tiledbsoma", "zarr", "anndata", "mlflow", "numpy", "scipy",
    "scikit-learn", "numba", "dask", "POT",
)  # fmt: skip
"""Packages whose versions decide results."""


def provenance(paths: RunPaths) -> dict[str, str]:
    """Facts stored beside models, atlases and reports; none of them names a person or a host."""
    return {
        "run": paths.root.name,
        "git_commit": git_commit(),
        "python": platform.python_version(),
        **versions(),
    }


def versions() -> dict[str, str]:
    """Versions of the packages that decide results."""
    return {name: importlib.metadata.version(name) for name in PACKAGES}


def git_commit() -> str:
    """Commit of the installed source tree, `-dirty` if it has changes; `unknown` outside git."""
    folder = Path(__file__).resolve().parent
    try:
        commit = _git(folder, "rev-parse", "HEAD")
        is_dirty = bool(_git(folder, "status", "--porcelain", "--untracked-files=no"))
    except (OSError, subprocess.SubprocessError):
        return "unknown"
    return f"{commit}-dirty" if is_dirty else commit


def _git(folder: Path, *words: str) -> str:
    done = subprocess.run(
        ["git", "-C", str(folder), *words], capture_output=True, text=True, check=True, timeout=10
    )
    return done.stdout.strip()
