"""MLflow's model registry: exported models become versions, one of which is the champion.

A version carries the hash of its model as a tag. That makes registering a model twice harmless,
and lets whoever fetches a version see that they got the very bytes that were registered. Imports
mlflow inside functions, like `replay`.
"""

import contextlib
import logging
import operator
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from save_dist.core.durable import adopt_folder, digest, verify_folder
from save_dist.core.errors import CheckpointError, ConfigError, InfrastructureError
from save_dist.core.paths import RunPaths
from save_dist.core.redaction import redact
from save_dist.tracking.connection import quiet

_log = logging.getLogger(__name__)

CANDIDATE = "candidate"
CHAMPION = "champion"
HASH_TAG = "save_dist.model_hash"
LOGGED_TAG = "save_dist.logged_model"
"""Tag of a version: the logged model that holds its files and its scores."""

_SIGNS: dict[str, Callable[[float, float], bool]] = {
    "<=": operator.le,
    ">=": operator.ge,
    "<": operator.lt,
    ">": operator.gt,
}


def registered_name(experiment: str) -> str:
    """Registered model whose versions the models of an experiment become.

    >>> registered_name("save/pbmc")
    'save-pbmc'
    """
    return experiment.replace("/", "-").replace(":", "-")


# ---------------------------------------------------------------- written by the mirror


def keep_model(
    client: Any, experiment_id: str, run_id: str, folder: Path, values: Mapping[str, Any]
) -> None:
    """Log an exported model with its files and make it a version; doing it again changes nothing.

    Models of a sweep's trials are logged, but become no versions.

    Args:
        client: an `mlflow.MlflowClient`.
        experiment_id: where the model is logged.
        run_id: MLflow run that exported it.
        folder: the model folder.
        values: `hash` and `facts` of the journal's record.
    """
    try:
        found = digest(verify_folder(folder)["files"])
    except CheckpointError as e:
        _log.warning("event=tracking_model_gone path=%s reason=%r", folder, str(e))
        return
    if found != values["hash"]:
        _log.warning(
            "event=tracking_model_replaced path=%s hash=%s now=%s", folder, values["hash"], found
        )
        return
    logged = find_logged(client, experiment_id, HASH_TAG, found)
    if logged is None:
        tags = {HASH_TAG: found, **values["facts"]}
        logged = client.create_logged_model(
            experiment_id, "model", run_id, tags=tags, model_type="save_dist"
        )
    if str(logged.status) != "READY":
        client.log_model_artifacts(logged.model_id, str(folder))
        client.finalize_logged_model(logged.model_id, "READY")
    _link(client, run_id, logged.model_id, 0)
    if not RunPaths(folder.parent).is_trial:
        experiment = client.get_experiment(experiment_id).name
        _register(client, registered_name(experiment), run_id, logged, found)


def keep_checkpoint(
    client: Any, experiment_id: str, run_id: str, place: Path, step: int, values: Mapping[str, Any]
) -> None:
    """Log a checkpoint as a model that stays where it is, with the metrics it had.

    Args:
        client: an `mlflow.MlflowClient`.
        experiment_id: where it is logged.
        run_id: MLflow run of its stage; its points are those of the record.
        place: the checkpoint's folder.
        step: optimiser steps it has seen.
        values: `digest` and `metrics` of the journal's record.
    """
    from mlflow.entities import Metric

    token = f"{run_id}:{values['digest']}"
    logged = find_logged(client, experiment_id, "save_dist.checkpoint", token)
    if logged is None:
        tags = {"save_dist.checkpoint": token, "path": redact(str(place))}
        logged = client.create_logged_model(
            experiment_id, f"step-{step}", run_id, tags=tags, model_type="checkpoint"
        )
    points = [
        Metric(key, float(value), time_ms, at, model_id=logged.model_id, run_id=run_id)
        for key, (value, time_ms, at) in values["metrics"].items()
    ]
    if points:
        client.log_batch(run_id, metrics=points)  # the run has them: the server drops doubles
    client.finalize_logged_model(logged.model_id, "READY")
    _link(client, run_id, logged.model_id, step)


