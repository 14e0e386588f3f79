"""How fast do shuffled minibatches come, as a share of what decoding the same blocks costs?

    python benchmarks/loader.py --cells 48000

Builds a synthetic negative binomial atlas (datasets one after the other, as atlases are) in a
temporary folder. The unit is cells per CPU-second of this process, which other load on the machine
hardly moves; compare within one table only. Everything sits in the page cache.
"""

import argparse
import json
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import pandas as pd
import tiledbsoma

from save_dist.core.seeding import generator
from save_dist.data.cache import ensure_cache
from save_dist.data.csr import CsrCounts
from save_dist.data.packed import PackedReader
from save_dist.data.partition import StreamPlan
from save_dist.data.source import SomaSource, StoreLocator
from save_dist.data.splits import CellIndex
from save_dist.data.stream import CellStream
from save_dist.data.transforms import DenseBuffers, densify
from save_dist.data.writer import StoreLayout, create_store, mark_complete, write_counts, write_obs

CELLS_AT_ONCE = 2000
DECODE = "pure decode of the same blocks"


class Atlas(NamedTuple):
    """The store and what is read from it."""

    locator: StoreLocator
    index: CellIndex
    gene_positions: np.ndarray
    datasets: np.ndarray


class Row(NamedTuple):
    """One line of the table."""

    name: str
    cells_per_cpu_s: float
    entropy: float | None


def main() -> None:
    """Build, measure, print."""
    args = parse()
    with tempfile.TemporaryDirectory(prefix="loader-") as folder:
        started = time.process_time()
        atlas = build_atlas(Path(folder), args)
        print(f"atlas of {args.cells} cells built in {time.process_time() - started:.1f} CPU-s")
        rows = measure(atlas, Path(folder), args)
    print(table(rows))
    if args.save:
        path = Path(__file__).parent / "results" / "loader.json"
        path.parent.mkdir(exist_ok=True)
        result = {"arguments": vars(args), "rows": [row._asdict() for row in rows]}
        path.write_text(json.dumps(result, indent=1) + "\n")


