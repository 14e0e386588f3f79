"""The names inside a run folder, and paths into installed packages."""

import importlib.util
from dataclasses import dataclass
from pathlib import Path

from save_dist.core.errors import ConfigError

PACKAGE_PREFIX = "package:"


def in_package(path: str) -> Path | None:
    """The place that `package:NAME/PATH` means; None for a plain path or an absent package.

    The package is found without importing it. What is there is for the caller to check.

    Raises:
        ConfigError: if the place lies outside the package.
    """
    name, _, inside = path.removeprefix(PACKAGE_PREFIX).partition("/")
    if not path.startswith(PACKAGE_PREFIX) or not name.isidentifier():
        return None
    if ".." in Path(inside).parts or Path(inside).is_absolute():
        raise ConfigError(f"{path} leads out of package {name!r}; give a plain file path instead")
    spec = importlib.util.find_spec(name)
    if spec is None or not spec.submodule_search_locations:
        return None
    return Path(spec.submodule_search_locations[0]) / inside


ATLASES = "atlases"
"""Folder below a run that holds one run folder per scheduled pair of model and grid."""


TRIALS = "trials"
"""Folder below a run that holds one run folder per trial of a sweep."""


@dataclass(frozen=True)
class RunPaths:
    """Places of one run."""

    root: Path
    atlas_elsewhere: str | None = None
    """`run.atlas` of the configuration."""

    @property
    def config(self) -> Path:
        """Resolved configuration of the last job."""
        return self.root / "config.resolved.yaml"

    @property
    def result(self) -> Path:
        """JSON summary of the last job."""
        return self.root / "result.json"

    @property
    def metrics(self) -> Path:
        """Append-only record of everything tracked; the truth MLflow mirrors."""
        return self.root / "metrics.jsonl"

    def rank_metrics(self, rank: int) -> Path:
        """Append-only record of the steps of one training process."""
        return self.root / "ranks" / f"{rank}.jsonl"

    @property
    def is_trial(self) -> bool:
        """Whether the run is a trial of a sweep; its models are compared, not offered."""
        return self.root.absolute().parent.name == TRIALS

    @property
    def store(self) -> Path:
        """TileDB-SOMA experiment."""
        return self.root / "store.soma"

    @property
    def vocab(self) -> Path:
        """Genes, conditions, blocks, cell index."""
        return self.root / "vocab"

    @property
    def gene_vectors(self) -> Path:
        """Gene vectors made from descriptions, kept for a stage that begins again."""
        return self.root / "gene_vectors"

    def checkpoints(self, stage: str) -> Path:
        """Checkpoints of one training stage."""
        return self.root / "checkpoints" / stage

    @property
    def latents(self) -> Path:
        """Encoded training cells."""
        return self.root / "latents"

    @property
    def model(self) -> Path:
        """Exported model bundle."""
        return self.root / "model"

    @property
    def atlas(self) -> Path | str:
        """Generated cells: a folder, or a place in an object store."""
        return self.atlas_elsewhere or self.root / "atlas.zarr"

    @property
    def catalogue(self) -> Path:
        """The atlases of the run, one line per event; scheduled ones stand in that of the run."""
        is_scheduled = self.root.parent.name == ATLASES
        return (self.root.parent.parent if is_scheduled else self.root) / "catalogue.jsonl"

    @property
    def report(self) -> Path:
        """Pages and pictures for people."""
        return self.root / "report"

    @property
    def stages(self) -> Path:
        """One small record per finished stage."""
        return self.root / "stages"

    @property
    def scratch(self) -> Path:
        """Caches that may be deleted at any time."""
        return self.root / "scratch"
