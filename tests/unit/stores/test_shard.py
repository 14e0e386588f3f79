import numpy as np
import pytest
import zarr
from hypothesis import given, settings
from hypothesis import strategies as st

from save_dist.core.errors import AtlasError
from save_dist.stores.shard import encode_shard
from save_dist.stores.template import CONFIG

DTYPES = ("uint16", "float32")


def make_array(place, shape, chunk_rows, shard_rows, dtype="uint16", **codec):
    return zarr.create_array(
        place,
        shape=shape,
        dtype=dtype,
        chunks=(chunk_rows, shape[1]),
        shards=(shard_rows, shape[1]),
        compressors=zarr.codecs.BloscCodec(
            typesize=np.dtype(dtype).itemsize, shuffle="bitshuffle", **codec
        ),
        fill_value=0,
    ).with_config(CONFIG)


@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1),
    chunk_rows=st.integers(1, 9),
    n_chunks=st.integers(1, 7),
    width=st.integers(1, 300),
    missing=st.integers(0, 62),
    density=st.sampled_from([0.0, 0.1, 1.0]),
    dtype=st.sampled_from(DTYPES),
    level=st.integers(0, 9),
    n_threads=st.integers(1, 3),
)
def test_shards_are_the_bytes_that_zarr_writes(
    tmp_path_factory, seed, chunk_rows, n_chunks, width, missing, density, dtype, level, n_threads
):
    place, shard_rows = tmp_path_factory.mktemp("shard"), chunk_rows * n_chunks
    n_rows = 2 * shard_rows - missing % shard_rows
    rng = np.random.default_rng(seed)
    values = rng.integers(0, 65_536, (n_rows, width)) * (rng.random((n_rows, width)) < density)
    values = values.astype(dtype)
    array = make_array(place, values.shape, chunk_rows, shard_rows, dtype, clevel=level)
    array[:] = values
    for shard in range(2):
        rows = values[shard * shard_rows : (shard + 1) * shard_rows]
        assert (
            b"".join(encode_shard(array, rows, n_threads)) == (place / f"c/{shard}/0").read_bytes()
        )


def test_other_layouts_are_refused(tmp_path):
    values = np.zeros((4, 6), np.uint16)
    narrow = zarr.create_array(tmp_path / "a", shape=(4, 6), dtype="uint16", chunks=(2, 3))
    plain = zarr.create_array(
        tmp_path / "b", shape=(4, 6), dtype="uint16", chunks=(2, 6), shards=(4, 6)
    )
    for array in (narrow, plain):
        with pytest.raises(AtlasError, match="expected whole rows"):
            next(encode_shard(array, values))
