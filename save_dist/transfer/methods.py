"""Ways to put real cells under another condition. Each gives what the decoder then reads.

- `reencode`: a cell keeps its latent and library size; the decoder alone is told the target
  (SAVE 4.3 for batches, 4.4 for perturbations).
- `transport`: the latent is carried along the control-as-source flow (docs/adr/0007), decoded with
  anchor and mean matching; one column after the other where several change.
- `inversion`: back along the flow to noise under the cell's own condition, forth under the target.
- `latent_shift`: the mean change of the latent among training cells is added (scGen).

Legend: N cells, D latent, G genes.
"""

from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Float32, Int64, UInt64
from numpy import ndarray
from torch import Tensor

from save_dist.config.schema import ComposeConfig, GuidanceConfig, SolverConfig
from save_dist.core.errors import ConfigError, listed
from save_dist.core.seeding import normals
from save_dist.generation.compose import Composer
from save_dist.generation.latents import (
    DecoderInput,
    carry,
    check_finite,
    standardise,
    stream,
    through_noise,
    unstandardise,
)
from save_dist.generation.routes import Routes, check_composable
from save_dist.models.vae import Posterior
from save_dist.stores.bundle import ModelBundle
from save_dist.vocab.transports import Codes

Ends = tuple[Codes, Codes]
"""The combination a cell comes from, and the one it is taken to."""


class Cells(NamedTuple):
    """Real cells, and where they are to go."""

    log_x: Float32[ndarray, "cell gene"]
    library: Float32[ndarray, " cell"]
    codes: Int64[ndarray, "cell field"]
    targets: Int64[ndarray, "cell field"]
    keys: UInt64[ndarray, " cell"]
    """One stream of random numbers per cell."""


class Moved(NamedTuple):
    """What the decoder reads of each cell besides its condition."""

    cells: DecoderInput
    offset: Float[Tensor, "cell gene"] | None = None
    """Added to the gene logits."""
    n_evaluations: int = 0
    """Evaluations of velocity networks."""


class MoveSettings(NamedTuple):
    """What methods may be told."""

    compose: ComposeConfig
    """Decoding of carried cells."""
    solver: SolverConfig
    """Of flow and transport."""


Method = Callable[[Cells], Moved]


class _Reencode:
    """Latent and library size stay."""

    def __init__(self, bundle: ModelBundle, settings: MoveSettings) -> None:
        self._bundle = bundle

    def __call__(self, cells: Cells) -> Moved:
        return Moved(_encoded(self._bundle, cells)[0])


class _Transport:
    """Carried along the transport; the library size is shifted (see `carry`).

    Where the transport was trained on draws from q(z|x), a draw is carried: its noise belongs to
    the cell's key. Several columns are changed in the order of the vocabulary; the constants of
    the last step decode.
    """

    def __init__(self, bundle: ModelBundle, settings: MoveSettings) -> None:
        check_composable(bundle.transport_columns, "method='transport'")
        assert bundle.transport is not None
        self._bundle, self._solver = bundle, settings.solver
        self._takes_draws = bundle.transport.config.target == "sample"
        routes = transport_routes(bundle, settings.compose.min_support)
        guidance = GuidanceConfig()
        self._composer = Composer(bundle, routes, settings.compose, guidance, settings.solver)

    def __call__(self, cells: Cells) -> Moved:
        own, posterior = _encoded(self._bundle, cells)
        if self._takes_draws:
            noise = torch.from_numpy(normals(stream(cells.keys, "latent"), own.latent.shape[1]))
            drawn = own.latent + posterior.var.sqrt() * noise.to(own.latent.device)
            own = DecoderInput(drawn, own.library)
        x, n_evaluations = standardise(self._bundle, own), 0
        offset = torch.zeros(cells.log_x.shape)
        for at, towards in _steps(cells.codes, cells.targets):
            rows = np.flatnonzero((at != towards).any(axis=1))
            course = self._composer.course_between(at[rows], towards[rows])
            carried = torch.from_numpy(rows).to(x.device)
            solution = carry(
                self._bundle, x[carried], course.told, course.library_shift, self._solver
            )
            x = x.index_copy(0, carried, solution.x_1)
            offset[rows] = course.offset
            n_evaluations += solution.n_evaluations
        moved = unstandardise(self._bundle, x)
        check_finite(self._bundle, cells.targets, moved)
        return Moved(moved, offset.to(x.device), n_evaluations)


class _Inversion:
    """Through the noise that a cell stands for; the library size goes the same way."""

    def __init__(self, bundle: ModelBundle, settings: MoveSettings) -> None:
        self._bundle, self._solver = bundle, settings.solver

    def __call__(self, cells: Cells) -> Moved:
        x = standardise(self._bundle, _encoded(self._bundle, cells)[0])
        solution = through_noise(self._bundle, x, cells.codes, cells.targets, self._solver)
        moved = unstandardise(self._bundle, solution.x_1)
        check_finite(self._bundle, cells.targets, moved)
        return Moved(moved, None, solution.n_evaluations)


