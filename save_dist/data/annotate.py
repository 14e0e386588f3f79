"""Labels for cells that come without: from a table, or from marker genes cluster by cluster.

Marker labels are made within one input file, so that a response that all cells of a file share
cannot pass for a cell type.
"""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
from jaxtyping import Float32, Float64, Int64
from numpy import ndarray
from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]

from save_dist.config.schema import MarkerConfig
from save_dist.core.errors import DataError
from save_dist.core.seeding import stream_seed
from save_dist.data.readers import CellReader

MARKER_ORIGIN = "marker-derived"
"""How the origin of labels from markers is noted wherever labels are shown."""

_N_VARIABLE_GENES = 1000
_N_COMPONENTS = 30
_N_STARTS = 3
_MAX_FITTED_CELLS = 50_000
_CELLS_PER_PASS = 4096
_CLIP_SD = 10.0
# Added to a marker's range over the clusters, in log1p units: a gene that no cluster expresses
# then counts for little instead of having its noise stretched to the full scale.
_RANGE_FLOOR = 0.5


# ---------------------------------------------------------------- from a table


def read_labels(path: Path, key: str) -> pd.DataFrame:
    """The label table as text, empty values as NaN.

    Raises:
        DataError: if the file is missing, of an unknown kind, or has no column `key`.
    """
    if not path.is_file():
        raise DataError(f"label table {path} does not exist (working folder: {Path.cwd()})")
    name = path.name.removesuffix(".gz")
    if name.endswith(".parquet"):
        whole = pd.read_parquet(path)
        table = whole.astype(str).where(whole.notna())
    elif name.endswith((".csv", ".tsv")):
        table = pd.read_csv(path, sep="," if name.endswith(".csv") else "\t", dtype=str)
    else:
        raise DataError(f"label table {path} is not .csv, .tsv (or .gz of these) or .parquet")
    if key not in table.columns:
        raise DataError(
            f"label table {path} has no column {key!r} to join on; it has: "
            f"{', '.join(map(str, table.columns))}; set ingest.labels_key"
        )
    return table


def join_labels(
    table: pd.DataFrame,
    key: str,
    cell_names: pa.LargeStringArray,
    constants: Mapping[str, str],
    where: str,
) -> pd.DataFrame:
    """Rows of the table in the order of the cells; cells it does not know get NaN.

    Cells are matched by name, among the rows that agree with every constant the table also has.
    A dot in a name equals a dash, since R writes one for the other.

    Args:
        table: labels, one row per cell.
        key: its column of cell names.
        cell_names: names of the cells of one input.
        constants: columns with one value for the whole input.
        where: the input, for messages.

    Raises:
        DataError: if no row agrees with a constant, or a cell name occurs in several rows left.
    """
    rows = table
    for column, value in constants.items():
        if column in table.columns:
            rows = rows[rows[column] == value]
            if rows.empty:
                known = ", ".join(sorted(table[column].dropna().unique())[:10])
                raise DataError(
                    f"{where}: no row of the label table has {column}={value!r}; it has: {known}"
                )
    names = rows[key].str.replace(".", "-", regex=False)
    if names.duplicated().any():
        twice = names[names.duplicated()]
        raise DataError(
            f"{where}: {twice.nunique()} cell names have several rows in the label table, e.g. "
            f"{twice.iloc[0]!r}; give the input a constant (ingest.inputs[].obs) in a column of "
            "the table that tells them apart"
        )
    wanted = pd.Series(cell_names.to_pandas(), dtype=object).str.replace(".", "-", regex=False)
    return rows.set_index(names).reindex(wanted).reset_index(drop=True)


# ---------------------------------------------------------------- from markers


def check_markers(gene_ids: np.ndarray, n_cells: int, config: MarkerConfig, where: str) -> None:
    """Refuse a file that markers cannot label.

    Raises:
        DataError: if a label has none of its genes in the file, or cells are fewer than clusters.
    """
    known = set(gene_ids)
    if absent := [label for label, genes in config.genes.items() if not known & set(genes)]:
        raise DataError(
            f"{where}: no marker gene of {', '.join(absent)} is among its {len(known)} genes, "
            f"named like {gene_ids[0]!r}; write ingest.markers.genes in the file's gene names"
        )
    if n_cells < config.n_clusters:
        raise DataError(
            f"{where}: {n_cells} cells are too few for ingest.markers.n_clusters="
            f"{config.n_clusters}; lower it or leave the file out"
        )


def label_by_markers(reader: CellReader, config: MarkerConfig, seed: int) -> np.ndarray:
    """A label for every cell of a file.

    Clusters (k-means on principal components of variable genes) take the label whose markers
    stand out most; then linear discriminants between the labels move cells that were clustered
    with others of another kind. On one thread: sums, and so labels, must not depend on how many
    there are. Memory: some hundred bytes a cell.
    """
    with threadpool_limits(1):
        return _label_by_markers(reader, config, seed)


