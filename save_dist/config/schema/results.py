"""Grids, atlases, transfer, evaluation."""

from pathlib import Path
from typing import ClassVar, Literal

from pydantic import Field, model_validator

from save_dist.config.schema.base import Condition, Positive, Section, Share, check_ascending


class GuidanceConfig(Section):
    """Classifier-free guidance (SAVE eq. 12)."""

    scale: float = Field(1.0, ge=0)
    """w: 1 is the plain conditional field; above 1 exaggerates the condition."""
    columns: dict[str, float] = {}
    """Weights per column, v_null + sum w_a (v_a - v_null); replaces `scale`."""
    interval: tuple[Share, Share] = (0.0, 1.0)
    """Times t within which guidance applies; outside, the conditional field is used."""

    @model_validator(mode="after")
    def _interval_ascends(self) -> "GuidanceConfig":
        check_ascending("guidance.interval", self.interval)
        return self


class SolverConfig(Section):
    """The ODE solver (torchdiffeq)."""

    method: Literal["euler", "midpoint", "heun", "rk4", "dopri5"] = "midpoint"
    n_steps: Positive = 5
    """Steps of a fixed-step method (midpoint and heun evaluate the network twice a step)."""
    tolerance: float = Field(1e-5, gt=0)
    """Relative and absolute tolerance of dopri5."""


class ComposeConfig(Section):
    """Decoding of cells that were carried along a transport; constants per combination.

    Found from `n_cells` cells of the combination with seeds of their own, so they depend on the
    model and on these settings, on no part, worker or number of cells asked for.
    """

    anchor: bool = True
    """Correct the gene logits by how far decoded control cells are from the real ones."""
    blend: Share = 0.5
    """Weight of the similarity-weighted shift in the mean that cells are matched to; the rest is
    the mean of the carried cells. 0: no matching."""
    n_cells: Positive = 512
    """Cells that the constants are found from."""
    n_iterations: Positive = 5
    """Fixed-point steps of mean matching."""
    min_support: Positive = 1
    """Training cells that a control needs; an unseen combination without such a control is
    sampled by its labels, and the plan counts it."""


class FromFile(Section):
    """What stands in a file; it is read once, when the grid is planned."""

    from_file: Path
    """Text with one value per line, or a table with a header (.csv, .tsv)."""
    column: str | None = None
    """Column of the table that holds the values; null: the one of the same name."""


class ConditionCells(Section):
    """A number of cells for some conditions of the grid."""

    condition: Condition = {}
    """Values or patterns; a column left out stands for all its values."""
    n: Positive
    """Cells of each of them."""


class CellTable(Section):
    """Cells per condition as the plan keeps them, once a file or the training cells were read."""

    columns: list[str]
    """Condition columns that the table names."""
    values: list[list[str]]
    """Distinct values of each."""
    codes: str
    """Base64 of int16 [row, column], little endian: which value."""
    n: str
    """Base64 of int64 [row], little endian: cells of each condition that the row names."""


class GridConfig(Section):
    """The declared set of conditions to generate."""

    columns: dict[str, str | list[str] | FromFile] = {}
    """Values per condition column: `all` (the default for a column not named), values or patterns
    such as `CD*`, or `from_file`."""
    include: list[Condition] = []
    """Combinations to add to the product; missing columns stand for all their values."""
    exclude: list[Condition] = []
    """Combinations to leave out of the product."""
    masked: list[str] = []
    """Condition columns whose value is not given to the model; the atlas says MASK there."""
    cells_per_condition: (
        Positive | Literal["as_many_as_real"] | list[ConditionCells] | FromFile | CellTable
    ) = 1000
    """A number; `as_many_as_real`, the training cells of each combination; a list of conditions
    with their `n`, the last that fits counts; or a table with condition columns and a column n."""
    cells_otherwise: Positive | None = None
    """Cells of a condition that the list or table does not name, or without training cells under
    `as_many_as_real`; null: such a condition is refused."""
    unseen: Literal["direct", "compose", "refuse"] = "direct"
    """Combinations never trained on: sample with their labels; sample the control of the same
    kind and carry it along a transport (with labels where there is none); or refuse the grid."""
    compose: ComposeConfig = ComposeConfig()
    seed: int = Field(0, ge=0)
    guidance: GuidanceConfig = GuidanceConfig()
    solver: SolverConfig = SolverConfig()

    @model_validator(mode="after")
    def _settings_agree(self) -> "GridConfig":
        if named := sorted(set(self.masked) & set(self.columns)):
            raise ValueError(
                f"grid.masked and grid.columns both name {named[0]!r}; a masked column has no "
                "values: name it in one of them"
            )
        if self.cells_otherwise is not None and isinstance(self.cells_per_condition, int):
            raise ValueError(
                f"grid.cells_otherwise={self.cells_otherwise} is never used: "
                f"grid.cells_per_condition={self.cells_per_condition} holds for all conditions"
            )
        return self


