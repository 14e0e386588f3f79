"""What every rank of a training run knows, and the identity of each stage."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from save_dist.config.schema import (
    FlowConfig,
    OptimConfig,
    ReflowConfig,
    TrainingConfig,
    TransportConfig,
    VaeConfig,
)
from save_dist.core.durable import digest
from save_dist.core.paths import RunPaths
from save_dist.data.balance import Balance
from save_dist.data.partition import StreamPlan
from save_dist.data.splits import CellIndex

StageConfig = VaeConfig | FlowConfig | ReflowConfig | TransportConfig


@dataclass(frozen=True)
class TrainPlan:
    """What every rank needs to know; small, and the same on all of them."""

    root: Path
    seed: int
    training: TrainingConfig
    vae: VaeConfig
    flow: FlowConfig
    reflow: ReflowConfig
    transport: TransportConfig
    vocabulary_hash: str

    @property
    def paths(self) -> RunPaths:
        """Places of the run."""
        return RunPaths(self.root)

    def hash_of(self, stage: str) -> str:
        """Identity of a stage: all that decides its weights, the stages it builds on among them.

        Intervals of logging and checkpoints, the cache and the number of ranks are not in it.
        Stopping is if it decides anything; then the interval of validation does, too.
        """
        stream = self.training.stream.model_dump(mode="json", exclude={"cache_bytes", "cache_dir"})
        facts = {
            "seed": self.seed,
            "stream": stream,
            "vae": self.vae.model_dump(mode="json"),
            "vocabulary": self.vocabulary_hash,
        }
        stopping = self.training.stopping
        if stopping.patience is not None or stopping.export == "best":
            every = self.training.validate_every_steps
            facts["stopping"] = {"every": every, **stopping.model_dump(mode="json")}
        for own in ("flow", "reflow") if stage == "reflow" else (stage,):
            facts[own] = self.section(own).model_dump(mode="json")
        return digest(facts)

    @property
    def flow_stage(self) -> str:
        """The stage whose weights are the flow of the exported model."""
        return "reflow" if "reflow" in self.training.stages else "flow"

    def section(self, stage: str) -> StageConfig:
        """Settings of a stage."""
        sections: dict[str, StageConfig] = {
            "vae": self.vae,
            "flow": self.flow,
            "reflow": self.reflow,
            "transport": self.transport,
        }
        return sections[stage]


def make_stream_plan(plan: TrainPlan, optim: OptimConfig, n_cells: int) -> StreamPlan:
    """Order of the cells of one stage."""
    stream = plan.training.stream
    return StreamPlan(
        n_cells=n_cells,
        cells_per_step=optim.cells_per_step,
        rows_per_chunk=stream.rows_per_chunk,
        chunks_per_pool=stream.chunks_per_pool,
        n_lanes=stream.n_lanes,
        seed=plan.seed,
    )


def make_balance(plan: TrainPlan, index: CellIndex) -> Balance | None:
    """Draws of an epoch over the cells of `index`; None if every cell comes once."""
    exponent = plan.training.stream.balance
    return None if exponent == 1 else Balance(np.asarray(index.codes), exponent, plan.seed)
