"""Gene vectors, from which blocks are formed: from a file, texts, co-expression, or random."""

import hashlib
import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import scipy.linalg
from jaxtyping import Bool, Float32, Float64
from numpy import ndarray

from save_dist.core.durable import file_digest
from save_dist.core.errors import ConfigError, DataError, listed
from save_dist.core.seeding import generator
from save_dist.vocab.descriptions import match
from save_dist.vocab.sentences import SentenceEncoder

logger = logging.getLogger(__name__)

MIN_SHARE_FOUND = 0.5
TEXTS_AT_ONCE = 64  # encoded between two reports of progress
ROUNDING = 1e-12  # variance below this share of the largest is a rounding error


@dataclass(frozen=True, eq=False)
class GeneEmbedding:
    """One vector per vocabulary gene, and where they came from.

    Args:
        vectors: in vocabulary order.
        source: "coexpression", "random", "file:NAME" or "text:NAME:MODEL".
        digest: sha256 of the file; of table, model and genes for text; of the vectors where they
            were computed from cells or drawn.
        n_found: genes with a vector of their own; the rest stand at a defined place.
    """

    vectors: Float32[ndarray, "gene dim"]
    source: str
    digest: str
    n_found: int


def coexpression(covariance: Float64[ndarray, "gene gene"], dim: int) -> GeneEmbedding:
    """Loadings of the correlation matrix: eigenvectors times root eigenvalues.

    The inner product of two vectors approximates the correlation of the two genes. Costs
    O(genes^3). Genes without variance get the zero vector; columns past the rank are zero.

    Args:
        covariance: of log-normalised expression over the training cells.
        dim: vector length.

    Raises:
        DataError: if the matrix is not finite, or no gene varies.
    """
    variance = np.diag(covariance)
    if not np.isfinite(covariance).all() or not (variance > 0).any():
        raise DataError(
            f"covariance of {len(variance)} genes is not finite or zero throughout; expected "
            "log-normalised expression of at least two different cells"
        )
    varies = variance > ROUNDING * variance.max()
    sd = np.sqrt(variance[varies])
    loadings = _loadings(covariance[np.ix_(varies, varies)] / np.outer(sd, sd), dim)
    vectors = np.zeros((len(variance), dim), dtype=np.float32)
    vectors[varies, : loadings.shape[1]] = loadings
    return _computed(vectors, "coexpression", int(varies.sum()))


def random(n_genes: int, dim: int, seed: int) -> GeneEmbedding:
    """Normal vectors: blocks without meaning, for the ablation."""
    rng = generator(seed, "gene_embedding")
    vectors = rng.standard_normal((n_genes, dim), dtype=np.float32)
    return _computed(vectors, "random", n_genes)


def from_file(path: Path, gene_ids: Sequence[str]) -> GeneEmbedding:
    """Vectors of `gene_ids` from a table; genes it lacks get the mean of those found.

    Args:
        path: csv or tsv (gene id, then numbers), parquet (gene ids in the index or the first
            column), or npz (arrays `genes` and `vectors`).
        gene_ids: vocabulary genes, in order.

    Raises:
        ConfigError: if the file does not exist or has another ending.
        DataError: if the table is not one finite vector per gene, or lacks half of the genes.
    """
    table = _read(path)
    rows = table.index.get_indexer(pd.Index(gene_ids))
    found = rows >= 0
    _check_found(found, gene_ids, table.index, path.name)
    values = table.to_numpy(dtype=np.float32)[rows[found]]
    return _placed(values, found, f"file:{path.name}", file_digest(path))


def from_text(
    descriptions: Mapping[str, str],
    encoder: SentenceEncoder,
    gene_ids: Sequence[str],
    *,
    source: str,
    digest: str,
    progress: Callable[[int, int], None] | None = None,
) -> GeneEmbedding:
    """Vectors of what is written about each gene; genes without get the mean of the others.

    Args:
        descriptions: text by gene id; see `descriptions.match` for how genes are looked up.
        encoder: gives a vector per text.
        gene_ids: vocabulary genes, in order.
        source: name of table and model, for the record.
        digest: of everything the vectors depend on.
        progress: called with texts encoded so far and texts in all.

    Raises:
        DataError: if half of the genes have no description, or a vector is not finite.
    """
    texts = match(descriptions, gene_ids)
    found = np.array([gene in texts for gene in gene_ids], dtype=np.bool_)
    _check_found(found, gene_ids, descriptions, source)
    parts, wanted = [], [texts[gene] for gene in gene_ids if gene in texts]
    for start in range(0, len(wanted), TEXTS_AT_ONCE):
        parts.append(encoder.encode(wanted[start : start + TEXTS_AT_ONCE]))
        if progress is not None:
            progress(min(start + TEXTS_AT_ONCE, len(wanted)), len(wanted))
    vectors = np.concatenate(parts)
    if not np.isfinite(vectors).all():
        raise DataError(f"the encoder of {source} gave NaN or infinity; use another model")
    return _placed(vectors, found, source, digest)


