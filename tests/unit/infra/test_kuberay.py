"""Every manifest, as it would be applied, against schemas and rules."""

import copy
import json
import shutil
import subprocess
from pathlib import Path

import infra_rules as rules
import jsonschema
import kubernetes_validate
import pytest
import yaml
from infra_kustomize import KUBERAY, ROOT, read, render
from infra_versions import ray_version

from save_dist.config.load import load
from save_dist.config.schema import GenerateJob

SCHEMAS = Path(__file__).parent / "schemas"
CRDS = ROOT.parent / "shared" / "schemas" / "kuberay"
ROOTS = sorted(p.parent for p in KUBERAY.rglob("kustomization.yaml") if p.parent.name != "common")
RAY_KINDS = ("RayCluster", "RayJob", "RayCronJob")
DOCUMENTS = [(folder, document) for folder in ROOTS for document in render(folder)]
IDS = [
    f"{folder.relative_to(KUBERAY)}:{d['kind']}:{d['metadata']['name']}" for folder, d in DOCUMENTS
]
PLAIN = [d for _, d in DOCUMENTS if d["kind"] not in RAY_KINDS]
RAY = [d for _, d in DOCUMENTS if d["kind"] in RAY_KINDS]


def named(documents):
    return [f"{d['kind']}:{d['metadata']['name']}:{n}" for n, d in enumerate(documents)]


def only(kind):
    return copy.deepcopy(next(d for d in RAY if d["kind"] == kind))


def problems(document):
    return [
        *rules.job_rules(document),
        *rules.schedule_rules(document),
        *rules.cluster_rules(document, ray_version()),
        *rules.security_rules(document),
    ]


def strictly(document):
    kubernetes_validate.validate(document, kubernetes_validate.latest_version(), strict=True)


def our_schema(kind):
    return json.loads((SCHEMAS / f"{kind.lower()}.json").read_text())


def test_every_kind_that_is_documented_is_there():
    kinds = {d["kind"] for _, d in DOCUMENTS}
    assert {*RAY_KINDS, "CronJob", "NetworkPolicy", "PersistentVolumeClaim"} <= kinds


@pytest.mark.parametrize("document", PLAIN, ids=named(PLAIN))
def test_plain_manifests_are_valid_kubernetes(document):
    strictly(document)


@pytest.mark.parametrize("document", RAY, ids=named(RAY))
def test_ray_manifests_fit_the_schema(document):
    jsonschema.validate(document, our_schema(document["kind"]))


@pytest.mark.parametrize("document", RAY, ids=named(RAY))
def test_pods_of_ray_manifests_are_valid_kubernetes(document):
    templates = list(rules.pod_templates(document))
    assert len(templates) == 2
    for template in templates:
        metadata = {"name": "pod", **template["metadata"]}
        strictly({"apiVersion": "v1", "kind": "Pod", **template, "metadata": metadata})


@pytest.mark.parametrize(("folder", "document"), DOCUMENTS, ids=IDS)
def test_rules(folder, document):
    assert problems(document) == []


@pytest.mark.parametrize("folder", ROOTS, ids=lambda f: str(f.relative_to(KUBERAY)))
def test_what_is_mounted_or_selected_exists(folder):
    documents = render(folder)
    names = {(d["kind"], d["metadata"]["name"]) for d in documents}
    for template in (t for d in documents for t in rules.pod_templates(d)):
        volumes = template["spec"]["volumes"]
        for volume in volumes:
            if claim := volume.get("persistentVolumeClaim"):
                assert ("PersistentVolumeClaim", claim["claimName"]) in names
            if config := volume.get("configMap"):
                assert ("ConfigMap", config["name"]) in names
        mounted = {m["name"] for c in template["spec"]["containers"] for m in c["volumeMounts"]}
        assert mounted == {v["name"] for v in volumes}
        assert template["metadata"]["labels"]["save-dist/role"] in ("ray", "submitter")


@pytest.mark.parametrize(
    ("kind", "path", "value"),
    [
        pytest.param("RayJob", ["spec", "entryPoint"], "x", id="unknown-field"),
        pytest.param("RayJob", ["spec", "backoffLimit"], "3", id="wrong-type"),
        pytest.param("RayJob", ["spec", "submissionMode"], "K8SJobMode", id="wrong-word"),
        pytest.param("RayCluster", ["spec", "rayVersion"], "2.60", id="no-full-version"),
        pytest.param("RayCluster", ["spec", "authOptions", "mode"], "disabled", id="no-token"),
        pytest.param("RayCronJob", ["spec", "concurrencyPolicy"], "Forbid", id="not-in-the-api"),
        pytest.param(
            "RayCluster", ["spec", "headGroupSpec", "serviceType"], "LoadBalancer", id="open"
        ),
    ],
)
def test_schema_catches(kind, path, value):
    document = only(kind)
    place = document
    for part in path[:-1]:
        place = place[part]
    place[path[-1]] = value
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(document, our_schema(kind))


