"""What people get wrong: one clear line and the documented exit code, before anything expensive."""

import json
import re
import shutil
from pathlib import Path

import anndata
import numpy as np
import operator_desk as at
import pandas as pd
import pytest
from operator_desk import BOMB, NOBODY, Desk, arguments, with_file, with_pairs, words
from tiny_model import save_tiny_model
from tiny_run import CONFIGS, last_line, settings
from typer.testing import CliRunner

from save_dist import cli
from save_dist.cli import run_job


@pytest.fixture(scope="module")
def original(tmp_path_factory):
    """300 sound cells, a model, and the atlas of another grid."""
    desk = Desk(tmp_path_factory.mktemp("desk"))
    rng = np.random.default_rng(0)
    obs = pd.DataFrame(
        {
            "condition": np.tile(["ctrl", "stim-1"], 150),
            "cell_type": np.repeat(["type-0", "type-1", "type-2"], 100),
            "donor": "d",
        },
        index=[f"c{i}" for i in range(300)],
    )
    var = pd.DataFrame(index=[f"g{i}" for i in range(50)])
    anndata.AnnData(rng.poisson(2.0, (300, 50)).astype(np.float32), obs, var).write_h5ad(desk.cells)
    save_tiny_model(desk.run / "model")
    return desk


@pytest.fixture
def desk(original, tmp_path, monkeypatch):
    for name in ("RAY_ADDRESS", "RAY_API_SERVER_ADDRESS", "RAY_AUTH_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    return Desk(Path(shutil.copytree(original.folder, tmp_path / "desk")))


ALL = []


def mistake(id_, code, pattern, plant):
    ALL.append(pytest.param(plant, code, pattern, id=id_))


mistake(
    "absent-config",
    2,
    r"no\.yaml does not exist \(working folder",
    words("train", "--config", "{desk}/no.yaml"),
)
mistake("binary-config", 2, r"train\.yaml cannot be read as YAML", with_file(b"\xff\xfe\x00"))
mistake("torn-config", 2, r"train\.yaml cannot be read as YAML.*line 1", with_file("run: [1\n"))
mistake("yaml-bomb", 2, r"stands for 1\.\d+e\+09 values.*without aliases", with_file(BOMB))
mistake("yaml-nest", 2, r"nested too deeply; write it flat", with_file("a: " + "[" * 1200))
mistake(
    "yaml-object",
    2,
    r"cannot be read as YAML.*python/object",
    with_file("a: !!python/object/apply:os.system [x]\n"),
)
mistake("key-twice", 2, r"key 'run' stands twice.*line 1", with_file("run: {}\nrun: {}\n"))
mistake(
    "unknown-key",
    2,
    r"output\.cels: unknown key; known here: cells_per_chunk",
    with_pairs("output.cels=3"),
)
mistake(
    "out-of-range",
    2,
    r"cluster\.n_workers: .*greater than 0 \(got '0'\)",
    with_pairs("cluster.n_workers=0"),
)
mistake(
    "odd-parts", 2, r"cells_per_part=100.*not a multiple", with_pairs("output.cells_per_part=100")
)
mistake(
    "lanes",
    2,
    r"n_lanes=2 is not a multiple of cluster\.n_workers=3; use",
    lambda d, m: arguments("train", ["cluster.n_workers=3"]),
)
mistake("malformed-set", 2, r"--set 'run' is not of the form", with_pairs("run"))
mistake(
    "password-in-uri",
    2,
    r"http://\*\*\*@h.*MLFLOW_TRACKING_PASSWORD",
    with_pairs("tracking.uri=http://me:hunter2@h"),
)
mistake(
    "key-in-config",
    2,
    r"AWS_SECRET_ACCESS_KEY in the environment",
    lambda d, m: arguments(
        "ingest",
        ["ingest=null", "source={uri: s3://b/x, tiledb: {vfs.s3.aws_secret_access_key: hunter2}}"],
    ),
)
mistake(
    "path-out-of-package",
    2,
    r"leads out of package 'json'",
    lambda d, m: d.ingest(**{"ingest.inputs": '[{path: "package:json/../../x.h5ad"}]'}),
)
mistake(
    "unknown-value",
    2,
    r"knows no cell_type 'T9'; known values: B, NK, T",
    with_pairs("grid.columns={cell_type: [T9], condition: all}"),
)
mistake(
    "unknown-column",
    2,
    r"unknown condition column 'tissue'; the model knows cell_type",
    with_pairs("grid.columns={tissue: all}"),
)
mistake(
    "no-such-job",
    2,
    r"'trian' is no job; choose one of ingest",
    words("submit", "trian", "--config", "x.yaml"),
)
mistake(
    "ray-in-ray",
    2,
    r"second Ray.*--set cluster\.address=auto",
    lambda d, m: ["submit", *d.generate("cluster.address=local")],
)
mistake("wrong-token", 2, r"RAY_AUTH_MODE=token and RAY_AUTH_TOKEN_PATH", at.a_wrong_token)
mistake(
    "absent-input",
    3,
    r"nowhere\.h5ad does not exist.*correct ingest\.inputs",
    lambda d, m: d.ingest(**{"ingest.inputs": "[{path: nowhere.h5ad}]"}),
)
mistake(
    "no-counts",
    3,
    r"cells\.h5ad: /X holds 1\.09.*not an integer.*set ingest\.layer",
    at.changed_cells(at.as_logarithms),
)
mistake(
    "wrong-column",
    3,
    r"cell_type.*cells\.h5ad|cells\.h5ad.*cell_type",
    at.changed_cells(at.without_a_column),
)
mistake("gene-twice", 3, r"e\.g\. 'g0'; make them unique", at.changed_cells(at.with_a_gene_twice))
mistake("text-as-cells", 3, r"cells\.h5ad is not a readable h5ad", at.a_text_as_cells)
mistake("zip-as-cells", 3, r"cells\.h5ad is not a readable h5ad", at.a_zip_as_cells)
mistake(
    "pickle-as-cells", 3, r"X/\.zarray names the codec pickle.*do not read", at.a_pickle_as_cells
)
mistake("zip-as-model", 3, r"model has no manifest\.json|model.*not a folder", at.a_zip_as_model)
mistake(
    "absent-store",
    3,
    r"gone\.soma is not a SOMA experiment.*run the ingest job first, or correct",
    lambda d, m: arguments(
        "ingest",
        [f"run.dir={d.folder / 'new'}", "ingest=null", f"source={{uri: {d.folder / 'gone.soma'}}}"],
    ),
)
mistake(
    "expired-store",
    3,
    r"old\.soma is not a SOMA experiment at timestamp 1000 ms.*path or source\.timestamp",
    at.an_expired_store,
)
for verb in ("blocks", "train", "transfer", "evaluate"):
    mistake(
        f"{verb}-too-early",
        3,
        r"run `save-dist \w+`.*first",
        lambda d, m, verb=verb: arguments(verb, [f"run.dir={d.folder / 'new'}"]),
    )
mistake(
    "no-model",
    3,
    r"model does not exist; run the job that writes it first",
    lambda d, m: ["schedule-tick", *d.generate(f"run.dir={d.folder / 'new'}")[1:]],
)
mistake(
    "flipped-byte",
    3,
    r"vae\.safetensors does not match its manifest: sha256 \w+, expected",
    at.a_flipped_byte,
)
mistake(
    "pickled-model",
    3,
    r"model matches its manifest, but is no model: SafetensorError.*do not use it",
    at.pickled_weights,
)
mistake("older-model", 3, r"has format 1, this version reads", at.a_model_of_another_format)
mistake("model-reaches-out", 3, r"a place outside the folder", at.a_model_that_reaches_out)
mistake(
    "another-grid",
    3,
    r"does not merely add to it: .*grid\.seed.*; generate into another run",
    at.another_grid,
)
mistake("no-run", 3, r"is no run folder.*give the run\.dir", words("status", "{desk}/nothing"))
mistake(
    "no-run-to-sync",
    2,
    r"config\.resolved\.yaml does not exist",
    words("track", "sync", "{desk}/nothing"),
)
mistake(
    "no-champion",
    3,
    r"no version of the registered model 'save' .*alias 'champion'.*track promote RUN",
    lambda d, m: ["schedule-tick", *d.generate("tracking.backend=mlflow")[1:]],
)
mistake(
    "mlflow-away",
    5,
    r"127\.0\.0\.1:1 did not answer.*start it or correct tracking\.uri",
    lambda d, m: [
        "schedule-tick",
        *d.generate("tracking.backend=mlflow", f"tracking.uri={NOBODY}")[1:],
    ],
)
mistake(
    "mlflow-in-files",
    2,
    r"runs/mlruns is a folder of files.*write sqlite:////PATH/mlflow\.db",
    with_pairs("tracking.backend=mlflow", "tracking.uri=runs/mlruns"),
)
mistake(
    "no-atlas",
    3,
    r"is no atlas, or was never begun; run generate",
    words("verify", "{desk}/nothing"),
)
mistake(
    "unknown-form",
    2,
    r"--to 'csv' is unknown; choose one of h5ad",
    words("export", "{desk}/a", "{desk}/b", "--to", "csv"),
)
mistake(
    "missing-parts",
    4,
    r"does not verify.*add --mend, then run generate",
    at.an_atlas_without_its_parts,
)
mistake("file-in-the-way", 5, r"free space or fix permissions", at.a_file_in_the_way)
mistake("full-disk", 5, r"No space left on device.*free space", at.a_full_disk)
mistake(
    "wrong-address",
    5,
    r"127\.0\.0\.1:1 failed.*--address",
    lambda d, m: ["submit", *arguments("train", []), "--address", NOBODY],
)
mistake(
    "wrong-cluster",
    5,
    r"cluster\.address='127\.0\.0\.1:1' did not start or answer.*Check the address and token",
    at.a_wrong_cluster,
)
mistake("version-skew", 5, r"versions: run one image", at.sick_cluster(at.older_ray))
mistake(
    "unshared-path",
    5,
    r"shared storage: put run\.dir on storage mounted at the same path",
    at.sick_cluster(at.unshared_folder),
)
mistake("full-node", 5, r"disk: free space", at.sick_cluster(at.full_node))


@pytest.mark.filterwarnings("ignore:(Variable|Observation) names are not unique")
@pytest.mark.parametrize(("plant", "code", "pattern"), ALL)
def test_one_line_and_the_documented_exit_code(desk, monkeypatch, plant, code, pattern):
    done = CliRunner().invoke(cli.app, plant(desk, monkeypatch))
    error = last_line(done.stdout)["error"]
    assert done.exit_code == last_line(done.stdout)["exit_code"] == code, error
    assert re.search(pattern, error.replace("\n", " ")), error
    assert "Traceback" not in done.stderr and "unexpected" not in error
    assert "hunter2" not in done.output
    assert not (desk.folder / "planted").exists()


def test_last_line_is_json_even_for_the_worst_failure(desk, capsys, monkeypatch):
    from save_dist.pipelines import ingest

    def broken(config, context):
        raise ZeroDivisionError("by design, at http://me:hunter2@host")

    monkeypatch.setattr(ingest, "ingest", broken)
    run = desk.folder / "new"
    assert run_job("ingest", CONFIGS / "ingest.yaml", settings(run, desk.cells)) == 5
    captured = capsys.readouterr()
    summary = last_line(captured.out)
    assert summary["error"] == "unexpected ZeroDivisionError: by design, at http://***@host"
    assert "Traceback" in captured.err and "hunter2" not in captured.err
    assert json.loads((run / "result.json").read_text())["exit_code"] == 5
