"""Nothing on a load path runs code, and secrets of the environment stay there."""

import ast
import json
from pathlib import Path

import pytest
from tiny_model import save_tiny_model
from typer.testing import CliRunner

import save_dist
from save_dist import cli
from save_dist.cluster.generate import PartOutcome
from save_dist.generation.worker import PartWorker
from save_dist.pipelines import generate

PACKAGE = Path(save_dist.__file__).parent
FORBIDDEN_MODULES = {
    *("pickle", "cPickle", "cloudpickle", "dill", "joblib", "shelve", "marshal"),
    *("zipfile", "tarfile"),
}
FORBIDDEN_CALLS = {
    *("eval", "exec", "compile", "torch.load", "pd.read_pickle", "shutil.unpack_archive"),
    *("yaml.load", "yaml.full_load", "yaml.unsafe_load", "os.system"),
}
SECRETS = {
    "RAY_AUTH_TOKEN": "planted-ray-token",
    "MLFLOW_TRACKING_PASSWORD": "planted-mlflow-password",
    "AWS_SECRET_ACCESS_KEY": "planted-aws-key",
    "PGPASSWORD": "planted-postgres-password",
}


def dangers(source):
    """Imports and calls that would run what was loaded, or write where an archive says."""
    found = []
    for node in ast.walk(ast.parse(source)):
        names = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            names = [node.module or ""]
        elif isinstance(node, ast.Call):
            call = ast.unparse(node.func)
            options = {k.arg: ast.unparse(k.value) for k in node.keywords}
            is_open = call == "np.load" and options.get("allow_pickle") != "False"
            shell = options.get("shell", "False") != "False"
            if call in FORBIDDEN_CALLS or is_open or shell:
                found.append((node.lineno, call))
        found += [(node.lineno, name) for name in names if name.split(".")[0] in FORBIDDEN_MODULES]
    return found


def test_nothing_unpickles_unpacks_or_evaluates():
    found = {
        str(path.relative_to(PACKAGE)): lines
        for path in PACKAGE.rglob("*.py")
        if (lines := dangers(path.read_text()))
    }
    assert found == {}


@pytest.mark.parametrize(
    "source",
    [
        "import pickle",
        "from zipfile import ZipFile",
        "torch.load(path)",
        "np.load(path)",
        "np.load(path, allow_pickle=True)",
        "eval(text)",
        "subprocess.run(text, shell=True)",
    ],
)
def test_the_search_finds_what_it_looks_for(source):
    assert dangers(source)


def test_secrets_of_the_environment_reach_no_file_and_no_log(tmp_path, monkeypatch):
    def sample(parts, cells, bundle, atlas, config, progress):
        worker = PartWorker(Path(bundle), Path(atlas), device="cpu")
        for part in parts:
            worker.run(part)
        return [PartOutcome(part, 1, 0.1, 1, "") for part in parts]

    monkeypatch.setattr(generate.cluster_generate, "generate", sample)
    for name, value in SECRETS.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("SAVE_DIST_LOG", "DEBUG")
    run = tmp_path / "run"
    save_tiny_model(run / "model")
    config = tmp_path / "generate.yaml"
    grid = {"cells_per_condition": 4}
    output = {"cells_per_part": 32, "cells_per_chunk": 16, "cells_per_minibatch": 16}
    settings = {"run": {"dir": str(run)}, "tracking": {"backend": "none"}}
    config.write_text(json.dumps(settings | {"grid": grid, "output": output}))
    done = CliRunner().invoke(cli.app, ["generate", "--config", str(config)])
    assert done.exit_code == 0, done.output
    texts = {str(p): p.read_bytes() for p in run.rglob("*") if p.is_file()}
    texts["output"] = done.output.encode()
    assert {"config.resolved.yaml", "metrics.jsonl"} <= {Path(name).name for name in texts}
    assert [name for name, text in texts.items() if b"planted-" in text] == []
