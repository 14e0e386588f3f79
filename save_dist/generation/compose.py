"""Unseen combinations: control cells from noise, carried along a transport, decoded with care.

Two constants per combination, found from cells with seeds of their own, correct the gene logits:

- the anchor: how far decoded control cells are from the real ones, log(real / decoded) per gene,
  trusted as far as the gene was counted;
- mean matching: the mean of carried cells is moved part of the way to the control mean plus the
  change that similar cells show.

They are a function of model, combination and settings, so every worker finds the same numbers.
"""

from collections.abc import Callable
from functools import lru_cache
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float32, Float64, Int64, UInt64
from numpy import ndarray
from torch import Tensor

from save_dist.config.schema import ComposeConfig, GuidanceConfig, SolverConfig
from save_dist.core.seeding import cell_keys
from save_dist.data.transforms import log_normalise
from save_dist.generation.draw import draw_counts
from save_dist.generation.latents import (
    carry,
    check_finite,
    flow_from_noise,
    stream,
    unstandardise,
)
from save_dist.generation.routes import Route, Routes
from save_dist.stores.bundle import ModelBundle
from save_dist.stores.profiles import Profiles, Shift, evidence, similarity_shift
from save_dist.vocab.transports import Codes

TRUST_COUNTS = 10.0
"""Counts of a gene in the real control cells at which half of its anchor is believed."""
_FLOOR = 0.01  # of mean log expression, so that silent genes do not run away
_MOST_OFFSETS = 4096  # combinations whose constants a worker keeps; parts go through them in order


class Course(NamedTuple):
    """How the cells of a minibatch come about."""

    start: Int64[ndarray, "cell field"]
    """Labels that the flow is given."""
    carried: Int64[Tensor, " carried"]
    """Positions of the cells that are then carried along the transport, ascending."""
    told: Int64[Tensor, "carried column"]
    """What the transport is told of each of these."""
    library_shift: Float32[Tensor, " carried"]
    """Added to their log library sizes."""
    offset: Float32[Tensor, "cell gene"]
    """Added to the gene logits; 0 for cells that are not carried."""


class Composer:
    """Routes and decoding constants of one model and one set of settings.

    Args:
        bundle: model with a transport.
        routes: of the same model.
        config: how carried cells are decoded.
        guidance: of the flow.
        solver: of flow and transport.
    """

    def __init__(
        self,
        bundle: ModelBundle,
        routes: Routes,
        config: ComposeConfig,
        guidance: GuidanceConfig,
        solver: SolverConfig,
    ) -> None:
        assert bundle.transport is not None, "the plan has checked it"
        self.routes = routes
        self._bundle, self._transport = bundle, bundle.transport
        self._config, self._guidance, self._solver = config, guidance, solver
        self.offset = lru_cache(_MOST_OFFSETS)(self._offset)
        """Added to the gene logits of a combination reached by a route; the same for all cells."""

    def course(self, codes: Int64[ndarray, "cell field"]) -> Course | None:
        """What becomes of a minibatch; None if every cell of it goes direct."""
        combinations, inverse = np.unique(codes, axis=0, return_inverse=True)
        known = [tuple(row) for row in combinations.tolist()]
        routes = [self.routes.of(row) for row in known]
        if not any(route.is_composed for route in routes):
            return None
        return self._course(known, routes, inverse.ravel())

    def course_between(
        self, codes: Int64[ndarray, "cell field"], targets: Int64[ndarray, "cell field"]
    ) -> Course:
        """What carries each cell from its combination to its target, where a transport leads."""
        both = np.concatenate([codes, targets], axis=1)
        combinations, inverse = np.unique(both, axis=0, return_inverse=True)
        n_fields = codes.shape[1]
        ends = [(tuple(row[:n_fields]), tuple(row[n_fields:])) for row in combinations.tolist()]
        ways = (self.routes.between(start, target) for start, target in ends)
        routes = [way for way in ways if way is not None]
        assert len(routes) == len(ends), "the caller has checked that a transport leads there"
        return self._course([target for _, target in ends], routes, inverse.ravel())

    def _course(
        self, known: list[Codes], routes: list[Route], inverse: Int64[ndarray, " cell"]
    ) -> Course:
        carried = np.flatnonzero(np.array([route.is_composed for route in routes])[inverse])
        told = [self._told(route, row) for route, row in zip(routes, known, strict=True)]
        offsets = np.stack([self.offset(r, row) for r, row in zip(routes, known, strict=True)])
        shifts = [self._library_shift(r, row) for r, row in zip(routes, known, strict=True)]
        return Course(
            start=np.array([route.start for route in routes], np.int64)[inverse],
            carried=torch.from_numpy(carried),
            told=torch.tensor(told)[inverse[carried]],
            library_shift=torch.tensor(shifts, dtype=torch.float32)[inverse[carried]],
            offset=torch.from_numpy(offsets[inverse]),
        )

    def _told(self, route: Route, codes: Codes) -> tuple[int, ...]:
        if route.column is None:
            return (0,) * len(self._transport.references)  # never read
        return self._transport.told(route.column, codes[route.column])

    def _offset(self, route: Route, codes: Codes) -> Float32[ndarray, " gene"]:
        if route.column is None or route.start not in self._transport.profiles.rows:
            return np.zeros(len(self._bundle.genes), dtype=np.float32)
        cells = _Cells.make(
            self._bundle,
            route,
            codes,
            self._library_shift(route, codes),
            self._config,
            self._guidance,
            self._solver,
        )
        offset = np.zeros(len(self._bundle.genes))
        if self._config.anchor:
            offset += cells.anchor(self._transport.profiles)
        if self._config.blend > 0 and (shift := self._shift(route, codes)) is not None:
            mean = self._transport.profiles.log_of(route.start) + shift.log_profile
            offset = cells.matched(offset, mean, self._config)
        return offset.astype(np.float32)

    def _library_shift(self, route: Route, codes: Codes) -> float:
        shift = None if route.column is None else self._shift(route, codes)
        return 0.0 if shift is None else shift.log_library

    def _shift(self, route: Route, codes: Codes) -> Shift | None:
        """The change that similar combinations show; None where too few cells show any.

        None, too, for a start that is no single combination (a column is masked): it has no
        profile to compare with.
        """
        transport, column = self._transport, route.column
        assert column is not None
        if route.start not in transport.profiles.rows:
            return None
        pairs = evidence(transport.profiles, transport.pairs, column, codes[column])
        if not pairs:
            return None
        name = self._bundle.conditions.columns[column]
        temperature = transport.temperatures[name]
        return similarity_shift(transport.profiles, pairs, route.start, temperature)