def parse() -> argparse.Namespace:
    """Arguments of the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cells", type=int, default=120_000)
    parser.add_argument("--genes", type=int, default=4000, help="genes of the store")
    parser.add_argument("--vocabulary", type=int, default=4000, help="genes of the model")
    parser.add_argument("--datasets", type=int, default=24)
    parser.add_argument("--rows-per-chunk", type=int, default=128)
    parser.add_argument("--chunks-per-pool", type=int, default=256)
    parser.add_argument("--cells-per-step", type=int, default=1024)
    parser.add_argument("--repeats", type=int, default=3, help="passes; the median is printed")
    parser.add_argument("--train-share", type=float, default=1.0, help="cells in the index")
    parser.add_argument("--save", action="store_true", help="write results/loader.json")
    return parser.parse_args()


def build_atlas(folder: Path, args: argparse.Namespace) -> Atlas:
    """Datasets with gene rates of their own, one after the other, about 300 genes a cell."""
    uri = folder / "store.soma"
    genes = tuple(f"g{i}" for i in range(args.genes))
    first = next(simulate(args))
    layout = StoreLayout(args.cells, genes, "uint16", {}, 64, first.genes.size / first.n_cells)
    create_store(uri, layout, {})
    start = 0
    for block in simulate(args):
        write_counts(uri, block, start)
        write_obs(uri, obs_of(block, start), {}, start)
        start += block.n_cells
    mark_complete(uri, {})
    joinids = np.arange(args.cells, dtype=np.int64)
    if args.train_share < 1:
        joinids = joinids[generator(0, "split").random(args.cells) < args.train_share]
    codes = np.zeros((joinids.size, 1), dtype=np.int16)
    index = CellIndex(joinids, codes, np.zeros(joinids.size, dtype=np.uint8))
    chosen = np.sort(generator(0, "vocabulary").permutation(args.genes)[: args.vocabulary])
    datasets = joinids * args.datasets // args.cells
    return Atlas(StoreLocator(str(uri)), index, chosen, datasets)


def obs_of(block: CsrCounts, start: int) -> pd.DataFrame:
    """What a store says about its cells."""
    names = [f"c{i}" for i in range(start, start + block.n_cells)]
    totals = np.add.reduceat(block.counts, block.indptr[:-1], dtype=np.int64)
    return pd.DataFrame({"cell_id": names, "input": "simulated", "n_counts": totals})


def simulate(args: argparse.Namespace) -> Iterator[CsrCounts]:
    """Negative binomial counts, 2000 cells at a time."""
    base = generator(0, "genes").gamma(0.25, size=args.genes)
    for start in range(0, args.cells, CELLS_AT_ONCE):
        rng = generator(0, "cells", start)
        n = min(CELLS_AT_ONCE, args.cells - start)
        dataset = np.arange(start, start + n) * args.datasets // args.cells
        rates = np.stack(
            [
                base * generator(0, "dataset", d).gamma(2, size=args.genes)
                for d in np.unique(dataset)
            ]
        )
        rates = (rates / rates.sum(1, keepdims=True))[dataset - dataset[0]]
        library = rng.lognormal(np.log(450), 0.35, size=(n, 1))
        gamma = rng.standard_gamma(2, size=rates.shape, dtype=np.float32) / 2
        counts = rng.poisson(rates * library * gamma)
        rows, genes = np.nonzero(counts)
        indptr = np.searchsorted(rows, np.arange(n + 1))
        values = counts[rows, genes].astype(np.uint16)
        yield CsrCounts(indptr, genes.astype(np.uint16), values)


def measure(atlas: Atlas, folder: Path, args: argparse.Namespace) -> list[Row]:
    """Every loader over the same plan."""
    plan = StreamPlan(
        atlas.index.n_cells,
        args.cells_per_step,
        args.rows_per_chunk,
        args.chunks_per_pool,
        n_lanes=4,
        seed=0,
    )
    with SomaSource(atlas.locator) as source:
        cache = ensure_cache(source, atlas.index, atlas.gene_positions, folder / "cache", 2**40)
        packed = [read_pool(source, atlas, pool) for pool in pool_positions(plan, 0)]
    stream_args = (atlas.locator, atlas.index, atlas.gene_positions, plan)
    with CellStream(*stream_args) as store, CellStream(*stream_args, cache=cache) as cached:
        jobs: dict[str, Callable[[int], Any]] = {
            DECODE: lambda epoch: decode(atlas, plan, epoch),
            "the same, our settings": lambda epoch: decode_ours(atlas, plan, epoch),
            "stream from SOMA": lambda epoch: stream(atlas, store, epoch),
            "stream from the packed cache": lambda epoch: stream(atlas, cached, epoch),
            "ceiling: packed pools in memory": lambda epoch: fill(atlas, packed),
        }
        add_tiledbsoma_ml(jobs, atlas, plan)
        return time_all(jobs, plan.n_cells, args.repeats)


def time_all(jobs: dict[str, Callable[[int], Any]], n_cells: int, n_repeats: int) -> list[Row]:
    """Median over passes; jobs take turns, so that a busy moment does not hit one alone."""
    found: dict[str, list[tuple[float, float | None]]] = {name: [] for name in jobs}
    for epoch in range(n_repeats + 1):
        for name, job in jobs.items():
            started = time.process_time()
            entropy = job(epoch)
            found[name].append((n_cells / (time.process_time() - started), entropy))
    return [
        Row(name, statistics.median(f for f, _ in passes[1:]), passes[0][1])
        for name, passes in found.items()
    ]


def pool_positions(plan: StreamPlan, epoch: int) -> Iterator[np.ndarray]:
    """Cells of each pool of an epoch over all lanes, [step cell]."""
    n_steps = plan.n_steps_per_epoch
    for stretch in plan.stretches(epoch * n_steps, (epoch + 1) * n_steps):
        yield plan.rows_of(stretch, range(plan.n_lanes))


def decode(atlas: Atlas, plan: StreamPlan, epoch: int) -> None:
    """One sorted read per pool with tiledbsoma as it comes, the Arrow tables thrown away."""
    with tiledbsoma.Experiment.open(atlas.locator.uri) as experiment:
        x = experiment.ms["RNA"].X["raw"]
        for positions in pool_positions(plan, epoch):
            wanted = np.unique(positions)
            for _ in x.read(coords=(atlas.index.joinids[wanted],)).tables():
                pass


def decode_ours(atlas: Atlas, plan: StreamPlan, epoch: int) -> None:
    """The same with the buffer sizes and memory settings of `SomaSource`."""
    with SomaSource(atlas.locator) as source:
        for positions in pool_positions(plan, epoch):
            wanted = np.unique(positions)
            for _ in source.read_entries(atlas.index.joinids[wanted]):
                pass


def stream(atlas: Atlas, cells: CellStream, epoch: int) -> float:
    """One epoch; returns the batch entropy over datasets as a share of the atlas's own."""
    n_steps = cells.plan.n_steps_per_epoch
    entropies = [
        entropy_of(atlas.datasets[batch.positions])
        for batch in cells.batches(epoch * n_steps, (epoch + 1) * n_steps)
    ]
    return float(np.mean(entropies)) / entropy_of(atlas.datasets)


