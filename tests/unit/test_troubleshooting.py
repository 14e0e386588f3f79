"""docs/troubleshooting.md: an entry per error class, and messages that the code really has."""

import ast
import re
from pathlib import Path

import pytest

import save_dist
from save_dist.core import errors

PACKAGE = Path(save_dist.__file__).parent
PAGE = (PACKAGE.parent / "docs" / "troubleshooting.md").read_text()
CLASSES = [
    c for c in vars(errors).values() if isinstance(c, type) and c.__module__ == errors.__name__
]
SECTIONS = {
    section.partition("\n")[0]: section.partition("\n")[2] for section in PAGE.split("\n## ")[1:]
}
QUOTED = re.findall(r"^\| `(.+?)` \|", PAGE, re.MULTILINE)


@pytest.fixture(scope="module")
def constants():
    """Every text of the package; adjacent literals are one."""
    trees = [ast.parse(path.read_text()) for path in PACKAGE.rglob("*.py")]
    nodes = [node for tree in trees for node in ast.walk(tree) if isinstance(node, ast.Constant)]
    return "\0".join(node.value for node in nodes if isinstance(node.value, str))


@pytest.mark.parametrize("kind", CLASSES, ids=lambda kind: kind.__name__)
def test_every_error_class_has_an_entry_with_its_exit_code(kind):
    assert f"Exit code {kind.exit_code}" in SECTIONS[kind.__name__]


def test_no_entry_is_of_a_class_that_is_gone():
    assert {n for n in SECTIONS if n.endswith("Error")} == {kind.__name__ for kind in CLASSES}


def test_the_page_quotes_messages_that_the_code_has(constants):
    assert len(QUOTED) > 25
    assert [text for text in QUOTED if text not in constants] == []
