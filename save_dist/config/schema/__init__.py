"""Every setting of every job, its default, its unit and what raising it does.

One root per job, built from shared sections, so that a key means the same wherever it stands.
Defaults live here and nowhere else. Holds no behaviour beyond validation.
"""

from save_dist.config.schema.base import (
    ClusterConfig,
    Condition,
    Positive,
    RunConfig,
    Section,
    Share,
    TrackingConfig,
    check_ascending,
)
from save_dist.config.schema.cells import (
    BlocksConfig,
    ConditionsConfig,
    EmbeddingConfig,
    GenesConfig,
    IngestConfig,
    InputConfig,
    MarkerConfig,
    SplitConfig,
)
from save_dist.config.schema.jobs import (
    BlocksJob,
    EvaluateJob,
    GenerateJob,
    IngestJob,
    JobConfig,
    PipelineJob,
    TrainJob,
    TransferJob,
    check_divisions,
)
from save_dist.config.schema.networks import (
    CheckpointConfig,
    FlowConfig,
    MaskConfig,
    OptimConfig,
    StreamConfig,
    TrainingConfig,
    VaeConfig,
)
from save_dist.config.schema.results import (
    EvaluateConfig,
    GridConfig,
    GuidanceConfig,
    OutputConfig,
    SolverConfig,
    TransferConfig,
)

__all__ = [
    "BlocksConfig",
    "BlocksJob",
    "CheckpointConfig",
    "ClusterConfig",
    "Condition",
    "ConditionsConfig",
    "EmbeddingConfig",
    "EvaluateConfig",
    "EvaluateJob",
    "FlowConfig",
    "GenerateJob",
    "GenesConfig",
    "GridConfig",
    "GuidanceConfig",
    "IngestConfig",
    "IngestJob",
    "InputConfig",
    "JobConfig",
    "MarkerConfig",
    "MaskConfig",
    "OptimConfig",
    "OutputConfig",
    "PipelineJob",
    "Positive",
    "RunConfig",
    "Section",
    "Share",
    "SolverConfig",
    "SplitConfig",
    "StreamConfig",
    "TrackingConfig",
    "TrainJob",
    "TrainingConfig",
    "TransferConfig",
    "TransferJob",
    "VaeConfig",
    "check_ascending",
    "check_divisions",
]
