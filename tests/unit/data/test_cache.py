import errno
import logging
import multiprocessing
import shutil
import threading
from pathlib import Path

import numpy as np
import pytest
import tiledbsoma
from helpers_soma import OURS, add_entries, encoded_counts

from save_dist.core.durable import MANIFEST, verify_folder
from save_dist.core.errors import DataError
from save_dist.data import cache
from save_dist.data.cache import cache_key, ensure_cache, open_cache
from save_dist.data.packed import PackedReader
from save_dist.data.source import SomaSource

ROOM = 2**30


@pytest.fixture(autouse=True)
def log(caplog):
    caplog.set_level(logging.INFO, logger="save_dist.data.cache")
    return caplog


def ensure(cells, folder, limit_bytes=ROOM):
    with SomaSource(cells.locator) as source:
        return ensure_cache(source, cells.index, cells.gene_positions, folder, limit_bytes)


def key_of(cells):
    return cache_key(*cells)


def events(caplog):
    return [record.getMessage().split()[0].removeprefix("event=") for record in caplog.records]


def rebuilt(log):
    return events(log).count("cache_built")


def test_it_holds_what_a_read_of_the_store_gives(cells, tmp_path):
    path = ensure(cells, tmp_path)
    cached = open_cache(path, key_of(cells))
    with SomaSource(cells.locator) as source:
        packed = PackedReader(source, cells.gene_positions).read(cells.index.joinids)
    assert cached.entries.dtype == np.uint16
    assert np.array_equal(cached.indptr, packed.indptr)
    for row in range(packed.n_cells):  # within a cell, entries may come in any order
        place = slice(*packed.indptr[row : row + 2])
        assert {*map(tuple, cached.entries[place])} == {*map(tuple, packed.entries[place])}


def test_four_bytes_an_entry(cells, tmp_path):
    path = ensure(cells, tmp_path)
    n_entries = open_cache(path, key_of(cells)).entries.shape[0]
    n_bytes = sum(p.stat().st_size for p in path.glob("*.npy"))
    assert n_bytes == 4 * n_entries + 8 * (cells.index.n_cells + 1) + 2 * 128


def test_every_byte_is_in_the_manifest(cells, tmp_path):
    path = ensure(cells, tmp_path)
    assert set(verify_folder(path)["files"]) == {"entries.npy", "indptr.npy"}


def test_built_once(cells, tmp_path, log):
    assert ensure(cells, tmp_path) == ensure(cells, tmp_path)
    assert rebuilt(log) == 1


def test_other_cells_genes_and_stores_have_other_keys(cells):
    others = [
        cells,
        cells._replace(index=cells.index.take(np.arange(100))),
        cells._replace(gene_positions=cells.gene_positions[::-1]),
        cells._replace(locator=type(cells.locator)(cells.locator.uri, timestamp=5)),
        cells._replace(locator=type(cells.locator)(cells.locator.uri, layer="other")),
    ]
    assert len({key_of(other) for other in others}) == len(others)


def test_a_cache_for_other_cells_is_not_opened(cells, tmp_path, log):
    path = ensure(cells, tmp_path)
    other = cells._replace(gene_positions=cells.gene_positions[::-1])
    assert open_cache(path, key_of(other)) is None
    assert "expected" in log.records[-1].getMessage()


def truncate(path):
    path.write_bytes(path.read_bytes()[:-100])


def zero(path):
    path.write_bytes(path.read_bytes()[:500] + bytes(path.stat().st_size - 500))


def replace_json(path):
    path.write_text("{")


@pytest.mark.parametrize(
    ("name", "harm"),
    [
        pytest.param("entries.npy", truncate, id="short entries"),
        pytest.param("entries.npy", zero, id="zeroed entries"),
        pytest.param("entries.npy", Path.unlink, id="no entries"),
        pytest.param("indptr.npy", zero, id="zeroed rows"),
        pytest.param(MANIFEST, Path.unlink, id="no manifest"),
        pytest.param(MANIFEST, replace_json, id="torn manifest"),
    ],
)
def test_a_damaged_cache_is_noticed_and_built_again(cells, tmp_path, log, name, harm):
    path = ensure(cells, tmp_path)
    harm(path / name)
    assert open_cache(path, key_of(cells)) is None
    assert events(log)[-1] == "cache_unusable"
    assert ensure(cells, tmp_path) == path
    assert open_cache(path, key_of(cells)) is not None
    assert rebuilt(log) == 2


def test_a_store_written_since_is_noticed(make_cells, tmp_path):
    cells = make_cells(encoded_counts(np.arange(50), 20))
    ensure(cells, tmp_path)
    with tiledbsoma.Experiment.open(cells.locator.uri, "w") as experiment:
        x = experiment.ms["RNA"].X["raw"]
        add_entries(x, np.array([24]), np.array([1]), np.array([9], dtype=np.uint16))
    entries = open_cache(ensure(cells, tmp_path), key_of(cells))
    row = slice(*entries.indptr[12:14])
    assert [1, 9] in entries.entries[row].tolist()


