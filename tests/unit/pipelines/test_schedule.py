"""What a timer runs: the real plan, model and atlas, sampled in this process."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from tiny_model import save_tiny_model
from typer.testing import CliRunner

from save_dist import cli
from save_dist.cluster.generate import PartOutcome
from save_dist.config.load import load
from save_dist.config.schema import GenerateJob
from save_dist.core import lease
from save_dist.generation.worker import PartWorker
from save_dist.pipelines import generate, probes, schedule
from save_dist.stores.atlas import verify
from save_dist.stores.bundle import load_bundle
from save_dist.tracking.mlflow import sync
from save_dist.tracking.registry import Registry
from save_dist.tracking.tracker import open_journal


@pytest.fixture
def sampled(monkeypatch):
    """Parts are sampled here instead of on a cluster; the list says which."""
    parts_done = []

    def sample(parts, cells, bundle, atlas, config, progress):
        worker = PartWorker(Path(bundle), Path(atlas), device="cpu")
        for part in parts:
            worker.run(part)
            parts_done.append(part)
        return [PartOutcome(part, 1, 0.1, 1, "") for part in parts]

    monkeypatch.setattr(generate.cluster_generate, "generate", sample)
    return parts_done


@pytest.fixture
def config(tmp_path, random_model):
    shutil.copytree(random_model, tmp_path / "run" / "model")
    path = tmp_path / "generate.yaml"
    settings = {
        "run": {"dir": str(tmp_path / "run")},
        "tracking": {"backend": "none"},
        "grid": {"cells_per_condition": 20},
        "output": {"cells_per_part": 64, "cells_per_chunk": 16, "cells_per_minibatch": 16},
    }
    path.write_text(json.dumps(settings))
    return path


def tick(config, *pairs):
    arguments = ["schedule-tick", "--config", str(config)]
    done = CliRunner().invoke(cli.app, [*arguments, *(w for p in pairs for w in ("--set", p))])
    summary = json.loads(done.stdout.splitlines()[-1])
    assert done.exit_code == summary["exit_code"], done.stderr
    return summary


def looked(config):
    asked = cli.load(cli.schema.GenerateJob, config, [])
    return schedule.look(asked, schedule.present_model(asked))


def test_first_tick_makes_the_atlas_and_the_second_finds_it(config, sampled):
    first = tick(config)
    assert (first["exit_code"], first["did"], sampled) == (0, "generated", [0, 1])
    folder = Path(first["run_dir"])
    assert folder.parent == config.parent / "run" / "atlases"
    assert verify(folder / "atlas.zarr").is_sound and (folder / "model").is_dir()
    assert not (folder / "lease.json").exists()
    second = tick(config)
    assert second["did"].startswith("nothing: the atlas is complete")
    assert second["atlas"] == str(folder / "atlas.zarr")
    assert sampled == [0, 1]


def test_an_atlas_that_the_run_itself_made_is_found(config, sampled):
    made = CliRunner().invoke(cli.app, ["generate", "--config", str(config)])
    assert made.exit_code == 0, made.stderr
    found = tick(config)
    assert found["did"].startswith("nothing") and sampled == [0, 1]
    assert found["atlas"] == str(config.parent / "run" / "atlas.zarr")


def test_the_atlases_of_a_run_are_listed(config, sampled):
    first, second = tick(config), tick(config, "grid.seed=1")
    done = CliRunner().invoke(cli.app, ["atlases", str(config.parent / "run")])
    found = json.loads(done.stdout.splitlines()[-1])
    assert done.exit_code == 0
    assert [entry["is_complete"] for entry in found["atlases"]] == [False, True] * 2
    plans = [entry["plan_hash"] for entry in found["atlases"]]
    assert plans == [first["plan_hash"]] * 2 + [second["plan_hash"]] * 2
    assert found["newest_complete"] == f"{second['run_dir']}/atlas.zarr"


def test_only_a_lost_part_is_made_again(config, sampled):
    folder = Path(tick(config)["run_dir"])
    (folder / "atlas.zarr.receipts" / "000001.json").unlink()
    assert tick(config)["did"] == "generated"
    assert sampled == [0, 1, 1]
    assert verify(folder / "atlas.zarr").is_sound


@pytest.mark.parametrize("change", ["model", "grid"])
def test_another_model_or_grid_gets_a_folder_of_its_own(config, sampled, change):
    before = tick(config)
    pairs = ["grid.seed=1"] if change == "grid" else []
    if change == "model":
        save_tiny_model(config.parent / "run" / "model", seed=5)
    after = tick(config, *pairs)
    assert after["did"] == "generated" and after["run_dir"] != before["run_dir"]
    assert verify(Path(before["run_dir"]) / "atlas.zarr").is_sound


def test_two_at_once_make_one_atlas(config, sampled):
    with lease.hold(looked(config).lease):
        summary = tick(config)
    assert (summary["exit_code"], sampled) == (0, [])
    assert summary["did"] == "nothing: another run makes this atlas"


def test_a_torn_copy_of_the_model_is_copied_anew(config, sampled):
    found = looked(config)
    found.paths.model.mkdir(parents=True)
    (found.paths.model / "model.json").write_text("{torn")
    assert tick(config)["did"] == "generated"


_TICK = """
import sys, time
from pathlib import Path
from save_dist import cli
from save_dist.cluster.generate import PartOutcome
from save_dist.generation.worker import PartWorker
from save_dist.pipelines import generate

