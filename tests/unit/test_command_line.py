import subprocess
import sys
from importlib.metadata import version

from typer.testing import CliRunner

from save_dist import cli
from save_dist.pipelines.export import FORMS

HEAVY = ("torch", "numpy", "pandas", "numba", "zarr", "tiledbsoma", "ray", "mlflow", "matplotlib")


def test_no_heavy_library_is_imported_before_a_command_needs_it():
    code = f"import sys, save_dist.cli; print(*(set({HEAVY}) & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == []


def test_version_is_that_of_the_package():
    done = CliRunner().invoke(cli.app, ["--version"])
    assert (done.exit_code, done.stdout) == (0, f"save-dist {version('save-dist')}\n")


def test_help_names_every_form_of_an_export():
    text = CliRunner().invoke(cli.app, ["export", "--help"], env={"COLUMNS": "200"}).stdout
    assert all(form in text for form in FORMS)
