"""The networks, their optimisers, and how training reads, logs and saves."""

from pathlib import Path
from typing import ClassVar, Literal

from pydantic import Field, model_validator

from save_dist.config.schema.base import Positive, Section, Share, check_ascending

_STAGES = ("vae", "flow", "reflow", "transport")


class StreamConfig(Section):
    """How shuffled minibatches are read from the store."""

    rows_per_chunk: Positive = 128
    """Neighbouring rows read at once (a shuffle chunk). More: faster reads, less mixing."""
    chunks_per_pool: Positive = 256
    """Shuffle chunks mixed at a time, over all lanes. More: better mixing, more memory."""
    n_lanes: Positive = 4
    """Virtual readers whose order never depends on the number of ranks; ranks share them."""
    balance: Share = 1.0
    """Draws of a combination in an epoch go with its number of cells to this power. 1: every cell
    once; 0: every combination equally often. Lower: rare combinations more, common ones less."""
    cache_bytes: int = Field(2 * 2**30, ge=0)
    """Largest packed copy of the training cells on the node's disk; 0: always read SOMA."""
    cache_dir: Path | None = None
    """Folder for it, on each node's own disk; null: the run's scratch folder."""


class MaskConfig(Section):
    """Condition masking, drawn per cell and per column (SAVE eq. 13)."""

    scheme: Literal["fixed", "mixture"] = "fixed"
    """`fixed`: Bernoulli(p). `mixture`: a quarter unmasked, a quarter all, the rest random p."""
    p: Share = 0.1
    """Masking probability of `fixed`; the paper's 0.6 hides the full condition from most cells."""


class OptimConfig(Section):
    """AdamW, linear warm-up, cosine decay, EMA."""

    n_steps: Positive = 2000
    """Optimiser steps. One step sees `cells_per_step` cells over all ranks."""
    cells_per_step: Positive = 256
    """Global minibatch; does not change with the number of ranks."""
    n_accumulation: Positive = 1
    """Parts into which a rank splits its minibatch to save memory; the gradient is the same."""
    lr: float = Field(1e-4, gt=0)
    """Peak learning rate."""
    weight_decay: float = Field(2.5e-5, ge=0)
    warmup_share: Share = 0.05
    """Share of the steps with a linearly rising rate."""
    final_lr_share: Share = 0.0
    """Rate at the last step, as a share of the peak."""
    clip_norm: float = Field(1.0, gt=0)
    """Gradient norm above which gradients are scaled down."""
    ema_decay: float = Field(0.995, ge=0, lt=1)
    """Decay of the averaged weights, the ones that are exported. 0 keeps the raw weights."""
    precision: Literal["fp32", "bf16"] = "fp32"
    """bf16 autocast pays on GPU and on CPU from a width of about 256."""
    compile: bool = False
    """torch.compile the network; worth its minutes on a GPU only."""


