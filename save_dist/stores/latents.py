"""Encoded training cells: posterior mean and variance, log library; the flow's data.

Row i belongs to training cell i of the cell index. Ranks write disjoint row regions with plain
file writes (no shared memory map: on a network disk two hosts may hold the same page) and leave
one record per region, last. A store whose records do not cover all rows does not open.
"""

import hashlib
import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float32
from numpy import ndarray

from save_dist.core.durable import digest, read_json, write_json
from save_dist.core.errors import CheckpointError

LAYOUT = "layout.json"
REGIONS = "regions"
_ARRAYS = ("mean", "var", "log_library")


@dataclass(frozen=True)
class LatentStore:
    """Encoded cells in a folder; `hash` is the digest of `about`."""

    folder: Path
    n_cells: int
    latent_dim: int
    about: dict[str, Any]

    @property
    def hash(self) -> str:
        """Identity of what was encoded with what: digest of `about`."""
        return digest(self.about)

    @classmethod
    def create(
        cls, folder: Path, n_cells: int, latent_dim: int, about: dict[str, Any]
    ) -> "LatentStore":
        """Allocate a store, or continue one of the same `about`. Called by one process.

        Args:
            folder: its place; a folder without a layout record is written anew.
            n_cells: training cells.
            latent_dim: length of z.
            about: JSON-able identity, e.g. hashes of the encoder and of the cell index.

        Raises:
            CheckpointError: if the folder holds latents of another identity.
        """
        store = cls(folder, n_cells, latent_dim, about)
        if (folder / LAYOUT).is_file():
            found = cls.attach(folder, expect=store.hash)
            found._check_shape(n_cells, latent_dim)
            return found
        shutil.rmtree(folder, ignore_errors=True)
        (folder / REGIONS).mkdir(parents=True)
        for name in _ARRAYS:
            array = np.lib.format.open_memmap(
                store._file(name), mode="w+", dtype=np.float32, shape=store._shape(name)
            )
            array.flush()
        facts = {"n_cells": n_cells, "latent_dim": latent_dim, "about": about}
        write_json(folder / LAYOUT, facts)
        return store

    @classmethod
    def attach(cls, folder: Path, *, expect: str) -> "LatentStore":
        """A store that may be incomplete, for the processes that write regions.

        Raises:
            CheckpointError: if it does not exist or has another hash.
        """
        if not (folder / LAYOUT).is_file():
            raise CheckpointError(f"{folder} holds no latents ({LAYOUT} is absent); encode first")
        store = cls(folder, **read_json(folder / LAYOUT))
        if store.hash != expect:
            raise CheckpointError(
                f"latents in {folder} have hash {store.hash}, expected {expect}: they come from "
                "another encoder or other cells; remove the folder to encode again"
            )
        return store

    @classmethod
    def open(cls, folder: Path, *, expect: str, verify: bool = True) -> "LatentStore":
        """A complete store, for reading.

        Args:
            folder: its place.
            expect: digest of the `about` it was created with.
            verify: also compare every row with the digest in its record.

        Raises:
            CheckpointError: if rows are missing or altered, or the hash differs.
        """
        store = cls.attach(folder, expect=expect)
        if missing := store.missing():
            start, stop = missing[0]
            raise CheckpointError(
                f"latents in {folder} are incomplete: {len(missing)} row range(s) missing, the "
                f"first is {start}..{stop} of {store.n_cells}; encode again, it continues"
            )
        if verify:
            store._verify()
        return store

    @property
    def mean(self) -> Float32[ndarray, "cell latent"]:
        """Posterior means, memory-mapped."""
        return self._map("mean")

    @property
    def var(self) -> Float32[ndarray, "cell latent"]:
        """Posterior variances, memory-mapped."""
        return self._map("var")

    @property
    def log_library(self) -> Float32[ndarray, " cell"]:
        """Natural log of each cell's total counts over the model's genes, memory-mapped."""
        return self._map("log_library")

    def write(
        self,
        start: int,
        *,
        mean: Float32[ndarray, "cell latent"],
        var: Float32[ndarray, "cell latent"],
        log_library: Float32[ndarray, " cell"],
    ) -> None:
        """Write rows from `start` on; rows that are already recorded stay as they are."""
        stop = start + len(mean)
        assert 0 <= start < stop <= self.n_cells, (start, stop, self.n_cells)
        rows = dict(zip(_ARRAYS, (mean, var, log_library), strict=True))
        for first, last in self.missing(start, stop):
            for name, values in rows.items():
                self._write_rows(name, first, values[first - start : last - start])

    def commit_region(self, start: int, stop: int) -> None:
        """Sync rows [start, stop), all written before, and record them."""
        for name in _ARRAYS:
            with self._file(name).open("rb") as file:
                os.fsync(file.fileno())
        for first, last in self.missing(start, stop):
            record = {"digest": self._digest(first, last)}
            write_json(self.folder / REGIONS / f"{first:012d}-{last:012d}.json", record)

    def has_region(self, start: int, stop: int) -> bool:
        """Whether rows [start, stop) are all recorded."""
        return not self.missing(start, stop)

    def missing(self, start: int = 0, stop: int | None = None) -> list[tuple[int, int]]:
        """Row ranges within [start, stop) without a record, ascending; `stop` None: to the end."""
        end = self.n_cells if stop is None else stop
        gaps, at = [], start
        for first, last in self._regions():
            if at < min(first, end):
                gaps.append((at, min(first, end)))
            at = max(at, last)
        return [*gaps, (at, end)] if at < end else gaps

    def _regions(self) -> list[tuple[int, int]]:
        names = (path.stem.split("-") for path in (self.folder / REGIONS).glob("[0-9]*.json"))
        return sorted((int(first), int(last)) for first, last in names)

    def _verify(self) -> None:
        for first, last in self._regions():
            record = read_json(self.folder / REGIONS / f"{first:012d}-{last:012d}.json")
            if (found := self._digest(first, last)) != record["digest"]:
                raise CheckpointError(
                    f"rows {first}..{last} of {self.folder} have digest {found}, expected "
                    f"{record['digest']}: altered or torn; remove the folder to encode again"
                )

    def _digest(self, start: int, stop: int) -> str:
        sha = hashlib.sha256()
        for name in _ARRAYS:
            sha.update(np.ascontiguousarray(self._map(name)[start:stop]).data)
        return sha.hexdigest()

    def _check_shape(self, n_cells: int, latent_dim: int) -> None:
        if (self.n_cells, self.latent_dim) != (n_cells, latent_dim):
            raise CheckpointError(
                f"latents in {self.folder} are {self.n_cells} x {self.latent_dim}, expected "
                f"{n_cells} x {latent_dim}; remove the folder to encode again"
            )

    def _shape(self, name: str) -> tuple[int, ...]:
        return (self.n_cells,) if name == "log_library" else (self.n_cells, self.latent_dim)

    def _file(self, name: str) -> Path:
        return self.folder / f"{name}.npy"

    def _map(self, name: str) -> ndarray:
        array: ndarray = np.load(self._file(name), mmap_mode="r", allow_pickle=False)
        return array

    def _write_rows(self, name: str, start: int, values: ndarray) -> None:
        assert values.shape[1:] == self._shape(name)[1:], (name, values.shape)
        data = np.ascontiguousarray(values, dtype=np.float32)
        row_bytes = data.nbytes // len(data)
        header = self._file(name).stat().st_size - self.n_cells * row_bytes
        with self._file(name).open("r+b") as file:
            file.seek(header + start * row_bytes)
            file.write(data.tobytes())
