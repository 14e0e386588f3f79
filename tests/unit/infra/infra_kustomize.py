"""As much of `kubectl kustomize` as the manifests use: resources, JSON patches, config maps.

It lets every test see what would be applied, on machines without kubectl; where kubectl is
installed, a test compares the two.
"""

import copy
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).resolve().parents[3]
KUBERAY = ROOT / "infra" / "kuberay"
KNOWN = {"apiVersion", "kind", "resources", "patches", "configMapGenerator"}


def render(folder: Path) -> list[dict[str, Any]]:
    """The documents that `kubectl apply -k FOLDER` would send."""
    about = yaml.safe_load((folder / "kustomization.yaml").read_text())
    assert set(about) <= KNOWN, f"{folder}: teach this renderer {set(about) - KNOWN}"
    documents: list[dict[str, Any]] = []
    for name in about["resources"]:
        place = folder / name
        documents += render(place) if place.is_dir() else read(place)
    for patch in about.get("patches", []):
        operations = yaml.safe_load((folder / patch["path"]).read_text())
        targets = [d for d in documents if _is_target(d, patch["target"])]
        assert len(targets) == 1, f"{folder}: {patch['target']} names {len(targets)} documents"
        for operation in operations:
            _apply(targets[0], operation)
    for entry in about.get("configMapGenerator", []):
        documents.append(_config_map(folder, entry))
    return documents


def read(path: Path) -> list[dict[str, Any]]:
    """All documents of a YAML file."""
    return [document for document in yaml.safe_load_all(path.read_text()) if document]


def _is_target(document: dict[str, Any], target: dict[str, str]) -> bool:
    return (document["kind"], document["metadata"]["name"]) == (target["kind"], target["name"])


def _apply(document: dict[str, Any], operation: dict[str, Any]) -> None:
    """One JSON patch operation; `replace` needs something to replace."""
    *parents, last = operation["path"].strip("/").split("/")
    place: Any = document
    for part in parents:
        place = place[int(part)] if isinstance(place, list) else place[part]
    key = int(last) if isinstance(place, list) else last
    assert operation["op"] in ("add", "replace"), operation
    if operation["op"] == "replace":
        assert key < len(place) if isinstance(place, list) else key in place, operation
    place[key] = copy.deepcopy(operation["value"])


def _config_map(folder: Path, entry: dict[str, Any]) -> dict[str, Any]:
    return {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": {"name": entry["name"], "namespace": entry["namespace"]},
        "data": {name: (folder / name).read_text() for name in entry["files"]},
    }
