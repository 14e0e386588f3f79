"""What is known about an atlas besides its cells: the plan it is filled from, one receipt per part.

They live beside the store, in `<atlas>.receipts/`: `plan.json`, then `000017.json` for part 17,
written last of all files of the part. A part without a sound receipt does not exist, whatever
bytes its shard holds; rows returned by a scheduler count for nothing.
"""

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from save_dist.core.durable import digest, file_digest, json_bytes, parse_json
from save_dist.core.errors import AtlasError, CheckpointError
from save_dist.stores.storage import Storage, Where, storage_of

PLAN = "plan.json"


@dataclass(frozen=True)
class AtlasRecord:
    """The layout and identity of an atlas, as every worker reads it."""

    plan_hash: str
    model_hash: str
    n_cells: int
    n_genes: int
    cells_per_part: int
    cells_per_chunk: int
    arrays: tuple[str, ...]
    """Arrays with one row per cell: X, then those of obs."""
    plan: Mapping[str, Any]
    """The request the plan was made from."""
    template: Mapping[str, str]
    """sha256 of the files that are written once, with the template."""
    versions: Mapping[str, str] = field(default_factory=dict)
    """Of the packages that the template names."""
    history: tuple[tuple[int, str], ...] = ()
    """Rows and hash of every plan that was extended to this one, in their order."""

    @property
    def n_parts(self) -> int:
        """Parts; the last may be short."""
        return -(-self.n_cells // self.cells_per_part)

    def rows(self, part: int) -> tuple[int, int]:
        """First row of a part and the row after its last."""
        start = part * self.cells_per_part
        return start, min(start + self.cells_per_part, self.n_cells)

    def plan_hash_of(self, part: int) -> str:
        """The plan that a part was finished under: the oldest that holds all its rows."""
        _, stop = self.rows(part)
        return next((sha for n_cells, sha in self.history if stop <= n_cells), self.plan_hash)

    def files(self, part: int) -> list[str]:
        """The files of a part, relative to the store: one for every array."""
        is_column = [name.startswith("obs/") for name in self.arrays]
        pairs = zip(self.arrays, is_column, strict=True)
        return [f"{name}/c/{part}" if column else f"{name}/c/{part}/0" for name, column in pairs]


@dataclass(frozen=True)
class Receipt:
    """One finished part. Equal plans give equal receipts, but for the times."""

    part: int
    start: int
    n_cells: int
    n_counts: int
    """Sum of all counts of the part, taken before they were written."""
    n_saturated: int
    """Counts that were cut to 65,535."""
    n_evaluations: int
    """Evaluations of the velocity networks over all minibatches of the part."""
    plan_hash: str
    model_hash: str
    files: Mapping[str, tuple[str, int]]
    """sha256 and length in bytes of every file of the part."""
    seconds: float
    """Wall time of sampling and writing; times are outside the digest."""
    writing_s: float = 0.0
    """Share of `seconds` that compressing, writing and syncing took."""

    @property
    def digest(self) -> str:
        """sha256 over all but the time: what was written, where, by which model and plan."""
        facts = asdict(self)
        del facts["seconds"], facts["writing_s"]
        return digest({**facts, "files": {name: list(f) for name, f in self.files.items()}})


@dataclass(frozen=True)
class Problem:
    """Something that does not verify; `part` is None for what belongs to the whole atlas."""

    part: int | None
    text: str


@dataclass(frozen=True)
class VerifyReport:
    """Outcome of reading every byte of an atlas."""

    n_parts: int
    n_cells: int
    n_saturated: int
    is_marked_complete: bool
    problems: tuple[Problem, ...]

    @property
    def bad_parts(self) -> list[int]:
        """Parts to generate again."""
        return sorted({p.part for p in self.problems if p.part is not None})

    @property
    def is_sound(self) -> bool:
        """Whether every part is there, as its receipt says, under the atlas's own plan."""
        return not self.problems


def receipts_of(path: Where) -> Storage:
    """Where the receipts of the atlas at `path` live."""
    return storage_of(f"{path}.receipts")


def receipt_name(part: int) -> str:
    """Receipt file of one part."""
    return f"{part:06d}.json"


def write_record(path: Where, record: AtlasRecord) -> None:
    """Record the plan of the atlas at `path`."""
    receipts_of(path).write(PLAN, json_bytes(asdict(record)))


def read_record(path: Where) -> AtlasRecord:
    """The recorded plan of the atlas at `path`.

    Raises:
        AtlasError: if there is none, or it cannot be read.
    """
    receipts = receipts_of(path)
    place = f"{receipts}/{PLAN}"
    try:
        value = parse_json(receipts.read(PLAN), place)
        history = tuple((n_cells, sha256) for n_cells, sha256 in value["history"])
        return AtlasRecord(**{**value, "arrays": tuple(value["arrays"]), "history": history})
    except FileNotFoundError as e:
        raise AtlasError(
            f"there is no plan record {place}: {path} is no atlas, or was never begun; run "
            "generate, or correct the path"
        ) from e
    except (CheckpointError, KeyError, TypeError, ValueError) as e:
        raise AtlasError(
            f"{place} is not a plan record ({e}); restore it, or remove it and {path}"
        ) from e


def write_receipt(path: Where, receipt: Receipt) -> None:
    """Publish a part: the last write of its task."""
    value = {**asdict(receipt), "digest": receipt.digest}
    receipts_of(path).write(receipt_name(receipt.part), json_bytes(value))


def read_receipt(path: Where, record: AtlasRecord, part: int, *, deep: bool) -> Receipt:
    """The receipt of a part, compared with the plan and with the files of the part.

    Args:
        path: atlas.
        record: its plan.
        part: number of the part.
        deep: read the files and compare every byte; otherwise compare their lengths.

    Raises:
        AtlasError: saying what does not fit.
    """
    receipt, store = _parse(receipts_of(path), receipt_name(part)), storage_of(path)
    start, stop = record.rows(part)
    expected = (part, start, stop - start, record.plan_hash_of(part), record.model_hash)
    found = (
        receipt.part,
        receipt.start,
        receipt.n_cells,
        receipt.plan_hash,
        receipt.model_hash,
    )
    if found != expected:
        raise AtlasError(
            f"the receipt of part {part} is of another plan: it says (part, start, cells, plan, "
            f"model) = {found}, expected {expected}"
        )
    if sorted(receipt.files) != sorted(record.files(part)):
        raise AtlasError(f"the receipt of part {part} lists other files than the plan")
    for name, (sha256, n_bytes) in receipt.files.items():
        _check_file(store, name, part, sha256 if deep else None, n_bytes)
    return receipt


def missing_parts(path: Where) -> list[int]:
    """Parts of an atlas without a sound receipt; compares lengths of files, not their bytes.

    Raises:
        AtlasError: if there is no plan record for `path`.
    """
    record = read_record(path)

    def is_missing(part: int) -> bool:
        try:
            read_receipt(path, record, part, deep=False)
        except AtlasError:
            return True
        return False

    asked = storage_of(path).each(is_missing, range(record.n_parts))
    return [part for part, missing in enumerate(asked) if missing]


def atlas_digest(path: Where) -> str:
    """Identity of an atlas's bytes: the files of its template and the receipts of all parts."""
    record = read_record(path)

    def digest_of(part: int) -> str:
        return read_receipt(path, record, part, deep=False).digest

    parts = storage_of(path).each(digest_of, range(record.n_parts))
    return digest({"template": record.template, "parts": list(parts)})


def file_facts(workspace: Path, names: Iterable[str]) -> dict[str, tuple[str, int]]:
    """sha256 and length of files that were prepared, by name."""
    places = {name: workspace / name for name in names}
    return {name: (file_digest(p), p.stat().st_size) for name, p in places.items()}


def _parse(receipts: Storage, name: str) -> Receipt:
    place = f"{receipts}/{name}"
    try:
        value = parse_json(receipts.read(name), place)
        expected = value.pop("digest")
        files = {name: (sha256, n_bytes) for name, (sha256, n_bytes) in value["files"].items()}
        receipt = Receipt(**{**value, "files": files})
    except FileNotFoundError as e:
        raise AtlasError(f"there is no receipt {name}: the part was never finished") from e
    except (CheckpointError, KeyError, TypeError, ValueError, AttributeError) as e:
        raise AtlasError(f"{place} is truncated or no receipt: {e}") from e
    if receipt.digest != expected:
        raise AtlasError(f"{place} was altered: digest {receipt.digest}, it says {expected}")
    return receipt


def _check_file(store: Storage, name: str, part: int, sha256: str | None, n_bytes: int) -> None:
    place, found = f"{store}/{name}", store.n_bytes(name)
    if found is None:
        raise AtlasError(f"part {part}: file {place} is missing")
    if found != n_bytes:
        raise AtlasError(f"part {part}: {place} has {found} bytes, its receipt says {n_bytes}")
    if sha256 is not None and (found_sha := store.sha256(name)) != sha256:
        raise AtlasError(
            f"part {part}: {place} was altered: sha256 {found_sha}, its receipt says {sha256}"
        )
