"""Two ranks that agree on gradients, beside two processes that do not know of each other."""

import json
import socket
from collections.abc import Iterator
from pathlib import Path
from statistics import median

import numpy as np
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from fitting.steps import Clock, take_steps
from generation.figures import Line, share
from model_step import read_preset

from save_dist.config.schema import TrainingConfig
from save_dist.training.ranks import Ranks

N_STEPS = {"demo": 200, "paper": 8}


def ranks(folder: Path, repeats: int) -> Iterator[Line]:
    """Cells per second of two DDP ranks over those of two independent processes."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    mp.start_processes(on_rank, (port, folder, repeats), nprocs=2, start_method="spawn")
    for name in N_STEPS:
        found = [json.loads((folder / f"{name}-{rank}.json").read_text()) for rank in range(2)]
        for clock, goal in (("wall", ">= 0.90, idle cores"), ("cpu", "(waiting is not in it)")):
            together, apart = (
                [sum(rates) for rates in zip(*(f[f"{side} {clock}"] for f in found), strict=True)]
                for side in ("together", "apart")
            )
            ratios = [a / b for a, b in zip(together, apart, strict=True)]
            what = (
                f"{name}: cells/s of 2 ranks in those of 2 processes ({median(apart):.0f}), {clock}"
            )
            yield Line(what, share(ratios), goal)


def on_rank(rank: int, port: int, folder: Path, repeats: int) -> None:
    """One process; it takes both sides in turn, together with the other one."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=2)
    for name in N_STEPS:
        rates: dict[str, list[float]] = {}
        for repeat in range(repeats):
            place = folder / f"{name}-{repeat}"
            sides = {"together": Ranks(rank, 2), "apart": Ranks()}
            for side, ranks in sides.items():
                found = rates_of(name, ranks, place / f"{side}-{ranks.world_size}-{rank}")
                for clock, value in found.items():
                    rates.setdefault(f"{side} {clock}", []).append(value)
        (folder / f"{name}-{rank}.json").write_text(json.dumps(rates))
    dist.destroy_process_group()


def rates_of(name: str, ranks: Ranks, place: Path) -> dict[str, float]:
    """Cells per wall and per CPU second of this process, from the second report on."""
    preset, clock = read_preset(name), Clock()
    n_cells, n_steps = preset.part_of(preset.vae.optim)[0], N_STEPS[name]
    every = max(1, n_steps // 8)
    dist.barrier()
    training = TrainingConfig(log_every_steps=every)
    take_steps(preset, place, clock, training, n_steps=n_steps, n_cells=n_cells, ranks=ranks)
    laps = {"wall": np.diff(clock.wall)[1:], "cpu": np.diff(clock.cpu)[1:]}
    return {kind: every * n_cells / float(np.median(times)) for kind, times in laps.items()}