class _LatentShift:
    """Latent plus the mean change that training cells of other combinations show."""

    def __init__(self, bundle: ModelBundle, settings: MoveSettings) -> None:
        if bundle.latent_means is None:
            raise ConfigError(
                "method='latent_shift', but the model folder holds no mean latents; run "
                "`save-dist train` on its run folder with this version, which exports it anew"
            )
        self._bundle, self._means = bundle, bundle.latent_means

    def __call__(self, cells: Cells) -> Moved:
        ends, inverse = _distinct(cells.codes, cells.targets)
        shifts = np.stack([self._shift(*pair) for pair in ends]).astype(np.float32)
        own, _ = _encoded(self._bundle, cells)
        moved = own.latent + torch.from_numpy(shifts[inverse]).to(own.latent.device)
        return Moved(DecoderInput(moved, own.library))

    def _shift(self, start: Codes, target: Codes) -> ndarray:
        shift = self._means.shift(start, target)
        if shift is None:
            known = self._bundle.conditions
            raise ConfigError(
                f"method='latent_shift': no two seen combinations show the change from "
                f"{known.decode_one(start)} to {known.decode_one(target)}; choose a change that "
                "training cells show, or another method"
            )
        return shift


METHODS: dict[str, Callable[[ModelBundle, MoveSettings], Method]] = {
    "reencode": _Reencode,
    "transport": _Transport,
    "inversion": _Inversion,
    "latent_shift": _LatentShift,
}


def method_of(name: str, bundle: ModelBundle, ends: Iterable[Ends]) -> str:
    """The method that is meant for cells with these ends: `auto` is settled here, once for all.

    Raises:
        ConfigError: if no transport carries all of them where one is asked for.
    """
    if name not in ("auto", "transport"):
        return name
    columns = bundle.transport_columns
    if name == "transport":
        check_composable(columns, "method='transport'")
    routes = transport_routes(bundle)
    stuck = next((pair for pair in ends if not _is_carried(routes, *pair)), None)
    if stuck is None and columns:
        return "transport"
    if name == "auto":
        return "reencode"
    assert stuck is not None, "a model with transports carries everything else"
    start, target = (bundle.conditions.decode_one(codes) for codes in stuck)
    raise ConfigError(
        f"no transport carries cells from {start} to {target}: every cell must be at the "
        f"reference of one of {listed(columns)} and change in transported columns alone, to values "
        "seen in training; choose other cells or method='reencode'"
    )


def transport_routes(bundle: ModelBundle, min_support: int = 1) -> Routes:
    """The ways along which the model can carry cells."""
    return Routes(bundle.conditions, bundle.support, bundle.transport_columns, min_support)


def posterior_of(
    bundle: ModelBundle,
    log_x: Float32[ndarray, "cell gene"],
    codes: Int64[ndarray, "cell field"],
) -> Posterior:
    """Law of the latent of every cell, on the device of the model."""
    device = next(bundle.vae.parameters()).device
    with torch.inference_mode():
        return bundle.vae.encode(
            torch.from_numpy(log_x).to(device), torch.from_numpy(codes).to(device)
        )


def _encoded(bundle: ModelBundle, cells: Cells) -> tuple[DecoderInput, Posterior]:
    """Mean latent and own library size, and the law the mean is of."""
    posterior = posterior_of(bundle, cells.log_x, cells.codes)
    library = torch.from_numpy(cells.library).to(posterior.mean.device)
    return DecoderInput(posterior.mean, library), posterior


def _is_carried(routes: Routes, start: Codes, target: Codes) -> bool:
    """Whether transports lead all the way; a cell that is there already is not carried."""
    ways = list(_single_steps(start, target))
    return bool(ways) and all(routes.between(*way) is not None for way in ways)


def _single_steps(start: Codes, target: Codes) -> Iterator[Ends]:
    """One column after the other."""
    at = start
    for column, code in enumerate(target):
        if at[column] != code:
            towards = (*at[:column], code, *at[column + 1 :])
            yield at, towards
            at = towards


def _steps(
    codes: Int64[ndarray, "cell field"], targets: Int64[ndarray, "cell field"]
) -> Iterator[tuple[Int64[ndarray, "cell field"], Int64[ndarray, "cell field"]]]:
    """The combinations that cells pass on their way, column by column; some may stay in a step."""
    at = codes
    for column in np.flatnonzero((codes != targets).any(axis=0)):
        towards = at.copy()
        towards[:, column] = targets[:, column]
        yield at, towards
        at = towards


def _distinct(
    codes: Int64[ndarray, "cell field"], targets: Int64[ndarray, "cell field"]
) -> tuple[list[Ends], Int64[ndarray, " cell"]]:
    """Every pair of ends once, and which of them is each cell's."""
    both, inverse = np.unique(np.concatenate([codes, targets], axis=1), axis=0, return_inverse=True)
    n = codes.shape[1]
    return [(tuple(row[:n]), tuple(row[n:])) for row in both.tolist()], inverse.ravel()
