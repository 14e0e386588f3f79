import json
import warnings

import anndata
import dask.array
import numpy as np
import pytest
import zarr
from tiny_atlas import receipts_folder

from save_dist.core.errors import AtlasError
from save_dist.stores import atlas, receipts
from save_dist.stores.part import PartColumns, write_part
from save_dist.stores.template import AtlasLayout

N_CELLS, N_GENES = 20, 3
TYPES = ("B", "NK", "T")
ROUTES = ("direct", "condition: ctrl -> stim")
VERSIONS = {"zarr": "3"}


def layout(**changes):
    values = {
        "n_cells": N_CELLS,
        "cells_per_part": 8,
        "cells_per_chunk": 4,
        "gene_ids": ("g0", "g1", "g2"),
        "categories": {"cell_type": TYPES, "condition": ("ctrl", "stim")},
        "plan_hash": "plan-a",
        "model_hash": "model-a",
        "plan": {"seed": 5},
        "routes": ROUTES,
        "about": {"guidance": {"scale": 1.5, "columns": {}}, "list": ["x"], "none": None},
    }
    return AtlasLayout(**{**values, **changes})


def columns(start, stop):
    """Every value says its row (and gene)."""
    rows = np.arange(start, stop)
    return PartColumns(
        counts=(rows[:, None] * 10 + np.arange(N_GENES)).astype(np.uint16),
        codes=np.stack([rows % 3, rows % 2], axis=1).astype(np.int16),
        n_train_cells=np.where(rows % 3 == 2, 0, rows).astype(np.int64),
        route=(rows % 2).astype(np.int16),
        n_route_cells=rows + 7,
        cell_seed=rows.astype(np.uint64) + np.uint64(2**63),
    )


def write(path, record, part):
    start, stop = record.rows(part)
    return write_part(path, record, part, columns(start, stop), n_evaluations=10, start_s=0.0)


@pytest.fixture
def path(tmp_path):
    return tmp_path / "atlas.zarr"


@pytest.fixture
def record(path):
    return atlas.create_template(path, layout(), VERSIONS)


@pytest.fixture
def complete(path, record):
    for part in (2, 0, 1):
        write(path, record, part)
    atlas.finish(path)
    return path


def read(path):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # anndata announces its own future defaults
        return anndata.io.read_zarr(path)


def test_anndata_opens_it(complete):
    adata = read(complete)
    expected = columns(0, N_CELLS)
    np.testing.assert_array_equal(adata.X, expected.counts)
    assert adata.X.dtype == np.uint16
    assert adata.var_names.tolist() == ["g0", "g1", "g2"]
    assert adata.obs_names.tolist() == [f"cell-{row}" for row in range(N_CELLS)]
    obs = adata.obs
    assert list(obs) == [
        *("cell_type", "condition"),
        *("seen", "n_train_cells", "route", "n_route_cells", "part", "cell_seed"),
    ]
    assert obs["cell_type"].cat.categories.tolist() == list(TYPES)
    np.testing.assert_array_equal(obs["cell_type"].cat.codes, expected.codes[:, 0])
    np.testing.assert_array_equal(obs["condition"].cat.codes, expected.codes[:, 1])
    np.testing.assert_array_equal(obs["seen"], expected.n_train_cells > 0)
    np.testing.assert_array_equal(obs["n_train_cells"], expected.n_train_cells)
    np.testing.assert_array_equal(obs["cell_seed"], expected.cell_seed)
    assert obs["route"].tolist() == [ROUTES[row % 2] for row in range(N_CELLS)]
    assert obs["n_route_cells"].tolist() == list(range(7, 7 + N_CELLS))
    assert obs["part"].tolist() == [0] * 8 + [1] * 8 + [2] * 4


def test_uns_says_what_made_it(complete):
    about = read(complete).uns["save_dist"]
    assert about["plan_hash"] == "plan-a"
    assert about["model_hash"] == "model-a"
    assert about["versions"] == VERSIONS
    assert about["guidance"] == {"scale": 1.5, "columns": {}}
    assert about["list"].tolist() == ["x"]
    assert "none" not in about
    assert about["complete"]


def test_dask_opens_it_by_parts(complete):
    x = dask.array.from_zarr(str(complete), component="X", chunks=(8, N_GENES))
    assert x.numblocks == (3, 1)
    np.testing.assert_array_equal(x.sum(axis=0).compute(), columns(0, N_CELLS).counts.sum(0))


def test_zarr_alone_opens_it(complete):
    group = zarr.open_group(complete, mode="r")
    assert group["X"].shards == (8, N_GENES)
    assert group["X"].chunks == (4, N_GENES)
    np.testing.assert_array_equal(group["X"][:], columns(0, N_CELLS).counts)
    assert group.metadata.consolidated_metadata is not None


def test_a_part_is_one_shard_and_one_chunk_per_column(complete):
    assert sorted(p.name for p in (complete / "X/c").iterdir()) == ["0", "1", "2"]
    record = receipts.read_record(complete)
    assert len(record.files(1)) == 10
    assert all((complete / name).is_file() for name in record.files(1))


def test_a_half_written_atlas_says_so(path, record):
    write(path, record, 1)
    assert not atlas.is_complete(path)
    assert not read(path).uns["save_dist"]["complete"]
    assert receipts.missing_parts(path) == [0, 2]
    assert read(path).obs["cell_type"].isna().sum() == N_CELLS - 8
    with pytest.raises(AtlasError, match="lacks 2 of 3 parts, the first is 0; run generate again"):
        atlas.finish(path)


