"""Ray Train around the training stages: process group, restarts, nothing else.

Durability is ours (checkpoints in the run folder), so Ray keeps no checkpoints and a restarted
worker group finds its way from the newest whole one.
"""

import contextlib
import dataclasses
import json
import logging
import shutil
import threading
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch

from save_dist.cluster import runtime
from save_dist.cluster.supervision import Foreman, Orders
from save_dist.config.schema import (
    ClusterConfig,
    FlowConfig,
    ReflowConfig,
    TrainingConfig,
    TransportConfig,
    VaeConfig,
)
from save_dist.core import errors
from save_dist.core.background import beside
from save_dist.core.durable import write_json
from save_dist.core.errors import InfrastructureError, SaveDistError
from save_dist.tracking.progress import Progress, Task
from save_dist.tracking.tracker import Journal, open_journal, parse_record
from save_dist.training.plan import TrainPlan
from save_dist.training.ranks import Ranks
from save_dist.training.run import run_stages, steps_left

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class JournalReporter:
    """Every rank writes a journal of its own; rank 0 writes the run's, too."""

    own: Journal
    of_run: Journal | None

    @classmethod
    def of(cls, plan: TrainPlan, ranks: Ranks, of_run: Journal) -> "JournalReporter":
        """The reporter of one rank."""
        own = open_journal(plan.paths.rank_metrics(ranks.rank))
        own = dataclasses.replace(own, attempt=of_run.attempt)
        return cls(own, of_run if ranks.is_first else None)

    def metrics(self, stage: str, values: Mapping[str, float], step: int) -> None:
        """Append one record."""
        self.own.child(stage).metrics(values, step)
        if self.of_run is not None:
            self.of_run.child(stage).metrics(values, step)


def fit(plan: TrainPlan, config: ClusterConfig, journal: Journal, progress: Progress) -> None:
    """Run the stages on `config.n_workers` DDP ranks; returns when all are finished.

    Raises:
        DivergedError, CheckpointError, DataError: what a rank raised on purpose.
        StoppedError: at the wall-clock limit or on SIGTERM; the same command continues.
        InfrastructureError: if workers kept failing; the same command continues.
    """
    hours = plan.training.max_hours
    orders = Orders(
        folder=_failure_folder(plan),
        deadline_s=None if hours is None else time.time() + 3600 * hours,
        step_limit_s=config.collective_timeout_s,
    )
    _clear_failures(plan)
    # the session first: a starting Ray takes SIGTERM for itself
    with runtime.session(config), orders.obeyed(config.grace_s):
        with _shown(plan, journal.path, progress):
            _run_trainer(plan, config, journal, orders)
        _raise_failures(plan)


def worker_counts(config: ClusterConfig) -> int | tuple[int, int]:
    """Number of ranks as Ray takes it: one, or the fewest and the most."""
    return (
        config.n_workers if config.min_workers is None else (config.min_workers, config.n_workers)
    )


def _run_trainer(plan: TrainPlan, config: ClusterConfig, journal: Journal, orders: Orders) -> None:
    import ray.train
    from ray.train.torch import TorchConfig, TorchTrainer
    from ray.train.v2.api.exceptions import TrainingFailedError

    storage = plan.paths.scratch / "ray"
    trainer = TorchTrainer(
        _work,
        train_loop_config=_to_json(plan, config, journal, orders),
        torch_config=TorchConfig(timeout_s=int(config.collective_timeout_s)),
        scaling_config=ray.train.ScalingConfig(
            num_workers=worker_counts(config),
            use_gpu=config.gpus_per_worker > 0,
            resources_per_worker=_resources(config),
        ),
        run_config=ray.train.RunConfig(
            # a name of its own: what Ray remembers of an earlier attempt is never consulted
            name=f"attempt-{journal.attempt}-{time.time_ns()}",
            storage_path=str(storage.resolve()),
            failure_config=ray.train.FailureConfig(max_failures=config.max_failures),
            worker_runtime_env={"env_vars": runtime.worker_environment(config)},
        ),
    )
    try:
        trainer.fit()
    except TrainingFailedError as e:
        _raise_failures(plan)
        raise InfrastructureError(
            f"training workers failed more than cluster.max_failures={config.max_failures} "
            f"times; the last cause: {'; '.join(orders.stalls()) or str(e)[-500:]}. Run the same "
            "command to continue"
        ) from e
    finally:
        shutil.rmtree(storage, ignore_errors=True)


def _work(config: dict[str, Any]) -> None:
    """One rank. A failure on purpose is written down, not retried."""
    import ray.train
    import ray.train.torch

    plan, journal, orders = _from_json(config)
    if _failures(plan):
        return
    torch.set_num_threads(config["n_threads"])
    context = ray.train.get_context()
    ranks = Ranks(context.get_world_rank(), context.get_world_size())
    reporter = JournalReporter.of(plan, ranks, journal)
    foreman = Foreman(orders, ranks.rank)
    try:
        run_stages(plan, ranks, reporter, ray.train.torch.get_device(), foreman)
    except SaveDistError as e:
        if isinstance(e, InfrastructureError):
            raise
        _failure_folder(plan).mkdir(parents=True, exist_ok=True)
        facts = {"type": type(e).__name__, "message": str(e)}
        write_json(_failure_folder(plan) / f"rank-{ranks.rank}.json", facts)
        if not isinstance(e, (errors.DivergedError, errors.StoppedError)):
            raise  # the other ranks may be waiting: end them too; the restart finds the record


