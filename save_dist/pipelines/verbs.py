"""The jobs by name: what each does, how it runs, what `--dry-run` says of it.

The module of a job is imported when the job is asked for, so that help, mistakes in a
configuration and commands that only look do not wait for torch.
"""

from collections.abc import Callable
from importlib import import_module
from types import ModuleType
from typing import Any

from save_dist.pipelines.context import Context, Summary

HELP = {
    "ingest": "Files of cells -> one TileDB-SOMA store of raw counts; or pin a store of others.",
    "blocks": "Store -> vocabulary: conditions, split, genes, gene blocks.",
    "train": "Store and vocabulary -> VAE, latents, flow, exported model (Ray Train).",
    "generate": "Model and declared grid -> Zarr atlas of virtual cells (Ray Data).",
    "transfer": "Model and real cells -> the same cells under another condition.",
    "evaluate": "Atlas and held-back real cells -> scores, floors, baselines, report.",
    "pipeline": "All of the above that make and judge an atlas, in order.",
    "sweep": "Trials of a training job under other settings, side by side -> which is best.",
}


def run(verb: str, config: Any, context: Context) -> Summary:
    """Do the job: the function of its name, in the module of its name."""
    job: Callable[[Any, Context], Summary] = getattr(_module(verb), verb)
    return job(config, context)


def preview(verb: str, config: Any) -> Summary:
    """What the job would do, nothing touched: `preview` in the module of its name."""
    look: Callable[[Any], Summary] = _module(verb).preview
    return look(config)


def _module(verb: str) -> ModuleType:
    return import_module(f"save_dist.pipelines.{verb}")
