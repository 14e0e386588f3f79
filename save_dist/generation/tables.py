"""Files that a grid names, read once; afterwards the grid says everything itself.

A settled grid needs neither files nor training cells, so a worker plans from the recorded grid
alone, and the plan's hash covers what the files held, not where they stood.
"""

import base64
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
from jaxtyping import Int16, Int64
from numpy import ndarray

from save_dist.config.schema import CellTable, FromFile, GridConfig, OutputConfig
from save_dist.core.errors import ConfigError, listed
from save_dist.generation.combinations import codes_for, resolve
from save_dist.generation.routes import Routes
from save_dist.stores.facts import ModelFacts
from save_dist.vocab.conditions import ConditionVocabulary

N = "n"
"""Column of a table that holds numbers of cells."""
_SEPARATORS = {".csv": ",", ".tsv": "\t"}


def settle(grid: GridConfig, model: ModelFacts) -> GridConfig:
    """The grid with its files read and `as_many_as_real` counted.

    Raises:
        ConfigError: for a file that is absent or does not hold what is expected.
    """
    columns = {
        name: read_values(values, name) if isinstance(values, FromFile) else values
        for name, values in grid.columns.items()
    }
    cells = grid.cells_per_condition
    if isinstance(cells, FromFile):
        cells = _read_cells(cells.from_file)
    settled = grid.model_copy(update={"columns": columns, "cells_per_condition": cells})
    if cells == "as_many_as_real":
        cells = _real_cells(settled, model)
    return settled.model_copy(update={"cells_per_condition": cells})


def settle_output(output: OutputConfig, model: ModelFacts) -> OutputConfig:
    """The output settings with genes listed by id, in the order of the model.

    Raises:
        ConfigError: for a file that cannot be read, or a gene or pattern the model does not know.
    """
    genes = output.genes
    if genes is None:
        return output
    wanted = read_values(genes, "gene_id") if isinstance(genes, FromFile) else genes
    found = codes_for("gene", wanted, model.genes.ids, "output.genes")
    if not found:
        raise ConfigError("output.genes is empty; name at least one gene, or leave it out for all")
    names = [model.genes.ids[i] for i in found]
    kept = None if len(names) == len(model.genes) else names
    return output.model_copy(update={"genes": kept})


def read_values(source: FromFile, name: str) -> list[str]:
    """Values from a text file, one per line, or from a column of a table.

    Args:
        source: the file.
        name: column to read where the source names none.

    Raises:
        ConfigError: if the file is absent, has no such column, or holds no value.
    """
    path = source.from_file
    if path.suffix in _SEPARATORS:
        table = _read_table(path)
        column = source.column or name
        if column not in table:
            raise ConfigError(
                f"{path} has no column {column!r}, it has {listed(table)}; name one with "
                "{from_file: ..., column: ...}"
            )
        values = table[column].tolist()
    else:
        values = [line.strip() for line in _read_text(path).splitlines()]
    found = list(dict.fromkeys(value for value in values if value))
    if not found:
        raise ConfigError(f"{path} holds no value; write one per line")
    return found


def codes_of(table: CellTable, vocabulary: ConditionVocabulary) -> Int16[ndarray, "row column"]:
    """Condition codes of the rows of a table, in its columns.

    Raises:
        ConfigError: naming a value that the vocabulary does not know.
    """
    found = np.frombuffer(base64.b64decode(table.codes), "<i2").reshape(-1, len(table.columns))
    out = np.empty(found.shape, np.int16)
    for i, (column, values) in enumerate(zip(table.columns, table.values, strict=True)):
        known = vocabulary.categories[vocabulary.columns.index(column)]
        places = pd.Index(known).get_indexer(pd.Index(values))
        if unknown := [v for v, place in zip(values, places, strict=True) if place < 0]:
            raise ConfigError(
                f"the table of grid.cells_per_condition: the model knows no {column} "
                f"{listed(unknown, 5)!r}; known values: {listed(known)}"
            )
        out[:, i] = places.astype(np.int16)[found[:, i]]
    return out


