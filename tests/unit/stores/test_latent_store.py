import numpy as np
import pytest

from save_dist.core.durable import digest
from save_dist.core.errors import CheckpointError
from save_dist.stores.latents import LatentStore

ABOUT = {"vae": "v1", "cells": "c1"}
N_CELLS, DIM = 10, 3


def rows(start, stop, shift=0.0):
    """Every value says its row and column."""
    mean = np.arange(start, stop, dtype=np.float32)[:, None] * 10 + np.arange(DIM) + shift
    mean = mean.astype(np.float32)
    return {"mean": mean, "var": mean + 1000, "log_library": mean[:, 0] + 2000}


def write(store, start, stop, shift=0.0):
    store.write(start, **rows(start, stop, shift))
    store.commit_region(start, stop)


@pytest.fixture
def store(tmp_path):
    return LatentStore.create(tmp_path / "latents", N_CELLS, DIM, ABOUT)


@pytest.fixture
def full(store):
    write(store, 6, 10)
    write(store, 0, 6)
    return store


def test_regions_written_in_any_order_read_back_by_row(full):
    found = LatentStore.open(full.folder, expect=digest(ABOUT))
    for name, values in rows(0, N_CELLS).items():
        np.testing.assert_array_equal(getattr(found, name), values)
    assert found.mean.dtype == np.float32
    assert (found.n_cells, found.latent_dim, found.about) == (N_CELLS, DIM, ABOUT)


def test_a_region_may_be_written_in_pieces(store):
    store.write(0, **rows(0, 4))
    store.write(4, **rows(4, 10))
    assert not store.has_region(0, 4)
    store.commit_region(0, 10)
    assert store.has_region(0, 10)
    np.testing.assert_array_equal(store.mean, rows(0, 10)["mean"])


@pytest.mark.parametrize(
    ("regions", "asked", "expected"),
    [
        pytest.param([], (0, None), [(0, 10)], id="nothing"),
        pytest.param([(0, 4)], (0, None), [(4, 10)], id="tail"),
        pytest.param([(4, 6)], (0, None), [(0, 4), (6, 10)], id="both sides"),
        pytest.param([(0, 4), (6, 10)], (0, None), [(4, 6)], id="middle"),
        pytest.param([(0, 4), (6, 10)], (2, 5), [(4, 5)], id="within a window"),
        pytest.param([(6, 10)], (0, 5), [(0, 5)], id="window before the first"),
        pytest.param([(0, 4)], (1, 3), [], id="window inside"),
    ],
)
def test_missing_rows(store, regions, asked, expected):
    for start, stop in regions:
        write(store, start, stop)
    assert store.missing(*asked) == expected


def test_incomplete_latents_do_not_open(store):
    write(store, 0, 4)
    with pytest.raises(CheckpointError, match=r"incomplete: 1 row range.*4\.\.10 of 10"):
        LatentStore.open(store.folder, expect=digest(ABOUT))


def test_creating_again_continues(store):
    write(store, 0, 4)
    again = LatentStore.create(store.folder, N_CELLS, DIM, ABOUT)
    assert again.missing() == [(4, 10)]
    np.testing.assert_array_equal(again.mean[:4], rows(0, 4)["mean"])


def test_recorded_rows_stay_when_ranks_are_cut_otherwise(store):
    write(store, 0, 5)
    write(store, 3, 10, shift=0.5)
    found = LatentStore.open(store.folder, expect=digest(ABOUT))
    np.testing.assert_array_equal(found.mean[:5], rows(0, 5)["mean"])
    np.testing.assert_array_equal(found.mean[5:], rows(5, 10, 0.5)["mean"])


def test_a_folder_without_layout_is_written_anew(tmp_path):
    (tmp_path / "latents").mkdir()
    (tmp_path / "latents/mean.npy").write_bytes(b"half")
    store = LatentStore.create(tmp_path / "latents", N_CELLS, DIM, ABOUT)
    assert store.missing() == [(0, 10)]


def test_another_identity_is_refused_with_both_hashes(full):
    other = {"vae": "v2", "cells": "c1"}
    pattern = f"hash {digest(ABOUT)}, expected {digest(other)}.*remove the folder"
    with pytest.raises(CheckpointError, match=pattern):
        LatentStore.open(full.folder, expect=digest(other))
    with pytest.raises(CheckpointError, match=pattern):
        LatentStore.create(full.folder, N_CELLS, DIM, other)
    with pytest.raises(CheckpointError, match="are 10 x 3, expected 11 x 3"):
        LatentStore.create(full.folder, 11, DIM, ABOUT)


def test_absent_latents_are_named(tmp_path):
    with pytest.raises(CheckpointError, match=r"holds no latents \(layout.json is absent\)"):
        LatentStore.attach(tmp_path, expect="x")


@pytest.mark.parametrize("name", ["mean", "var", "log_library"])
def test_an_altered_row_is_found(full, name):
    path = full.folder / f"{name}.npy"
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    with pytest.raises(CheckpointError, match=r"rows 6\.\.10 .* altered or torn"):
        LatentStore.open(full.folder, expect=digest(ABOUT))
    assert LatentStore.open(full.folder, expect=digest(ABOUT), verify=False).n_cells == N_CELLS
