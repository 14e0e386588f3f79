import os
import subprocess
import sys

import pytest
import yaml

from save_dist.config.load import (
    config_hash,
    dump_yaml,
    load,
    merge,
    parse_override,
    read_yaml,
    resolved,
)
from save_dist.config.schema import EvaluateJob, IngestJob, PipelineJob, TrainJob
from save_dist.core.errors import ConfigError

RUN = "run: {dir: runs/x}\n"
INGEST = RUN + (
    "conditions: {columns: [condition]}\n"
    "ingest:\n"
    "  inputs: [{path: a.h5ad}]\n"
    "  markers: {column: cell_type, genes: {B: [CD79A]}}\n"
)


@pytest.fixture
def write(tmp_path):
    def write_file(text, name="job.yaml"):
        path = tmp_path / name
        path.write_text(text)
        return path

    return write_file


def test_defaults_are_filled_in_and_files_override_them(write):
    config = load(TrainJob, write(RUN + "vae: {width: 32}\n"))
    assert (config.vae.width, config.vae.depth, config.run.seed) == (32, 2, 0)


def test_extended_files_come_first_and_later_ones_win(write):
    write("vae: {width: 16, depth: 1, optim: {lr: 1.0e-3, n_steps: 7}}\n", "a.yaml")
    write("extends: [a.yaml]\nvae: {depth: 3, optim: {n_steps: 9}}\n", "b.yaml")
    write("vae: {depth: 4}\n", "c.yaml")
    vae = load(TrainJob, write("extends: [b.yaml, c.yaml]\n" + RUN)).vae
    assert (vae.width, vae.depth, vae.optim.n_steps, vae.optim.lr) == (16, 4, 9, 1e-3)


def test_a_file_may_be_extended_along_two_ways(write):
    write(RUN, "base.yaml")
    write("extends: [base.yaml]\nvae: {width: 16}\n", "a.yaml")
    write("extends: [base.yaml]\nvae: {depth: 5}\n", "b.yaml")
    config = load(TrainJob, write("extends: [a.yaml, b.yaml]\n"))
    assert (config.vae.width, config.vae.depth) == (16, 5)


def test_extended_files_are_found_beside_the_file_that_names_them(write, tmp_path):
    (tmp_path / "sub").mkdir()
    write("extends: [../base.yaml]\n", "sub/own.yaml")
    write(RUN, "base.yaml")
    assert str(load(TrainJob, write("extends: [sub/own.yaml]\n")).run.dir) == "runs/x"


def test_a_preset_of_the_package_can_be_extended(write):
    path = write('extends: ["package:save_dist/presets/tiny/train.yaml"]\nvae: {depth: 3}\n')
    vae = load(TrainJob, path).vae
    assert (vae.depth, vae.width) == (3, 16)


@pytest.mark.parametrize(
    ("base", "over", "merged"),
    [
        pytest.param({"a": 1}, {}, {"a": 1}, id="nothing"),
        pytest.param({"a": {"x": 1}}, {"a": {"y": 2}}, {"a": {"x": 1, "y": 2}}, id="deep"),
        pytest.param({"a": [1, 2]}, {"a": [3]}, {"a": [3]}, id="lists are replaced"),
        pytest.param({"a": {"x": 1}}, {"a": None}, {"a": None}, id="null replaces"),
        pytest.param({"a": 1}, {"a": {"x": 1}}, {"a": {"x": 1}}, id="value by mapping"),
    ],
)
def test_merge(base, over, merged):
    before = repr((base, over))
    assert merge(base, over) == merged
    assert repr((base, over)) == before


@pytest.mark.parametrize(
    ("pair", "values"),
    [
        pytest.param("run.seed=3", {"run": {"seed": 3}}, id="integer"),
        pytest.param("a.b.c=[1, x]", {"a": {"b": {"c": [1, "x"]}}}, id="list"),
        pytest.param("a={b: c}", {"a": {"b": "c"}}, id="mapping"),
        pytest.param("a=x=y", {"a": "x=y"}, id="second sign"),
        pytest.param("a=null", {"a": None}, id="null"),
        pytest.param("a=", {"a": None}, id="nothing"),
    ],
)
def test_overrides_are_yaml(pair, values):
    assert parse_override(pair) == values


@pytest.mark.parametrize(
    ("pair", "text"),
    [
        pytest.param("run.seed", "is not of the form section.key=value", id="no sign"),
        pytest.param("=3", "is not of the form section.key=value", id="no key"),
        pytest.param("run..seed=3", "is not of the form section.key=value", id="empty part"),
        pytest.param("run.seed=[1", "cannot be read as YAML", id="torn value"),
    ],
)
def test_overrides_that_cannot_be_read(pair, text):
    with pytest.raises(ConfigError, match=f"--set '.*{text}"):
        parse_override(pair)


def test_overrides_win_in_their_order(write):
    path = write(RUN + "vae: {width: 32}\n")
    config = load(TrainJob, path, ["vae.width=64", "vae.width=128", "vae.optim.lr=1e-3"])
    assert (config.vae.width, config.vae.optim.lr) == (128, 1e-3)


def test_dump_loads_back_to_the_same_settings(write):
    text = INGEST + "grid: {exclude: [{condition: a}]}\nvae: {latent_mask: [0.2, 0.4]}\n"
    config = load(PipelineJob, write(text))
    again = load(PipelineJob, write(dump_yaml(config), "again.yaml"))
    assert again == config
    assert config_hash(again) == config_hash(config)
    assert resolved(config)["vae"]["latent_mask"] == [0.2, 0.4]


