"""Names a store: small, hashable, sent to workers. Opens nothing."""

import dataclasses
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class StoreLocator:
    """Where a store is and which of its matrices is meant; small, hashable, sent to workers."""

    uri: str
    timestamp: int | None = None
    """Milliseconds since 1970: the store as it was then. None: as it is now."""
    measurement: str = "RNA"
    layer: str = "raw"
    gene_column: str | None = None
    """Column of var that names the genes; None: the first known one."""
    cell_column: str | None = None
    """Column of obs that names the cells; None: the first known one, else the joinid."""
    value_filter: str | None = None
    """Cells that count as the store's; None: all."""
    tiledb: tuple[tuple[str, str], ...] = ()
    """Settings of TileDB by name; credentials are never among them."""

    def to_json(self, root: Path) -> dict[str, Any]:
        """A store inside `root`, the run folder, is named relative to it: run folders move."""
        facts = dataclasses.asdict(self)
        if not is_remote(self.uri) and Path(self.uri).absolute().is_relative_to(root.absolute()):
            facts["uri"] = os.path.relpath(self.uri, root)
        return facts

    @classmethod
    def from_json(cls, facts: dict[str, Any], root: Path) -> "StoreLocator":
        """Workers have another working folder: paths are made whole."""
        uri = facts["uri"]
        whole = uri if is_remote(uri) else str((root / uri).resolve())
        settings = tuple((name, value) for name, value in facts.get("tiledb", ()))
        return cls(**{**facts, "uri": whole, "tiledb": settings})


def is_remote(uri: str) -> bool:
    """Whether a store lies in an object store rather than in a folder."""
    return "://" in uri and not uri.startswith("file://")
