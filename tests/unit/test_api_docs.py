"""The API reference: every public module imports, says what it is, and names what exists."""

import ast
import importlib
import pkgutil
import re
import subprocess
import sys
from pathlib import Path

import pytest

import save_dist

ROOT = Path(__file__).resolve().parents[2]
MODULES = sorted(
    module.name
    for module in pkgutil.walk_packages(save_dist.__path__, "save_dist.")
    if not module.name.endswith("__main__")
)
AREAS = {name.split(".")[1] for name in MODULES} - {"config"}  # also the name of an argument
_DOTTED = re.compile(r"`(?:save_dist\.)?((?:" + "|".join(AREAS) + r")(?:\.\w+)+)`")
_FILE = re.compile(r"`([\w./-]+/[\w.-]+\.(?:py|yaml|md))`")


@pytest.mark.parametrize("name", MODULES)
def test_a_public_module_imports_and_is_described(name):
    importlib.import_module("mlflow.data")  # loads our SOMA source itself, so it comes first
    module = importlib.import_module(name)
    assert module.__doc__ and len(module.__doc__) > 30


def docstrings():
    """Place and text of every docstring of the package."""
    for path in sorted((ROOT / "save_dist").rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            is_described = isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef)
            if is_described and (text := ast.get_docstring(node)):
                yield f"{path.relative_to(ROOT)}:{getattr(node, 'name', '')}", text


def exists(dotted):
    """Whether `area.module.name` is a module of the package or something in one."""
    parts = ["save_dist", *dotted.split(".")]
    for n in range(len(parts), 1, -1):
        name = ".".join(parts[:n])
        if name in MODULES or (ROOT / Path(*parts[:n])).is_dir():
            owner = importlib.import_module(name)
            for part in parts[n:]:
                if not hasattr(owner, part):
                    return part in getattr(owner, "__annotations__", {})
                owner = getattr(owner, part)
            return True
    return False


def test_docstrings_name_what_exists():
    broken = []
    n_found = 0
    for place, text in docstrings():
        for dotted in _DOTTED.findall(text):
            n_found += 1
            is_setting = is_setting_of_a_job(dotted)
            broken += [] if is_setting or exists(dotted) else [f"{place} names {dotted}"]
        for file in _FILE.findall(text):
            n_found += 1
            found = any((folder / file).exists() for folder in (ROOT, ROOT / "save_dist"))
            broken += (
                [] if found or "VERB" in file or "/NAME" in file else [f"{place} names {file}"]
            )
    assert n_found > 10 and broken == []


def is_setting_of_a_job(dotted):
    """Some sections of a configuration are named like packages: flow, training, evaluation."""
    from save_dist.config.load import JOBS

    for root in JOBS.values():
        model = root
        for part in dotted.split("."):
            fields = getattr(model, "model_fields", {})
            if part not in fields:
                break
            model = fields[part].annotation
        else:
            return True
    return False


@pytest.mark.slow
def test_the_reference_is_built_without_warnings(tmp_path):
    words = [sys.executable, str(ROOT / "docs" / "build_api.py"), str(tmp_path)]
    done = subprocess.run(words, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    pages = {str(p.relative_to(tmp_path)) for p in tmp_path.rglob("*.html")}
    # a package that says what is public is described on its own page alone
    shown = [
        name for name in MODULES if not hasattr(sys.modules[name.rpartition(".")[0]], "__all__")
    ]
    assert len(shown) > 150 and {f"{name.replace('.', '/')}.html" for name in shown} <= pages
