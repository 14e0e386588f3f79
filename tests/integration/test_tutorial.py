"""docs/tutorial.md, block by block: shell commands, configuration files, Python."""

import re
import shlex
from pathlib import Path

import pytest
from typer.testing import CliRunner

from save_dist.cli import app

TUTORIAL = Path(__file__).parents[2] / "docs" / "tutorial.md"


def blocks():
    return re.findall(r"^```(\w+)\n(.*?)^```$", TUTORIAL.read_text(), re.MULTILINE | re.DOTALL)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::FutureWarning:anndata", "ignore::UserWarning:anndata")
def test_every_block_runs_and_says_what_the_text_promises(
    tmp_path, monkeypatch, capsys, ray_session
):
    monkeypatch.chdir(tmp_path)
    names = {}
    for kind, text in blocks():
        match kind:
            case "python":
                exec(compile(text, str(TUTORIAL), "exec"), names)
            case "yaml":
                name = re.match(r"# (\S+\.yaml)\n", text)
                Path(name[1]).write_text(text)
            case "sh":
                command, *arguments = shlex.split(text)
                assert command == "save-dist"
                done = CliRunner().invoke(app, arguments)
                assert done.exit_code == 0, done.output
            case _:
                raise AssertionError(f"no one runs {kind} blocks; make it python, yaml or sh")
    assert "PCC" in capsys.readouterr().out
    assert (tmp_path / "run" / "report" / "index.html").is_file()
    assert names["after"] < names["before"]  # donors come closer
    assert names["agreement"] > 0.3
    assert set(names["composed"].obs["route"]) == {"condition: ctrl -> stim-1"}
    assert not names["treated"].obs["seen"].any()