@pytest.mark.parametrize("limit_bytes", [0, 1000])
def test_no_room_means_no_cache_and_one_line(cells, tmp_path, log, limit_bytes):
    assert ensure(cells, tmp_path / "caches", limit_bytes) is None
    assert events(log) == (["cache_skipped"] if limit_bytes else [])
    assert not list(tmp_path.glob("caches/cells-*"))
    if limit_bytes:
        assert "and 1000 are left" in log.text


def test_the_limit_is_for_all_caches_of_the_folder(cells, tmp_path, log):
    first = ensure(cells, tmp_path)
    n_bytes = sum(p.stat().st_size for p in first.iterdir())
    half = cells._replace(index=cells.index.take(np.arange(400)))
    assert ensure(half, tmp_path, n_bytes + 1000) is None
    assert ensure(cells, tmp_path, n_bytes + 1000) == first
    assert ensure(half, tmp_path, 3 * n_bytes) is not None


def test_outgrowing_the_estimate_stops_the_build(cells, tmp_path, log, monkeypatch):
    monkeypatch.setattr(cache, "_estimate_bytes", lambda job: 10)
    assert ensure(cells, tmp_path, 9000) is None
    assert events(log) == ["cache_skipped"]
    assert [p.name for p in tmp_path.iterdir()] == [".lock"]


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EROFS])
def test_a_disk_that_refuses_means_no_cache(cells, tmp_path, log, monkeypatch, code):
    def refuse(*args):
        raise OSError(code, "refused")

    monkeypatch.setattr(cache._GrowingArray, "append", refuse)
    assert ensure(cells, tmp_path) is None
    assert "refused" in log.text
    assert [p.name for p in tmp_path.iterdir()] == [".lock"]


def test_a_folder_that_cannot_be_made_means_no_cache(cells, tmp_path, log):
    (tmp_path / "file").write_text("")
    assert ensure(cells, tmp_path / "file" / "caches") is None
    assert events(log) == ["cache_skipped"]


def test_debris_of_a_killed_build_is_removed(cells, tmp_path):
    name = f"cells-{key_of(cells)[:16]}"
    debris = tmp_path / f".{name}.123-abc.part"
    debris.mkdir()
    (debris / "entries.npy").write_bytes(b"half")
    ensure(cells, tmp_path)
    assert not debris.exists()


def test_large_counts_take_8_bytes_an_entry(make_cells, tmp_path):
    counts = encoded_counts(np.arange(60), 20).astype(np.float32)
    counts[40, 3] = 70_000
    cells = make_cells(counts, OURS._replace(type="float32"))
    cached = open_cache(ensure(cells, tmp_path), key_of(cells))
    assert cached.entries.dtype == np.uint32
    assert cached.entries[:, 1].max() == 70_000


def test_what_is_no_count_is_an_error_not_a_skip(make_cells, tmp_path):
    counts = np.full((60, 4), 0.5)
    cells = make_cells(counts, OURS._replace(type="float32"))
    with pytest.raises(DataError, match="which is no count"):
        ensure(cells, tmp_path)


@pytest.mark.parametrize("n_cells", [0, 1])
def test_few_or_no_entries(cells, tmp_path, n_cells):
    empty = np.flatnonzero(cells.index.joinids % 11 == 0)[:n_cells]
    tiny = cells._replace(index=cells.index.take(empty))
    cached = open_cache(ensure(tiny, tmp_path), key_of(tiny))
    assert cached.indptr.tolist() == [0] * (n_cells + 1)
    assert cached.entries.shape == (0, 2)


def test_threads_that_race_build_once(cells, tmp_path, log):
    found = []
    threads = [
        threading.Thread(target=lambda: found.append(ensure(cells, tmp_path))) for _ in range(3)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(set(found)) == 1
    assert rebuilt(log) == 1


def race(cells, folder, barrier, results):
    barrier.wait()
    path = ensure(cells, folder)
    results.put((str(path), (path / MANIFEST).stat().st_ino))


@pytest.mark.slow
def test_processes_that_race_build_once(make_cells, tmp_path):
    cells = make_cells(encoded_counts(np.arange(100), 20))
    context = multiprocessing.get_context("spawn")  # a forked reader of TileDB hangs
    barrier, results = context.Barrier(2), context.Queue()
    workers = [
        context.Process(target=race, args=(cells, tmp_path, barrier, results)) for _ in range(2)
    ]
    for worker in workers:
        worker.start()
    found = {results.get(timeout=300) for _ in workers}
    for worker in workers:
        worker.join()
    assert len(found) == 1
    assert open_cache(Path(found.pop()[0]), key_of(cells)) is not None


def test_deleted_any_time(cells, tmp_path):
    path = ensure(cells, tmp_path)
    cached = open_cache(path, key_of(cells))
    before = cached.entries.sum()
    shutil.rmtree(path)
    assert cached.entries.sum() == before
    assert open_cache(path, key_of(cells)) is None
    assert ensure(cells, tmp_path) == path
