"""Held-out cells replaced by garbage: nothing that is fitted may change, weights included."""

import anndata
import numpy as np
import pytest
import torch
from tiny_run import CONFIGS, settings

from save_dist.cli import run_job
from save_dist.config.load import load
from save_dist.config.schema import PipelineJob
from save_dist.core.durable import read_json
from save_dist.core.paths import RunPaths
from save_dist.data.splits import HELD_OUT, TRAIN
from save_dist.pipelines.context import Context
from save_dist.pipelines.train import export, make_plan
from save_dist.stores.vocabulary import load_vocabulary
from save_dist.tracking.progress import LineProgress
from save_dist.tracking.tracker import open_journal
from save_dist.training.profiles import combination_profiles
from save_dist.training.ranks import Ranks
from save_dist.training.run import run_stages

FITTED = ("genes.json", "conditions.json", "blocks.json", "scale.npy", "fraction.npy")
WEIGHTS = ("vae", "velocity", "transport", "latent_scale", "latent_means")
SHORT = {
    "training.stages": "[vae, flow, transport]",
    "training.validate_every_steps": 1000,
    "vae.optim.n_steps": 12,
    "flow.optim.n_steps": 12,
    "transport.columns": "[condition]",
    "transport.width": 16,
    "transport.optim.n_steps": 12,
    "transport.optim.cells_per_step": 64,
    "cluster.n_workers": 1,
}


class Silent:
    def metrics(self, stage, values, step):
        pass


def vocabulary_of(run, cells):
    """The vocabulary of a run that ingested these cells."""
    for verb in ("ingest", "blocks"):
        assert run_job(verb, CONFIGS / f"{verb}.yaml", settings_of(verb, run, cells)) == 0
    return load_vocabulary(run / "vocab")


def settings_of(verb, run, cells):
    pairs = settings(run, cells, **{"tracking.backend": "none", "cluster.n_workers": 1})
    return [p for p in pairs if verb == "ingest" or not p.startswith("ingest.")]


def with_garbage(cells, split, kind, folder):
    """A file of the same name, as cells are named after it; those of one kind are garbage."""
    adata = anndata.read_h5ad(cells)
    counts = adata.X.toarray() if hasattr(adata.X, "toarray") else np.array(adata.X)
    chosen = split == kind
    garbage = np.random.default_rng(0).integers(0, 5000, (int(chosen.sum()), adata.n_vars))
    counts[chosen] = garbage
    adata.X = counts.astype(np.float32)
    folder.mkdir()
    adata.write_h5ad(folder / cells.name)
    return folder / cells.name


@pytest.fixture(scope="module")
def both(tmp_path_factory, tiny_cells):
    """Vocabularies and run folders of sound cells, and of those whose held-out ones are garbage."""
    folder = tmp_path_factory.mktemp("poison")
    sound = vocabulary_of(folder / "sound", tiny_cells)
    again = with_garbage(tiny_cells, sound.index.split, HELD_OUT, folder / "again")
    poisoned = vocabulary_of(folder / "poisoned", again)
    return (folder / "sound", sound), (folder / "poisoned", poisoned)


def model_of(run, vocabulary, cells):
    """Digest of every file of a model trained in this process: VAE, flow, transport."""
    config = load(PipelineJob, CONFIGS / "pipeline.yaml", settings(run, cells, **SHORT))
    paths = RunPaths(run)
    context = Context(paths, open_journal(paths.metrics), LineProgress(lambda line: None))
    plan = make_plan(config, context, vocabulary)
    run_stages(plan, Ranks(), Silent(), torch.device("cpu"))
    export(plan, vocabulary, config, context)
    return read_json(paths.model / "manifest.json")["files"]


def test_genes_blocks_scales_and_split_are_the_same(both):
    (one, sound), (other, poisoned) = both
    assert np.count_nonzero(sound.index.split == HELD_OUT) > 20
    for name in FITTED:
        assert (one / "vocab" / name).read_bytes() == (other / "vocab" / name).read_bytes(), name
    for array in ("joinids", "codes", "split"):
        pair = (getattr(v.index, array) for v in (sound, poisoned))
        np.testing.assert_array_equal(*pair)


def test_profiles_are_the_same_and_would_not_be_with_the_held_out_cells(both):
    (_, sound), (_, poisoned) = both
    train, cells = (
        [
            combination_profiles(
                v.store, v.index.where(TRAIN) if only else v.index, v.gene_positions
            )
            for v in (sound, poisoned)
        ]
        for only in (True, False)
    )
    np.testing.assert_array_equal(train[0].mean_count, train[1].mean_count)
    assert not np.array_equal(cells[0].mean_count, cells[1].mean_count)


@pytest.mark.slow
def test_trained_models_are_the_same_to_the_last_byte(both, tiny_cells):
    one, other = (model_of(run, vocabulary, tiny_cells) for run, vocabulary in both)
    assert one == other
    assert {f"{name}.safetensors" for name in WEIGHTS} <= set(one), sorted(one)


@pytest.mark.slow
def test_weights_would_show_garbage_in_training_cells(both, tiny_cells, tmp_path):
    (run, sound), _ = both
    again = with_garbage(tiny_cells, sound.index.split, TRAIN, tmp_path / "cells")
    other = vocabulary_of(tmp_path / "run", again)
    found = model_of(tmp_path / "run", other, again)
    sound_files = read_json(run / "model" / "manifest.json")["files"]
    assert found["vae.safetensors"] != sound_files["vae.safetensors"]
    assert found["velocity.safetensors"] != sound_files["velocity.safetensors"]