def _check_found(
    found: Bool[ndarray, " gene"], gene_ids: Sequence[str], known: Iterable[str], where: str
) -> None:
    """Refuse a table that knows few of the genes; say which it lacks otherwise."""
    n_found = int(found.sum())
    if n_found < MIN_SHARE_FOUND * len(gene_ids) or n_found == 0:
        raise DataError(
            f"{where} knows {n_found} of {len(gene_ids)} genes, expected at least "
            f"{MIN_SHARE_FOUND:.0%}; its ids look like {listed(known, 3)}, the data's "
            f"like {listed(gene_ids, 3)}; use a table with the data's kind of gene id"
        )
    if n_found < len(gene_ids):
        absent = [gene for gene, is_found in zip(gene_ids, found, strict=True) if not is_found]
        logger.warning(
            "event=genes_without_vector source=%s n_genes=%d of=%d placed=mean_of_others "
            "examples=%s",
            *(where, len(absent), len(gene_ids), ",".join(absent[:5])),
        )


def _placed(
    values: Float32[ndarray, "found dim"], found: Bool[ndarray, " gene"], source: str, digest: str
) -> GeneEmbedding:
    """Vectors where they are known, their mean elsewhere."""
    vectors = np.tile(values.mean(axis=0), (len(found), 1))
    vectors[found] = values
    return GeneEmbedding(vectors, source, digest, int(found.sum()))


def _loadings(correlation: Float64[ndarray, "gene gene"], dim: int) -> Float64[ndarray, "gene top"]:
    """At most `dim` columns, largest eigenvalue first, the largest entry of each positive."""
    n = len(correlation)
    n_top = min(dim, n)
    values, vectors = scipy.linalg.eigh(correlation, subset_by_index=[n - n_top, n - 1])
    values, vectors = np.maximum(values[::-1], 0), vectors[:, ::-1]
    largest = np.abs(vectors).argmax(axis=0)
    signs = np.where(vectors[largest, np.arange(n_top)] < 0, -1, 1)
    loadings: np.ndarray = vectors * signs * np.sqrt(values)
    return loadings


def _computed(vectors: Float32[ndarray, "gene dim"], source: str, n_found: int) -> GeneEmbedding:
    return GeneEmbedding(vectors, source, hashlib.sha256(vectors.tobytes()).hexdigest(), n_found)


def _read(path: Path) -> pd.DataFrame:
    """Table of finite numbers indexed by unique gene id."""
    readers: dict[str, Callable[[Path], pd.DataFrame]] = {
        ".csv": lambda p: pd.read_csv(p, index_col=0),
        ".tsv": lambda p: pd.read_csv(p, index_col=0, sep="\t"),
        ".parquet": _read_parquet,
        ".npz": _read_npz,
    }
    if path.suffix not in readers:
        raise ConfigError(f"gene vectors {path} end in {path.suffix!r}; use {listed(readers)}")
    if not path.is_file():
        raise ConfigError(f"gene vectors {path} do not exist; correct blocks.embedding.path")
    try:
        table = readers[path.suffix](path).astype(np.float32)
    except (ValueError, KeyError, TypeError, OSError) as e:
        raise DataError(
            f"{path} is not a table of gene id and numbers: {e}; expected one row per gene"
        ) from e
    table.index = table.index.astype(str)
    _check(table, path)
    return table


def _read_parquet(path: Path) -> pd.DataFrame:
    table = pd.read_parquet(path)
    named = isinstance(table.index, pd.RangeIndex)
    return table.set_index(table.columns[0]) if named else table


def _read_npz(path: Path) -> pd.DataFrame:
    with np.load(path, allow_pickle=False) as arrays:
        return pd.DataFrame(arrays["vectors"], index=pd.Index(arrays["genes"]))


def _check(table: pd.DataFrame, path: Path) -> None:
    if table.shape[0] == 0 or table.shape[1] == 0:
        raise DataError(f"{path} holds a table of shape {table.shape}; expected one row per gene")
    if not table.index.is_unique:
        twice = table.index[table.index.duplicated()].unique()
        raise DataError(f"{path} lists genes twice: {listed(twice, 5)}; keep one row each")
    finite = np.isfinite(table.to_numpy()).all(axis=1)
    if not finite.all():
        raise DataError(
            f"{path} holds NaN or infinity for {int((~finite).sum())} genes, e.g. "
            f"{listed(table.index[~finite], 5)}; remove these rows"
        )
