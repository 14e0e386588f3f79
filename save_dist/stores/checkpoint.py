"""Durable training state: one published folder per step, the newest whole one wins.

A checkpoint is `step-00000200/` with `tensors.safetensors`, `about.json` and the manifest that
carries their sha256. Only one process writes a folder (rank 0); any number may read it.
"""

import json
import logging
import shutil
from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from types import TracebackType
from typing import Any

from safetensors.torch import load_file, save_file
from torch import Tensor

from save_dist.core.durable import (
    publish_folder,
    read_json,
    recover_folder,
    verify_folder,
    write_json,
)
from save_dist.core.errors import CheckpointError, InfrastructureError
from save_dist.stores.checkpoint_facts import ABOUT, FORMAT, CheckpointFacts, migrated

logger = logging.getLogger(__name__)

TENSORS = "tensors.safetensors"
_SPARE_BYTES = 2**20


@dataclass(frozen=True)
class Checkpoint:
    """Training state after `step` optimiser steps; tensors are on the CPU."""

    step: int
    tensors: dict[str, Tensor]
    about: dict[str, Any]


class CheckpointStore(CheckpointFacts):
    """Checkpoints of one training stage.

    Args:
        folder: where the step folders live.
        keep: newest checkpoints kept after a save.
        expect: `config_hash` that stored checkpoints must carry; None accepts any.
    """

    def __init__(self, folder: Path, keep: int, *, expect: str | None = None) -> None:
        super().__init__(folder)
        self._keep = keep
        self._expect = expect
        self._writer = ThreadPoolExecutor(1, thread_name_prefix="checkpoint")
        self._pending: Future[Path] | None = None

    @classmethod
    def open(cls, folder: Path, keep: int, *, expect: str | None = None) -> "CheckpointStore":
        """A store for the one process that writes: what killed saves left is cleared away."""
        folder.mkdir(parents=True, exist_ok=True)
        for left in sorted(folder.glob(".step-*")):
            if left.suffix == ".old":
                recover_folder(folder / left.stem.removeprefix("."))
            logger.warning("event=checkpoint_leftover_cleared folder=%s", left)
            shutil.rmtree(left, ignore_errors=True)
        return cls(folder, keep, expect=expect)

    def __enter__(self) -> "CheckpointStore":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None
    ) -> None:
        try:
            self.close()
        except Exception:
            if error is None:
                raise
            logger.exception("event=checkpoint_failed")  # the first error is the one to see

    def save(self, step: int, tensors: Mapping[str, Tensor], about: Mapping[str, Any]) -> Path:
        """Write a checkpoint and wait for it; older ones beyond `keep` are removed.

        Args:
            step: finished optimiser steps.
            tensors: on any device; copied.
            about: JSON-able facts with at least `config_hash`.

        Raises:
            InfrastructureError: if the disk is full or refuses; older checkpoints stay.
        """
        self.wait()
        return self._write(step, _snapshot(tensors), dict(about))

    def save_async(
        self,
        step: int,
        tensors: Mapping[str, Tensor],
        about: Mapping[str, Any],
        *,
        keep_step: int | None = None,
    ) -> None:
        """Copy the state to the CPU, then write it in the background.

        Waits for the previous save first and raises its error, if it had one. `keep_step` is
        kept beside the newest ones, however old it is.
        """
        self.wait()
        self._pending = self._writer.submit(
            self._write, step, _snapshot(tensors), dict(about), keep_step
        )

    def wait(self) -> None:
        """Until nothing is being written; raises the error of a background save."""
        pending, self._pending = self._pending, None
        if pending is not None:
            pending.result()

    def close(self) -> None:
        """Finish a background save and stop the writer thread."""
        try:
            self.wait()
        finally:
            self._writer.shutdown()

    def newest(self) -> Checkpoint | None:
        """The newest checkpoint that is whole; torn ones are skipped with a warning.

        Raises:
            CheckpointError: if it was made under another configuration than expected, or by a
                later version of this package.
        """
        for step in reversed(self.steps()):
            try:
                found = self._read(step)
            except (CheckpointError, OSError) as e:
                logger.warning("event=checkpoint_skipped step=%d reason=%r", step, str(e))
                continue
            return self._accepted(found)
        return None

    def load(self, step: int) -> Checkpoint:
        """The checkpoint of one step.

        Raises:
            CheckpointError: if it is absent, torn, or was made under another configuration or by
                a later version of this package.
        """
        return self._accepted(self._read(step))

    def _read(self, step: int) -> Checkpoint:
        place = self._place(step)
        verify_folder(place)
        return Checkpoint(step, load_file(place / TENSORS), read_json(place / ABOUT))

    def _accepted(self, found: Checkpoint) -> Checkpoint:
        """Refused, not skipped: an older checkpoint in its place would undo work unnoticed."""
        about = migrated(found.about, self._place(found.step))
        self._check_config(found)
        return replace(found, about=about)

    def _check_config(self, found: Checkpoint) -> None:
        theirs = found.about["config_hash"]
        if self._expect is not None and theirs != self._expect:
            raise CheckpointError(
                f"{self._place(found.step)} was made with config hash {theirs}, this run has "
                f"{self._expect}; restore the settings, use another run folder, or remove "
                f"{self._folder} to start again"
            )

    def _write(
        self,
        step: int,
        tensors: dict[str, Tensor],
        about: dict[str, Any],
        keep_step: int | None = None,
    ) -> Path:
        assert "config_hash" in about, "resume compares it"
        place = self._place(step)
        n_bytes = sum(t.nbytes for t in tensors.values())
        self._check_space(n_bytes + len(json.dumps(about)) + _SPARE_BYTES)
        with publish_folder(place, {"step": step}) as aside:
            save_file(tensors, aside / TENSORS)
            write_json(aside / ABOUT, {**about, "format": FORMAT})
        logger.info("event=checkpoint_saved step=%d bytes=%d folder=%s", step, n_bytes, place)
        self._prune(step, keep_step)
        return place

    def _check_space(self, needed: int) -> None:
        self._folder.mkdir(parents=True, exist_ok=True)
        free = shutil.disk_usage(self._folder).free
        if free < needed:
            raise InfrastructureError(
                f"a checkpoint in {self._folder} needs {needed} bytes, the disk has {free}; "
                "free space and run again, training continues from the last checkpoint"
            )

    def _prune(self, step: int, keep_step: int | None) -> None:
        """Keep the newest up to `step`; a later one was skipped on resume, hence is torn."""
        kept = [s for s in self.steps() if s <= step][-self._keep :]
        for old in set(self.steps()) - {*kept, keep_step}:
            shutil.rmtree(self._place(old), ignore_errors=True)


def flatten_optimizer(
    state: Mapping[str, Any],
) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """An optimiser's `state_dict` as tensors "<parameter>.<name>" and a JSON-able rest."""
    tensors: dict[str, Tensor] = {}
    numbers: dict[str, Any] = {}
    for parameter, values in state["state"].items():
        for name, value in values.items():
            place = tensors if isinstance(value, Tensor) else numbers
            place[f"{parameter}.{name}"] = value
    return tensors, {"param_groups": state["param_groups"], "numbers": numbers}


def unflatten_optimizer(tensors: Mapping[str, Tensor], rest: Mapping[str, Any]) -> dict[str, Any]:
    """The `state_dict` that `flatten_optimizer` took apart."""
    state: dict[int, dict[str, Any]] = {}
    for key, value in {**tensors, **rest["numbers"]}.items():
        parameter, _, name = key.partition(".")
        state.setdefault(int(parameter), {})[name] = value
    return {"state": state, "param_groups": rest["param_groups"]}


def _snapshot(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Own, contiguous CPU copies: training may go on changing the originals."""
    return {name: t.detach().to("cpu", copy=True).contiguous() for name, t in tensors.items()}
