"""Two processes that train together over gloo."""

import socket

import torch.distributed as dist
import torch.multiprocessing as mp


def run_on_two_ranks(work, folder):
    """`work(rank, folder)` in two processes of one group; raises what either of them raises."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    mp.start_processes(_join, (work, port, folder), nprocs=2, start_method="spawn")


def _join(rank, work, port, folder):
    dist.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=2)
    work(rank, folder)
    dist.destroy_process_group()
