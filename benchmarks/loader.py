"""How fast do shuffled minibatches come, beside other loaders and bare decoding of the same blocks?

    python benchmarks/loader.py [SECTION ...] [--cells 1000000] [--folder FOLDER]

Sections: speed, ingest, memory, wait. The atlas is simulated (`loading/atlas.py`). The unit is
cells per CPU-second of this process, which other load on the machine hardly moves; jobs take turns,
so that a busy moment does not hit one alone. Compare within one table only. Everything sits in the
page cache. Peers that are not installed are left out: tiledbsoma-ml, and annbatch (Python >= 3.12).
"""

import argparse
import os
import shutil
import statistics
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import NamedTuple

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("TQDM_DISABLE", "1")

import numpy as np
from loading import atlas, readers, waiting
from loading.memory import peak_bytes

from save_dist.config.schema import ConditionsConfig, IngestConfig
from save_dist.core.durable import digest
from save_dist.data.cache import ensure_cache
from save_dist.data.ingest import ingest
from save_dist.data.partition import StreamPlan
from save_dist.data.source import SomaSource
from save_dist.data.stream import CellStream

PEERS = ("tiledbsoma", "tiledbsoma-ml", "annbatch", "zarrs")


class Line(NamedTuple):
    """A figure, its range over repeats, and what it has to be."""

    what: str
    value: str
    goal: str = ""


def main() -> None:
    """Build what is missing, measure, print."""
    args = parse()
    with tempfile.TemporaryDirectory(prefix="loader-") as scratch:
        folder = args.folder or Path(scratch)
        folder.mkdir(exist_ok=True)
        for line in about(args):
            print(line)
        for name in args.sections or SECTIONS:
            for line in SECTIONS[name](args, folder):
                print(f"{line.what:<58}{line.value:>26}  {line.goal}", flush=True)


