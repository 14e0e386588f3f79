"""How many cells per CPU-second do the networks train, decode and sample?

Every row also says which share of the machine's own fp32 matrix-product rate, measured between its
repeats, its matrix products reach. A training step is the loop's own: forward and backward of each
part of the preset's minibatch, clipping, AdamW and averaged weights. Run from the project root, on
an otherwise idle core:

    OMP_NUM_THREADS=1 python benchmarks/model_step.py [demo] [compose] [paper]

On CUDA, seconds are wall seconds, and rows for bf16 and torch.compile are added.
"""

import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from save_dist.config.load import load
from save_dist.config.schema import (
    BlocksJob,
    FlowConfig,
    GenerateJob,
    OptimConfig,
    TrainJob,
    VaeConfig,
)
from save_dist.core.memory import keep_freed_memory
from save_dist.flow.guidance import guided
from save_dist.flow.path import straight_path
from save_dist.flow.solver import integrate
from save_dist.models.vae import Vae, VaeShape
from save_dist.models.velocity import Velocity, make_flow_velocity
from save_dist.training.optim import make_average, make_optimizer

CONFIGS = Path(__file__).parents[1] / "configs"
N_ENCODED = 1024  # cells that training encodes at a time
WIDE_PART = 64
ALL_GENES = 19_112  # a preset without `genes.n_top` takes all genes; the paper had these
SIZES, COLUMNS = (2, 8), ("condition", "cell_type")
MATMUL = 1024
SECONDS_PER_ROW, SECONDS_PER_REPEAT = 2.0, 0.2
Network = Callable[..., Any]
DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")


@dataclass(frozen=True)
class Preset:
    """One configuration and its minibatches."""

    name: str
    n_genes: int
    genes_per_block: int
    vae: VaeConfig
    flow: FlowConfig
    n_sampled: int
    """Cells sampled and decoded at a time."""

    def part_of(self, optim: OptimConfig) -> tuple[int, int]:
        """Cells of one forward and backward pass, and passes per step.

        The preset's own, but that wide networks on a CPU take their minibatch in parts of 64:
        what passes between their layers then stays in the cache.
        """
        n_cells = optim.cells_per_step // optim.n_accumulation
        if DEVICE.type == "cpu" and self.vae.width > 128:
            n_cells = min(n_cells, WIDE_PART)
        return n_cells, optim.cells_per_step // n_cells


class Row(NamedTuple):
    """One line of the table."""

    part: str
    n_cells: int
    work: Callable[[], object]


class Cells(NamedTuple):
    """One minibatch of the VAE."""

    log_x: Tensor
    counts: Tensor
    codes: Tensor
    noise: Tensor
    hidden_tokens: Tensor | None


@dataclass(frozen=True)
class Mode:
    """How a row computes."""

    dtype: torch.dtype
    compiled: bool

    def __str__(self) -> str:
        return str(self.dtype).removeprefix("torch.") + (" compiled" if self.compiled else "")


