"""Does an atlas hold what its plan says? Checks of content; its bytes are checked by receipts."""

from collections.abc import Iterable

import numpy as np
import zarr
from numpy import ndarray

from save_dist.core.seeding import generator
from save_dist.generation.atlas_view import Atlas
from save_dist.generation.worker import PartFiller
from save_dist.stores.part import n_counts, part_values
from save_dist.stores.receipts import AtlasRecord, Problem, read_receipt, read_record
from save_dist.stores.storage import Where, storage_of


def check_conditions(path: Where, parts: Iterable[int]) -> list[Problem]:
    """Compare the conditions of every row of some parts with the plan, and so how many each has.

    Args:
        path: atlas.
        parts: finished parts.
    """
    record, view = read_record(path), Atlas(path, incomplete=True)
    group = zarr.open_group(storage_of(path).zarr, mode="r")
    arrays = [group[f"obs/{column}/codes"] for column in view.conditions.columns]
    problems = []
    for part in parts:
        start, stop = record.rows(part)
        segments = view.segments(start, stop)
        sizes = [segment.n_cells for segment in segments]
        planned = np.repeat(np.array([s.codes for s in segments]), sizes, axis=0)
        found = np.stack([array[start:stop] for array in arrays], axis=1)
        if n_wrong := int((planned != found).any(axis=1).sum()):
            text = (
                f"part {part}: {n_wrong} of {stop - start} rows have other conditions than planned"
            )
            problems.append(Problem(part, text))
    return problems


def check_totals(path: Where, parts: Iterable[int]) -> list[Problem]:
    """Compare the sum of the counts that a reader finds in some parts with their receipts.

    Digests say that files are as they were written; this says that they hold what was sampled.

    Args:
        path: atlas.
        parts: finished parts.
    """
    record, problems = read_record(path), []
    x = zarr.open_array(storage_of(path).zarr, path="X", mode="r")
    for part in parts:
        sampled = read_receipt(path, record, part, deep=False).n_counts
        start, stop = record.rows(part)
        if (found := n_counts(x[start:stop])) != sampled:
            text = f"part {part}: its cells have {found} counts in all, {sampled} were sampled"
            problems.append(Problem(part, text))
    return problems


def choose_parts(path: Where, n_parts: int, seed: int) -> list[int]:
    """Parts to sample again: at most `n_parts`, drawn at random from the whole atlas."""
    record = read_record(path)
    drawn = generator(seed, "resampled_parts").permutation(record.n_parts)[:n_parts]
    return sorted(drawn.tolist())


def resample(path: Where, worker: PartFiller, parts: Iterable[int]) -> list[Problem]:
    """Sample parts again and compare every stored value with what comes out, bit for bit.

    Args:
        path: atlas.
        worker: fills its parts.
        parts: finished parts.
    """
    record, problems = read_record(path), []
    for part in parts:
        if differing := _differences(path, record, worker, part):
            text = f"part {part}, sampled again here, differs in {', '.join(differing)}"
            problems.append(Problem(part, text))
    return problems


def _differences(path: Where, record: AtlasRecord, worker: PartFiller, part: int) -> list[str]:
    columns, _ = worker.sample(part)
    start, stop = record.rows(part)
    found = []
    for name, values in part_values(record, part, columns):
        stored = zarr.open_array(storage_of(path).zarr, path=name, mode="r")[start:stop]
        if n_wrong := _n_differing(stored, values):
            found.append(f"{n_wrong} of {stored.size} values of {name}")
    return found


def _n_differing(stored: ndarray, values: ndarray) -> int:
    if stored.shape != values.shape:
        return int(stored.size)
    return int(np.count_nonzero(stored != values))
