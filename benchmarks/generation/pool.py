"""Parts that a private Ray hands out, beside the same parts in a loop, and by number of workers."""

import contextlib
import time
from collections.abc import Iterable, Iterator
from statistics import median

from generation.figures import Arguments, Line, cost
from generation.networks import begin, make_model, make_plan, run_networks, run_parts

from save_dist.cluster import runtime
from save_dist.cluster.generate import generate
from save_dist.config.schema import ClusterConfig, SolverConfig
from save_dist.generation.grid import GridPlan
from save_dist.stores import atlas
from save_dist.stores.bundle import load_bundle

SECONDS_PER_PART = 2.0


def ray(args: Arguments) -> Iterator[Line]:
    """The same parts in a loop of one process, and handed out by Ray Data to one actor."""
    make_model(args, "demo")
    ratios, paces = [], []
    for repeat in range(args.repeats):
        plan = timed_plan(args, n_parts=8)
        worker = begin(args.folder / f"loop{repeat}", args.folder / "demo" / "model", plan)
        paces.append(pace((time.perf_counter() for _ in run_parts(worker, plan)), 1))
        ratios.append(ray_pace(args, plan, f"ray{repeat}", 1) / paces[-1] - 1)
    what = f"Ray overhead at {median(paces):.1f} s per part, once actors stand"
    yield Line(what, f"{100 * median(ratios):.1f}%", "<= 5%")


def workers(args: Arguments) -> Iterator[Line]:
    """Wall time per part with two actors and with one."""
    make_model(args, "demo")
    ratios = []
    for repeat in range(args.repeats):
        plan = timed_plan(args, n_parts=12)
        one, two = (ray_pace(args, plan, f"{repeat}-{n}", n) for n in (1, 2))
        ratios.append(one / two)
    yield Line("2 workers against 1, cells/s", f"{median(ratios):.2f} x", ">= 1.8 x, idle cores")


def timed_plan(args: Arguments, n_parts: int) -> GridPlan:
    """Parts of 256 cells, with as many steps as make one part last 2 s (scaled)."""
    model = load_bundle(args.folder / "demo" / "model")
    n_steps = 5
    for _ in range(2):
        solver = SolverConfig(method="midpoint", n_steps=n_steps)
        plan = make_plan(model.facts, 16 * n_parts, solver, 256, 256)
        seconds = cost(lambda plan=plan: run_networks(model, plan, n_parts=1)).wall
        n_steps = max(1, round(n_steps * SECONDS_PER_PART * args.size / seconds))
    return make_plan(
        model.facts, 16 * n_parts, SolverConfig(method="midpoint", n_steps=n_steps), 256, 256
    )


def ray_pace(args: Arguments, plan: GridPlan, name: str, n_workers: int) -> float:
    """Wall seconds per part, from an atlas that Ray's actors fill."""
    path = args.folder / name / "atlas.zarr"
    atlas.create_template(path, plan.layout(), {})
    config, clock = ClusterConfig(address="local", n_workers=n_workers), Clock()
    parts, model = range(plan.n_parts), args.folder / "demo" / "model"
    with runtime.shared_session():
        outcomes = generate(parts, plan.n_cells, model, path, config, clock)
    assert not any(outcome.error for outcome in outcomes), outcomes
    return pace(clock.times, n_workers)


class Clock:
    """Notes when parts are reported."""

    def __init__(self) -> None:
        self.times: list[float] = []

    @contextlib.contextmanager
    def task(self, title: str, total: int | None, unit: str) -> Iterator["Clock"]:
        """One for all."""
        yield self

    def update(self, done: int, text: str = "", total: int | None = None) -> None:
        """A part was reported."""
        self.times.append(time.perf_counter())


def pace(times: Iterable[float], n_workers: int) -> float:
    """Seconds per part after the first two parts of every worker, when all are under way."""
    first, *rest = list(times)[2 * n_workers - 1 :]
    return (rest[-1] - first) / len(rest)