def main(names: list[str]) -> None:
    """Print one table per preset."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    keep_freed_memory()  # as training does
    for preset in map(read_preset, names or ["demo", "paper"]):
        print(f"\n{preset.name}: {preset.n_genes} genes, {DEVICE}")
        head = f"{'cells':>6}{'cells/s':>10}{'MFLOP/cell':>12}{'matmul share':>14}"
        print(f"{'part':<16}{'mode':<18}{head}")
        for mode in modes():
            for row in rows(preset, mode):
                rate, flops, share = measure(row, mode)
                numbers = f"{row.n_cells:>6}{rate:>10,.0f}{flops / 1e6:>12.1f}{share:>14.2f}"
                print(f"{row.part:<16}{mode!s:<18}{numbers}")


def read_preset(name: str) -> Preset:
    """The networks of `configs/<name>`."""
    train = load(TrainJob, CONFIGS / name / "train.yaml")
    blocks = load(BlocksJob, CONFIGS / name / "blocks.yaml")
    n_genes = blocks.genes.n_top or ALL_GENES
    n_sampled = load(GenerateJob, CONFIGS / name / "generate.yaml").output.cells_per_minibatch
    genes_per_block = blocks.blocks.genes_per_block
    return Preset(name, n_genes, genes_per_block, train.vae, train.flow, n_sampled)


def modes() -> list[Mode]:
    """Single precision everywhere; half precision and the compiler where they pay."""
    plain = Mode(torch.float32, compiled=False)
    if DEVICE.type == "cpu":
        return [plain]
    return [plain, *(Mode(torch.bfloat16, compiled) for compiled in (False, True))]


def rows(preset: Preset, mode: Mode) -> Iterator[Row]:
    """What is measured, one after the other."""
    vae = make_vae(preset)
    velocity = make_flow_velocity(preset.vae.latent_dim, SIZES, preset.flow).to(DEVICE)

    n_cells, n_parts = preset.part_of(preset.vae.optim)
    cells = make_cells(preset, n_cells)
    step = step_of(vae, mode, preset.vae.optim, n_parts, lambda net: elbo(net, cells))
    yield Row("vae step", n_cells * n_parts, step)

    n_cells, n_parts = preset.part_of(preset.flow.optim)
    y, t = torch.randn(n_cells, velocity.dim, device=DEVICE), torch.rand(n_cells, device=DEVICE)
    codes = make_codes(n_cells)
    loss = partial(flow_loss, x_1=y, t=t, codes=codes)
    yield Row(
        "flow step",
        n_cells * n_parts,
        step_of(velocity, mode, preset.flow.optim, n_parts, loss),
    )

    cells = make_cells(preset, N_ENCODED)
    encode = partial(vae.encode, cells.log_x, cells.codes)
    yield Row("encode", N_ENCODED, without_gradients(mode, encode))

    n_cells = preset.n_sampled
    x_0, codes = torch.randn(n_cells, velocity.dim, device=DEVICE), make_codes(n_cells)
    z, library = x_0[:, 1:], torch.full((n_cells,), 1500.0, device=DEVICE)
    decode = without_gradients(mode, lambda: vae.decode(z, codes, library).mean)
    yield Row("decode", n_cells, decode)
    yield Row(
        "sample latents", n_cells, without_gradients(mode, lambda: sample(velocity, x_0, codes))
    )


def make_vae(preset: Preset) -> Vae:
    """A fresh VAE."""
    n_genes, config = preset.n_genes, preset.vae
    n_blocks = -(-n_genes // preset.genes_per_block)
    members = torch.full((n_blocks * preset.genes_per_block,), -1)
    members[:n_genes] = torch.randperm(n_genes)
    shape = VaeShape(members.view(n_blocks, -1), n_genes, SIZES, COLUMNS)
    scale = torch.full((n_genes,), 4.0)
    return Vae(shape, config, scale, gene_fractions(n_genes)).to(DEVICE)


def gene_fractions(n_genes: int) -> Tensor:
    """Uneven shares: of 1000 genes, 55% of the counts are 0; of the demo's, 63%."""
    fraction = torch.rand(n_genes) ** 4
    return fraction / fraction.sum()


def make_cells(preset: Preset, n_cells: int) -> Cells:
    """A minibatch."""
    config = preset.vae
    counts = torch.poisson(1500 * gene_fractions(preset.n_genes).expand(n_cells, -1))
    log_x = torch.log1p(counts / counts.sum(1, keepdim=True) * 1e4)
    noise = torch.randn(n_cells, config.latent_dim)
    hidden = None
    if config.latent_mask is not None:
        n_tokens = config.latent_dim // config.latent_token_width
        hidden = (torch.rand(n_cells, n_tokens) < 0.3).to(DEVICE)
    return Cells(log_x.to(DEVICE), counts.to(DEVICE), make_codes(n_cells), noise.to(DEVICE), hidden)


def make_codes(n_cells: int) -> Tensor:
    """Conditions of a minibatch."""
    return torch.stack([torch.randint(0, n, (n_cells,)) for n in SIZES], dim=1).to(DEVICE)


