"""Gene vectors that were costly to make, kept in the run folder.

A published folder: what is in it is checked against its digests. `vectors.npz` in it is a table
that `blocks.embedding.source: file` reads, so that other runs need not make it again.
"""

from pathlib import Path

import numpy as np

from save_dist.core.durable import MANIFEST, publish_folder, read_json, verify_folder
from save_dist.vocab.embeddings import GeneEmbedding
from save_dist.vocab.genes import GeneVocabulary

TABLE = "vectors.npz"


def save_vectors(folder: Path, embedding: GeneEmbedding, genes: GeneVocabulary) -> None:
    """Publish the vectors of all genes, with where they came from in the manifest."""
    about = {"kind": "gene_vectors", "source": embedding.source, "digest": embedding.digest}
    with publish_folder(folder, {**about, "n_found": embedding.n_found}) as aside:
        np.savez(aside / TABLE, genes=np.array(genes.ids), vectors=embedding.vectors)


def load_vectors(folder: Path, digest: str) -> GeneEmbedding | None:
    """The vectors in the folder; None if there are none, or they were made from something else.

    Raises:
        CheckpointError: if a file was altered.
    """
    if not (folder / MANIFEST).is_file() or read_json(folder / MANIFEST)["digest"] != digest:
        return None
    about = verify_folder(folder)
    with np.load(folder / TABLE, allow_pickle=False) as arrays:
        vectors = arrays["vectors"]
    return GeneEmbedding(vectors, about["source"], about["digest"], about["n_found"])