def test_strict_kubernetes_check_catches_a_typo():
    document = copy.deepcopy(next(d for d in PLAIN if d["kind"] == "CronJob"))
    container = document["spec"]["jobTemplate"]["spec"]["template"]["spec"]["containers"][0]
    container["comand"] = container.pop("command")
    with pytest.raises(kubernetes_validate.ValidationError):
        strictly(document)


CLUSTER_OF_JOB = ("spec", "rayClusterSpec")


@pytest.mark.parametrize(
    ("kind", "edit", "problem"),
    [
        pytest.param(
            "RayJob",
            lambda d: d["spec"].update(shutdownAfterJobFinishes=False),
            "ttlSecondsAfterFinished needs shutdownAfterJobFinishes",
            id="ttl",
        ),
        pytest.param(
            "RayJob",
            lambda d: d["spec"].update(deletionStrategy={"deletionRules": []}),
            "exclude each other",
            id="two-ways-of-deletion",
        ),
        pytest.param(
            "RayJob",
            lambda d: d["spec"].update(clusterSelector={"ray.io/cluster": "save"}),
            "SidecarMode does not support clusterSelector",
            id="sidecar-selector",
        ),
        pytest.param(
            "RayJob",
            lambda d: d["spec"].update(submitterPodTemplate={}),
            "SidecarMode does not support submitterPodTemplate",
            id="sidecar-submitter",
        ),
        pytest.param(
            "RayJob",
            lambda d: d["spec"]["rayClusterSpec"]["headGroupSpec"]["template"]["spec"].pop(
                "restartPolicy"
            ),
            "restartPolicy: Never",
            id="sidecar-restart",
        ),
        pytest.param(
            "RayJob",
            lambda d: d["spec"].pop("rayClusterSpec"),
            "exactly one of clusterSelector",
            id="no-cluster",
        ),
        pytest.param(
            "RayCluster",
            lambda d: d["spec"].update(rayVersion="2.51.0"),
            "needs rayVersion >= 2.52",
            id="old-for-tokens",
        ),
        pytest.param(
            "RayCluster",
            lambda d: d["spec"].update(rayVersion="2.61.0"),
            "rayVersion is 2.61.0, the image has",
            id="version",
        ),
        pytest.param(
            "RayCluster",
            lambda d: d["spec"]["workerGroupSpecs"][0].update(replicas=9),
            "outside minReplicas..maxReplicas",
            id="replicas",
        ),
        pytest.param(
            "RayCronJob",
            lambda d: d["spec"].update(schedule="TZ=Europe/Paris 0 2 * * 0"),
            "TZ= is refused",
            id="time-zone",
        ),
        pytest.param(
            "RayCronJob", lambda d: d["spec"].pop("timeZone"), "timeZone is missing", id="no-zone"
        ),
        pytest.param(
            "RayCluster",
            lambda d: container_of(d).update(image="save-dist:latest"),
            "is not pinned",
            id="latest",
        ),
        pytest.param(
            "RayCluster",
            lambda d: container_of(d)["env"].append({"name": "RAY_AUTH_TOKEN", "value": "x"}),
            "stands in clear",
            id="secret",
        ),
        pytest.param(
            "RayCluster",
            lambda d: container_of(d)["securityContext"].update(readOnlyRootFilesystem=False),
            "root file system can be written",
            id="root-fs",
        ),
    ],
)
def test_rules_catch(kind, edit, problem):
    document = only(kind)
    edit(document)
    assert any(problem in found for found in problems(document)), problems(document)


def container_of(document):
    return document["spec"]["headGroupSpec"]["template"]["spec"]["containers"][0]


def test_cron_job_that_may_overlap_is_caught():
    document = copy.deepcopy(next(d for d in PLAIN if d["kind"] == "CronJob"))
    document["spec"]["concurrencyPolicy"] = "Allow"
    del document["spec"]["startingDeadlineSeconds"]
    assert {"concurrencyPolicy is not Forbid", "startingDeadlineSeconds is missing"} == set(
        rules.schedule_rules(document)
    )


