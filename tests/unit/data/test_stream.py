import json
import logging
import subprocess
import sys
import threading

import numpy as np
import pytest
from helpers_soma import OURS, encoded_counts, gapped_joinids, index_of, make_store

from save_dist.core.errors import ConfigError, DataError
from save_dist.data.cache import ensure_cache
from save_dist.data.partition import StreamPlan
from save_dist.data.scan import scan
from save_dist.data.source import SomaSource, StoreLocator
from save_dist.data.stream import CellStream
from save_dist.data.transforms import densify

STEPS = 13  # of one epoch of 800 cells


@pytest.fixture(autouse=True)
def no_thread_is_left():
    yield
    assert not [t for t in threading.enumerate() if t.name.startswith(("cell-stream", "scan"))]


@pytest.fixture
def plan(cells):
    return StreamPlan(cells.index.n_cells, 64, 16, 12, n_lanes=4, seed=3)


@pytest.fixture
def stream(cells, plan):
    with CellStream(*cells, plan) as stream:
        yield stream


def build_cache(cells, folder):
    with SomaSource(cells.locator) as source:
        return ensure_cache(source, cells.index, cells.gene_positions, folder, 2**30)


def same(batch, other):
    return all(np.array_equal(a, b) for a, b in zip(batch, other, strict=True))


def test_cells_genes_and_codes_belong_together(cells, plan, stream):
    batches = list(stream.batches(0, 2 * STEPS))
    assert plan.n_steps_per_epoch == STEPS
    assert [b.step for b in batches] == list(range(2 * STEPS))
    for batch in batches:
        assert batch.lanes == (0, 1, 2, 3)
        counts = cells.counts_of(batch.joinids)
        assert np.array_equal(batch.joinids, cells.index.joinids[batch.positions])
        assert np.array_equal(batch.codes, index_of(batch.joinids).codes)
        assert np.array_equal(batch.counts, counts)
        assert np.array_equal(batch.library, counts.sum(1))
        library = np.where(batch.library == 0, 1, batch.library)[:, None]
        np.testing.assert_allclose(batch.log_x, np.log1p(counts * 1e4 / library), rtol=1e-6)


def test_types_of_a_batch(stream):
    batch = next(stream.batches())
    assert {batch.counts.dtype, batch.log_x.dtype, batch.library.dtype} == {np.dtype("float32")}
    assert {batch.positions.dtype, batch.joinids.dtype, batch.codes.dtype} == {np.dtype("int64")}
    assert batch.counts.shape == batch.log_x.shape == (64, 40)


def test_every_cell_once_per_epoch_and_epochs_differ(cells, stream):
    batches = list(stream.batches(0, 2 * STEPS))
    epochs = [np.concatenate([b.positions for b in batches[i : i + STEPS]]) for i in (0, STEPS)]
    for positions in epochs:
        counts = np.bincount(positions, minlength=cells.index.n_cells)
        assert counts.min() == 1
        assert positions.size - cells.index.n_cells < 64
    assert not np.array_equal(*epochs)


@pytest.mark.parametrize("world_size", [2, 4])
def test_worlds_see_the_same_cells_in_the_same_steps(cells, plan, stream, world_size):
    ranks = [CellStream(*cells, plan, rank=r, world_size=world_size) for r in range(world_size)]
    parts = [list(rank.batches(5, 20)) for rank in ranks]
    for whole, *shares in zip(stream.batches(5, 20), *parts, strict=True):
        by_lane = whole.counts.reshape(4, 16, 40)
        for rank, share in enumerate(shares):
            assert share.step == whole.step
            assert share.lanes == tuple(range(rank, 4, world_size))
            assert np.array_equal(share.counts.reshape(-1, 16, 40), by_lane[rank::world_size])
    for rank in ranks:
        rank.close()


def test_more_ranks_than_shuffle_chunks(make_cells):
    """Lanes share a chunk: all cells come, and no rank has fewer steps than another."""
    counts = encoded_counts(np.arange(150) * 2, 20)
    cells = make_cells(counts)
    plan = StreamPlan(150, 32, 64, 4, n_lanes=8, seed=1)
    seen = []
    for rank in range(8):
        with CellStream(*cells, plan, rank=rank, world_size=8) as stream:
            batches = list(stream.batches(0, plan.n_steps_per_epoch))
        assert [batch.positions.size for batch in batches] == [4] * 5
        for batch in batches:
            assert np.array_equal(batch.counts, counts[batch.positions])
        seen.append(np.concatenate([batch.positions for batch in batches]))
    assert np.bincount(np.concatenate(seen), minlength=150).min() == 1