class _Cells(NamedTuple):
    """The cells that the constants of one combination are found from."""

    bundle: ModelBundle
    route: Route
    codes: Codes
    keys: UInt64[ndarray, " cell"]
    control: Float32[Tensor, "cell standardised"]
    carried: Float32[Tensor, "cell standardised"]

    @classmethod
    def make(
        cls,
        bundle: ModelBundle,
        route: Route,
        codes: Codes,
        library_shift: float,
        config: ComposeConfig,
        guidance: GuidanceConfig,
        solver: SolverConfig,
    ) -> "_Cells":
        assert bundle.transport is not None
        assert route.column is not None
        index = np.arange(config.n_cells, dtype=np.int64)
        keys = cell_keys(0, "composed_constants", bundle.conditions.identity(codes), index)
        start = np.tile(np.array(route.start, np.int64), (config.n_cells, 1))
        told = torch.tensor([bundle.transport.told(route.column, codes[route.column])])
        with torch.inference_mode():
            control = flow_from_noise(bundle, start, keys, guidance, solver).x_1
            shift = torch.full((config.n_cells,), library_shift)
            carried = carry(bundle, control, told.expand(config.n_cells, -1), shift, solver).x_1
            check_finite(bundle, start, unstandardise(bundle, carried))
        return cls(bundle, route, codes, keys, control, carried)

    def anchor(self, profiles: Profiles) -> Float64[ndarray, " gene"]:
        """Logits that turn the decoded control profile into the real one."""
        mean, _ = self._decoded(self.control, self.route.start, None)
        decoded = mean.sum(axis=0, dtype=np.float64)
        total = profiles.total_counts(self.route.start)
        trust = total / (total + TRUST_COUNTS)
        # a gene without a count has no trust, whatever its logarithm
        real = np.maximum(total, 1e-12) / max(float(total.sum()), 1.0)
        decoded = np.maximum(decoded / decoded.sum(), 1e-12)
        out: ndarray = trust * np.log(real / decoded)
        return out

    def matched(
        self,
        offset: Float64[ndarray, " gene"],
        mean: Float64[ndarray, " gene"],
        config: ComposeConfig,
    ) -> Float64[ndarray, " gene"]:
        """Logits under which the mean log profile lies between these cells' own and `mean`."""
        own = self._mean_log(offset)
        goal = np.maximum((1 - config.blend) * own + config.blend * mean, 0.0)
        return match_mean(self._mean_log, offset, goal, config.n_iterations)

    def _mean_log(self, offset: Float64[ndarray, " gene"]) -> Float64[ndarray, " gene"]:
        """Mean log profile of counts drawn from the carried cells; the same draws every time."""
        mean, theta = self._decoded(self.carried, self.codes, offset)
        counts = draw_counts(mean, theta, stream(self.keys, "counts"))
        out: ndarray = log_normalise(counts.astype(np.float32)).mean(axis=0, dtype=np.float64)
        return out

    def _decoded(
        self,
        x: Float32[Tensor, "cell standardised"],
        codes: Codes,
        offset: Float64[ndarray, " gene"] | None,
    ) -> tuple[Float32[ndarray, "cell gene"], Float32[ndarray, "#cell gene"]]:
        """Expected counts and inverse dispersions under a condition."""
        with torch.inference_mode():
            latent, library = unstandardise(self.bundle, x)
            condition = torch.tensor([codes], device=x.device).expand(len(x), -1)
            logits = None
            if offset is not None:
                logits = torch.from_numpy(offset.astype(np.float32)).to(x.device)
            px = self.bundle.vae.decode(latent, condition, library, logit_offset=logits)
            return px.mean.float().cpu().numpy(), px.inverse_dispersion.float().cpu().numpy()


def match_mean(
    profile: Callable[[Float64[ndarray, " gene"]], Float64[ndarray, " gene"]],
    offset: Float64[ndarray, " gene"],
    goal: Float64[ndarray, " gene"],
    n_iterations: int,
) -> Float64[ndarray, " gene"]:
    """Gene logits to add so that cells have a given mean log profile, by fixed-point steps.

    With counts scaled by c, E log1p grows by at most min(1, E log1p) per unit of log c, so a step
    of max(1, found) * log(goal / found) does not overshoot.

    Args:
        profile: mean log-normalised expression of the cells under an offset.
        offset: where to start.
        goal: mean log-normalised expression wanted.
        n_iterations: steps.
    """
    for _ in range(n_iterations):
        found = profile(offset)
        ratio = np.log((goal + _FLOOR) / (found + _FLOOR))
        offset = offset + np.maximum(found, 1.0) * ratio
    return offset