def _to_json(
    plan: TrainPlan, config: ClusterConfig, journal: Journal, orders: Orders
) -> dict[str, Any]:
    return {
        "root": str(plan.root.resolve()),
        "seed": plan.seed,
        "training": plan.training.model_dump(mode="json"),
        "vae": plan.vae.model_dump(mode="json"),
        "flow": plan.flow.model_dump(mode="json"),
        "reflow": plan.reflow.model_dump(mode="json"),
        "transport": plan.transport.model_dump(mode="json"),
        "vocabulary_hash": plan.vocabulary_hash,
        "attempt": journal.attempt,
        "deadline_s": orders.deadline_s,
        "step_limit_s": orders.step_limit_s,
        "n_threads": max(1, int(config.cpus_per_worker)),
    }


def _from_json(config: dict[str, Any]) -> tuple[TrainPlan, Journal, Orders]:
    plan = TrainPlan(
        root=Path(config["root"]),
        seed=config["seed"],
        training=TrainingConfig.model_validate(config["training"]),
        vae=VaeConfig.model_validate(config["vae"]),
        flow=FlowConfig.model_validate(config["flow"]),
        reflow=ReflowConfig.model_validate(config["reflow"]),
        transport=TransportConfig.model_validate(config["transport"]),
        vocabulary_hash=config["vocabulary_hash"],
    )
    journal = Journal(plan.paths.metrics, attempt=config["attempt"])
    orders = Orders(_failure_folder(plan), config["deadline_s"], config["step_limit_s"])
    return plan, journal, orders


def _resources(config: ClusterConfig) -> dict[str, float]:
    resources = {"CPU": config.cpus_per_worker}
    if config.gpus_per_worker > 0:
        resources["GPU"] = config.gpus_per_worker
    return resources


# ---------------------------------------------------------------- failures on purpose


def _failure_folder(plan: TrainPlan) -> Path:
    return plan.paths.scratch / "failures"


def _failures(plan: TrainPlan) -> list[Path]:
    return sorted(_failure_folder(plan).glob("rank-*.json"))


def _clear_failures(plan: TrainPlan) -> None:
    shutil.rmtree(_failure_folder(plan), ignore_errors=True)


def _raise_failures(plan: TrainPlan) -> None:
    """Raise what the first failed rank raised, as the class it was."""
    for path in _failures(plan):
        facts = json.loads(path.read_text())
        raise getattr(errors, facts["type"])(facts["message"])


# ---------------------------------------------------------------- progress


@contextlib.contextmanager
def _shown(plan: TrainPlan, metrics: Path, progress: Progress) -> Iterator[None]:
    """Bars that follow the journal while the workers write it."""
    with beside(partial(_follow, plan, metrics, progress), "progress"):
        yield


def _follow(plan: TrainPlan, metrics: Path, progress: Progress, stop: threading.Event) -> None:
    totals = _totals(plan)
    offset = metrics.stat().st_size if metrics.exists() else 0
    with contextlib.ExitStack() as shown:
        tasks: dict[str, Task] = {}
        while not stop.wait(0.5):
            if not tasks:
                first = plan.training.stages[0]
                tasks[first] = _start_task(shown, progress, first, totals[first])
            offset, records = _new_records(metrics, offset)
            for stage, step, loss in records:
                if stage not in tasks:
                    shown.pop_all().close()
                    tasks[stage] = _start_task(shown, progress, stage, totals[stage])
                tasks[stage].update(step, f"loss {loss:.4g}")


def _start_task(shown: contextlib.ExitStack, progress: Progress, stage: str, total: int) -> Task:
    return shown.enter_context(progress.task(f"training {stage}", total, "steps"))


def _new_records(metrics: Path, offset: int) -> tuple[int, list[tuple[str, int, float]]]:
    """Training losses appended since `offset`, and the new offset."""
    if not metrics.exists():
        return offset, []
    with metrics.open("rb") as file:
        file.seek(offset)
        data = file.read()
    whole = data[: data.rfind(b"\n") + 1]
    found = []
    for line in whole.splitlines():
        record = parse_record(line)
        if record and record.kind == "metrics" and "train/loss" in record.values:
            found.append((record.run, record.step or 0, float(record.values["train/loss"])))
    return offset + len(whole), found


def remaining(plan: TrainPlan) -> dict[str, int]:
    """Optimiser steps each stage still needs."""
    return {stage: steps_left(plan, stage) for stage in plan.training.stages}


def _totals(plan: TrainPlan) -> dict[str, int]:
    return {stage: plan.section(stage).optim.n_steps for stage in plan.training.stages}
