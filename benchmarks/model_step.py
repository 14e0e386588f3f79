"""How many cells per CPU-second do the networks train, decode and sample?

Every row also says which share of the machine's own fp32 matrix-product rate, measured between the
rows, its arithmetic reaches. Run from the project root, on an otherwise idle core:

    OMP_NUM_THREADS=1 python benchmarks/model_step.py [demo] [paper]

On CUDA, seconds are wall seconds, and rows for bf16 and torch.compile are added.
"""

import statistics
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from save_dist.config.load import load
from save_dist.config.schema import BlocksJob, FlowConfig, TrainJob, VaeConfig
from save_dist.flow.guidance import guided
from save_dist.flow.path import straight_path
from save_dist.flow.solver import integrate
from save_dist.models.vae import Vae, VaeShape
from save_dist.models.velocity import Velocity, make_flow_velocity

CONFIGS = Path(__file__).parents[1] / "configs"
ALL_GENES = 19_112  # a preset without `genes.n_top` takes all genes; the paper had these
SIZES, COLUMNS = (2, 8), ("condition", "cell_type")
MATMUL = 1024
SECONDS_PER_ROW = 1.5
Network = Callable[..., Any]
DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")


@dataclass(frozen=True)
class Preset:
    """One configuration and the minibatch it is measured with."""

    name: str
    n_genes: int
    genes_per_block: int
    vae: VaeConfig
    flow: FlowConfig

    @property
    def n_cells(self) -> int:
        """Cells per minibatch: the preset's own, less on a CPU for wide networks."""
        if DEVICE.type == "cpu" and self.vae.width > 128:
            return 64
        return self.vae.optim.cells_per_step


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
    for preset in map(read_preset, names or ["demo", "paper"]):
        print(f"\n{preset.name}: {preset.n_genes} genes, minibatch {preset.n_cells}, {DEVICE}")
        print(f"{'part':<16}{'mode':<18}{'cells/s':>10}{'MFLOP/cell':>12}{'matmul share':>14}")
        for mode in modes():
            for part, work in parts(preset, mode):
                rate, flops = measure(work, preset.n_cells)
                share = rate * flops / matmul_rate(mode.dtype)
                print(f"{part:<16}{mode!s:<18}{rate:>10,.0f}{flops / 1e6:>12.1f}{share:>14.2f}")


def read_preset(name: str) -> Preset:
    """The networks of `configs/<name>`."""
    train = load(TrainJob, CONFIGS / name / "train.yaml")
    blocks = load(BlocksJob, CONFIGS / name / "blocks.yaml")
    n_genes = blocks.genes.n_top or ALL_GENES
    return Preset(name, n_genes, blocks.blocks.genes_per_block, train.vae, train.flow)


def modes() -> list[Mode]:
    """Single precision everywhere; half precision and the compiler where they pay."""
    plain = Mode(torch.float32, compiled=False)
    if DEVICE.type == "cpu":
        return [plain]
    return [plain, *(Mode(torch.bfloat16, compiled) for compiled in (False, True))]


def parts(preset: Preset, mode: Mode) -> Iterator[tuple[str, Callable[[], object]]]:
    """Name and one unit of work of each row; a unit handles one minibatch."""
    vae, cells = make_vae(preset)
    velocity = make_flow_velocity(preset.vae.latent_dim, SIZES, preset.flow).to(DEVICE)
    y = torch.randn(preset.n_cells, velocity.dim, device=DEVICE)
    t = torch.rand(preset.n_cells, device=DEVICE)
    codes, library = cells.codes, cells.counts.sum(1)
    yield "vae step", step_of(vae, mode, lambda net: elbo(net, cells))
    yield "flow step", step_of(velocity, mode, lambda net: flow_loss(net, y, t, codes))
    yield "encode", without_gradients(mode, lambda: vae.encode(cells.log_x, codes))
    yield "decode", without_gradients(mode, lambda: vae.decode(cells.noise, codes, library).mean)
    yield "sample latents", without_gradients(mode, lambda: sample(velocity, y, codes))


def make_vae(preset: Preset) -> tuple[Vae, Cells]:
    """A fresh VAE and a minibatch."""
    n_genes, n_cells, config = preset.n_genes, preset.n_cells, preset.vae
    n_blocks = -(-n_genes // preset.genes_per_block)
    members = torch.full((n_blocks * preset.genes_per_block,), -1)
    members[:n_genes] = torch.randperm(n_genes)
    fraction = torch.rand(n_genes) ** 4
    fraction /= fraction.sum()
    counts = torch.poisson(1500 * fraction.expand(n_cells, -1))
    log_x = torch.log1p(counts / counts.sum(1, keepdim=True) * 1e4)
    shape = VaeShape(members.view(n_blocks, -1), n_genes, SIZES, COLUMNS)
    vae = Vae(shape, config, log_x.amax(0).clamp_min(1), fraction).to(DEVICE)
    codes = torch.stack([torch.randint(0, n, (n_cells,)) for n in SIZES], dim=1)
    noise = torch.randn(n_cells, config.latent_dim)
    hidden = None
    if config.latent_mask is not None:
        n_tokens = config.latent_dim // config.latent_token_width
        hidden = (torch.rand(n_cells, n_tokens) < 0.3).to(DEVICE)
    return vae, Cells(
        log_x.to(DEVICE), counts.to(DEVICE), codes.to(DEVICE), noise.to(DEVICE), hidden
    )


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
    network: nn.Module, mode: Mode, loss: Callable[[Network], Tensor]
) -> Callable[[], None]:
    """One optimiser step: forward, backward, AdamW."""
    optimizer = torch.optim.AdamW(network.parameters(), lr=1e-4, fused=True)
    forward: Network = torch.compile(network) if mode.compiled else network

    def step() -> None:
        with autocast(mode):
            value = loss(forward)
        value.backward()  # type: ignore[no-untyped-call]  # torch's
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

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


def measure(work: Callable[[], object], n_cells: int) -> tuple[float, float]:
    """Cells per second (median over repeats) and counted operations per cell."""
    work()  # compiles
    with FlopCounterMode(display=False) as counter:
        work()
    times: list[float] = []
    while len(times) < 3 or sum(times) < SECONDS_PER_ROW:
        times.append(seconds(work))
    return n_cells / statistics.median(times), counter.get_total_flops() / n_cells


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
    return 2 * side**3 / statistics.median(seconds(lambda: a @ b) for _ in range(7))


if __name__ == "__main__":
    main(sys.argv[1:])
