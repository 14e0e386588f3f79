"""The gene vectors a configuration asks for: what they depend on, and how they come about."""

from collections.abc import Callable
from pathlib import Path

from jaxtyping import Float64
from numpy import ndarray

from save_dist.config.schema import EmbeddingConfig
from save_dist.core.durable import digest, file_digest
from save_dist.core.errors import ConfigError
from save_dist.core.paths import PACKAGE_PREFIX
from save_dist.pipelines.context import Context
from save_dist.stores.gene_vectors import load_vectors, save_vectors
from save_dist.vocab import embeddings
from save_dist.vocab.descriptions import read_descriptions
from save_dist.vocab.embeddings import GeneEmbedding
from save_dist.vocab.genes import GeneVocabulary
from save_dist.vocab.sentences import (
    SentenceEncoder,
    check_installed,
    load_encoder,
    model_digest,
    model_folder,
)

LoadEncoder = Callable[[Path], SentenceEncoder]


def input_digests(config: EmbeddingConfig) -> list[str]:
    """Digests of the files that the vectors come from; none where they come from the cells.

    Raises:
        ConfigError: if a file or the model is absent.
    """
    if config.path is None:
        return []
    if not config.path.is_file():
        raise ConfigError(f"blocks.embedding.path={config.path} does not exist; correct it")
    table = file_digest(config.path)
    return [table] if config.model is None else [table, model_digest(model_folder(config.model))]


def check_embedding(config: EmbeddingConfig) -> str:
    """All that can be known before cells are read; says what the vectors will come from.

    Raises:
        ConfigError, DataError: if a file, a column, the model or the extra `text` is missing.
    """
    input_digests(config)
    if config.source != "text":
        return config.source
    assert config.path is not None  # checked by the schema
    check_installed()
    texts = read_descriptions(config.path, config.id_column, config.text_column)
    return f"text: {len(texts)} genes are described in {config.path.name}"


def gene_vectors(
    config: EmbeddingConfig,
    genes: GeneVocabulary,
    covariance: Float64[ndarray, "gene gene"] | None,
    context: Context,
    seed: int,
    *,
    load: LoadEncoder = load_encoder,
) -> GeneEmbedding:
    """One vector per gene of the vocabulary.

    Args:
        config: source of the vectors.
        genes: the vocabulary.
        covariance: of their expression, for `coexpression`.
        context: of the job; vectors made from text are kept in its run folder.
        seed: for `random`.
        load: how an encoder comes from its folder.
    """
    if config.source == "text":
        return _from_text(config, genes, context, load)
    if config.source == "file":
        assert config.path is not None  # checked by the schema
        return embeddings.from_file(config.path, genes.ids)
    if config.source == "random":
        return embeddings.random(len(genes), config.dim, seed)
    assert covariance is not None  # asked for with this source
    return embeddings.coexpression(covariance, config.dim)


def _from_text(
    config: EmbeddingConfig, genes: GeneVocabulary, context: Context, load: LoadEncoder
) -> GeneEmbedding:
    """Vectors of descriptions, taken from the run folder where these were made before."""
    assert config.path is not None  # both checked by the schema
    assert config.model is not None
    columns = [config.id_column, config.text_column]
    identity = digest([*input_digests(config), columns, genes.hash])
    if (kept := load_vectors(context.paths.gene_vectors, identity)) is not None:
        return kept
    texts = read_descriptions(config.path, *columns)
    encoder = load(model_folder(config.model))
    with context.progress.task("gene descriptions", None, "genes") as task:
        embedding = embeddings.from_text(
            texts,
            encoder,
            genes.ids,
            source=f"text:{config.path.name}:{_name(config.model)}",
            digest=identity,
            progress=lambda done, total: task.update(done, total=total),
        )
    save_vectors(context.paths.gene_vectors, embedding, genes)
    return embedding


def _name(model: str) -> str:
    """How a record names a model; the digest says which it is."""
    return model if model.startswith(PACKAGE_PREFIX) else Path(model).name
