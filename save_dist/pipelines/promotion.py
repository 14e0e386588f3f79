"""Promotion: a registered model becomes the champion, by its number or by what it scored."""

from collections.abc import Sequence
from pathlib import Path

from save_dist.config.schema import TrackingConfig
from save_dist.core.errors import CheckpointError, ConfigError
from save_dist.pipelines.context import Summary
from save_dist.tracking.connection import default_uri
from save_dist.tracking.registry import CHAMPION, Registry, Requirement, Version, choose


def registry(tracking: TrackingConfig, run: Path) -> Registry:
    """The registry that a run's models go to."""
    return Registry(tracking.uri or default_uri(run), tracking.experiment)


def promote(
    tracking: TrackingConfig, run: Path, number: int | None, requirements: Sequence[str]
) -> Summary:
    """Move the alias; says what it did and what was passed over.

    Args:
        tracking: names server and experiment.
        run: run folder.
        number: version to promote, whatever it scored; None: the newest that is good enough.
        requirements: what a version must reach, `METRIC<=NUMBER`.

    Raises:
        ConfigError: if neither or both are given, or there is no such version.
        CheckpointError: if there is no champion and no version is good enough.
        InfrastructureError: if MLflow does not answer.
    """
    if (number is None) == (not requirements):
        raise ConfigError(
            "a champion is named by --version N or found by --require 'METRIC<=NUMBER'; give one "
            "of the two"
        )
    known = registry(tracking, run)
    if number is not None:
        return _moved(known, known.promote(number))
    versions = known.versions()
    needs = [Requirement.parse(text) for text in requirements]
    chosen, refused = choose(versions, needs)
    if chosen is not None:
        return {**_moved(known, known.promote(chosen.number)), "refused": refused}
    stays = next((v for v in versions if CHAMPION in v.aliases), None)
    if stays is None:
        reasons = "; ".join(f"version {n} {why}" for n, why in refused.items())
        raise CheckpointError(
            f"no version of {known.name!r} can be the champion: {reasons or 'there is none'}; "
            "train and evaluate a model that is tracked there, or name one with --version"
        )
    return {
        "did": f"nothing: version {stays.number} stays the champion",
        "model_hash": stays.model_hash,
        "refused": refused,
    }


def _moved(known: Registry, version: Version) -> Summary:
    return {
        "did": f"version {version.number} of {known.name} is now the champion",
        "model_hash": version.model_hash,
        "scores": version.scores,
    }