def sample(parts, cells, bundle, atlas, config, progress):
    worker = PartWorker(Path(bundle), Path(atlas), device="cpu")
    time.sleep(3)  # so that the other process comes while this one works
    for part in parts:
        worker.run(part)
    return [PartOutcome(part, 1, 0.1, 1, "") for part in parts]

generate.cluster_generate.generate = sample
cli.main()
"""


@pytest.mark.slow
def test_two_processes_at_once_make_one_atlas(config):
    words = [sys.executable, "-c", _TICK, "schedule-tick", "--config", str(config)]
    both = [subprocess.Popen(words, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    found = [json.loads(one.communicate(timeout=300)[0].splitlines()[-1]) for one in both]
    assert [summary["exit_code"] for summary in found] == [0, 0], found
    assert sorted(summary["did"].partition(":")[0] for summary in found) == ["generated", "nothing"]
    (folder,) = (config.parent / "run" / "atlases").iterdir()
    assert verify(folder / "atlas.zarr").is_sound
    done = CliRunner().invoke(cli.app, ["atlases", str(config.parent / "run")])
    listed = json.loads(done.stdout.splitlines()[-1])["atlases"]
    assert [entry["is_complete"] for entry in listed] == [False, True]  # begun and finished once


@pytest.fixture
def tracked(config, server):
    """The settings that name an MLflow, and a run in which models are exported."""
    pairs = ["tracking.backend=mlflow", f"tracking.uri={server.uri}", "tracking.experiment=lab"]
    journal = open_journal(config.parent / "training" / "metrics.jsonl")

    def register(seed):
        folder = journal.path.parent / "model"
        model_hash = save_tiny_model(folder, seed=seed)
        journal.model(folder, model_hash, {})
        sync(journal.path, server.uri, "lab")
        return model_hash

    return pairs, register, Registry(server.uri, "lab")


def test_a_tick_takes_the_champion_of_the_registry(config, sampled, tracked):
    pairs, register, registry = tracked
    shutil.rmtree(config.parent / "run" / "model")  # the champion alone counts
    hashes = [register(seed) for seed in (3, 4)]
    made = []
    for number in (1, 2, 2, 1):
        registry.promote(number)
        made.append(tick(config, *pairs))
        assert made[-1]["exit_code"] == 0
        model = Path(made[-1]["run_dir"]) / "model"
        assert load_bundle(model).hash == hashes[number - 1]
    assert [one["did"].partition(":")[0] for one in made] == ["generated"] * 2 + ["nothing"] * 2
    assert made[0]["run_dir"] == made[3]["run_dir"] != made[1]["run_dir"]
    assert sampled == [0, 1, 0, 1]


def test_without_a_champion_nothing_is_generated(config, sampled, tracked):
    pairs, register, _ = tracked
    register(3)
    missing = tick(config, *pairs)
    assert missing["exit_code"] == 3 and sampled == []
    assert "'lab'" in missing["error"] and "save-dist track promote RUN" in missing["error"]
    assert not (config.parent / "run" / "atlases").exists()


def test_the_doctor_says_whether_a_tick_will_find_a_champion(config, tracked):
    pairs, register, registry = tracked
    job = load(GenerateJob, config, list(pairs))

    def champion():
        (check,) = [c for c in probes.contents(job, "schedule-tick") if c.name == "champion"]
        return check

    sha = register(3)
    assert champion().level == "error" and "promote a model" in champion().remedy
    registry.promote(1)
    assert (champion().level, champion().found) == ("ok", f"version 1, model {sha[:16]}")


def test_a_champion_that_is_not_what_was_registered_is_refused(config, sampled, tracked, tmp_path):
    pairs, register, registry = tracked
    register(3)
    registry.promote(1)
    stored = next(p for p in tmp_path.rglob("vae.safetensors") if "mlartifacts" in str(p))
    save_tiny_model(stored.parent, seed=9)
    refused = tick(config, *pairs)
    assert refused["exit_code"] == 3 and "do not use it" in refused["error"] and sampled == []


def test_without_a_model_it_says_so(config, sampled):
    missing = tick(config, f"run.dir={config.parent / 'elsewhere'}")
    assert missing["exit_code"] == 3 and "does not exist" in missing["error"]
    assert not (config.parent / "elsewhere").exists()