class VaeConfig(Section):
    """Gene-block-attention VAE (SAVE 3.2-3.3)."""

    backbone: Literal["attention", "mlp"] = "attention"
    """`attention`: SAVE's gene-block transformer. `mlp`: two dense layers, cheap on CPU."""
    width: Positive = 64
    """m, width of a token (of the hidden layers for mlp)."""
    depth: Positive = 2
    """Transformer blocks in the encoder and again in the decoder."""
    n_heads: Positive = 4
    latent_dim: Positive = 32
    """d, length of z."""
    latent_token_width: Positive = 8
    """K_l; z is read by the decoder as d / K_l tokens."""
    condition_width: Positive = 64
    """e, length of the condition embedding."""
    block_projection: Literal["shared", "per_block"] = "per_block"
    """Input projection: one for all blocks plus a block embedding, or one per block."""
    likelihood: Literal["nb", "unit_interval"] = "nb"
    """Counts (negative binomial), or the paper's [0, 1] expression (sigmoid, cross-entropy)."""
    dispersion: Literal["gene", "trend"] = "trend"
    """Inverse dispersion of nb counts: one per gene, or one that follows the gene's own expression,
    theta = a_g * rate^b_g, so that a gene that is induced is also less bursty."""
    kl_weight: float = Field(0.1, ge=0)
    """Weight of the KL term (summed over d, averaged over cells). The flow takes over from the
    prior, so a small one serves generation; 1 keeps z to what a cell is, which transports need."""
    encoder_columns: list[str] = []
    """Condition columns the encoder sees; none for generation."""
    decoder_columns: list[str] | None = None
    """Condition columns the decoder sees; null: all."""
    linear_skip: bool = True
    """Zero-initialised linear path from the condition embedding to the gene logits."""
    mask: MaskConfig = MaskConfig()
    latent_mask: tuple[Share, Share] | None = None
    """Share of latent tokens hidden from the decoder, drawn per cell; the paper: [0.2, 0.4]."""
    optim: OptimConfig = OptimConfig()

    @model_validator(mode="after")
    def _shapes_divide(self) -> "VaeConfig":
        if self.latent_dim % self.latent_token_width:
            raise ValueError(
                f"vae.latent_dim={self.latent_dim} is not a multiple of "
                f"vae.latent_token_width={self.latent_token_width}"
            )
        if self.latent_mask is not None:
            check_ascending("vae.latent_mask", self.latent_mask)
        if self.backbone == "attention" and self.width % self.n_heads:
            raise ValueError(
                f"vae.width={self.width} is not a multiple of vae.n_heads={self.n_heads}"
            )
        return self


class VelocityConfig(Section):
    """A velocity network and what it learns from; shared by flow and transport."""

    _section: ClassVar[str] = "velocity"

    backbone: Literal["attention", "mlp"] = "mlp"
    width: Positive = 128
    depth: Positive = 3
    n_heads: Positive = 4
    condition_width: Positive = 64
    token_width: Positive = 8
    """Latent numbers per token of the attention backbone."""
    target: Literal["sample", "mean"] = "sample"
    """Real latents: a draw from q(z|x), or its mean."""
    time: Literal["uniform", "logit_normal"] = "uniform"
    """Law of t in training."""

    @model_validator(mode="after")
    def _shapes_divide(self) -> "VelocityConfig":
        if self.backbone == "attention" and self.width % self.n_heads:
            raise ValueError(
                f"{self._section}.width={self.width} is not a multiple of "
                f"{self._section}.n_heads={self.n_heads}"
            )
        return self


class FlowConfig(VelocityConfig):
    """Conditional flow matching over standardised latents and library size (SAVE 3.4)."""

    _section: ClassVar[str] = "flow"

    coupling: Literal["none", "within_condition", "global"] = "none"
    """Pairing of noise and data by optimal transport; `global` ties noise to conditions."""
    centre: Literal["none", "additive"] = "none"
    """`additive`: the network learns what an additive model of the latents (one effect per
    category, fitted on the training cells) leaves over. On seen combinations nothing changes; an
    unseen one starts from the sum of its categories' effects."""
    mask: MaskConfig = MaskConfig()
    optim: OptimConfig = OptimConfig()


class TeacherConfig(Section):
    """How the trained flow is followed to make the ends of paths."""

    method: Literal["euler", "midpoint", "heun", "rk4"] = "midpoint"
    n_steps: Positive = 8
    """More: ends closer to those of the exact flow, at more evaluations per pair."""


class ReflowConfig(Section):
    """A reflow round: the flow learns straight lines to its own ends, for few-step sampling.

    Starts at the flow's averaged weights and replaces them in the exported model; then
    `grid.solver: {method: euler, n_steps: 2}` samples almost as well as many steps did. The network
    and the condition masking are those of `flow`.
    """

    teacher: TeacherConfig = TeacherConfig()
    n_times: Positive = 4
    """Points of every path that a step learns from. More: fewer paths to make for the same work of
    the network."""
    time: Literal["uniform", "logit_normal"] = "uniform"
    """Law of t in training."""
    optim: OptimConfig = OptimConfig(n_steps=1000, lr=1e-3)
    """`cells_per_step` counts paths."""


