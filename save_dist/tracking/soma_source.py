"""How MLflow names a TileDB-SOMA experiment as the source of a dataset.

Registered under the entry point group `mlflow.dataset_source`, without which MLflow refuses a
`soma://` source. MLflow itself loads this module; nothing else imports it early.
"""

from typing import Any

from mlflow.data.dataset_source import DatasetSource

SCHEME = "soma://"


class SomaDatasetSource(DatasetSource):
    """A SOMA experiment by its URI, `soma://` in front and `?timestamp=MS` behind where known."""

    def __init__(self, uri: str) -> None:
        self.uri = uri if uri.startswith(SCHEME) else f"{SCHEME}{uri}"

    @staticmethod
    def _get_source_type() -> str:
        return "soma"

    def load(self) -> str:
        """The URI as TileDB-SOMA opens it; the cells themselves are never pulled by MLflow."""
        return self.uri.removeprefix(SCHEME)

    @staticmethod
    def _can_resolve(raw_source: Any) -> bool:
        return isinstance(raw_source, str) and raw_source.startswith(SCHEME)

    @classmethod
    def _resolve(cls, raw_source: Any) -> "SomaDatasetSource":
        return cls(raw_source)

    def to_dict(self) -> dict[str, Any]:
        """What MLflow stores."""
        return {"uri": self.uri}

    @classmethod
    def from_dict(cls, source_dict: dict[Any, Any]) -> "SomaDatasetSource":
        """Rebuilt from what MLflow stores."""
        return cls(source_dict["uri"])
