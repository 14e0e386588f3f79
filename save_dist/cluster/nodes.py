"""Asking every node of a Ray cluster the same questions, through one small task pinned to each."""

import contextlib
import secrets
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from save_dist.cluster import facts, runtime
from save_dist.cluster.facts import MachineFacts
from save_dist.config.schema import ClusterConfig
from save_dist.core.errors import InfrastructureError

TIMEOUT_S = 60.0
"""Longest wait for all nodes; a node that has no free worker process must start one."""


@dataclass(frozen=True)
class ClusterFacts:
    """What a cluster has, and what its nodes say."""

    nodes: tuple[MachineFacts, ...]
    silent: tuple[str, ...]
    """Nodes that did not answer, and why."""
    n_cpus: float
    n_gpus: float
    storage: dict[str, str]
    """Node -> why it does not share the folder; empty if it does. No entries: not asked."""


def cluster_facts(
    config: ClusterConfig, packages: Sequence[str], folders: Sequence[str], shared: Path | None
) -> ClusterFacts:
    """Join the cluster and ask all its nodes.

    Args:
        config: names the cluster.
        packages: distributions whose versions matter.
        folders: places whose free space matters.
        shared: folder that driver and nodes must all see; probed with small files, which are
            removed. None asks nothing.

    Raises:
        InfrastructureError: if the cluster does not answer.
    """
    with runtime.session(config), _probe(shared) as probe:
        import ray

        alive = [node for node in ray.nodes() if node["Alive"]]
        asked = {_name(n): _ask(n, packages, folders, probe) for n in alive}
        answers, silent = _collect(asked)
        resources = ray.cluster_resources()
        return ClusterFacts(
            nodes=tuple(answer[0] for answer in answers.values()),
            silent=tuple(f"{node}: {why}" for node, why in silent.items()),
            n_cpus=float(resources.get("CPU", 0)),
            n_gpus=float(resources.get("GPU", 0)),
            storage=_storage(answers, probe),
        )


@dataclass(frozen=True)
class _Probe:
    """A folder with the driver's word in it."""

    folder: Path
    word: str


@contextlib.contextmanager
def _probe(shared: Path | None) -> Iterator[_Probe | None]:
    """A probe below `shared`; nothing of it stays, nor folders made for it."""
    if shared is None:
        yield None
        return
    made = next(p for p in (*reversed(shared.parents), shared, shared / "_") if not p.exists())
    folder = shared / f".doctor-{secrets.token_hex(4)}"
    probe = _Probe(folder, secrets.token_hex(8))
    try:
        folder.mkdir(parents=True)
        (folder / "driver").write_text(probe.word)
    except OSError as e:
        raise InfrastructureError(
            f"{shared} takes no files: {e}; choose another run.dir or fix its permissions"
        ) from e
    try:
        yield probe
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        if made != shared / "_":
            _remove_empty(shared, made)


def _remove_empty(last: Path, first: Path) -> None:
    """Remove the folders from `last` up to `first` that are empty."""
    with contextlib.suppress(OSError):
        while last != first.parent:
            last.rmdir()
            last = last.parent


def _ask(node: dict[str, Any], packages: Sequence[str], folders: Sequence[str], probe: Any) -> Any:
    """The task of one node, pinned to it; takes no CPU, so that a busy cluster answers too."""
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    pinned = NodeAffinitySchedulingStrategy(node_id=node["NodeID"], soft=False)
    options = {"num_cpus": 0, "max_retries": 0, "scheduling_strategy": pinned}
    where = None if probe is None else (str(probe.folder), probe.word)
    answer = ray.remote(_answer).options(**options)
    clock = ray.remote(facts.now).options(**options)
    first = answer.remote(_name(node), list(packages), list(folders), where)
    return first, clock


def _answer(
    node: str, packages: list[str], folders: list[str], probe: tuple[str, str] | None
) -> tuple[MachineFacts, str]:
    """What runs on a node: its facts, and why it does not share the probe folder."""
    why = "" if probe is None else facts.read_and_answer(probe[0], node, probe[1])
    return facts.machine_facts(node, packages, folders), why


def _collect(asked: dict[str, Any]) -> tuple[dict[str, tuple[MachineFacts, str]], dict[str, str]]:
    """Answers of the nodes, with their clocks; and who stayed silent, and why."""
    import ray

    answers: dict[str, tuple[MachineFacts, str]] = {}
    silent: dict[str, str] = {}
    for node, (reference, clock) in asked.items():
        try:
            about, why = ray.get(reference, timeout=TIMEOUT_S)
            answers[node] = _with_clock(about, clock), why
        except (ray.exceptions.RayError, TimeoutError) as e:
            silent[node] = str(e).strip().splitlines()[-1][:200]
    return answers, silent


def _with_clock(about: MachineFacts, clock: Any) -> MachineFacts:
    """The facts with the clock's distance from ours; its worker process is warm by now."""
    import ray

    before = facts.now()
    theirs = ray.get(clock.remote(), timeout=TIMEOUT_S)
    after = facts.now()
    skew = theirs - (before + after) / 2
    return replace(about, clock_skew_s=skew, clock_error_s=(after - before) / 2)


def _storage(answers: dict[str, tuple[MachineFacts, str]], probe: _Probe | None) -> dict[str, str]:
    """Per node why it does not share the probe folder; its answer must reach the driver, too."""
    if probe is None:
        return {}
    seen = {path.name for path in probe.folder.iterdir()}
    lost = "it wrote a file there that the driver does not see"
    return {node: why or ("" if node in seen else lost) for node, (_, why) in answers.items()}


def _name(node: dict[str, Any]) -> str:
    """Address and the head of the id: two nodes may live on one machine."""
    return f"{node['NodeManagerAddress']}-{node['NodeID'][:6]}"
