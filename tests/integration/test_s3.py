"""A store in an object store: a local S3 server on loopback stands in for it."""

import numpy as np
import pytest
from helpers_soma import OURS, encoded_counts, gapped_joinids, index_of, make_store

from save_dist.config.schema import SourceConfig
from save_dist.core.errors import DataError
from save_dist.data.attach import attach
from save_dist.data.partition import StreamPlan
from save_dist.data.source import SomaSource, StoreLocator
from save_dist.data.stream import CellStream

pytest.importorskip("moto.server", reason="moto (extra dev) is absent: no local S3 server")
boto3 = pytest.importorskip("boto3", reason="boto3 (comes with moto) is absent")

pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
]
BUCKET = "cells"


def upload(folder, server, key):
    client = boto3.client("s3", endpoint_url=f"http://{server}", region_name="us-east-1")
    client.create_bucket(Bucket=BUCKET)
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            client.upload_file(str(path), BUCKET, f"{key}/{path.relative_to(folder)}")
    return f"s3://{BUCKET}/{key}"


def settings_of(server):
    return {
        "vfs.s3.endpoint_override": server,
        "vfs.s3.scheme": "http",
        "vfs.s3.region": "us-east-1",
        "vfs.s3.use_virtual_addressing": "false",
        "vfs.s3.connect_timeout_ms": "60000",
        "vfs.s3.request_timeout_ms": "60000",
    }


def test_a_store_in_a_bucket_streams_like_one_on_disk(s3_server, tmp_path):
    joinids = gapped_joinids(300)
    local = make_store(tmp_path / "store.soma", joinids, encoded_counts(joinids, 40), OURS)
    server = s3_server
    uri = upload(tmp_path / "store.soma", server, "atlas/store.soma")
    found = attach(SourceConfig(uri=uri, tiledb=settings_of(server)), ["cell_id"], 2**42)
    assert (found.n_cells, found.n_genes) == (300, 40)
    assert StoreLocator.from_json(found.locator.to_json(tmp_path), tmp_path) == found.locator

    index, genes = index_of(joinids), np.array([3, 1, 39])
    plan = StreamPlan(300, 30, 16, 6, n_lanes=2, seed=0)
    streams = [CellStream(place, index, genes, plan) for place in (local, found.locator)]
    for mine, remote in zip(*(s.batches(0, 12) for s in streams), strict=True):
        assert np.array_equal(mine.counts, remote.counts)
        assert np.array_equal(mine.counts, encoded_counts(mine.joinids, 40)[:, genes])
    for stream in streams:
        stream.close()
    with SomaSource(found.locator) as source:
        assert source.version is None

    with pytest.raises(DataError, match=r"s3://cells/nowhere is not a SOMA experiment"):
        attach(SourceConfig(uri=f"s3://{BUCKET}/nowhere", tiledb=settings_of(server)), [], 2**42)
