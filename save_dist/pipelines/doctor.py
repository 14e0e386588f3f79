"""Doctor: are this machine, this cluster and this configuration fit to run the job?

Collects facts, then asks `pipelines.checks`. Everything but the probe of shared storage only
reads, and that one leaves nothing behind.
"""

import os
from dataclasses import dataclass
from pathlib import Path

from save_dist.cluster import runtime
from save_dist.cluster.facts import machine_facts
from save_dist.cluster.nodes import ClusterFacts, cluster_facts
from save_dist.config import schema
from save_dist.config.load import SUBMITTED, config_hash, load
from save_dist.core.errors import ConfigError, InfrastructureError
from save_dist.pipelines import checks, probes
from save_dist.pipelines.checks import Check
from save_dist.pipelines.context import Summary
from save_dist.pipelines.provenance import PACKAGES


@dataclass(frozen=True)
class Patient:
    """What is looked at: a job's configuration if there is one, and the cluster it names."""

    verb: str
    config: schema.JobConfig | None
    cluster: schema.ClusterConfig
    folders: list[str]
    """Places whose free space matters."""


def doctor(path: Path | None, verb: str | None, overrides: list[str]) -> list[Check]:
    """Every check that applies, in the order in which to mend what is wrong.

    Args:
        path: configuration of the job about to run; None looks at machine and cluster alone.
        verb: its job; None: the stem of the file.
        overrides: `dotted.key=value` pairs.
    """
    config_check, patient = examine(path, verb, overrides)
    joins = not runtime.is_private(patient.cluster)
    driver = machine_facts("driver", PACKAGES, patient.folders)
    ray_check, cluster = _join(patient) if joins else (_private(), None)
    nodes = cluster.nodes if cluster else ()
    config = patient.config
    n_gpus = float(patient.cluster.n_workers * patient.cluster.gpus_per_worker)

    found = [
        config_check,
        checks.check_token(os.environ, joins, probes.token_file(os.environ)),
        probes.stale_address(),
        ray_check,
        checks.check_versions(driver, nodes),
        checks.check_disk([driver, *nodes]),
        checks.check_shared_memory([driver, *nodes]),
        checks.check_gpus([driver, *nodes], cluster, n_gpus),
    ]
    if cluster:
        found.append(checks.check_clocks(nodes))
    if cluster and cluster.storage and config:
        found.append(checks.check_storage(cluster.storage, str(config.run.dir)))
    if config:
        found.append(probes.mlflow(config.tracking, config.run.dir, os.environ))
        found += probes.contents(config, patient.verb)
    return found


def examine(path: Path | None, verb: str | None, overrides: list[str]) -> tuple[Check, Patient]:
    """The configuration as its job will read it; a wrong one is a failed check."""
    none = Patient("", None, schema.ClusterConfig(), ["."])
    if path is None:
        return Check("config", "ok", "none given: machine and cluster alone"), none
    job = verb or path.stem
    if job not in SUBMITTED:
        remedy = f"add --verb, one of {', '.join(SUBMITTED)}"
        return Check(
            "config", "error", f"{path.name} does not say which job it is of", remedy
        ), none
    try:
        config = load(SUBMITTED[job], path, overrides)
    except ConfigError as e:
        return Check("config", "error", " ".join(str(e).split()), "correct these settings"), none
    cluster = getattr(config, "cluster", none.cluster)
    folders = [str(config.run.dir.absolute())]
    if (training := getattr(config, "training", None)) and training.stream.cache_dir:
        folders.append(str(training.stream.cache_dir))
    found = f"a valid {type(config).__name__}, hash {config_hash(config)[:12]}"
    return Check("config", "ok", found), Patient(job, config, cluster, folders)


def report(found: list[Check]) -> Summary:
    """The checks as JSON.

    Raises:
        InfrastructureError: if one of them forbids starting.
    """
    if bad := checks.failed(found):
        first = "; ".join(f"{check.name}: {check.remedy}" for check in bad[:3])
        raise InfrastructureError(f"{len(bad)} of {len(found)} checks failed ({first})")
    return {}


def _private() -> Check:
    found = "the job starts a private one (cluster.address, RAY_ADDRESS)"
    return Check("ray", "ok", found)


def _join(patient: Patient) -> tuple[Check, ClusterFacts | None]:
    """Ask the cluster; one that does not answer is a failed check."""
    shared = patient.config.run.dir.absolute() if patient.config else None
    try:
        facts = cluster_facts(patient.cluster, PACKAGES, patient.folders, shared)
    except InfrastructureError as e:
        remedy = "start the cluster, correct cluster.address or RAY_ADDRESS, or check the token"
        return Check("ray", "error", " ".join(str(e).split())[:400], remedy), None
    config = patient.cluster if patient.config else None
    return checks.check_nodes(facts, config), facts
