"""A byte that changes on disk is an error that names the fragment, never other counts."""

import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from helpers_soma import CENSUS, encoded_counts, index_of, make_store

from save_dist.core.errors import DataError, InfrastructureError
from save_dist.data.csr import CsrCounts
from save_dist.data.damage import stranger
from save_dist.data.layout import store_facts
from save_dist.data.packed import PackedReader
from save_dist.data.partition import StreamPlan
from save_dist.data.source import Entries, SomaSource, StoreLocator
from save_dist.data.stream import CellStream
from save_dist.data.transforms import densify
from save_dist.data.writer import StoreLayout, create_store, mark_complete, write_cells

N_CELLS, N_GENES, ROWS_PER_WRITE = 300, 40, 150
JOINIDS = np.arange(N_CELLS, dtype=np.int64)
COUNTS = encoded_counts(JOINIDS, N_GENES)


def as_csr(dense):
    rows, genes = np.nonzero(dense)
    indptr = np.concatenate([[0], np.cumsum(np.count_nonzero(dense, axis=1))])
    return CsrCounts(indptr, genes.astype(np.int32), dense[rows, genes].astype(np.uint16))


def write_store(uri):
    """Two fragments, of inputs a and b."""
    genes = tuple(f"g{i}" for i in range(N_GENES))
    types = {"kind": "string"}
    layout = StoreLayout(N_CELLS, genes, "uint16", types, 32, np.count_nonzero(COUNTS) / N_CELLS)
    create_store(uri, layout, {})
    for start, name in ((0, "a"), (ROWS_PER_WRITE, "b")):
        dense = COUNTS[start : start + ROWS_PER_WRITE]
        names = [f"c{i}" for i in range(start, start + ROWS_PER_WRITE)]
        obs = {"cell_id": names, "input": name, "kind": "x", "n_counts": dense.sum(1)}
        write_cells(uri, as_csr(dense), pd.DataFrame(obs), types, start)
    mark_complete(uri, {})


@pytest.fixture(scope="module")
def sound(tmp_path_factory):
    uri = tmp_path_factory.mktemp("sound") / "store.soma"
    write_store(uri)
    return uri


@pytest.fixture
def store(sound, tmp_path):
    return Path(shutil.copytree(sound, tmp_path / "store.soma"))


def fragments(array):
    return sorted((array / "__fragments").iterdir(), key=lambda p: int(p.name.split("_")[2]))


def flip(path, place):
    """Change one bit of the byte that stands at a share of the file; undo with what it returns."""
    content = path.read_bytes()
    changed = bytearray(content)
    changed[int(place * (len(content) - 1))] ^= 0x10
    path.write_bytes(changed)
    return content


def read_all(uri):
    with SomaSource(StoreLocator(str(uri))) as source:
        cells = PackedReader(source, np.arange(N_GENES)).read(source.joinids)
    return densify(cells, JOINIDS, N_GENES).counts


@pytest.mark.parametrize("number", [0, 1])
@pytest.mark.parametrize("file", ["a0", "d0", "d1"])
def test_a_flipped_bit_in_the_counts_names_fragment_and_input(store, file, number):
    fragment = fragments(store / "ms/RNA/X/raw")[number]
    for place in np.linspace(0, 1, 9):
        content = flip(fragment / f"{file}.tdb", place)
        with pytest.raises(DataError) as caught:
            read_all(store)
        (fragment / f"{file}.tdb").write_bytes(content)
        text = str(caught.value)
        assert f"{fragment.name} of file://{store}/ms/RNA/X/raw is damaged at cell " in text
        assert f"(input {'ab'[number]})" in text
        assert "restore the folder from a backup, or ingest again" in text
    np.testing.assert_array_equal(read_all(store), COUNTS)


@pytest.mark.parametrize("array", ["obs", "ms/RNA/var", "ms/RNA/X/raw"])
@pytest.mark.parametrize("file", ["__fragments/*/__fragment_metadata.tdb", "__schema/_*"])
def test_a_flipped_bit_in_what_describes_an_array_is_named(store, array, file):
    """In TileDB alone, one in forty hides a fragment without an error."""
    for path in (store / array).glob(file):
        if path.is_dir():
            continue
        for place in np.linspace(0, 1, 7):
            content = flip(path, place)
            with pytest.raises(DataError, match=path.name) as caught:
                read_all(store)
            assert "is damaged" in str(caught.value)
            path.write_bytes(content)


