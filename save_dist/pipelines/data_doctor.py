"""Doctor of stores: how a store lies, how fast it is read, and what re-ingesting would gain."""

import dataclasses

from save_dist.config.schema import IngestConfig, SourceConfig, StreamConfig
from save_dist.data.attach import locate
from save_dist.data.layout import Comparison, StoreFacts, compare, store_facts
from save_dist.data.source import SomaSource
from save_dist.pipelines.checks import Check
from save_dist.pipelines.context import Summary

OUR_ROWS_PER_TILE: int = IngestConfig.model_fields["rows_per_tile"].default
WORTH_COPYING = 1.5
"""From this gain on a copy is advised; below it, noise and the cost of copying weigh more."""
_MANY_FRAGMENTS = 1000
"""Fragments whose bounds are looked at before any cell is read."""


def examine(config: SourceConfig) -> tuple[list[Check], Summary]:
    """Look at a store and read a few thousand of its cells; some seconds.

    Raises:
        DataError: if there is no such store, or it holds something that is no count.
        InfrastructureError: if it cannot be read.
    """
    with SomaSource(locate(config)) as source:
        facts = store_facts(source)
        compared = compare(
            source,
            facts,
            rows_per_chunk=StreamConfig().rows_per_chunk,
            rows_per_tile=OUR_ROWS_PER_TILE,
        )
    summary = {
        "facts": dataclasses.asdict(facts),
        "cells_per_second": round(compared.store.per_second),
        "cells_per_cpu_second": round(compared.store.per_cpu_second),
        "gain": round(compared.gain, 2),
    }
    return judge(facts, compared), summary


def judge(facts: StoreFacts, compared: Comparison) -> list[Check]:
    """One line per fact that matters for reading."""
    return [
        Check(
            "cells",
            "ok",
            f"{facts.n_cells} cells x {facts.n_genes} genes, {facts.n_entries} counts as "
            f"{facts.count_type}: {facts.mean_entries:.0f} per cell ({compared.least_entries} to "
            f"{compared.most_entries} in the sample)",
        ),
        _tiles(facts),
        _fragments(facts),
        Check(
            "reading",
            "ok",
            f"shuffle chunks of {compared.rows_per_chunk} cells: "
            f"{compared.store.per_second:.0f} cells/s, "
            f"{compared.store.per_cpu_second:.0f} cells per CPU-second",
        ),
        _copy(facts, compared),
    ]


def _tiles(facts: StoreFacts) -> Check:
    """Entries beyond the cells asked for are decoded in vain."""
    together = facts.capacity / max(1.0, facts.mean_entries)
    ours = OUR_ROWS_PER_TILE
    found = (
        f"{facts.tile[0]} cells x {facts.tile[1]} genes, capacity {facts.capacity}: about "
        f"{together:.0f} cells are decoded together (ours: {ours} x all genes, {ours} cells)"
        + (", duplicates allowed" if facts.allows_duplicates else "")
    )
    if facts.tile[1] < facts.n_genes:
        remedy = "a tile that holds not all genes is decoded for each part of a row"
        return Check("tiles", "warning", found, remedy)
    if together > 4 * ours:
        return Check("tiles", "warning", found, "raise training.stream.rows_per_chunk to match")
    return Check("tiles", "ok", found)


def _fragments(facts: StoreFacts) -> Check:
    if facts.n_fragments is None or facts.n_bytes is None:
        return Check("files", "ok", "in an object store, not counted")
    per_entry = facts.n_bytes / max(1, facts.n_entries)
    found = f"{facts.n_fragments} fragments, {facts.n_bytes} bytes, {per_entry:.2f} per count"
    if not facts.has_checksums:
        found += "; no checksums: a byte that changes may pass as another count"
    if facts.n_fragments > _MANY_FRAGMENTS:
        return Check("files", "warning", found, "consolidate it with TileDB, or ingest it anew")
    return Check("files", "ok", found)


def _copy(facts: StoreFacts, compared: Comparison) -> Check:
    found = (
        f"{compared.n_sample_cells} cells copied into our layout: "
        f"{compared.copy.per_cpu_second:.0f} cells per CPU-second, {compared.gain:.1f} times as "
        f"many; {compared.copy_bytes_per_entry:.2f} bytes per count"
    )
    if compared.gain < WORTH_COPYING:
        return Check("re-ingest", "ok", found)
    remedy = (
        "write its cells as h5ad (tiledbsoma.io.to_h5ad) and ingest them, or leave the packed "
        "cache on: it serves all epochs but the first"
    )
    return Check("re-ingest", "warning", found, remedy)
