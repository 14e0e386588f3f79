"""Where an input is, of which kind it is, and what identifies its content."""

import contextlib
import re
from collections.abc import Iterator
from pathlib import Path

import h5py
import zarr

from save_dist.core.durable import digest, file_digest
from save_dist.core.errors import DataError
from save_dist.core.paths import PACKAGE_PREFIX, in_package
from save_dist.data.readers import tenx
from save_dist.data.readers.anndata import AnndataReader
from save_dist.data.readers.base import CellReader

_ZARR_FILES = ("zarr.json", ".zgroup")
_PICKLE_CODEC = re.compile(r'"id"\s*:\s*"pickle"')
_KINDS = (
    "an h5ad file, an AnnData-Zarr store, a 10x h5 file or a 10x folder (matrix.mtx, "
    "barcodes.tsv, features.tsv)"
)


def resolve(path: str) -> Path:
    """The file or folder an input path means, absolute, so that other processes find it too.

    `package:NAME/PATH` looks inside a package.

    The package is found without importing it.

    Raises:
        DataError: if the package or the file does not exist.
    """
    found = in_package(path)
    if found is None and path.startswith(PACKAGE_PREFIX):
        name = path.removeprefix(PACKAGE_PREFIX).partition("/")[0]
        raise DataError(
            f"input {path} is inside Python package {name!r}, which is not installed; "
            "install it or give a file path"
        )
    found = found or Path(path)
    if not found.exists():
        raise DataError(
            f"input file {found} does not exist (working folder: {Path.cwd()}); "
            "correct ingest.inputs"
        )
    return found.absolute()


@contextlib.contextmanager
def open_cells(path: Path, layer: str | None, gene_column: str | None) -> Iterator[CellReader]:
    """The input at `path`, open for the duration of the block.

    Args:
        path: file or folder of any kind that is read.
        layer: layer of raw counts of AnnData inputs; None: X. 10x inputs hold raw counts alone.
        gene_column: what names the genes; None: the index of var (AnnData), the ids (10x).

    Raises:
        DataError: if it is of no known kind, or not sound.
    """
    if path.is_dir():
        yield _of_folder(path, layer, gene_column)
        return
    with _hdf5(path) as file:
        if "obs" not in file and tenx.matrix_groups(file):
            yield tenx.TenxH5Reader(path, file, gene_column)
        else:
            yield AnndataReader(path, file, layer, gene_column)


def content_digest(path: Path) -> str:
    """sha256 that changes with anything an input holds."""
    if path.is_file():
        return file_digest(path)
    files = tenx.folder_files(path) if tenx.is_folder(path) else sorted(path.rglob("*"))
    return digest({str(p.relative_to(path)): file_digest(p) for p in files if p.is_file()})


def _of_folder(path: Path, layer: str | None, gene_column: str | None) -> CellReader:
    if tenx.is_folder(path):
        return tenx.TenxFolderReader(path, gene_column)
    if not any((path / name).is_file() for name in _ZARR_FILES):
        raise DataError(f"folder {path} is no input that can be read; expected {_KINDS}")
    _refuse_pickles(path)
    try:
        root = zarr.open_group(path, mode="r")
    except (OSError, ValueError, KeyError) as e:
        raise DataError(f"{path} is not a readable Zarr store: {e}") from e
    return AnndataReader(path, root, layer, gene_column)


def _refuse_pickles(path: Path) -> None:
    """Of Zarr's codecs one runs code; none of its chunks may be decoded, in no version of Zarr.

    Raises:
        DataError: naming the array.
    """
    for place in (path / ".zmetadata", *path.rglob(".zarray")):
        if place.is_file() and _PICKLE_CODEC.search(place.read_text(errors="replace")):
            raise DataError(
                f"{place} names the codec pickle, which runs code when it is read; do not read "
                "this store with anything, and ask its maker for one without it"
            )


def _hdf5(path: Path) -> h5py.File:
    try:
        return h5py.File(path, "r")
    except OSError as e:
        raise DataError(
            f"{path} is not a readable h5ad (HDF5) file: {e}; an input is {_KINDS}"
        ) from e
