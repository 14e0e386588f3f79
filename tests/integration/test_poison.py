"""Held-out cells replaced by garbage: nothing that is fitted may change."""

import anndata
import numpy as np
import pytest
from tiny_run import CONFIGS, settings

from save_dist.cli import run_job
from save_dist.data.splits import HELD_OUT, TRAIN
from save_dist.stores.vocabulary import load_vocabulary
from save_dist.training.profiles import combination_profiles

FITTED = ("genes.json", "conditions.json", "blocks.json", "scale.npy", "fraction.npy")


def vocabulary_of(run, cells):
    """The vocabulary of a run that ingested these cells."""
    for verb in ("ingest", "blocks"):
        assert run_job(verb, CONFIGS / f"{verb}.yaml", settings_of(verb, run, cells)) == 0
    return load_vocabulary(run / "vocab")


def settings_of(verb, run, cells):
    pairs = settings(run, cells, **{"tracking.backend": "none"})
    return [p for p in pairs if verb == "ingest" or not p.startswith("ingest.")]


@pytest.fixture(scope="module")
def both(tmp_path_factory, tiny_cells):
    """Vocabularies and run folders of sound cells, and of those whose held-out ones are garbage."""
    folder = tmp_path_factory.mktemp("poison")
    sound = vocabulary_of(folder / "sound", tiny_cells)
    adata = anndata.read_h5ad(tiny_cells)
    counts = adata.X.toarray() if hasattr(adata.X, "toarray") else np.array(adata.X)
    held_out = sound.index.split == HELD_OUT
    noise = np.random.default_rng(0).integers(0, 5000, (int(held_out.sum()), adata.n_vars))
    counts[held_out] = noise
    adata.X = counts.astype(np.float32)
    again = folder / "again" / tiny_cells.name  # cells are named after their file
    again.parent.mkdir()
    adata.write_h5ad(again)
    poisoned = vocabulary_of(folder / "poisoned", again)
    return (folder / "sound", sound), (folder / "poisoned", poisoned)


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
