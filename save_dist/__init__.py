"""Distributed training and atlas-scale generation of virtual single cells with SAVE.

>>> import save_dist
>>> model = save_dist.load("runs/demo/model")  # doctest: +SKIP
>>> cells = model.generate({"condition": "stim", "cell_type": "B"}, 100)  # doctest: +SKIP
>>> atlas = save_dist.open_atlas("runs/demo/atlas.zarr")  # doctest: +SKIP
>>> cells = atlas.select(condition="stim", cell_type="CD*")  # doctest: +SKIP
"""

from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from save_dist.api import Model
    from save_dist.generation.atlas_view import Atlas


def load(path: str | Path) -> "Model":
    """Read an exported model folder (`RUN/model`); see `save_dist.api.Model`."""
    from save_dist.api import load as load_model  # torch is imported with the first model

    return load_model(path)


def open_atlas(store: Any, *, incomplete: bool = False) -> "Atlas":
    """Open a generated atlas (`RUN/atlas.zarr`, a URL, a zarr store), lazily and without torch.

    See `save_dist.generation.atlas_view.Atlas`; `incomplete` opens one that lacks cells.
    """
    from save_dist.generation.atlas_view import Atlas  # zarr and dask come with the first atlas

    return Atlas(store, incomplete=incomplete)