def cells_of(table: CellTable) -> Int64[ndarray, " row"]:
    """Cells of the conditions that each row of a table names."""
    return np.frombuffer(base64.b64decode(table.n), "<i8").astype(np.int64)


def cell_table(
    columns: Sequence[str], values: pd.DataFrame, n: Int64[ndarray, " row"]
) -> CellTable:
    """A table in the form the plan keeps; the order of its rows has no say."""
    codes, categories = np.empty((len(values), len(columns)), np.int64), []
    for i, column in enumerate(columns):
        codes[:, i], known = pd.factorize(values[column], sort=True)
        categories.append([str(value) for value in known])
    if any(len(known) > np.iinfo(np.int16).max for known in categories):
        raise ConfigError("a table of cells per condition has too many values in one column")
    order = np.lexsort(codes.T[::-1])
    return CellTable(
        columns=list(columns),
        values=categories,
        codes=base64.b64encode(codes[order].astype("<i2").tobytes()).decode(),
        n=base64.b64encode(n[order].astype("<i8").tobytes()).decode(),
    )


def _real_cells(grid: GridConfig, model: ModelFacts) -> CellTable | int:
    """Training cells of every condition of the grid that has some.

    Those of a condition with masked columns are all that agree with it in the others.
    """
    vocabulary = model.conditions
    shown = [i for i, column in enumerate(vocabulary.columns) if column not in grid.masked]
    if not shown:
        return sum(model.support.values())
    hidden = [i for i in range(len(vocabulary.columns)) if i not in shown]
    seen = Routes(vocabulary, model.support).seen(hidden)
    known = np.array(list(seen), np.int16).reshape(-1, len(vocabulary.columns))
    is_asked = resolve(grid, vocabulary).find(known) >= 0
    names = [vocabulary.columns[i] for i in shown]
    rows = [[vocabulary.categories[i][codes[i]] for i in shown] for codes in known[is_asked]]
    n = np.array(list(seen.values()), np.int64)[is_asked]
    return cell_table(names, pd.DataFrame(rows, columns=pd.Index(names)), n)


def _read_cells(path: Path) -> CellTable:
    """A table with one row per condition and its number of cells."""
    if path.suffix not in _SEPARATORS:
        raise ConfigError(
            f"{path} is no table: cells per condition are read from a .csv or .tsv file with "
            f"condition columns and a column {N!r}"
        )
    table = _read_table(path)
    columns = [str(column) for column in table if column != N]
    if N not in table or not columns or table.empty:
        raise ConfigError(
            f"{path} has {len(table)} rows and columns {listed(table)}; expected at least one "
            f"row, condition columns and a column {N!r} with numbers of cells"
        )
    n = pd.to_numeric(table[N], errors="coerce").to_numpy(np.float64)
    is_bad = ~(np.isfinite(n) & (n == np.rint(n)) & (n > 0))
    if is_bad.any():
        row = int(np.flatnonzero(is_bad)[0])
        raise ConfigError(
            f"{path}: row {row + 1} has {N} = {table[N].iloc[row]!r}, expected a whole number "
            "above 0; to leave a condition out, use grid.exclude"
        )
    if (twice := table.duplicated(columns)).any():
        condition = table.loc[twice, columns].iloc[0].to_dict()
        raise ConfigError(f"{path} names {condition} more than once; keep one row")
    return cell_table(columns, table, n.astype(np.int64))


def _read_table(path: Path) -> pd.DataFrame:
    try:
        return pd.read_csv(
            path, sep=_SEPARATORS[path.suffix], dtype=str, keep_default_na=False, na_filter=False
        )
    except FileNotFoundError as e:
        raise _absent(path) from e
    except (ValueError, OSError) as e:  # pandas' parser errors are ValueErrors
        raise ConfigError(f"{path} cannot be read as a table with a header: {e}") from e


def _read_text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except FileNotFoundError as e:
        raise _absent(path) from e
    except (UnicodeDecodeError, OSError) as e:
        raise ConfigError(f"{path} cannot be read as text: {e}") from e


def _absent(path: Path) -> ConfigError:
    return ConfigError(
        f"{path} does not exist (working folder: {Path.cwd()}); correct from_file in the grid"
    )