def parse() -> argparse.Namespace:
    """Arguments of the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("sections", nargs="*", choices=[*SECTIONS, []], help="default: all")
    parser.add_argument("--cells", type=int, default=1_000_000)
    parser.add_argument("--few-cells", type=int, default=100_000, help="ingest, memory")
    parser.add_argument("--genes", type=int, default=4000)
    parser.add_argument("--datasets", type=int, default=24)
    parser.add_argument("--rows-per-chunk", type=int, default=128)
    parser.add_argument("--chunks-per-pool", type=int, default=256)
    parser.add_argument("--pools", type=int, default=2, help="pools of a repeat")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--folder", type=Path, help="keeps the atlas for the next run")
    return parser.parse_args()


def about(args: argparse.Namespace) -> Iterator[str]:
    """What the figures belong to."""
    here = Path(__file__).parent
    commit = subprocess.run(
        ["git", "-C", str(here), "rev-parse", "--short", "HEAD"], capture_output=True, text=True
    )
    settings = {n: v for n, v in vars(args).items() if n not in ("folder", "sections")}
    yield f"commit {commit.stdout.strip()}, config {digest(settings)[:12]}, {settings}"
    yield ", ".join(f"{name} {version(name)}" for name in PEERS if is_installed(name))


def is_installed(name: str) -> bool:
    """Whether a peer can take part."""
    try:
        version(name)
    except PackageNotFoundError:
        return False
    return True


# ---------------------------------------------------------------- speed


def speed(args: argparse.Namespace, folder: Path) -> Iterator[Line]:
    """Every loader over the same plan, and the ratios that matter."""
    shape = atlas.Shape.of(args)
    ours = made(folder / f"ours-{args.cells}.soma", atlas.our_store, shape)
    other = made(folder / f"default-{args.cells}.soma", atlas.default_store, shape)
    plan = StreamPlan(args.cells, 1024, args.rows_per_chunk, args.chunks_per_pool, 4, seed=0)
    cells = readers.Cells(
        atlas.locator_of(ours), atlas.index_of(shape), np.arange(args.genes), plan
    )
    theirs = cells._replace(store=atlas.locator_of(other))
    with SomaSource(cells.store) as source:
        cache = ensure_cache(source, cells.index, cells.gene_positions, folder / "cache", 2**40)
    jobs: dict[str, readers.Reader] = {
        DECODE: readers.decode(cells),
        "decode with our settings": readers.decode_ours(cells),
        STREAM: readers.stream(cells),
        CACHED: readers.stream(cells, cache),
        CEILING: readers.ceiling(cells, 1),
        STREAM_OTHER: readers.stream(theirs),
    }
    peers = {}
    if is_installed("tiledbsoma-ml"):
        peers = {
            ML: readers.TiledbsomaMl(cells, cells.store),
            ML_OTHER: readers.TiledbsomaMl(cells, theirs.store),
        }
    if is_installed("annbatch"):
        collection = annbatch_copy(folder, shape)
        jobs[ANN_64] = readers.annbatch(collection, args.genes, 64, 256)
        jobs[ANN_BEST] = readers.annbatch(collection, args.genes, 1024, 16)
    rates = time_all({**jobs, **peers}, peers, plan, args)
    for name, found in rates.items():
        yield Line(name, per_cpu_s(found))
    for what, mine, theirs_, goal in RATIOS:
        if theirs_ in rates:
            yield Line(what, ratio(rates[mine], rates[theirs_]), f">= {goal}")
    yield Line("batch entropy over data sets / uniform", f"{entropy(cells, shape):.4f}", ">= .98")


DECODE, STREAM, CACHED = "pure decode", "stream", "stream, packed cache"
STREAM_OTHER, CEILING = "stream, default store", "packed pool in memory"
ML, ML_OTHER = "tiledbsoma-ml", "tiledbsoma-ml, default store"
ANN_64, ANN_BEST = "annbatch, 64 x 256", "annbatch, 1024 x 16"
LOGS = " + logarithms"
RATIOS = [
    ("stream / tiledbsoma-ml, counts alone", STREAM, ML, "3.5"),
    ("stream / tiledbsoma-ml", STREAM, ML + LOGS, "3.5"),
    ("stream / tiledbsoma-ml, its default store, counts alone", STREAM, ML_OTHER, "5"),
    ("stream / tiledbsoma-ml, its default store", STREAM, ML_OTHER + LOGS, "5"),
    ("both on the default store, counts alone", STREAM_OTHER, ML_OTHER, "1.5"),
    ("both on the default store", STREAM_OTHER, ML_OTHER + LOGS, "1.5"),
    ("stream / annbatch 64 x 256", STREAM, ANN_64, ".6"),
    ("cached / annbatch at its best", CACHED, ANN_BEST, "1.2"),
    ("stream / pure decode", STREAM, DECODE, ".9"),
]


def time_all(
    jobs: dict[str, readers.Reader],
    peers: dict[str, readers.TiledbsomaMl],
    plan: StreamPlan,
    args: argparse.Namespace,
) -> dict[str, list[float]]:
    """Cells per CPU-second, one per repeat; the first turn compiles and does not count."""
    rates: dict[str, list[float]] = {}
    for turn in range(args.repeats + 1):
        for name, job in jobs.items():
            n_cells, cpu_s, log_s = time_pools(job, turn, plan, args.pools)
            if turn == 0:
                continue
            if name in peers:
                rates.setdefault(name + LOGS, []).append(n_cells / cpu_s)
                cpu_s -= log_s
            rates.setdefault(name, []).append(n_cells / cpu_s)
    return rates


def time_pools(
    job: readers.Reader, epoch: int, plan: StreamPlan, n_pools: int
) -> tuple[int, float, float]:
    """Cells, CPU seconds and those of logarithms of some pools, from the second one on.

    Loaders read a pool ahead; between the same place of two pools it is as many as were used.
    """
    cells_per_pool = plan.steps_per_pool * plan.cells_per_step
    log_s = (lambda: job.log_s) if isinstance(job, readers.TiledbsomaMl) else lambda: 0.0
    n_seen, start = 0, (0.0, 0.0)
    handed_out = iter(job(epoch))
    for n in handed_out:
        n_seen += n
        if n_seen - n < cells_per_pool <= n_seen:
            start = time.process_time(), log_s()
        if n_seen >= (1 + n_pools) * cells_per_pool:
            break
    end = time.process_time(), log_s()
    getattr(handed_out, "close", lambda: None)()
    return n_seen - cells_per_pool, end[0] - start[0], end[1] - start[1]


def entropy(cells: readers.Cells, shape: atlas.Shape) -> float:
    """Mean entropy of the data sets of a minibatch, as a share of the atlas's own."""
    n_steps = min(cells.plan.n_steps_per_epoch, 4 * cells.plan.steps_per_pool)
    with CellStream(*cells) as stream:
        found = [entropy_of(shape.datasets(batch.joinids)) for batch in stream.batches(0, n_steps)]
    return float(np.mean(found)) / entropy_of(shape.datasets(cells.index.joinids))


def entropy_of(labels: np.ndarray) -> float:
    """Entropy of labels in nats."""
    share = np.bincount(labels) / labels.size
    return float(-np.sum(share[share > 0] * np.log(share[share > 0])))


# ---------------------------------------------------------------- ingest and memory


