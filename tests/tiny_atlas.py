"""A small plan over the tiny model: 6 conditions of 15 cells, parts of 32 rows, the last short."""

from save_dist.config.schema import GridConfig, OutputConfig
from save_dist.generation.grid import plan_grid
from save_dist.generation.tables import settle, settle_output
from save_dist.generation.worker import PartWorker
from save_dist.stores import atlas
from save_dist.stores.bundle import load_bundle

GRID = GridConfig(cells_per_condition=15, seed=3)
OUTPUT = OutputConfig(cells_per_part=32, cells_per_chunk=8, cells_per_minibatch=10)
N_PARTS = 3


def tiny_plan(bundle, grid=GRID, output=OUTPUT):
    facts = bundle.facts
    return plan_grid(settle(grid, facts), settle_output(output, facts), facts)


def begin(folder, bundle_folder, **options):
    """An empty atlas at folder/atlas.zarr; returns its path and plan."""
    plan = tiny_plan(load_bundle(bundle_folder), **options)
    path = folder / "atlas.zarr"
    atlas.create_template(path, plan.layout(), {"save-dist": "0"})
    return path, plan


def fill(path, bundle_folder, parts):
    """Write parts by one worker; returns their receipts."""
    worker = PartWorker(bundle_folder, path)
    return [worker.run(part) for part in parts]


def stored(path):
    """Every file of the store by name."""
    return {str(p.relative_to(path)): p.read_bytes() for p in path.rglob("*") if p.is_file()}


def receipts_folder(path):
    """Where the receipts of an atlas on disk stand."""
    return path.with_name(f"{path.name}.receipts")


def receipt_path(path, part):
    """The receipt of one part."""
    return receipts_folder(path) / f"{part:06d}.json"