def find_logged(client: Any, experiment_id: str, tag: str, value: str) -> Any | None:
    """The logged model of an experiment with a tag, the oldest; None if there is none."""
    query = f"tags.`{tag}` = '{value}'"
    oldest_first = [{"field_name": "creation_timestamp", "ascending": True}]
    found = client.search_logged_models(
        [experiment_id], query, max_results=1, order_by=oldest_first
    )
    return found[0] if found else None


def _link(client: Any, run_id: str, model_id: str, step: int) -> None:
    """Show a model among the outputs of a run; MLflow refuses the second time."""
    from mlflow.entities import LoggedModelOutput

    outputs = client.get_run(run_id).outputs
    known = {out.model_id for out in (outputs.model_outputs if outputs else [])}
    if model_id not in known:
        client.log_outputs(run_id, [LoggedModelOutput(model_id, step)])


def _register(client: Any, name: str, run_id: str, logged: Any, model_hash: str) -> None:
    from mlflow.exceptions import MlflowException

    try:
        client.create_registered_model(name)
    except MlflowException as e:
        if e.error_code != "RESOURCE_ALREADY_EXISTS":
            raise
    query = f"name = '{name}' and tags.`{HASH_TAG}` = '{model_hash}'"
    found = client.search_model_versions(query)
    if not found:
        tags = {HASH_TAG: model_hash, LOGGED_TAG: logged.model_id}
        source = logged.artifact_location
        found = [
            client.create_model_version(
                name, source, run_id, tags, await_creation_for=0, model_id=logged.model_id
            )
        ]
    number = max(int(version.version) for version in found)
    present = client.get_registered_model(name).aliases.get(CANDIDATE, 0)
    if number > int(present):
        client.set_registered_model_alias(name, CANDIDATE, str(number))


# ---------------------------------------------------------------- asked by people and schedules


@dataclass(frozen=True)
class Version:
    """One registered model."""

    number: int
    model_hash: str
    aliases: tuple[str, ...]
    source: str
    """Where its files are, as MLflow names it."""
    scores: dict[str, float]
    """Its evaluation: metric -> newest value; empty if it was not evaluated."""


@dataclass(frozen=True)
class Requirement:
    """What a score must reach."""

    metric: str
    sign: str
    bound: float

    @classmethod
    def parse(cls, text: str) -> "Requirement":
        """Read `METRIC<=NUMBER` (or <, >=, >).

        Raises:
            ConfigError: if it is written otherwise.
        """
        sign = next((sign for sign in _SIGNS if sign in text), "")
        metric, _, bound = text.partition(sign) if sign else (text, "", "")
        try:
            return cls(metric.strip(), sign, float(bound))
        except ValueError as e:
            raise ConfigError(
                f"--require {text!r} is not of the form METRIC<=NUMBER; write e.g. "
                "'seen/generated/energy_s<=0.05' with one of <=, >=, <, >"
            ) from e

    def misses(self, scores: Mapping[str, float]) -> str:
        """Why the scores do not reach it; empty if they do."""
        if self.metric not in scores:
            return f"has no {self.metric}"
        value = scores[self.metric]
        holds = _SIGNS[self.sign](value, self.bound)
        return "" if holds else f"{self.metric} is {value:.4g}, not {self.sign} {self.bound:g}"


