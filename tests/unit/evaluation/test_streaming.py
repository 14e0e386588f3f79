"""Cells that are read when asked for are scored like cells in memory, a few of them at a time."""

import json
import tracemalloc
import weakref

import numpy as np
import pytest

from save_dist.config.schema import EvaluateConfig
from save_dist.evaluation import classify, picture, space, tables
from save_dist.evaluation.protocol import CellTable, evaluate
from save_dist.vocab.conditions import ConditionVocabulary

CONFIG = EvaluateConfig(
    n_max=20, min_cells=10, seeds=[0, 1], n_components=4, n_bootstrap=20, umap_cells=40
)
N_GENES = 800
"""Of the test of memory: cells must outweigh what is kept of each combination."""


class Store:
    """Counts in memory that are handed out as if from a disk; knows how many rows are out."""

    def __init__(self, table):
        self.table = table
        self.n_out = self.most_out = self.n_reads = 0

    def read(self, rows):
        counts = self.table.counts[rows]
        self.n_reads += 1
        self.n_out += len(rows)
        self.most_out = max(self.most_out, self.n_out)
        weakref.finalize(counts, self._given_back, len(rows))
        return counts

    def _given_back(self, n):
        self.n_out -= n

    def lazy(self):
        counts = self.table.counts
        rows = np.arange(self.table.n_cells)
        return CellTable.lazy(self.read, rows, self.table.codes, counts.shape[1], counts.dtype.type)


def cells(n_types, n, seed, n_genes=30):
    """Counts of `n` cells for each type under two conditions, held-out ones apart."""
    rng = np.random.default_rng(seed)
    types = np.random.default_rng(1).gamma(2.0, 1.0, (n_types, n_genes))
    codes = np.array([(c, t) for c in range(2) for t in range(n_types)], dtype=np.int16)
    mean = types[codes[:, 1]] * np.where(codes[:, :1] & (np.arange(n_genes) % 3 == 0), 2.5, 1)
    counts = rng.poisson(np.repeat(mean, n, axis=0)).astype(np.uint16)
    order = rng.permutation(len(counts))  # as in a store: no two of a combination together
    return CellTable(counts[order], np.repeat(codes, n, axis=0)[order])


def sides(n_types, n=60, n_genes=30):
    train, test, generated = (cells(n_types, n, seed, n_genes) for seed in (2, 3, 4))
    is_held_out = np.all(test.codes == (1, n_types - 1), axis=1)
    known = np.flatnonzero(~np.all(train.codes == (1, n_types - 1), axis=1))
    return {
        "train": train.take(known),
        "test": test.take(np.flatnonzero(~is_held_out)),
        "held_out": test.take(np.flatnonzero(is_held_out)),
        "generated": generated,
    }


def score(tables_, n_types, config=CONFIG):
    conditions = ConditionVocabulary(
        ("condition", "type"),
        (("ctrl", "stim"), tuple(f"t{i}" for i in range(n_types))),
        reference={"condition": "ctrl"},
        held_out=({"condition": "stim", "type": f"t{n_types - 1}"},),
    )
    names = [f"g{i}" for i in range(tables_["train"].counts.shape[1])]
    return evaluate(**tables_, conditions=conditions, gene_names=names, config=config)


@pytest.fixture
def without_classifiers(monkeypatch):
    monkeypatch.setattr(classify, "MIN_CELLS", 10**9)
    monkeypatch.setattr(picture, "N_NEIGHBOURS", 10**9)


@pytest.mark.parametrize("rows_per_read", [2048, 50])
def test_lazy_cells_are_scored_like_cells_in_memory(
    rows_per_read, without_classifiers, monkeypatch
):
    monkeypatch.setattr(tables, "ROWS_PER_READ", rows_per_read)
    lazy = {name: Store(table).lazy() for name, table in sides(3).items()}
    eager = {name: t.take(np.arange(t.n_cells)) for name, t in lazy.items()}
    found, expected = (score(t, 3).to_json() for t in (lazy, eager))
    assert json.dumps(found) == json.dumps(expected)


def test_few_cells_are_out_at_once(without_classifiers, monkeypatch):
    monkeypatch.setattr(tables, "ROWS_PER_READ", 100)
    stores = {name: Store(table) for name, table in sides(8).items()}
    score({name: store.lazy() for name, store in stores.items()}, 8)
    for name, store in stores.items():
        assert store.n_out == 0
        assert store.n_reads >= 1
        assert store.most_out <= 200, name  # a dask block and the one before it
    assert stores["test"].table.n_cells == 15 * 60


@pytest.mark.slow
def test_memory_does_not_grow_with_the_number_of_combinations(without_classifiers, monkeypatch):
    monkeypatch.setattr(tables, "ROWS_PER_READ", 60)
    monkeypatch.setattr(space, "N_BANDWIDTH_CELLS", 50)
    score({name: Store(t).lazy() for name, t in sides(2).items()}, 2)  # loads what it needs
    few, many = (_peak_bytes(n_types) for n_types in (2, 6))
    cells_of_more = 2 * 2 * 4 * 60 * N_GENES * 2  # uint16 counts, both sides, 4 more types
    assert many - few < cells_of_more / 4


def _peak_bytes(n_types):
    """Peak of what the evaluation allocates; the stores were there before."""
    config = CONFIG.model_copy(update={"seeds": [0]})
    lazy = {name: Store(t).lazy() for name, t in sides(n_types, n_genes=N_GENES).items()}
    tracemalloc.start()
    score(lazy, n_types, config)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    return peak