def test_cron_job_speaks_to_the_cluster_of_the_overlays():
    cron = next(d for d in PLAIN if d["kind"] == "CronJob")
    (container,) = next(rules.pod_templates(cron))["spec"]["containers"]
    cluster = only("RayCluster")
    assert f"http://{cluster['metadata']['name']}-head-svc:8265" in container["args"]
    token = next(e for e in container["env"] if e["name"] == "RAY_AUTH_TOKEN")
    secret = token["valueFrom"]["secretKeyRef"]
    assert secret == {"name": cluster["spec"]["authOptions"]["secretName"], "key": "auth_token"}


def test_settings_of_the_cron_job_are_a_valid_configuration(tmp_path):
    text = (KUBERAY / "overlays" / "cron-k8s" / "generate.yaml").read_text()
    (tmp_path / "generate.yaml").write_text(text.replace("/opt/save-dist", str(ROOT)))
    assert load(GenerateJob, tmp_path / "generate.yaml").run.dir.is_relative_to("/shared")


@pytest.mark.parametrize(
    "document", [d for d in RAY if d["kind"] != "RayCluster"], ids=lambda d: d["kind"]
)
def test_entry_points_name_jobs_and_configurations_of_the_image(document):
    (spec,) = rules.job_specs(document)
    program, verb, option, config = spec["entrypoint"].split()
    assert (program, option) == ("save-dist", "--config")
    place = Path(config).relative_to("/opt/save-dist")
    job = {"schedule-tick": "generate"}.get(verb, verb)
    assert place.stem == job and (ROOT / place).is_file()


def test_all_files_are_used():
    used = {p for f in KUBERAY.rglob("kustomization.yaml") for p in files_of(f)}
    found = {p for p in KUBERAY.rglob("*.yaml") if p.name != "kustomization.yaml"}
    assert found == used


def files_of(kustomization):
    (about,) = read(kustomization)
    names = [*about["resources"], *(p["path"] for p in about.get("patches", []))]
    names += [n for entry in about.get("configMapGenerator", []) for n in entry["files"]]
    return [kustomization.parent / n for n in names if n.endswith(".yaml")]


@pytest.mark.skipif(shutil.which("kubectl") is None, reason="kubectl is not installed")
@pytest.mark.parametrize("folder", ROOTS, ids=lambda f: str(f.relative_to(KUBERAY)))
def test_kubectl_renders_the_same(folder):
    done = subprocess.run(
        ["kubectl", "kustomize", str(folder)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    theirs = [without_suffix(d) for d in yaml.safe_load_all(done.stdout)]
    ours = render(folder)
    key = json.dumps
    assert sorted(map(_canonical, theirs), key=key) == sorted(map(_canonical, ours), key=key)


def _canonical(document):
    return json.loads(json.dumps(document, sort_keys=True))


def without_suffix(document):
    """The hash kubectl puts behind the names of config maps, taken off again."""
    text = json.dumps(document)
    head, sep, rest = text.partition("save-schedule-")
    return json.loads(head + "save-schedule" + rest[10:]) if sep else document


@pytest.mark.shared_data
@pytest.mark.parametrize("kind", RAY_KINDS)
def test_our_schema_agrees_with_the_operator(kind):
    crd = yaml.safe_load((CRDS / f"ray.io_{kind.lower()}s.yaml").read_text())
    version = next(v for v in crd["spec"]["versions"] if v["name"] == "v1")
    theirs = version["schema"]["openAPIV3Schema"]["properties"]["spec"]
    assert list(_disagreements(our_schema(kind)["properties"]["spec"], theirs, kind)) == []
    closed = _closed(theirs)
    for document in (d for d in RAY if d["kind"] == kind):
        jsonschema.validate(document["spec"], closed)


def _disagreements(ours, theirs, place):
    """Fields of ours that the operator does not know, or knows by another type or other words."""
    if "type" in ours and ours["type"] != theirs.get("type", ours["type"]):
        yield f"{place}: {ours['type']}, the operator has {theirs['type']}"
    if "enum" in theirs and not set(ours.get("enum", [])) <= set(theirs["enum"]):
        yield f"{place}: {ours['enum']}, the operator has {theirs['enum']}"
    for name, schema in ours.get("properties", {}).items():
        if name not in theirs.get("properties", {}):
            yield f"{place}.{name} is unknown to the operator"
        else:
            yield from _disagreements(schema, theirs["properties"][name], f"{place}.{name}")
    if "items" in ours:
        yield from _disagreements(ours["items"], theirs["items"], f"{place}[]")


def _closed(schema):
    """The operator's schema with unknown fields refused, and its integer-or-string as such."""
    if isinstance(schema, list):
        return [_closed(item) for item in schema]
    if not isinstance(schema, dict):
        return schema
    out = {key: _closed(value) for key, value in schema.items()}
    if isinstance(schema.get("properties"), dict) and schema.get("type") == "object":
        out["additionalProperties"] = False
    return out