def _label_by_markers(reader: CellReader, config: MarkerConfig, seed: int) -> np.ndarray:
    mean, var = _gene_moments(reader)
    genes = _chosen_genes(reader, var, config)
    scores = _principal_scores(reader, genes, mean, var)
    fitted = np.linspace(0, reader.n_obs - 1, min(reader.n_obs, _MAX_FITTED_CELLS)).astype(int)
    clusters = _clusters(scores, fitted, config.n_clusters, seed)
    profiles = _marker_profiles(reader, clusters, config)
    labels = label_clusters(profiles, config.genes)[clusters]
    return _refined(scores, fitted, labels)


def label_clusters(profiles: pd.DataFrame, markers: Mapping[str, Sequence[str]]) -> np.ndarray:
    """The label of each cluster.

    A marker counts by where a cluster stands between the lowest and the highest cluster, so that
    strong and weak genes, rare and common types weigh the same.

    Args:
        profiles: mean log expression, clusters x marker genes.
        markers: label -> genes; genes that are no column are ignored.
    """
    low, high = profiles.min(), profiles.max()
    height = (profiles - low) / (high - low + _RANGE_FLOOR)
    scores = {
        label: height[[g for g in genes if g in height.columns]].mean(axis=1)
        for label, genes in markers.items()
    }
    return pd.DataFrame(scores).idxmax(axis=1).to_numpy(dtype=object)


def _log_blocks(reader: CellReader) -> Iterator[Any]:
    """The file as sparse blocks of log1p counts per 10,000."""
    for counts in reader.blocks(_CELLS_PER_PASS):
        block = counts.astype(np.float32)
        library = np.maximum(block.sum(axis=1), 1)
        block.data = np.log1p(block.data * np.repeat(1e4 / library, np.diff(block.indptr)))
        yield block


def _gene_moments(
    reader: CellReader,
) -> tuple[Float64[ndarray, " gene"], Float64[ndarray, " gene"]]:
    """Mean and variance of log expression."""
    total = np.zeros(reader.n_vars)
    squares = np.zeros(reader.n_vars)
    for block in _log_blocks(reader):
        total += np.bincount(block.indices, block.data, reader.n_vars)
        squares += np.bincount(block.indices, block.data**2, reader.n_vars)
    mean = total / reader.n_obs
    return mean, squares / reader.n_obs - mean**2


def _chosen_genes(
    reader: CellReader, var: Float64[ndarray, " gene"], config: MarkerConfig
) -> Int64[ndarray, " chosen"]:
    """Positions of the most variable genes and of all markers."""
    markers = [gene for genes in config.genes.values() for gene in genes]
    variable = np.argsort(-var, kind="stable")[:_N_VARIABLE_GENES]
    chosen = np.union1d(variable, np.flatnonzero(np.isin(reader.gene_ids, markers)))
    return chosen[var[chosen] > 0]


def _principal_scores(
    reader: CellReader,
    genes: Int64[ndarray, " chosen"],
    mean: Float64[ndarray, " gene"],
    var: Float64[ndarray, " gene"],
) -> Float32[ndarray, "cell component"]:
    """Principal components of the standardised chosen genes, by their covariance."""
    centre = mean[genes].astype(np.float32)
    scale = np.sqrt(var[genes]).astype(np.float32)

    def blocks() -> Iterator[np.ndarray]:
        for block in _log_blocks(reader):
            yield np.clip((block[:, genes].toarray() - centre) / scale, -_CLIP_SD, _CLIP_SD)

    covariance = np.zeros((genes.size, genes.size), dtype=np.float32)
    for x in blocks():
        covariance += x.T @ x
    strength, axes = np.linalg.eigh(covariance)
    kept = np.flatnonzero(strength > 1e-6 * strength[-1])[::-1][:_N_COMPONENTS]
    return np.concatenate([x @ axes[:, kept] for x in blocks()])


def _clusters(
    scores: Float32[ndarray, "cell component"],
    fitted: Int64[ndarray, " fitted"],
    n_clusters: int,
    seed: int,
) -> Int64[ndarray, " cell"]:
    from sklearn.cluster import KMeans  # half a second of import that other jobs do not need

    state = stream_seed(seed, "marker_clusters") % 2**32
    means = KMeans(n_clusters, n_init=_N_STARTS, random_state=state).fit(scores[fitted])
    return np.asarray(means.predict(scores), dtype=np.int64)


def _marker_profiles(
    reader: CellReader, clusters: Int64[ndarray, " cell"], config: MarkerConfig
) -> pd.DataFrame:
    """Mean log expression of the marker genes in each cluster."""
    markers = {gene for genes in config.genes.values() for gene in genes}
    places = np.flatnonzero(np.isin(reader.gene_ids, list(markers)))
    values = np.concatenate([block[:, places].toarray() for block in _log_blocks(reader)])
    frame = pd.DataFrame(values, columns=reader.gene_ids[places])
    return frame.groupby(clusters).mean().reindex(range(config.n_clusters), fill_value=0.0)


def _refined(
    scores: Float32[ndarray, "cell component"],
    fitted: Int64[ndarray, " fitted"],
    labels: np.ndarray,
) -> np.ndarray:
    from sklearn.discriminant_analysis import LinearDiscriminantAnalysis

    if len(set(labels[fitted])) < 2:
        return labels
    model = LinearDiscriminantAnalysis().fit(scores[fitted], labels[fitted])
    return np.asarray(model.predict(scores), dtype=object)