def ingest_cost(args: argparse.Namespace, folder: Path) -> Iterator[Line]:
    """The same file into our store and, by tiledbsoma.io, into its own."""
    import tiledbsoma.io

    shape = atlas.Shape(args.few_cells, args.genes, args.datasets)
    path = made(folder / f"cells-{args.few_cells}.h5ad", atlas.h5ad, shape)
    config = IngestConfig.model_validate({"inputs": [{"path": str(path)}]})
    conditions = ConditionsConfig(columns=["dataset"])
    writers: dict[str, Callable[[Path], object]] = {
        "ours": lambda uri: ingest(config, conditions, uri),
        "tiledbsoma.io": lambda uri: tiledbsoma.io.from_h5ad(
            str(uri), str(path), measurement_name="RNA", X_layer_name="raw"
        ),
    }
    seconds: dict[str, list[float]] = {name: [] for name in writers}
    sizes: dict[str, int] = {}
    for _ in range(args.repeats):
        for name, write in writers.items():
            uri = folder / f"{name}.ingested"
            began = time.process_time()
            write(uri)
            seconds[name].append(time.process_time() - began)
            sizes[name] = n_bytes(uri / "ms/RNA/X")
            shutil.rmtree(uri)
            shutil.rmtree(uri.with_name(uri.name + ".receipts"), ignore_errors=True)
    for name, found in seconds.items():
        value = f"{statistics.median(found):.1f} CPU-s, {sizes[name] / 1e6:.0f} MB"
        yield Line(f"ingest of {args.few_cells} cells, {name}", value)
    cpu = ratio(seconds["ours"], seconds["tiledbsoma.io"])
    yield Line("ingest CPU / tiledbsoma.io", cpu, "<= .2")
    yield Line(
        "ingest bytes / tiledbsoma.io", f"{sizes['ours'] / sizes['tiledbsoma.io']:.3f}", "<= .85"
    )


def memory(args: argparse.Namespace, folder: Path) -> Iterator[Line]:
    """Peaks of processes that read or write a tenth of the cells, and all."""
    peaks: dict[str, list[int]] = {"stream": [], "ingest": []}
    for n_cells in (args.few_cells, args.cells):
        shape = atlas.Shape(n_cells, args.genes, args.datasets)
        store = made(folder / f"ours-{n_cells}.soma", atlas.our_store, shape)
        path = made(folder / f"cells-{n_cells}.h5ad", atlas.h5ad, shape)
        peaks["stream"].append(peak_bytes("stream", store, -(-n_cells // 1024)))
        copy = folder / "memory.soma"
        peaks["ingest"].append(peak_bytes("ingest", path, copy))
        shutil.rmtree(copy)
        shutil.rmtree(copy.with_name(copy.name + ".receipts"))
    for name, (few, many) in peaks.items():
        value = f"{few / 2**20:.0f} -> {many / 2**20:.0f} MiB ({many / few:.3f})"
        yield Line(f"peak memory, {name}, {args.few_cells} -> {args.cells} cells", value, "<= 1.1")


def wait(args: argparse.Namespace, folder: Path) -> Iterator[Line]:
    """Training steps on one thread, with the stream beside them."""
    for preset, n_steps in (("demo", 300), ("paper", 1)):
        shape = waiting.cells_of(preset)
        store = made(folder / f"wait-{preset}.soma", atlas.our_store, shape)
        found = waiting.waiting(preset, store, n_steps)
        value = f"{found.share:.4f} ({n_steps} steps of {found.step_s / n_steps:.2f} s)"
        yield Line(f"data wait share, VAE of {preset}, {shape.n_genes} genes", value, "<= .05")


def made(path: Path, make: Callable[[Path, atlas.Shape], None], shape: atlas.Shape) -> Path:
    """What stands at `path`, or is made now."""
    if not path.exists():
        aside = path.with_name(f".{path.name}")
        began = time.process_time()
        make(aside, shape)
        aside.rename(path)
        print(f"{path.name} made in {time.process_time() - began:.0f} CPU-s", flush=True)
    return path


def annbatch_copy(folder: Path, shape: atlas.Shape) -> Path:
    """Its preshuffled collection."""
    path = made(folder / f"cells-{shape.n_cells}.h5ad", atlas.h5ad, shape)
    return made(
        folder / f"annbatch-{shape.n_cells}.zarr",
        lambda target, _: readers.shuffle_for_annbatch(path, target),
        shape,
    )


def n_bytes(folder: Path) -> int:
    """Size of all files below."""
    return sum(p.stat().st_size for p in folder.rglob("*") if p.is_file())


def per_cpu_s(rates: list[float]) -> str:
    """Median with its range."""
    low, high = min(rates), max(rates)
    return f"{statistics.median(rates):,.0f} ({low / 1e3:.0f}k-{high / 1e3:.0f}k)"


def ratio(mine: list[float], theirs: list[float]) -> str:
    """Median of the ratios of the repeats, with their range."""
    found = [a / b for a, b in zip(mine, theirs, strict=True)]
    return f"{statistics.median(found):.3f} ({min(found):.2f}-{max(found):.2f})"


SECTIONS: dict[str, Callable[[argparse.Namespace, Path], Iterator[Line]]] = {
    "speed": speed,
    "ingest": ingest_cost,
    "memory": memory,
    "wait": wait,
}


if __name__ == "__main__":
    main()