def test_joinids_beyond_32_bits(tmp_path):
    first = 5_000_000_000
    joinids = first + gapped_joinids(100)
    counts = encoded_counts(joinids, 20)
    locator = make_store(tmp_path / "s", joinids, counts)
    plan = StreamPlan(100, 20, 8, 4, n_lanes=2, seed=0)
    with CellStream(locator, index_of(joinids), np.arange(20), plan) as stream:
        for batch in stream.batches(0, plan.n_steps_per_epoch):
            assert batch.joinids.min() >= first
            assert np.array_equal(batch.counts, encoded_counts(batch.joinids, 20))


@pytest.mark.parametrize("start", [0, 1, 2, 3, 12, 13, 14, 20])
def test_any_start_replays_exactly(stream, start):
    whole = list(stream.batches(0, 22))
    resumed = list(stream.batches(start, 22))
    assert len(resumed) == 22 - start
    assert all(same(a, b) for a, b in zip(whole[start:], resumed, strict=True))


def test_the_cache_gives_equal_bits(cells, plan, stream, tmp_path):
    with CellStream(*cells, plan, cache=build_cache(cells, tmp_path)) as cached:
        assert cached.is_cached
        assert not stream.is_cached
        pairs = zip(stream.batches(0, 2 * STEPS), cached.batches(0, 2 * STEPS), strict=True)
        assert all(same(a, b) for a, b in pairs)


def test_a_deleted_cache_falls_back_to_the_store(cells, plan, stream, tmp_path, caplog):
    caplog.set_level(logging.WARNING)
    with CellStream(*cells, plan, cache=tmp_path / "gone") as other:
        assert not other.is_cached
        assert same(next(other.batches()), next(stream.batches()))
    assert [r.message.split()[0] for r in caplog.records] == ["event=cache_unusable"]


def test_a_cache_deleted_in_use_goes_on(cells, plan, stream, tmp_path):
    path = build_cache(cells, tmp_path)
    with CellStream(*cells, plan, cache=path) as cached:
        for file in path.iterdir():
            file.unlink()
        pairs = zip(stream.batches(0, STEPS), cached.batches(0, STEPS), strict=True)
        assert all(same(a, b) for a, b in pairs)


def test_kept_batches_are_not_overwritten(cells, stream):
    for batch in list(stream.batches(0, STEPS)):
        assert np.array_equal(batch.counts, cells.counts_of(batch.joinids))


def test_steps_go_on_for_ever_unless_stopped(stream):
    steps = [batch.step for _, batch in zip(range(30), stream.batches(7), strict=False)]
    assert steps == list(range(7, 37))


def test_leaving_the_loop_and_closing_stop_the_thread(stream):
    for batch in stream.batches():
        if batch.step == 4:
            break
    half_used = stream.batches()
    next(half_used)
    stream.close()
    stream.close()


def test_errors_in_the_thread_reach_the_consumer(make_cells):
    counts = encoded_counts(np.arange(400), 20).astype(np.float32)
    counts[350, 3] = 0.5
    cells = make_cells(counts, OURS._replace(type="float32"))
    plan = StreamPlan(400, 40, 8, 5, n_lanes=4, seed=0)
    with (
        CellStream(*cells, plan) as stream,
        pytest.raises(DataError, match=r"cell 700, gene column 3 .* holds 0\.5") as caught,
    ):
        list(stream.batches(0, 10))
    assert "while reading the cells of steps" in caught.value.__notes__[0]


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        pytest.param({"world_size": 3}, ConfigError, "n_lanes=4 is not a multiple", id="ranks"),
        pytest.param({}, DataError, "nowhere is not a SOMA experiment", id="no store"),
    ],
)
def test_refused_at_once(cells, plan, tmp_path, change, error, message):
    nowhere = StoreLocator(str(tmp_path / "nowhere"))
    with pytest.raises(error, match=message):
        CellStream(nowhere, cells.index, cells.gene_positions, plan, **change)


