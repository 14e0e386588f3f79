"""Input files, conditions, split, genes, gene blocks: what the numbers of a run mean."""

from pathlib import Path
from typing import Literal

from pydantic import Field, model_validator

from save_dist.config.schema.base import Condition, Positive, Section, Share, Uri


class InputConfig(Section):
    """One file of cells."""

    path: str
    """h5ad file, AnnData-Zarr store, 10x h5 file or 10x folder (matrix.mtx, barcodes.tsv,
    features.tsv); `package:NAME/PATH` for one inside an installed Python package."""
    obs: dict[str, str] = {}
    """Columns that hold one value for the whole file, e.g. {condition: ctrl}."""
    rename: dict[str, str] = {}
    """obs columns of the file that are called otherwise here: {their_name: our_name}."""
    gene_column: str | None = None
    """What names the genes: a column of var (AnnData), `id` or `symbol` (10x). null: the index of
    var, the ids. All inputs must name genes alike."""

    @model_validator(mode="after")
    def _one_origin_per_column(self) -> "InputConfig":
        ours = [*self.obs, *self.rename.values()]
        if twice := sorted({name for name in ours if ours.count(name) > 1}):
            raise ValueError(
                f"input {self.path} gives {', '.join(twice)} twice, in obs and rename or in rename "
                "alone; keep one"
            )
        return self


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
    """Layer of AnnData inputs that holds raw counts; null: X."""
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


class SourceConfig(Section):
    """A SOMA experiment whose cells are used where they are, instead of ingested files."""

    uri: Uri | None = None
    """The experiment: a folder, or a URI such as s3://BUCKET/KEY, for which credentials come from
    the environment (AWS_ACCESS_KEY_ID, ...)."""
    census: str | None = None
    """Instead of a URI, a version of CELLxGENE Census, e.g. 2025-01-30; needs the extra `census`.
    `stable` and `latest` are looked up once, and the version found is kept."""
    organism: str = "homo_sapiens"
    """Experiment of the Census."""
    measurement: str = "RNA"
    layer: str = "raw"
    """Layer of X that holds raw counts."""
    gene_column: str | None = None
    """Column of var that names the genes; null: gene_id, var_id or feature_id."""
    cell_column: str | None = None
    """Column of obs that names the cells, by which they are split into training and test; null:
    cell_id, obs_id or observation_joinid, else the soma_joinid."""
    value_filter: str | None = None
    """TileDB-SOMA filter on obs, e.g. "tissue_general == 'lung' and assay == 'Smart-seq2'"."""
    primary_only: bool = True
    """Leave out cells that obs marks as copies of others (is_primary_data false, in the Census).
    A store without that column has no such cells."""
    timestamp: int | None = Field(None, ge=0)
    """Milliseconds since 1970: the store as it was then; null: as it is when the ingest job runs,
    which is then kept."""
    tiledb: dict[str, str] = {}
    """Settings of TileDB, e.g. {vfs.s3.region: us-west-2}; no credentials."""

    @model_validator(mode="after")
    def _is_one_place(self) -> "SourceConfig":
        if (self.uri is None) == (self.census is None):
            raise ValueError("source needs a uri or a census version, and not both")
        if secrets := [k for k in self.tiledb if "secret" in k or "key_id" in k or "token" in k]:
            raise ValueError(
                f"source.tiledb holds {', '.join(secrets)}: configurations are stored beside "
                "results; set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY in the environment"
            )
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
