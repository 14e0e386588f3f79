"""What no schema says about the manifests: rules of the operator, of Ray, and our own on security.

Every rule takes a document and returns what is wrong with it.
"""

from collections.abc import Iterator
from typing import Any

FIRST_RAY_WITH_TOKENS = (2, 52)


def job_specs(document: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """RayJob specs of a document."""
    if document["kind"] == "RayJob":
        yield document["spec"]
    if document["kind"] == "RayCronJob":
        yield document["spec"]["jobTemplate"]


def cluster_specs(document: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """RayCluster specs of a document."""
    if document["kind"] == "RayCluster":
        yield document["spec"]
    for job in job_specs(document):
        if "rayClusterSpec" in job:
            yield job["rayClusterSpec"]


def pod_templates(document: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Pod templates of a document."""
    for cluster in cluster_specs(document):
        yield cluster["headGroupSpec"]["template"]
        for group in cluster["workerGroupSpecs"]:
            yield group["template"]
    if document["kind"] == "CronJob":
        yield document["spec"]["jobTemplate"]["spec"]["template"]


def job_rules(document: dict[str, Any]) -> Iterator[str]:
    """How a RayJob ends, and what its way of submission allows."""
    for job in job_specs(document):
        shuts_down = job.get("shutdownAfterJobFinishes", False)
        if job.get("ttlSecondsAfterFinished") and not shuts_down:
            yield "ttlSecondsAfterFinished needs shutdownAfterJobFinishes: true"
        if shuts_down and "deletionStrategy" in job:
            yield "shutdownAfterJobFinishes and deletionStrategy exclude each other"
        if "clusterSelector" in job and (shuts_down or job.get("backoffLimit")):
            yield "a job on a chosen cluster cannot shut it down or start a new one for a retry"
        if ("clusterSelector" in job) == ("rayClusterSpec" in job):
            yield "exactly one of clusterSelector and rayClusterSpec"
        if job.get("submissionMode") == "SidecarMode":
            yield from _sidecar_rules(job)


def _sidecar_rules(job: dict[str, Any]) -> Iterator[str]:
    for name in ("clusterSelector", "submitterPodTemplate", "submitterConfig"):
        if name in job:
            yield f"SidecarMode does not support {name}"
    head = job.get("rayClusterSpec", {}).get("headGroupSpec", {}).get("template", {})
    if head.get("spec", {}).get("restartPolicy") != "Never":
        yield "SidecarMode needs restartPolicy: Never of the head"


def schedule_rules(document: dict[str, Any]) -> Iterator[str]:
    """Schedules name their time zone in its own field, and never overlap or pile up."""
    if document["kind"] not in ("CronJob", "RayCronJob"):
        return
    spec = document["spec"]
    if "TZ=" in spec["schedule"]:
        yield f"schedule {spec['schedule']!r}: TZ= is refused, use timeZone"
    if len(spec["schedule"].split()) != 5:
        yield f"schedule {spec['schedule']!r} has not five fields"
    if "timeZone" not in spec:
        yield "timeZone is missing: the schedule would follow the controller's clock"
    if document["kind"] == "CronJob":
        if spec.get("concurrencyPolicy") != "Forbid":
            yield "concurrencyPolicy is not Forbid"
        for place, name in ((spec, "startingDeadlineSeconds"), (_job(spec), "backoffLimit")):
            if name not in place:
                yield f"{name} is missing"


def _job(spec: dict[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = spec["jobTemplate"]["spec"]
    return found


def cluster_rules(document: dict[str, Any], ray_version: str) -> Iterator[str]:
    """One Ray version everywhere, new enough for its token, and sizes that agree."""
    for cluster in cluster_specs(document):
        found = cluster.get("rayVersion")
        if found != ray_version:
            yield f"rayVersion is {found}, the image has {ray_version}"
        version = tuple(int(part) for part in str(found).split(".")[:2]) if found else (0, 0)
        mode = cluster.get("authOptions", {}).get("mode")
        if mode != "token":
            yield "authOptions.mode is not token"
        elif version < FIRST_RAY_WITH_TOKENS:
            yield "authOptions.mode: token needs rayVersion >= 2.52"
        for group in cluster["workerGroupSpecs"]:
            if not group["minReplicas"] <= group["replicas"] <= group["maxReplicas"]:
                yield f"{group['groupName']}: replicas lie outside minReplicas..maxReplicas"


def security_rules(document: dict[str, Any]) -> Iterator[str]:
    """Non-root, no capabilities, read-only root, no account token, no secret in clear."""
    for template in pod_templates(document):
        spec = template["spec"]
        pod = spec.get("securityContext", {})
        if pod.get("runAsNonRoot") is not True or not pod.get("runAsUser"):
            yield "the pod may run as root"
        if pod.get("seccompProfile", {}).get("type") != "RuntimeDefault":
            yield "seccompProfile is not RuntimeDefault"
        if spec.get("automountServiceAccountToken") is not False:
            yield "the service account's token is mounted"
        for container in spec["containers"]:
            yield from _container_rules(container)


def _container_rules(container: dict[str, Any]) -> Iterator[str]:
    name, context = container["name"], container.get("securityContext", {})
    if context.get("allowPrivilegeEscalation") is not False:
        yield f"{name}: allowPrivilegeEscalation is not false"
    if context.get("readOnlyRootFilesystem") is not True:
        yield f"{name}: the root file system can be written"
    if context.get("capabilities", {}).get("drop") != ["ALL"]:
        yield f"{name}: capabilities are kept"
    resources = container.get("resources", {})
    if "memory" not in resources.get("limits", {}):
        yield f"{name}: no memory limit"
    if container["image"].endswith(":latest") or ":" not in container["image"]:
        yield f"{name}: image {container['image']} is not pinned"
    for variable in container.get("env", []):
        words = ("PASSWORD", "TOKEN", "SECRET", "KEY")
        if "value" in variable and any(word in variable["name"] for word in words):
            yield f"{name}: {variable['name']} stands in clear"
