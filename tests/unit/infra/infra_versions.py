"""Versions that must be the same wherever they stand."""

import re

from infra_kustomize import ROOT


def pinned(package: str) -> str:
    """The version of a package in constraints.txt."""
    text = (ROOT / "constraints.txt").read_text()
    found = re.search(rf"^{re.escape(package)}==(\S+)$", text, re.MULTILINE)
    assert found, f"constraints.txt does not pin {package}"
    return found[1]


def ray_version() -> str:
    """The version of Ray that the image gets."""
    return pinned("ray")
