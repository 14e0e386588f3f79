"""Distributed training and atlas-scale generation of virtual single cells with SAVE.

>>> import save_dist
>>> model = save_dist.load("runs/demo/model")  # doctest: +SKIP
>>> cells = model.generate({"condition": "stim", "cell_type": "B"}, 100)  # doctest: +SKIP
"""

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from save_dist.api import Model


def load(path: str | Path) -> "Model":
    """Read an exported model folder (`RUN/model`); see `save_dist.api.Model`."""
    from save_dist.api import load as load_model  # torch is imported with the first model

    return load_model(path)
