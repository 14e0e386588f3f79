"""The roots, one per job, and what must hold between their sections."""

import math

from pydantic import model_validator

from save_dist.config.schema.base import ClusterConfig, RunConfig, Section, TrackingConfig
from save_dist.config.schema.cells import (
    BlocksConfig,
    ConditionsConfig,
    GenesConfig,
    IngestConfig,
    SourceConfig,
    SplitConfig,
)
from save_dist.config.schema.networks import (
    FlowConfig,
    ReflowConfig,
    TrainingConfig,
    TransportConfig,
    VaeConfig,
)
from save_dist.config.schema.results import EvaluateConfig, GridConfig, OutputConfig, TransferConfig


class JobConfig(Section):
    """What every job has."""

    run: RunConfig
    tracking: TrackingConfig = TrackingConfig()


class IngestJob(JobConfig):
    """Files -> SOMA store, or a store of others that is used where it is."""

    cluster: ClusterConfig = ClusterConfig()
    conditions: ConditionsConfig
    ingest: IngestConfig | None = None
    source: SourceConfig | None = None

    @model_validator(mode="after")
    def _one_origin(self) -> "IngestJob":
        check_origin(self.ingest, self.source)
        return self


class BlocksJob(JobConfig):
    """SOMA store -> vocabulary: conditions, split, genes, blocks."""

    cluster: ClusterConfig = ClusterConfig()
    conditions: ConditionsConfig
    split: SplitConfig = SplitConfig()
    genes: GenesConfig = GenesConfig()
    blocks: BlocksConfig = BlocksConfig()


class TrainJob(JobConfig):
    """SOMA store and vocabulary -> VAE, latents, flow, exported model."""

    cluster: ClusterConfig = ClusterConfig()
    training: TrainingConfig = TrainingConfig()
    vae: VaeConfig = VaeConfig()
    flow: FlowConfig = FlowConfig()
    reflow: ReflowConfig = ReflowConfig()
    transport: TransportConfig = TransportConfig()

    @model_validator(mode="after")
    def _cells_divide(self) -> "TrainJob":
        check_stages(self.cluster, self.training, self.vae, self.flow, self.reflow, self.transport)
        return self


class GenerateJob(JobConfig):
    """Model and grid -> atlas."""

    cluster: ClusterConfig = ClusterConfig()
    grid: GridConfig = GridConfig()
    output: OutputConfig = OutputConfig()


class TransferJob(JobConfig):
    """Model and real cells -> cells under another condition."""

    cluster: ClusterConfig = ClusterConfig()
    transfer: TransferConfig


class EvaluateJob(JobConfig):
    """Atlas and held-back real cells -> report."""

    evaluate: EvaluateConfig = EvaluateConfig()


