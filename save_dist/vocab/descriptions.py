"""Tables of gene -> description, and how the genes of the data are looked up in them."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import pandas as pd

from save_dist.core.errors import ConfigError, DataError, listed

SEPARATORS = {".csv": ",", ".tsv": "\t"}


def read_descriptions(path: Path, id_column: str, text_column: str) -> dict[str, str]:
    """Description of every gene that has one.

    Args:
        path: csv or tsv, plain or gzipped (`.tsv.gz`), or parquet.
        id_column: column of gene ids, of the kind the data use.
        text_column: column of texts; a gene whose text is empty is as good as absent.

    Raises:
        ConfigError: if the file does not exist, has another ending, or lacks a column.
        DataError: if it cannot be read, lists a gene twice, or describes none.
    """
    table = _read(path)
    if missing := [column for column in (id_column, text_column) if column not in table]:
        raise ConfigError(
            f"gene descriptions {path} have no column {listed(missing)}; they have "
            f"{listed(table.columns)}: correct blocks.embedding.id_column or text_column"
        )
    ids, texts = (table[c].fillna("").astype(str).str.strip() for c in (id_column, text_column))
    texts, ids = texts[(ids != "") & (texts != "")], ids[(ids != "") & (texts != "")]
    if ids.duplicated().any():
        raise DataError(
            f"{path} lists genes twice: {listed(ids[ids.duplicated()].unique(), 5)}; keep one "
            "row each"
        )
    if not len(ids):
        raise DataError(f"{path} describes no gene: every {id_column} or {text_column} is empty")
    return dict(zip(ids, texts, strict=True))


def match(descriptions: Mapping[str, str], gene_ids: Sequence[str]) -> dict[str, str]:
    """Description by gene of the data, for those that have one.

    A gene takes the row of its very id; without one, the row whose id differs in upper and lower
    case alone, if there is exactly one. Nothing else is guessed: aliases and versions of ids do
    not match.

    >>> match({"CD4": "a", "C1orf1": "b"}, ["Cd4", "C1ORF1", "CD4.1"])
    {'Cd4': 'a', 'C1ORF1': 'b'}
    """
    by_letters: dict[str, list[str]] = {}
    for name in descriptions:
        by_letters.setdefault(name.upper(), []).append(name)
    found = {}
    for gene in gene_ids:
        names = [gene] if gene in descriptions else by_letters.get(gene.upper(), [])
        if len(names) == 1:
            found[gene] = descriptions[names[0]]
    return found


def _read(path: Path) -> pd.DataFrame:
    ending = path.with_suffix("").suffix if path.suffix == ".gz" else path.suffix
    is_parquet = path.suffix == ".parquet"
    if not is_parquet and ending not in SEPARATORS:
        raise ConfigError(
            f"gene descriptions {path} end in {path.suffix!r}; use {listed(SEPARATORS)}, the same "
            "with .gz, or .parquet"
        )
    if not path.is_file():
        raise ConfigError(f"gene descriptions {path} do not exist; correct blocks.embedding.path")
    try:
        if is_parquet:
            return pd.read_parquet(path)
        # every cell as text: a gene may be called NA or 1
        return pd.read_csv(path, sep=SEPARATORS[ending], dtype=str, keep_default_na=False)
    except (ValueError, OSError, EOFError) as e:
        raise DataError(f"{path} is not a table of gene ids and descriptions: {e}") from e