def test_a_fragment_that_is_gone_is_named_unless_another_took_its_place(store):
    fragment = fragments(store / "ms/RNA/X/raw")[1]
    shutil.rmtree(fragment)
    (store / f"ms/RNA/X/raw/__commits/{fragment.name}.wrt").unlink()
    with pytest.raises(DataError, match=rf"{fragment.name}/__fragment_metadata.tdb of .* damaged"):
        read_all(store)
    start, end = (int(time) for time in fragment.name.split("_")[2:4])
    (fragment.parent / f"__{start - 1}_{end}_consolidated_22").mkdir()
    with SomaSource(StoreLocator(str(store))) as source:
        assert source.n_obs == N_CELLS


def test_a_flipped_bit_in_obs_is_named(store):
    fragment = fragments(store / "obs")[0]
    for path in sorted(fragment.glob("[ad]*.tdb")):
        content = flip(path, 0.9)
        with (
            SomaSource(StoreLocator(str(store))) as source,
            pytest.raises(DataError, match=rf"{fragment.name} of .*/obs is damaged"),
        ):
            source.obs(source.obs_columns)
        path.write_bytes(content)
    with SomaSource(StoreLocator(str(store))) as source:
        assert source.obs(["input"])["input"].tolist() == ["a"] * 150 + ["b"] * 150


def test_only_readers_of_the_damaged_cells_meet_it(store):
    flip(fragments(store / "ms/RNA/X/raw")[1] / "a0.tdb", 0.5)
    with SomaSource(StoreLocator(str(store))) as source:
        first = source.read_counts(JOINIDS[:100])
    assert first.counts.sum() == COUNTS[:100].sum()


def test_a_stream_hands_the_error_to_its_consumer(store):
    flip(fragments(store / "ms/RNA/X/raw")[1] / "d1.tdb", 0.5)
    plan = StreamPlan(N_CELLS, 60, 10, 6, n_lanes=1, seed=0)
    locator, genes = StoreLocator(str(store)), np.arange(N_GENES)
    with (
        CellStream(locator, index_of(JOINIDS), genes, plan) as stream,
        pytest.raises(DataError, match=r"is damaged at cell \d+ \(input b\)") as caught,
    ):
        list(stream.batches(0, plan.n_steps_per_epoch))
    assert "while reading the cells of steps" in caught.value.__notes__[0]


def test_stores_without_checksums_are_read_and_cut_files_named(tmp_path):
    locator = make_store(tmp_path / "s", JOINIDS, COUNTS, CENSUS)
    np.testing.assert_array_equal(read_all(tmp_path / "s"), COUNTS)
    fragment = fragments(tmp_path / "s/ms/RNA/X/raw")[0]
    path = fragment / "a0.tdb"
    path.write_bytes(path.read_bytes()[:3])
    with pytest.raises(DataError, match=rf"{fragment.name} .* damaged at cell \d+: .* copy the"):
        read_all(tmp_path / "s")
    with SomaSource(locator) as source:
        assert not store_facts(source).has_checksums


def test_our_stores_have_checksums(sound):
    with SomaSource(StoreLocator(str(sound))) as source:
        assert store_facts(source).has_checksums


def test_a_read_that_fails_once_is_no_damage(sound, monkeypatch):
    """A disk or network that was away for a moment: worth running again."""
    with SomaSource(StoreLocator(str(sound))) as source:

        class Failing:
            uri = source.matrix.uri

            def read(self, **_):
                raise RuntimeError("Input/output error")

        monkeypatch.setattr(source, "_x", Failing())
        with pytest.raises(InfrastructureError, match=r"could not read .* at cells 0\.\.299"):
            source.read_counts(JOINIDS)


@pytest.mark.parametrize(
    ("joinid", "gene"), [pytest.param(5, 40, id="gene"), pytest.param(7, 3, id="cell")]
)
@pytest.mark.parametrize("reader", ["packed", "counts"])
def test_entries_that_nobody_asked_for_are_refused(sound, monkeypatch, reader, joinid, gene):
    """Coordinates of a store without checksums may change, too."""
    entries = Entries(np.array([3, joinid]), np.array([1, gene]), np.array([2, 2], np.uint16))
    wanted = np.array([3, 5], dtype=np.int64)
    with SomaSource(StoreLocator(str(sound))) as source:
        monkeypatch.setattr(source, "read_entries", lambda _: iter([entries]))
        packed = PackedReader(source, np.arange(N_GENES))
        read = packed.read if reader == "packed" else source.read_counts
        with pytest.raises(DataError, match=rf"entry of cell {joinid} and gene column {gene}, but"):
            read(wanted)


def test_asked_entries_are_no_strangers():
    assert stranger("s", 5, 39, np.array([3, 5]), 40) is None
