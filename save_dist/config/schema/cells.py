"""Input files, conditions, split, genes, gene blocks: what the numbers of a run mean."""

from pathlib import Path
from typing import Literal

from pydantic import Field, model_validator

from save_dist.config.schema.base import Condition, Positive, Section, Share


class InputConfig(Section):
    """One file of cells."""

    path: str
    """h5ad file, or `package:NAME/PATH` for a file inside an installed Python package."""
    obs: dict[str, str] = {}
    """Columns that hold one value for the whole file, e.g. {condition: ctrl}."""


class MarkerConfig(Section):
    """Coarse labels from well-known genes, given to clusters rather than to single cells."""

    column: str
    """obs column to write."""
    genes: dict[str, list[str]]
    """Label -> marker genes. A cluster takes the label whose markers stand out most."""
    n_clusters: int = Field(24, ge=2)
    """Clusters per input file. More: finer, noisier labels."""


class IngestConfig(Section):
    """Files -> one TileDB-SOMA experiment with raw counts."""

    inputs: list[InputConfig] = Field(min_length=1)
    layer: str | None = None
    """Layer that holds raw counts; null: X."""
    genes: Literal["union", "intersection"] = "union"
    """Genes kept when files differ: all of them (absent = 0 counts), or the common ones."""
    obs_columns: list[str] = []
    """Further obs columns to keep besides the condition columns."""
    labels: Path | None = None
    """Table (csv, tsv, parquet) of labels per cell; joined on `labels_key`. Replaces markers."""
    labels_key: str = "barcode"
    """Column of the label table that holds the cell names of the input files."""
    markers: MarkerConfig | None = None
    """Derive a label column from marker genes when no label table is given."""
    rows_per_block: Positive = 16_384
    """Cells held in memory at once while writing."""
    rows_per_tile: Positive = 64
    """Rows of one TileDB tile. Smaller: cheaper random blocks, larger index."""

    @model_validator(mode="after")
    def _paths_differ(self) -> "IngestConfig":
        paths = [i.path for i in self.inputs]
        if len(set(paths)) < len(paths):
            raise ValueError("ingest.inputs lists a path twice; keep each file once")
        return self


class ConditionsConfig(Section):
    """Which obs columns condition the model, and which combinations it must never see."""

    columns: list[str] = Field(min_length=1)
    """Categorical obs columns, in the order of every condition tuple."""
    reference: Condition = {}
    """Reference value per column (the control), for columns that have one."""
    held_out: list[Condition] = []
    """Combinations kept out of all that is fitted; a partial one holds out all it matches."""
    exclude: list[Condition] = []
    """Cells matching any of these are left out of the run altogether."""

    @model_validator(mode="after")
    def _names_are_columns(self) -> "ConditionsConfig":
        if len(set(self.columns)) < len(self.columns):
            raise ValueError(f"conditions.columns {self.columns} names a column twice; keep one")
        if {} in (*self.held_out, *self.exclude):
            raise ValueError(
                "an empty combination in held_out or exclude would match every cell; "
                "give it a column or remove it"
            )
        used = {n for c in (self.reference, *self.held_out, *self.exclude) for n in c}
        if unknown := sorted(used - set(self.columns)):
            raise ValueError(
                f"{', '.join(unknown)} stand in reference, held_out or exclude but not in "
                f"conditions.columns {self.columns}"
            )
        return self


class SplitConfig(Section):
    """Shares of every seen combination, drawn by a hash of the cell id."""

    test: Share = 0.2
    """Cells that evaluation compares with; never fitted on."""
    validation: Share = 0.02
    """Cells for the validation loss; never fitted on."""

    @model_validator(mode="after")
    def _leaves_training_cells(self) -> "SplitConfig":
        if self.test + self.validation >= 1:
            raise ValueError(
                f"split.test={self.test} and split.validation={self.validation} leave no cells "
                "for training; their sum must stay below 1"
            )
        return self


class GenesConfig(Section):
    """The genes of the model."""

    n_top: Positive | None = 1000
    """Genes of largest variance of log-normalised training expression; null: all genes."""
    min_cells: int = Field(10, ge=0)
    """Genes counted in fewer training cells are left out."""


class EmbeddingConfig(Section):
    """Vectors that place genes near each other, from which blocks are formed (SAVE App. B)."""

    source: Literal["coexpression", "random", "file", "text"] = "coexpression"
    path: Path | None = None
    """For `file`: table of gene -> vector (csv, tsv, parquet, npz). For `text`: table of gene ->
    description (csv, tsv, both also as .gz, or parquet)."""
    id_column: str = "symbol"
    """Column of gene ids in the table of `text`. Case is ignored where it leaves no doubt."""
    text_column: str = "description"
    """Column of descriptions in the table of `text`."""
    model: str | None = None
    """Sentence encoder of `text`: a folder, or `package:NAME/PATH` for one inside an installed
    Python package; never downloaded. Needs the extra `text`."""
    dim: Positive = 32
    """Vector length for coexpression and random."""

    @model_validator(mode="after")
    def _source_has_its_files(self) -> "EmbeddingConfig":
        if (self.source in ("file", "text")) != (self.path is not None):
            raise ValueError(
                "blocks.embedding.path goes with source: file or source: text, and only with them"
            )
        if (self.source == "text") != (self.model is not None):
            raise ValueError(
                "blocks.embedding.model, the sentence encoder, goes with source: text, and only "
                "with it"
            )
        return self


class BlocksConfig(Section):
    """Gene blocks by balanced optimal transport (SAVE 3.1)."""

    genes_per_block: Positive = 100
    """K. Blocks are ceil(G / K); fewer, larger blocks train faster and attend more coarsely."""
    n_iterations: Positive = 30
    """At most this many rounds of assignment and centroid update."""
    embedding: EmbeddingConfig = EmbeddingConfig()