def test_a_process_may_end_with_a_stream_open(make_cells):
    cells = make_cells(encoded_counts(np.arange(300), 20))
    script = (
        "import sys, numpy as np\n"
        "from save_dist.data.source import SomaSource, StoreLocator\n"
        "from save_dist.data.splits import CellIndex\n"
        "from save_dist.data.partition import StreamPlan\n"
        "from save_dist.data.stream import CellStream\n"
        "locator = StoreLocator(sys.argv[1])\n"
        "ids = SomaSource(locator).joinids\n"
        "index = CellIndex(ids, np.zeros((ids.size, 1), np.int16), np.zeros(ids.size, np.uint8))\n"
        "plan = StreamPlan(ids.size, 64, 16, 8, 4, 0)\n"
        "batches = CellStream(locator, index, np.arange(20), plan).batches()\n"
        "print(next(batches).step)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, cells.locator.uri], capture_output=True, text=True
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "0\n", "")


# Imports are paid for once: the ranks are forked before anything has used TileDB.
TWO_RANKS = """
import json, os, sys
from pathlib import Path
import numpy as np
from save_dist.data.partition import StreamPlan
from save_dist.data.source import SomaSource, StoreLocator
from save_dist.data.splits import CellIndex
from save_dist.data.stream import CellStream

def run(rank, locator, place):
    with SomaSource(locator) as source:
        ids = source.joinids
    index = CellIndex(ids, np.zeros((ids.size, 1), np.int16), np.zeros(ids.size, np.uint8))
    plan = StreamPlan(ids.size, 32, 16, 4, n_lanes=4, seed=3)
    with CellStream(locator, index, np.arange(20), plan, rank=rank, world_size=2) as stream:
        batches = list(stream.batches(0, plan.n_steps_per_epoch))
    cells = {n: np.concatenate([getattr(b, n) for b in batches]) for n in ("joinids", "counts")}
    (place / f"{rank}.json").write_text(json.dumps({n: a.tolist() for n, a in cells.items()}))

for rank in (0, 1):
    if os.fork() == 0:
        run(rank, StoreLocator(sys.argv[1]), Path(sys.argv[2]))
        os._exit(0)
sys.exit(max(os.waitstatus_to_exitcode(os.wait()[1]) for _ in range(2)))
"""


def test_two_ranks_in_two_processes_cover_exactly_the_store(make_cells, tmp_path):
    cells = make_cells(encoded_counts(np.arange(320) * 2, 20))
    command = [sys.executable, "-c", TWO_RANKS, cells.locator.uri, str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    found = [json.loads((tmp_path / f"{rank}.json").read_text()) for rank in (0, 1)]
    assert [len(rank["joinids"]) for rank in found] == [160, 160]
    ids = np.concatenate([rank["joinids"] for rank in found])
    assert np.array_equal(np.sort(ids), cells.index.joinids)
    counts = np.concatenate([rank["counts"] for rank in found])
    assert np.array_equal(counts, encoded_counts(ids, 20))


@pytest.mark.parametrize("rows_per_read", [1, 100, 800, 5000])
def test_scan_meets_every_cell_in_order(cells, rows_per_read):
    index = cells.index if rows_per_read > 1 else cells.index.take(np.arange(30))
    with SomaSource(cells.locator) as source:
        blocks = list(scan(source, index, cells.gene_positions, rows_per_read=rows_per_read))
    assert [b.start for b in blocks] == list(range(0, index.n_cells, rows_per_read))
    dense = [densify(b.cells, np.arange(b.cells.n_cells), 40).counts for b in blocks]
    assert np.array_equal(np.concatenate(dense), cells.counts_of(index.joinids))


def test_a_scan_left_early_stops_its_thread(cells):
    with SomaSource(cells.locator) as source:
        for block in scan(source, cells.index, cells.gene_positions, rows_per_read=100):
            if block.start == 200:
                break


def test_a_scan_of_no_cells(cells):
    nothing = cells.index.take(np.arange(0))
    with SomaSource(cells.locator) as source:
        assert list(scan(source, nothing, cells.gene_positions)) == []