def test_all_zero_cells_have_files_too(path, record):
    empty = PartColumns(
        counts=np.zeros((8, N_GENES), np.uint16),
        codes=np.zeros((8, 2), np.int16),
        n_train_cells=np.zeros(8, np.int64),
        route=np.zeros(8, np.int16),
        n_route_cells=np.zeros(8, np.int64),
        cell_seed=np.zeros(8, np.uint64),
    )
    receipt = write_part(path, record, 0, empty, n_evaluations=1, start_s=0.0)
    assert sorted(receipt.files) == sorted(record.files(0))
    assert receipts.missing_parts(path) == [1, 2]


def test_saturated_counts_are_counted(path, record):
    cells = columns(0, 8)
    cells.counts[2:4, 1] = 65_535
    receipt = write_part(path, record, 0, cells, n_evaluations=1, start_s=0.0)
    assert receipt.n_saturated == 2


def test_many_categories_take_wider_codes(path):
    many = tuple(f"p{i:04d}" for i in range(300))
    record = atlas.create_template(path, layout(categories={"cell_type": many, "b": ("x",)}), {})
    cells = columns(0, 8)
    cells.codes[:] = [[299, 0]]
    write_part(path, record, 0, cells, n_evaluations=1, start_s=0.0)
    group = zarr.open_group(path, mode="r")
    assert group["obs/cell_type/codes"].dtype == np.int16
    assert group["obs/b/codes"].dtype == np.int8
    assert group["obs/cell_type/codes"][0] == 299


def test_one_short_part(path):
    record = atlas.create_template(path, layout(n_cells=3), VERSIONS)
    assert record.n_parts == 1
    write(path, record, 0)
    atlas.finish(path)
    np.testing.assert_array_equal(read(path).X, columns(0, 3).counts)
    assert atlas.verify(path).is_sound


def test_a_part_must_be_whole(path, record):
    with pytest.raises(AtlasError, match=r"part 2 .* rows 16\.\.20 with 3 genes.*\(8, 3\)"):
        write_part(path, record, 2, columns(0, 8), n_evaluations=1, start_s=0.0)


def test_another_layout_on_disk_is_refused(path, record):
    metadata = json.loads((path / "X/zarr.json").read_text())
    metadata["chunk_grid"]["configuration"]["chunk_shape"][0] = 16
    (path / "X/zarr.json").write_text(json.dumps(metadata))
    with pytest.raises(AtlasError, match=r"\(16, 3\).*its plan says.*parts would share files"):
        write(path, record, 0)


def test_the_same_plan_is_continued(path, record):
    write(path, record, 1)
    again = atlas.create_template(path, layout(), VERSIONS)
    assert again == record
    assert receipts.missing_parts(path) == [0, 2]


def test_another_plan_is_refused_with_both_hashes(path, record):
    write(path, record, 1)
    pattern = "holds an atlas of plan plan-a, this plan is plan-b; generate into another"
    with pytest.raises(AtlasError, match=pattern):
        atlas.create_template(path, layout(plan_hash="plan-b"), VERSIONS)
    assert receipts.missing_parts(path) == [0, 2]


def test_something_else_at_the_place_is_left_alone(path):
    path.mkdir()
    (path / "thesis.txt").write_text("mine")
    with pytest.raises(AtlasError, match="exists but cannot be continued: there is no plan record"):
        atlas.create_template(path, layout(), VERSIONS)
    assert (path / "thesis.txt").read_text() == "mine"


def test_a_store_removed_by_hand_is_laid_out_again(path, complete):
    for file in sorted(complete.rglob("*"), reverse=True):
        file.unlink() if file.is_file() else file.rmdir()
    complete.rmdir()
    atlas.create_template(path, layout(), VERSIONS)
    assert receipts.missing_parts(path) == [0, 1, 2]


def test_finishing_twice_changes_nothing(complete):
    before = {p: p.read_bytes() for p in complete.rglob("*") if p.is_file()}
    first = json.loads((receipts_folder(complete) / "complete.json").read_text())
    assert atlas.finish(complete) == first["digest"]
    assert before == {p: p.read_bytes() for p in complete.rglob("*") if p.is_file()}


def test_the_digest_is_of_the_content(complete, tmp_path):
    other = tmp_path / "other.zarr"
    record = atlas.create_template(other, layout(), VERSIONS)
    for part in range(3):
        write(other, record, part)
    assert atlas.finish(other) == receipts.atlas_digest(complete)
    changed = columns(0, 8)
    changed.counts[0, 0] += 1
    write_part(other, record, 0, changed, n_evaluations=10, start_s=0.0)
    assert receipts.atlas_digest(other) != receipts.atlas_digest(complete)


def test_a_complete_atlas_verifies(complete):
    report = atlas.verify(complete)
    assert report.is_sound
    assert report.is_marked_complete
    assert (report.n_parts, report.n_cells, report.bad_parts) == (3, N_CELLS, [])


def test_discarded_parts_are_missing_and_the_atlas_says_so(complete):
    atlas.discard_parts(complete, [1])
    assert not atlas.is_complete(complete)
    assert receipts.missing_parts(complete) == [1]
    atlas.discard_parts(complete, [])
    write(complete, receipts.read_record(complete), 1)
    atlas.finish(complete)
    assert atlas.verify(complete).is_sound


def test_a_complete_atlas_with_a_lost_part_is_reopened(path, complete):
    (complete / "X/c/1/0").unlink()
    atlas.create_template(path, layout(), VERSIONS)
    assert not atlas.is_complete(path)
    assert receipts.missing_parts(path) == [1]


def test_an_atlas_notes_json_values_only(path):
    with pytest.raises(TypeError, match="odd is a set: an atlas notes JSON values only"):
        atlas.create_template(path, layout(about={"odd": {1}}), VERSIONS)
    assert not path.exists()


def test_receipts_beyond_a_million_parts_keep_their_order():
    assert receipts.receipt_name(17) == "000017.json"
    assert receipts.receipt_name(1_234_567) == "1234567.json"