def test_hash_sees_every_setting(write):
    path = write(RUN)
    plain = config_hash(load(TrainJob, path))
    assert plain == config_hash(load(TrainJob, path, ["vae.width=64"]))
    assert plain != config_hash(load(TrainJob, path, ["vae.width=68"]))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        pytest.param(
            "vae: {width: 1, width: 2}\n", "key 'width' stands twice .* line 1 of", id="key"
        ),
        pytest.param("vae: {}\nrun: {}\nvae: {}\n", "key 'vae' stands twice", id="section"),
        pytest.param("a: [1\n", "cannot be read as YAML", id="torn"),
        pytest.param("- a\n", "holds a list, expected a mapping", id="list"),
        pytest.param("false\n", "holds a bool, expected a mapping", id="false"),
        pytest.param("[]\n", "holds a list, expected a mapping", id="empty list"),
        pytest.param("extends: base.yaml\n", r"extends is 'base.yaml', expected a list", id="word"),
        pytest.param("extends: [1]\n", r"extends is \[1\], expected a list of files", id="number"),
        pytest.param("extends: [job.yaml]\n", "job.yaml extends itself, through", id="itself"),
        pytest.param("extends: [no.yaml]\n", r"config file .*no\.yaml does not exist", id="absent"),
        pytest.param("a: !!python/object:os.system x\n", "cannot be read as YAML", id="python tag"),
    ],
)
def test_files_that_cannot_be_read(write, text, expected):
    with pytest.raises(ConfigError, match=expected):
        read_yaml(write(text))


def test_a_circle_of_files_is_refused(write):
    write("extends: [job.yaml]\n", "other.yaml")
    with pytest.raises(
        ConfigError, match=r"job\.yaml extends itself, through .*other\.yaml; break"
    ):
        read_yaml(write("extends: [other.yaml]\n"))


def test_a_file_in_another_encoding_is_refused(tmp_path):
    path = tmp_path / "job.yaml"
    path.write_bytes("run: {dir: \xfcber}\n".encode("latin-1"))
    with pytest.raises(ConfigError, match="cannot be read as YAML"):
        read_yaml(path)


def test_an_empty_file_is_an_empty_mapping(write):
    assert read_yaml(write("# nothing yet\n")) == {}


@pytest.mark.parametrize(
    ("root", "text", "expected"),
    [
        pytest.param(
            TrainJob,
            RUN + "vea: {}\n",
            r"vea: unknown key; known here: cluster, flow, reflow, run, tra",
            id="root",
        ),
        pytest.param(
            TrainJob,
            RUN + "flow: {mask: {q: 1}}\n",
            r"flow\.mask\.q: unknown key; known here: p, scheme",
            id="deep",
        ),
        pytest.param(
            IngestJob,
            INGEST.replace("path: a.h5ad", "path: a.h5ad, file: b"),
            r"ingest\.inputs\.0\.file: unknown key; known here: gene_column, obs, path, rename",
            id="in a list",
        ),
        pytest.param(
            IngestJob,
            INGEST.replace("column: cell_type", "columns: cell_type"),
            r"ingest\.markers\.columns: unknown key; known here: column, genes, n_clusters",
            id="in an optional section",
        ),
        pytest.param(EvaluateJob, "evaluate: {}\n", r"run: required and missing", id="missing"),
        pytest.param(
            TrainJob,
            RUN + "vae: {width: many}\n",
            r"vae\.width: Input should be a valid integer.* \(got 'many'\)",
            id="type",
        ),
        pytest.param(
            TrainJob, RUN + "vae: null\n", r"vae: Input should be .* \(got 'None'\)", id="null"
        ),
        pytest.param(
            TrainJob,
            RUN + "vae: {latent_dim: 30}\n",
            r"vae: vae\.latent_dim=30 is not a multiple of vae\.latent_token_width=8",
            id="own check",
        ),
    ],
)
def test_wrong_settings_are_named_with_their_path(write, root, text, expected):
    with pytest.raises(ConfigError, match=expected):
        load(root, write(text))


def test_all_wrong_settings_are_listed_together(write):
    text = "run: {dir: x, seed: -1}\nvae: {widht: 3, depth: 0}\n"
    with pytest.raises(ConfigError) as caught:
        load(TrainJob, write(text))
    for place in ("run.seed", "vae.widht", "vae.depth"):
        assert f"\n  {place}: " in str(caught.value)
    assert "is not a valid TrainJob" in str(caught.value)


def run_module(*arguments):
    return subprocess.run(
        [sys.executable, "-m", "save_dist.config.load", *arguments],
        capture_output=True,
        text=True,
        env=dict(os.environ),
    )


def test_the_module_prints_the_resolved_settings_and_their_hash(write):
    path = write(RUN)
    done = run_module("train", str(path), "--set", "vae.width=32")
    assert done.returncode == 0, done.stderr
    printed = yaml.safe_load(done.stdout)
    config = load(TrainJob, path, ["vae.width=32"])
    assert printed == resolved(config)
    assert done.stdout.endswith(f"# sha256 {config_hash(config)}\n")


def test_the_module_says_how_it_is_used():
    done = run_module("trian", "x.yaml")
    assert done.returncode != 0
    assert "usage: VERB FILE" in done.stderr
    assert "VERB one of ingest, blocks, train" in done.stderr