def entropy_of(labels: np.ndarray) -> float:
    """Entropy of labels in nats."""
    share = np.bincount(labels) / labels.size
    return float(-np.sum(share[share > 0] * np.log(share[share > 0])))


def read_pool(source: SomaSource, atlas: Atlas, positions: np.ndarray) -> Any:
    """Packed cells of one pool, and the row of each cell of each step."""
    wanted, rows = np.unique(positions, return_inverse=True)
    cells = PackedReader(source, atlas.gene_positions).read(atlas.index.joinids[wanted])
    return cells, rows.reshape(positions.shape)


def fill(atlas: Atlas, packed: list[Any]) -> None:
    """Only the last stage: packed rows in memory -> matrices."""
    buffers = DenseBuffers()
    for cells, steps in packed:
        for rows in steps:
            densify(cells, rows, atlas.gene_positions.size, buffers)


def add_tiledbsoma_ml(
    jobs: dict[str, Callable[[int], Any]], atlas: Atlas, plan: StreamPlan
) -> None:
    """tiledbsoma-ml on the same store, blocks of the same size, if it is installed."""
    try:
        import tiledbsoma_ml
    except ImportError:
        print("tiledbsoma-ml is not installed; its line is left out")
        return

    def run(epoch: int) -> None:
        axes = {
            "obs_query": tiledbsoma.AxisQuery(coords=(atlas.index.joinids,)),
            "var_query": tiledbsoma.AxisQuery(coords=(atlas.gene_positions,)),
        }
        with tiledbsoma.Experiment.open(atlas.locator.uri) as experiment:
            cells = tiledbsoma_ml.ExperimentDataset(
                experiment.axis_query("RNA", **axes),
                layer_name="raw",
                batch_size=plan.cells_per_step,
                io_batch_size=plan.steps_per_pool * plan.cells_per_step,
                shuffle=True,
                shuffle_chunk_size=plan.rows_per_chunk,
                seed=epoch,
            )
            n_read = sum(len(x) for x, _ in cells)
        assert n_read == plan.n_cells, f"tiledbsoma-ml read {n_read} of {plan.n_cells} cells"

    jobs["tiledbsoma-ml (no logarithm)"] = run


def table(rows: list[Row]) -> str:
    """The table as text."""
    speed = {row.name: row.cells_per_cpu_s for row in rows}
    decoding = speed[DECODE]
    lines = [f"{'loader':34s} {'cells/CPU-s':>12s} {'x decode':>9s} {'entropy/uniform':>16s}"]
    for row in rows:
        entropy = "" if row.entropy is None else f"{row.entropy:.3f}"
        share = row.cells_per_cpu_s / decoding
        lines.append(f"{row.name:34s} {row.cells_per_cpu_s:12,.0f} {share:9.2f} {entropy:>16s}")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