class TransportConfig(VelocityConfig):
    """Control-as-source flow: latents of reference cells -> latents under another value.

    It carries cells to combinations that were never trained on (`grid.unseen: compose`), and real
    control cells to another condition. It knows the target value alone, not the other columns, so
    what it learns of one cell type holds for the next. It works best in a latent that does not
    know the column: let the VAE see this column and no other, and never mask it, i.e.
    `vae.encoder_columns: [COLUMN]`, `vae.decoder_columns: [COLUMN]`, `vae.mask.p: 0`. Then the
    decoder applies the shared part of the change and z keeps what a cell is; with a decoder that
    knows all columns, z must carry the change itself and an unseen combination gets too little of
    it. configs/demo and configs/default are such presets.
    """

    _section: ClassVar[str] = "transport"

    columns: list[str] = []
    """Condition columns with a reference value to carry cells along; one network serves all."""
    noise: float = Field(0.1, ge=0)
    """Noise on the source in standard deviations; makes few control cells a density."""
    coupling: Literal["none", "within_group"] = "within_group"
    """Pairing of control and target cells of a group by optimal transport, or at random."""
    cells_per_group: Positive = 64
    """Cells paired at a time; every group agrees in all other columns."""
    optim: OptimConfig = OptimConfig(n_steps=1200, lr=2e-3)

    @model_validator(mode="after")
    def _columns_differ(self) -> "TransportConfig":
        if len(set(self.columns)) < len(self.columns):
            raise ValueError(f"transport.columns {self.columns} names a column twice; keep one")
        return self


class CheckpointConfig(Section):
    """Durable training state."""

    every_steps: Positive = 200
    """Optimiser steps between checkpoints: the most work a kill can cost."""
    keep: Positive = 2
    """Newest checkpoints kept."""


class StoppingConfig(Section):
    """What validation decides for the stages vae and flow. The loss compared is `val/loss`."""

    patience: Positive | None = None
    """Validations without a lower loss after which a stage ends; null: it takes all its steps."""
    min_gain: float = Field(0.0, ge=0)
    """How much lower a loss must be to count as lower. More: a stage ends earlier."""
    export: Literal["last", "best"] = "last"
    """Weights that the next stage and the exported model take. `best`: those of the lowest loss,
    whose checkpoint is kept beside the newest ones."""


class TrainingConfig(Section):
    """What all stages share."""

    stages: list[Literal["vae", "flow", "reflow", "transport"]] = ["vae", "flow"]
    """Stages to run, in this order; a finished one is verified and skipped. `reflow` starts from
    the flow of the same list; `transport` needs its columns."""
    log_every_steps: Positive = 20
    """Steps between metric records."""
    validate_every_steps: Positive = 200
    max_hours: float | None = Field(None, gt=0)
    """Hours of training after which a job saves its state and ends with exit code 130; the same
    command continues. Null: no limit."""
    stopping: StoppingConfig = StoppingConfig()
    checkpoint: CheckpointConfig = CheckpointConfig()
    stream: StreamConfig = StreamConfig()

    @model_validator(mode="after")
    def _stages_follow_each_other(self) -> "TrainingConfig":
        in_order = [stage for stage in _STAGES if stage in self.stages]
        if self.stages != in_order:
            raise ValueError(
                f"training.stages=[{', '.join(self.stages)}] is out of order or names a stage "
                f"twice; write [{', '.join(in_order)}]"
            )
        if "reflow" in self.stages and "flow" not in self.stages:
            raise ValueError(
                f"training.stages=[{', '.join(self.stages)}] names reflow without flow, the stage "
                "it starts from; name flow before it (a finished flow is verified and skipped)"
            )
        return self