class Registry:
    """The registered model of one experiment.

    Args:
        uri: MLflow server or database.
        experiment: experiment whose models are meant.
    """

    def __init__(self, uri: str, experiment: str) -> None:
        self._uri, self.name = uri, registered_name(experiment)

    def versions(self) -> list[Version]:
        """All versions with their scores, newest first; none if nothing was registered.

        Raises:
            InfrastructureError: if MLflow does not answer.
        """
        if self._is_absent():
            return []
        with self._asking() as client:
            found = client.search_model_versions(f"name = '{self.name}'")
            aliases = client.get_registered_model(self.name).aliases if found else {}
            versions = [_version(client, item, aliases) for item in found]
        return sorted(versions, key=lambda version: version.number, reverse=True)

    def champion(self) -> Version:
        """The version that the alias names.

        Raises:
            CheckpointError: if no version is the champion.
            InfrastructureError: if MLflow does not answer.
        """
        for version in self.versions():
            if CHAMPION in version.aliases:
                return version
        raise CheckpointError(
            f"no version of the registered model {self.name!r} at {redact(self._uri)} has the "
            f"alias {CHAMPION!r}: train a model that is tracked there, then `save-dist track "
            "promote RUN --version N`; with tracking.backend: none the model of run.dir is taken"
        )

    def promote(self, number: int) -> Version:
        """Make a version the champion; the alias moves from the one before.

        Raises:
            ConfigError: if there is no such version.
            InfrastructureError: if MLflow does not answer.
        """
        versions = {version.number: version for version in self.versions()}
        if number not in versions:
            known = ", ".join(map(str, sorted(versions))) or "none"
            raise ConfigError(
                f"the registered model {self.name!r} has no version {number}; it has {known}"
            )
        with self._asking() as client:
            client.set_registered_model_alias(self.name, CHAMPION, str(number))
        return versions[number]

    def fetch(self, version: Version, target: Path) -> None:
        """The files of a version, every byte checked; what stands in `target` is used if it fits.

        Raises:
            CheckpointError: if the files are not those that were registered.
            InfrastructureError: if MLflow does not answer.
        """
        with contextlib.suppress(CheckpointError):
            if digest(verify_folder(target)["files"]) == version.model_hash:
                return
        import mlflow

        with adopt_folder(target) as aside:
            with self._asking():
                got = mlflow.artifacts.download_artifacts(
                    artifact_uri=version.source,
                    dst_path=str(aside / "download"),
                    tracking_uri=self._uri,
                )
            found = digest(verify_folder(Path(got))["files"])
            if found != version.model_hash:
                raise CheckpointError(
                    f"version {version.number} of {self.name!r} was registered with model hash "
                    f"{version.model_hash}, but {redact(version.source)} holds {found}; do not use "
                    "it, and promote another version"
                )
            Path(got).rename(aside / "whole")

    def _is_absent(self) -> bool:
        """A database file that was never made; asking MLflow would make it."""
        file = Path(self._uri.removeprefix("sqlite:///"))
        return self._uri.startswith("sqlite:///") and not file.is_file()

    @contextlib.contextmanager
    def _asking(self) -> Iterator[Any]:
        quiet()
        import mlflow
        from mlflow.exceptions import MlflowException

        try:
            yield mlflow.MlflowClient(tracking_uri=self._uri)
        except (MlflowException, OSError) as e:
            text = redact(" ".join(str(e).split()))[:300]
            raise InfrastructureError(
                f"MLflow at {redact(self._uri)} did not answer about {self.name!r}: {text}; start "
                "it or correct tracking.uri, then run again"
            ) from e


def choose(
    versions: Sequence[Version], requirements: Sequence[Requirement]
) -> tuple[Version | None, dict[int, str]]:
    """The newest version beyond the champion that reaches all requirements, if one does.

    Args:
        versions: newest first.
        requirements: what its scores must reach.

    Returns:
        the version, and of each newer one why it was passed over.
    """
    refused: dict[int, str] = {}
    for version in versions:
        if CHAMPION in version.aliases:
            break
        misses = [text for need in requirements if (text := need.misses(version.scores))]
        if not misses:
            return version, refused
        refused[version.number] = "; ".join(misses)
    return None, refused


def _version(client: Any, item: Any, aliases: Mapping[str, Any]) -> Version:
    return Version(
        number=int(item.version),
        model_hash=item.tags.get(HASH_TAG, ""),
        aliases=tuple(sorted(name for name, at in aliases.items() if int(at) == int(item.version))),
        source=item.source,
        scores=_scores(client, item.tags.get(LOGGED_TAG, "")),
    )


def _scores(client: Any, model_id: str) -> dict[str, float]:
    """Newest value of every metric that was logged about a model."""
    if not model_id:
        return {}
    metrics = client.get_logged_model(model_id).metrics or []
    return {m.key: float(m.value) for m in sorted(metrics, key=lambda m: (m.timestamp, m.step))}
