import tomllib
from pathlib import Path

import pytest
import yaml

from save_dist.config.load import EXTENDS, JOBS, dump_yaml, load, resolved

CONFIGS = Path(__file__).resolve().parents[3] / "configs"
FILES = sorted(CONFIGS.glob("*/*.yaml"))
JOB_FILES = [path for path in FILES if path.stem in JOBS]
FRAGMENTS = [path for path in FILES if path.stem not in JOBS]
PRESETS = sorted({path.parent.name for path in FILES})


def name(path):
    return f"{path.parent.name}/{path.stem}"


def job(path):
    return load(JOBS[path.stem], path)


def test_every_preset_is_here():
    assert PRESETS == ["atlas", "default", "demo", "paper", "tiny"]


@pytest.mark.parametrize("path", JOB_FILES, ids=name)
def test_every_shipped_job_loads_and_its_dump_loads_back(path, tmp_path):
    config = job(path)
    again = tmp_path / "config.yaml"
    again.write_text(dump_yaml(config))
    assert load(JOBS[path.stem], again) == config


@pytest.mark.parametrize("path", FRAGMENTS, ids=name)
def test_every_fragment_is_used_by_a_job_beside_it(path):
    texts = [yaml.safe_load(other.read_text()) for other in path.parent.glob("*.yaml")]
    assert any(path.name in text.get(EXTENDS, []) for text in texts)


@pytest.mark.parametrize(
    ("preset", "jobs"),
    [
        pytest.param("tiny", set(JOBS), id="tiny"),
        pytest.param("paper", set(JOBS) - {"sweep"}, id="paper"),
        pytest.param("atlas", set(JOBS) - {"sweep"}, id="atlas"),
        pytest.param("demo", set(JOBS) - {"sweep"}, id="demo"),
        pytest.param("default", set(JOBS), id="default"),
    ],
)
def test_a_preset_holds_its_jobs(preset, jobs):
    assert jobs <= {path.stem for path in JOB_FILES if path.parent.name == preset}


@pytest.mark.parametrize("preset", PRESETS)
def test_the_pipeline_does_what_its_single_jobs_do(preset):
    whole = resolved(job(CONFIGS / preset / "pipeline.yaml"))
    for path in JOB_FILES:
        if path.parent.name == preset and path.stem != "sweep":  # which trains otherwise
            own = resolved(job(path))
            shared = whole.keys() & own.keys()
            assert {k: own[k] for k in shared} == {k: whole[k] for k in shared}, path


@pytest.mark.parametrize("preset", ["default", "demo"])
def test_composing_is_shown_in_a_latent_that_knows_the_condition_alone(preset):
    config = job(CONFIGS / preset / "pipeline.yaml")
    column = config.transport.columns
    assert column == config.vae.encoder_columns == config.vae.decoder_columns == ["condition"]
    assert (config.vae.mask.scheme, config.vae.mask.p) == ("fixed", 0)
    assert config.grid.unseen == "compose" and "transport" in config.training.stages


@pytest.mark.parametrize(
    ("place", "value"),
    [
        ("vae.width", 256),
        ("vae.condition_width", 512),
        ("vae.latent_dim", 128),
        ("vae.depth", 3),
        ("vae.n_heads", 4),
        ("vae.likelihood", "unit_interval"),
        ("vae.mask.p", 0.6),
        ("vae.latent_mask", [0.2, 0.4]),
        ("vae.optim.lr", 1e-4),
        ("vae.optim.weight_decay", 2.5e-5),
        ("vae.optim.cells_per_step", 1024),
        ("vae.optim.warmup_share", 0.25),
        ("flow.backbone", "attention"),
        ("flow.width", 256),
        ("flow.condition_width", 512),
        ("flow.mask.p", 0.6),
        ("flow.optim.cells_per_step", 1024),
        ("blocks.genes_per_block", 3200),
        ("grid.guidance.scale", 1.0),
    ],
    ids=lambda value: value if isinstance(value, str) else None,
)
def test_the_paper_preset_holds_the_papers_settings(place, value):
    at = resolved(job(CONFIGS / "paper" / "pipeline.yaml"))
    for key in place.split("."):
        at = at[key]
    assert at == value


def test_an_installed_copy_has_every_config():
    project = tomllib.loads((CONFIGS.parent / "pyproject.toml").read_text())
    (pattern,) = project["tool"]["setuptools"]["package-data"]["save_dist"]
    shipped = sorted((CONFIGS.parent / "save_dist").glob(pattern))
    assert [path.resolve() for path in shipped] == FILES


def test_a_config_of_the_package_is_found_from_anywhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    named = load(JOBS["pipeline"], Path("package:save_dist/presets/demo/pipeline.yaml"))
    assert named == job(CONFIGS / "demo" / "pipeline.yaml")
