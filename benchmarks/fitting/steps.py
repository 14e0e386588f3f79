"""The training loop on minibatches that are there already: what is not networks is seen."""

import contextlib
import itertools
import multiprocessing
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
from generation.figures import Line, share
from model_step import Preset, make_cells, make_codes, make_vae, read_preset

from save_dist.config.schema import CheckpointConfig, TrainingConfig
from save_dist.data.stream import CellBatch
from save_dist.stores.checkpoint import CheckpointStore
from save_dist.tracking.mlflow import Mirror, sync
from save_dist.tracking.tracker import Journal
from save_dist.training.loop import FitInput, fit
from save_dist.training.ranks import Ranks
from save_dist.training.steps import Draws, VaeStage

UNREACHABLE = "http://127.0.0.1:9"
TRACKED_STEPS = 400


class Clock:
    """Notes when steps are reported; writes them to a journal, too, if there is one."""

    def __init__(self, journal: Journal | None = None) -> None:
        self._journal = journal
        self.wall: list[float] = []
        self.cpu: list[float] = []

    def metrics(self, stage: str, values: Mapping[str, float], step: int) -> None:
        """A step was taken."""
        self.wall.append(time.perf_counter())
        self.cpu.append(time.process_time())
        if self._journal is not None:
            self._journal.child(stage).metrics(values, step)


def take_steps(
    preset: Preset,
    folder: Path,
    clock: Clock,
    training: TrainingConfig,
    *,
    n_steps: int,
    n_cells: int,
    ranks: Ranks,
) -> None:
    """Steps of the preset's VAE on `n_cells` cells of this rank, the same in every step."""
    torch.manual_seed(0)
    part = min(n_cells, preset.part_of(preset.vae.optim)[0])
    optim = preset.vae.optim.model_copy(
        update={
            "n_steps": n_steps,
            "cells_per_step": n_cells * ranks.world_size,
            "n_accumulation": n_cells // part,
        }
    )
    stage = VaeStage(make_vae(preset), preset.vae, Draws(0, n_cells))
    cells = make_cells(preset, n_cells)
    codes, numbers = make_codes(n_cells).numpy(), np.arange(n_cells)
    counts, log_x = cells.counts.numpy(), cells.log_x.numpy()

    def minibatches(start: int, stop: int) -> Iterator[CellBatch]:
        for step in range(start, stop):
            lanes = (ranks.rank,)
            yield CellBatch(step, lanes, numbers, numbers, codes, counts, log_x, counts.sum(1))

    inputs = FitInput(stage, minibatches, n_cells, None)
    with CheckpointStore.open(folder, 1) as store:
        fit(inputs, optim, training, store, clock, ranks, {"config_hash": "benchmark"})


def checkpoints(folder: Path, repeats: int) -> Iterator[Line]:
    """Every other step follows a checkpoint, which is copied before and written during it."""
    preset = read_preset("paper")
    n_cells, clock = preset.vae.optim.cells_per_step, Clock()
    training = TrainingConfig(log_every_steps=1, checkpoint=CheckpointConfig(every_steps=2))
    n_steps = 2 * repeats + 3
    take_steps(preset, folder, clock, training, n_steps=n_steps, n_cells=n_cells, ranks=Ranks())
    n_bytes = sum(p.stat().st_size for p in folder.rglob("tensors.safetensors"))
    every = 1000  # of configs/paper
    for kind, times in (("wall", clock.wall), ("cpu", clock.cpu)):
        steps = np.diff(times)[1:]  # from step 2 to 3 there is the first checkpoint
        after, plain = steps[0::2][:repeats], steps[1::2][:repeats]
        ratios = [a / b - 1 for a, b in zip(after, plain, strict=True)]
        what = f"paper: a step of {median(plain):.1f} s with a checkpoint of {n_bytes / 1e6:.0f} MB"
        yield Line(f"{what}, {kind}", f"+{share([100 * r for r in ratios])}%", "<= 5%")
        yield Line(
            f"the same over the {every} steps between checkpoints, {kind}",
            f"+{100 * median(ratios) / every:.4f}%",
            "<= 5%",
        )


# ---------------------------------------------------------------- tracking


def tracking(folder: Path, repeats: int) -> Iterator[Line]:
    """Steps whose journal another process mirrors, as the driver of a job does, and without it."""
    preset = read_preset("demo")
    places: dict[str, str | None] = {"alone": "", "to a database": None, "down": UNREACHABLE}
    laps: dict[str, list[float]] = {name: [] for name in places}
    shares: dict[str, list[float]] = {name: [] for name in places}
    for repeat, (name, uri) in itertools.product(range(repeats), places.items()):
        run = folder / f"{repeat}-{name.replace(' ', '-')}"
        run.mkdir()
        journal, training = Journal(run / "metrics.jsonl"), TrainingConfig(log_every_steps=20)
        journal.start()
        clock, n_cells = Clock(journal), preset.vae.optim.cells_per_step
        with mirrored(journal.path, uri) as mirror_cpu:
            take_steps(
                preset,
                run / "checkpoints",
                clock,
                training,
                n_steps=TRACKED_STEPS,
                n_cells=n_cells,
                ranks=Ranks(),
            )
        laps[name].append(median(np.diff(clock.wall)))
        shares[name].append(mirror_cpu.value / (clock.cpu[-1] - clock.cpu[0]))
    for name in ("to a database", "down"):
        ratios = [100 * (a / b - 1) for a, b in zip(laps[name], laps["alone"], strict=True)]
        what = f"demo: 20 steps ({median(laps['alone']):.2f} s) with MLflow {name}, wall"
        yield Line(what, f"{share(ratios)}%", "<= +2%")
        what = f"CPU seconds of the mirror in those of a rank, MLflow {name}"
        yield Line(what, f"{share([100 * s for s in shares[name]])}%", "(on a core of its own)")


@contextlib.contextmanager
def mirrored(journal: Path, uri: str | None) -> Iterator[Any]:
    """A connected mirror in a process of its own, none for an empty address; its CPU seconds."""
    context = multiprocessing.get_context("spawn")
    ready, end, cpu = context.Event(), context.Event(), context.Value("d", 0.0)
    if uri == "":
        yield cpu
        return
    process = context.Process(target=_mirror, args=(journal, uri, ready, end, cpu))
    process.start()
    try:
        assert ready.wait(120), "the mirror did not start"
        yield cpu
    finally:
        end.set()
        process.join()


def _mirror(journal: Path, uri: str | None, ready: Any, end: Any, cpu: Any) -> None:
    if uri is None:
        sync(journal, uri, "benchmark")  # makes the database, once
    else:
        import mlflow  # noqa: F401  # as costly as some hundred steps, once
    started = time.process_time()
    with Mirror(journal, uri, "benchmark"):
        ready.set()
        end.wait()
    cpu.value = time.process_time() - started