MAX_CHUNK = 128
"""Most rows of a chunk whose size is not set; smaller ones are halves of it."""


class PartsConfig(Section):
    """How a store of cells is cut into pieces of work, and these for reading."""

    place: ClassVar[str]
    """Name of the section, for messages."""

    cells_per_part: Positive = 16_384
    """Rows of one part = one shard file = one task. Aim at 2-5 s of sampling or more."""
    cells_per_chunk: Positive | None = None
    """Rows decompressed together when the store is read; null: 128, in an atlas at most half the
    cells of a mean condition, so that reading one touches little more than its own cells."""
    cells_per_minibatch: Positive = 512
    """Cells sampled at once; part of the plan, since sums in another order change last bits."""

    @model_validator(mode="after")
    def _part_holds_whole_chunks(self) -> "PartsConfig":
        size = self.cells_per_chunk or MAX_CHUNK
        if self.cells_per_part % size:
            key = f"{self.place}.cells_per_chunk"
            is_set = self.cells_per_chunk is not None
            raise ValueError(
                f"{self.place}.cells_per_part={self.cells_per_part} is not a multiple of "
                f"{f'{key}=' if is_set else ''}{size}; "
                f"try {size * 128}{'' if is_set else f', or set {key}'}"
            )
        return self


class OutputConfig(PartsConfig):
    """The layout of the atlas store."""

    place = "output"

    genes: list[str] | FromFile | None = None
    """Genes to store, ids or patterns such as `MT-*`; null: all. Counts are the same either way."""
    layers: list[Literal["mean"]] = []
    """`mean`: the expected counts of each cell, float32; about 30 times the bytes of the counts."""
    latents: bool = False
    """Store z, as the decoder read it, in obsm `X_save`."""


class TransferConfig(PartsConfig):
    """Re-expression of real cells under other conditions: treated, or without their batch."""

    place = "transfer"

    target: Condition | list[Condition] = {}
    """Condition values the cells are decoded under; columns named nowhere keep each cell's own. A
    list: all cells under each target in turn."""
    masked: list[str] = []
    """Columns that the decoder is not told (batch correction without a batch to look like)."""
    averaged: list[str] = []
    """Columns over whose values, as training saw them, expected counts are averaged. Costs one
    decoding per value."""
    source: Condition = {}
    """Only cells matching these values are transferred."""
    method: Literal["auto", "transport", "reencode", "inversion", "latent_shift"] = "auto"
    """`transport` carries the latents of reference cells; `reencode` keeps them and changes the
    decoder's condition alone; `inversion` goes back to noise under the old condition and forth
    under the new one; `latent_shift` adds the mean change of the latent; `auto` takes `transport`
    where the model and the cells allow it, else `reencode`."""
    compose: ComposeConfig = ComposeConfig()
    """How cells that were carried by `transport` are decoded."""
    solver: SolverConfig = SolverConfig()
    """Of `transport` and `inversion`."""
    output: str = "transfer.zarr"
    """AnnData-Zarr store to write, relative to the run folder."""
    means: bool = True
    """Keep the expected counts as layer `mean`, too; about 30 times the bytes of the counts."""

    @model_validator(mode="after")
    def _something_changes(self) -> "TransferConfig":
        targets = self.target if isinstance(self.target, list) else [self.target]
        if not targets or not (self.masked or self.averaged or all(targets)):
            raise ValueError(
                f"transfer.target={self.target} changes nothing; name values to set, or columns in "
                "transfer.masked or transfer.averaged"
            )
        return self


class EvaluateConfig(Section):
    """EVALUATION protocol version 1."""

    n_max: Positive = 500
    """Cells per side and combination at most."""
    min_cells: Positive = 50
    """Combinations with fewer test cells are printed, not averaged."""
    seeds: list[int] = Field([0, 1, 2, 3, 4], min_length=1)
    """Sampling seeds; figures are their mean."""
    n_components: Positive = 50
    """Principal components of space A, fitted on training cells."""
    n_bootstrap: Positive = 1000
    """Resamples of the combinations for the 95% interval of a macro mean."""
    umap_cells: Positive = 3000
    """Real and generated cells in the UMAP picture."""
    n_workers: Positive = 2
    """Processes; the scores do not depend on it."""
    responders: list[str] = []
    """Genes of known response, by the gene names of the model (say ISG15 for interferon): where
    each stands among the real and the predicted changes of every combination."""
    gene_sets: Path | None = None
    """A .gmt or .gmt.gz file of gene sets (of GO, say) to look for in the gene blocks, by the gene
    names of the model; null: no such table."""
