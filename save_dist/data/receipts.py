"""The small files beside a store that say what of it is finished."""

import shutil
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from save_dist.core.durable import read_json, write_json
from save_dist.core.errors import DataError

_FORMAT = 1


@dataclass(frozen=True)
class IngestSummary:
    """What a finished store holds."""

    n_cells: int
    n_genes: int
    nnz: int
    n_inputs: int
    key: str
    """Identity of the ingest: equal key, equal store."""
    label_origin: dict[str, str] = field(default_factory=dict)
    """obs column -> origin of its labels, for those that were not in the input files."""


class IngestReceipts:
    """One record per finished input, and one for the whole store.

    Args:
        uri: folder of the store.
        key: identity of the ingest: equal key, equal store.
    """

    def __init__(self, uri: Path, key: str) -> None:
        self.uri = uri
        self.key = key
        self.folder = uri.with_name(uri.name + ".receipts")

    def finished(self) -> IngestSummary | None:
        """The summary if this very ingest is complete; None if there is work left.

        Raises:
            DataError: if `uri` holds anything else than this ingest; nothing is touched.
        """
        if not self.uri.exists():
            return None
        plan = self.folder / "plan.json"
        found = read_json(plan)["key"] if plan.is_file() else "none"
        if found != self.key:
            raise DataError(
                f"{self.uri} holds the cells of another ingest (identity {found}, this one is "
                f"{self.key}): files or settings changed; remove {self.uri} and {self.folder}, "
                "or use another run.dir"
            )
        done = self.folder / "done.json"
        return IngestSummary(**read_json(done), key=self.key) if done.is_file() else None

    def begin(self) -> None:
        """Set up the folder; records without a store are dropped.

        Raises:
            InfrastructureError: if the place cannot be written.
        """
        if not self.uri.exists():
            shutil.rmtree(self.folder, ignore_errors=True)
        write_json(self.folder / "plan.json", {"key": self.key, "format": _FORMAT})

    def of_input(self, position: int) -> dict[str, Any] | None:
        """The record of a finished input."""
        path = self._input_path(position)
        return read_json(path) if path.is_file() else None

    def obs_path(self, position: int) -> Path:
        """Where obs of an input waits until it is written."""
        return self.folder / f"{position:06d}.obs.arrow"

    def add_input(self, position: int, record: dict[str, Any]) -> None:
        """Say that an input is written in full."""
        write_json(self._input_path(position), record)
        self.obs_path(position).unlink(missing_ok=True)

    def finish(self, summary: IngestSummary) -> None:
        """Say that the store is complete."""
        facts = asdict(summary)
        del facts["key"]  # stands in plan.json
        write_json(self.folder / "done.json", facts)

    def _input_path(self, position: int) -> Path:
        return self.folder / f"{position:06d}.json"
