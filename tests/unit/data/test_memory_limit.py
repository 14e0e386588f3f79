"""What is larger than the memory a process may take is streamed and ingested all the same.

Each test starts a process of its own and looks at how far its resident memory rises above where it
stood; then the same process reads all cells at once, which takes more than the limit.
"""

import subprocess
import sys

import h5py
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
from anndata.io import sparse_dataset, write_elem

from save_dist.data.csr import CsrCounts
from save_dist.data.writer import StoreLayout, create_store, mark_complete, write_cells

pytestmark = pytest.mark.slow

N_CELLS, N_GENES, N_PER_CELL = 14_000, 4000, 1000
LIMIT_MIB = 85
ROWS_AT_ONCE = 2000

PEAK = """
import sys
from pathlib import Path
import numpy as np

def resident(name):
    return int(Path("/proc/self/status").read_text().split(name + ":")[1].split()[0]) / 1024

def growth(work):
    before = resident("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew
    work()
    return resident("VmHWM") - before
"""

STREAM = """
from save_dist.data.partition import StreamPlan
from save_dist.data.source import SomaSource, StoreLocator
from save_dist.data.splits import CellIndex
from save_dist.data.stream import CellStream

locator = StoreLocator(sys.argv[1])
with SomaSource(locator) as source:
    ids, n_genes = source.joinids, source.n_genes
    index = CellIndex(ids, np.zeros((ids.size, 1), np.int16), np.zeros(ids.size, np.uint8))
    plan = StreamPlan(ids.size, 256, 64, 32, n_lanes=1, seed=0)
    seen = np.zeros(ids.size, int)
    with CellStream(locator, index, np.arange(n_genes), plan) as stream:
        batches = stream.batches(0, plan.n_steps_per_epoch)
        seen[next(batches).positions] += 1  # threads have their stacks, kernels are compiled
        def consume():
            for batch in batches:
                seen[batch.positions] += 1
        print(growth(consume))
    print(growth(lambda: source.read_counts(ids)), (seen > 0).sum())
"""

INGEST = """
import anndata
from save_dist.config.schema import ConditionsConfig, IngestConfig
from save_dist.data.ingest import ingest

def run(path, uri):
    config = {"inputs": [{"path": path}], "rows_per_block": 512}
    return ingest(
        IngestConfig.model_validate(config), ConditionsConfig(columns=["kind"]), Path(uri)
    )

small, large, folder = sys.argv[1:]
run(small, folder + "/small.soma")  # threads have their stacks, kernels are compiled
print(growth(lambda: run(large, folder + "/large.soma")))
print(growth(lambda: anndata.read_h5ad(large)))
"""


def counts(start, n_cells):
    """Edges, genes and counts: every fourth gene, shifted from cell to cell."""
    rows = np.repeat(np.arange(start, start + n_cells), N_PER_CELL)
    genes = np.tile(np.arange(N_PER_CELL, dtype=np.int32) * 4, n_cells) + (rows % 4).astype(
        np.int32
    )
    return np.arange(0, rows.size + 1, N_PER_CELL), genes, np.ones(rows.size, np.uint16)


def run(script, *arguments):
    command = [sys.executable, "-c", PEAK + script, *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return [float(n) for n in done.stdout.split()]


def write_h5ad(path, n_cells):
    with h5py.File(path, "w") as file:
        file.attrs.update({"encoding-type": "anndata", "encoding-version": "0.1.0"})
        names = pd.Index([f"c{i}" for i in range(n_cells)])
        write_elem(file, "obs", pd.DataFrame({"kind": "x"}, index=names))
        write_elem(file, "var", pd.DataFrame(index=[f"g{i}" for i in range(N_GENES)]))
        for start in range(0, n_cells, ROWS_AT_ONCE):
            indptr, genes, ones = counts(start, min(ROWS_AT_ONCE, n_cells - start))
            shape = (indptr.size - 1, N_GENES)
            matrix = sp.csr_matrix((ones.astype(np.float32), genes, indptr), shape=shape)
            if start == 0:
                write_elem(file, "X", matrix)
            else:
                sparse_dataset(file["X"]).append(matrix)


def test_a_store_larger_than_the_limit_is_streamed(tmp_path):
    uri = tmp_path / "s"
    genes = tuple(f"g{i}" for i in range(N_GENES))
    create_store(uri, StoreLayout(N_CELLS, genes, "uint16", {}, 64, float(N_PER_CELL)), {})
    for start in range(0, N_CELLS, ROWS_AT_ONCE):
        csr = CsrCounts(*counts(start, ROWS_AT_ONCE))
        names = [f"c{i}" for i in range(start, start + ROWS_AT_ONCE)]
        frame = pd.DataFrame({"cell_id": names, "input": "a", "n_counts": N_PER_CELL})
        write_cells(uri, csr, frame, {}, start)
    mark_complete(uri, {})
    streamed, at_once, n_seen = run(STREAM, tmp_path / "s")
    assert n_seen == N_CELLS
    assert streamed < LIMIT_MIB < at_once


def test_a_file_larger_than_the_limit_is_ingested(tmp_path):
    write_h5ad(tmp_path / "small.h5ad", 3000)
    write_h5ad(tmp_path / "large.h5ad", N_CELLS)
    ingested, at_once = run(INGEST, tmp_path / "small.h5ad", tmp_path / "large.h5ad", tmp_path)
    assert ingested < LIMIT_MIB < at_once