class PipelineJob(JobConfig):
    """Everything, in order."""

    cluster: ClusterConfig = ClusterConfig()
    conditions: ConditionsConfig
    ingest: IngestConfig | None = None
    source: SourceConfig | None = None
    split: SplitConfig = SplitConfig()
    genes: GenesConfig = GenesConfig()
    blocks: BlocksConfig = BlocksConfig()
    training: TrainingConfig = TrainingConfig()
    vae: VaeConfig = VaeConfig()
    flow: FlowConfig = FlowConfig()
    reflow: ReflowConfig = ReflowConfig()
    transport: TransportConfig = TransportConfig()
    grid: GridConfig = GridConfig()
    output: OutputConfig = OutputConfig()
    evaluate: EvaluateConfig = EvaluateConfig()

    @model_validator(mode="after")
    def _one_origin(self) -> "PipelineJob":
        check_origin(self.ingest, self.source)
        return self

    @model_validator(mode="after")
    def _cells_divide(self) -> "PipelineJob":
        check_stages(self.cluster, self.training, self.vae, self.flow, self.reflow, self.transport)
        return self

    @model_validator(mode="after")
    def _names_are_columns(self) -> "PipelineJob":
        named = {
            "vae.encoder_columns": self.vae.encoder_columns,
            "vae.decoder_columns": self.vae.decoder_columns or [],
            "transport.columns": self.transport.columns,
            "grid.columns": [*self.grid.columns],
            "grid.include": [name for c in self.grid.include for name in c],
            "grid.exclude": [name for c in self.grid.exclude for name in c],
            "grid.masked": self.grid.masked,
            "grid.guidance.columns": [*self.grid.guidance.columns],
        }
        for setting, names in named.items():
            if unknown := sorted(set(names) - set(self.conditions.columns)):
                raise ValueError(
                    f"{setting} names {', '.join(unknown)}, which conditions.columns "
                    f"{self.conditions.columns} does not hold"
                )
        return self

    @model_validator(mode="after")
    def _transport_has_what_it_needs(self) -> "PipelineJob":
        without = [c for c in self.transport.columns if c not in self.conditions.reference]
        if without:
            raise ValueError(
                f"transport.columns names {', '.join(without)}, which has no reference value: a "
                "transport starts at control cells; name the control in conditions.reference"
            )
        if self.grid.unseen == "compose" and "transport" not in self.training.stages:
            raise ValueError(
                "grid.unseen=compose needs a transport; set training.stages: [vae, flow, "
                "transport] and transport.columns, or grid.unseen: direct"
            )
        return self


def check_origin(ingest: IngestConfig | None, source: SourceConfig | None) -> None:
    """Cells come from files or from a store.

    Raises:
        ValueError: if both are given, or neither.
    """
    if (ingest is None) == (source is None):
        raise ValueError(
            "give either `ingest` (files to copy into a store) or `source` (a store whose cells "
            "are used where they are)"
        )


def check_stages(
    cluster: ClusterConfig,
    training: TrainingConfig,
    vae: VaeConfig,
    flow: FlowConfig,
    reflow: ReflowConfig,
    transport: TransportConfig,
) -> None:
    """Lanes must divide evenly over ranks, minibatches over lanes; a transport has columns.

    Raises:
        ValueError: naming the two settings that disagree and a value that fits.
    """
    n_lanes = training.stream.n_lanes
    if n_lanes % cluster.n_workers:
        raise ValueError(
            f"training.stream.n_lanes={n_lanes} is not a multiple of "
            f"cluster.n_workers={cluster.n_workers}; use n_lanes: {4 * cluster.n_workers}"
        )
    _check_elastic(cluster, n_lanes)
    optims = {"vae": vae.optim, "flow": flow.optim}
    if "reflow" in training.stages:
        optims["reflow"] = reflow.optim
    if "transport" in training.stages:
        optims["transport"] = transport.optim
        if not transport.columns:
            raise ValueError(
                "training.stages names transport, but transport.columns is empty; name the "
                "condition columns (with a reference value) to carry cells along"
            )
    for name, optim in optims.items():
        unit = n_lanes * optim.n_accumulation
        if optim.cells_per_step % unit:
            raise ValueError(
                f"{name}.optim.cells_per_step={optim.cells_per_step} is not a multiple of "
                f"n_lanes * n_accumulation = {unit}; "
                f"try {max(1, round(optim.cells_per_step / unit)) * unit}"
            )


def _check_elastic(cluster: ClusterConfig, n_lanes: int) -> None:
    """Whatever number of workers is there, they share the lanes evenly."""
    if cluster.min_workers is None:
        return
    sizes = range(cluster.min_workers, cluster.n_workers + 1)
    if not sizes:
        raise ValueError(
            f"cluster.min_workers={cluster.min_workers} is above "
            f"cluster.n_workers={cluster.n_workers}; lower it"
        )
    if any(n_lanes % size for size in sizes):
        raise ValueError(
            f"training.stream.n_lanes={n_lanes} does not divide over every number of workers from "
            f"cluster.min_workers={cluster.min_workers} to {cluster.n_workers}; use n_lanes: "
            f"{math.lcm(*sizes)} or a multiple"
        )