def elbo(vae: Network, cells: Cells) -> Tensor:
    """The VAE's loss."""
    log_x, counts, codes, noise, hidden_tokens = cells
    loss = vae(log_x, counts, codes, codes, noise, hidden_tokens)
    total: Tensor = (loss.reconstruction + loss.kl).mean()
    return total


def flow_loss(velocity: Network, x_1: Tensor, t: Tensor, codes: Tensor) -> Tensor:
    """Flow matching loss against fresh noise."""
    x_t, u_t = straight_path(torch.randn_like(x_1), x_1, t)
    loss: Tensor = (velocity(x_t, t, codes) - u_t).square().mean()
    return loss


def sample(velocity: Velocity, x_0: Tensor, codes: Tensor) -> Tensor:
    """Noise to latents with the default solver: midpoint, 5 steps, 10 evaluations."""
    field = guided(velocity, codes, velocity.sizes)
    return integrate(field, x_0, method="midpoint", n_steps=5, tolerance=1e-5).x_1


def step_of(
    network: nn.Module,
    mode: Mode,
    config: OptimConfig,
    n_parts: int,
    loss: Callable[[Network], Tensor],
) -> Callable[[], None]:
    """One optimiser step as the training loop takes it."""
    optimizer = make_optimizer(network.parameters(), config)
    average = make_average(network, config)
    forward: Network = torch.compile(network) if mode.compiled else network

    def step() -> None:
        for _ in range(n_parts):
            with autocast(mode):
                value = loss(forward) / n_parts
            value.backward()  # type: ignore[no-untyped-call]  # torch's
        float(nn.utils.clip_grad_norm_(network.parameters(), config.clip_norm))
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        average.update_parameters(network)

    return step


def without_gradients(mode: Mode, work: Callable[[], object]) -> Callable[[], object]:
    """`work` as generation runs it."""

    def run() -> object:
        with torch.inference_mode(), autocast(mode):
            return work()

    return run


def autocast(mode: Mode) -> torch.autocast:
    """Mixed precision where the mode asks for it."""
    return torch.autocast(DEVICE.type, dtype=torch.bfloat16, enabled=mode.dtype != torch.float32)


def measure(row: Row, mode: Mode) -> tuple[float, float, float]:
    """Cells per second, counted operations per cell, and share of the matrix-product rate.

    Medians over repeats, each of them next to a matrix product of its own and long enough that what
    that product threw out of the cache does not count.
    """
    row.work()  # compiles
    n_calls = max(1, round(SECONDS_PER_REPEAT / seconds(row.work)))
    with FlopCounterMode(display=False) as counter:
        row.work()
    n_flops = counter.get_total_flops()
    times, shares = [], []
    while len(times) < 3 or sum(times) * n_calls < SECONDS_PER_ROW:
        times.append(seconds(lambda: repeat(row.work, n_calls)) / n_calls)
        shares.append(n_flops / times[-1] / matmul_rate(mode.dtype))
    return row.n_cells / median(times), n_flops / row.n_cells, median(shares)


def repeat(work: Callable[[], object], n_calls: int) -> None:
    """Once and again."""
    for _ in range(n_calls):
        work()


def seconds(work: Callable[[], object]) -> float:
    """CPU seconds of this process, or wall seconds on CUDA."""
    if DEVICE.type == "cpu":
        start = time.process_time()
        work()
        return time.process_time() - start
    torch.cuda.synchronize()
    start = time.perf_counter()
    work()
    torch.cuda.synchronize()
    return time.perf_counter() - start


def matmul_rate(dtype: torch.dtype) -> float:
    """Operations per second of one large matrix product."""
    side = MATMUL if DEVICE.type == "cpu" else 8 * MATMUL
    a, b = torch.randn(2, side, side, device=DEVICE, dtype=dtype)
    return 2 * side**3 / median(seconds(lambda: a @ b) for _ in range(3))


if __name__ == "__main__":
    main(sys.argv[1:])
