"""Rules that a schema cannot express, as functions from a document to a list of complaints.

The operator's rules are those of KubeRay 1.7 (ray-operator/controllers/ray/utils/validation.go).
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

Doc = dict[str, Any]

NAME_LIMIT = {"RayCluster": 53, "RayService": 47, "RayJob": 47, "RayCronJob": 36}
DNS_1035 = re.compile(r"[a-z]([-a-z0-9]*[a-z0-9])?")
DNS_1123 = re.compile(r"[a-z0-9]([-a-z0-9.]*[a-z0-9])?")
QUANTITY = re.compile(r"\d+(\.\d+)?(m|k|Ki|M|Mi|G|Gi|T|Ti)?")
CLUSTER_KEY = {"RayService": "rayClusterConfig", "RayJob": "rayClusterSpec"}
RESOURCE_PARAMS = {"num-cpus", "num-gpus", "memory", "resources"}
# Set by the operator from gcsFaultToleranceOptions; setting them by hand as well is refused.
REDIS_ENV = {"RAY_REDIS_ADDRESS", "REDIS_PASSWORD", "REDIS_USERNAME"}


def groups(doc: Doc) -> Iterator[tuple[str, Doc]]:
    """Head and worker groups of a Ray resource, with a name for messages."""
    cluster = doc["spec"][CLUSTER_KEY[doc["kind"]]]
    yield "head", cluster["headGroupSpec"]
    for group in cluster.get("workerGroupSpecs", ()):
        yield group["groupName"], group


def pod_templates(doc: Doc) -> Iterator[tuple[str, Doc]]:
    """Every pod template in a document, with where it stands."""
    where = f"{doc['kind']}/{doc['metadata']['name']}"
    if doc["kind"] in CLUSTER_KEY:
        for name, group in groups(doc):
            yield f"{where}/{name}", group["template"]
        if "submitterPodTemplate" in doc["spec"]:
            yield f"{where}/submitter", doc["spec"]["submitterPodTemplate"]
    elif doc["kind"] in ("StatefulSet", "Deployment", "DaemonSet", "Job"):
        yield where, doc["spec"]["template"]


def containers(template: Doc) -> Iterator[Doc]:
    """Init containers and containers of a pod template."""
    yield from template["spec"].get("initContainers", ())
    yield from template["spec"]["containers"]


def operator_errors(doc: Doc) -> list[str]:
    """What KubeRay's operator would refuse in a RayService or RayJob."""
    name = doc["metadata"]["name"]
    errors = []
    if len(name) > NAME_LIMIT[doc["kind"]]:
        errors.append(f"name: {len(name)} characters, at most {NAME_LIMIT[doc['kind']]}")
    if not DNS_1035.fullmatch(name):
        errors.append(f"name: {name!r} is not a DNS label")
    cluster = doc["spec"][CLUSTER_KEY[doc["kind"]]]
    for group_name, group in groups(doc):
        errors += [f"{group_name}: {error}" for error in _group_errors(group, cluster)]
    return errors + (_service_errors(doc) if doc["kind"] == "RayService" else _job_errors(doc))


def _group_errors(group: Doc, cluster: Doc) -> Iterator[str]:
    params = group["rayStartParams"]
    if RESOURCE_PARAMS & params.keys() and group.get("resources"):
        yield "resources stand in rayStartParams and in resources"
    if "labels" in params:
        yield "labels belong beside rayStartParams, not in it"
    v2 = cluster.get("enableInTreeAutoscaling") and cluster["autoscalerOptions"].get("version") == "v2"
    if v2 and group["template"]["spec"].get("restartPolicy", "Never") != "Never":
        yield "restartPolicy must be Never or unset with autoscaler v2"
    env = {variable["name"] for variable in group["template"]["spec"]["containers"][0].get("env", ())}
    if clash := env & REDIS_ENV:
        yield f"env {sorted(clash)} belongs into gcsFaultToleranceOptions"
    if {"redis-password", "redis-username"} & params.keys():
        yield "Redis credentials belong into gcsFaultToleranceOptions"
    if v2 and "RAY_enable_autoscaler_v2" in env:
        yield "RAY_enable_autoscaler_v2 is set beside autoscalerOptions.version"
    if group.get("minReplicas", 0) > group.get("maxReplicas", 2**31):
        yield "minReplicas is above maxReplicas"


def _service_errors(doc: Doc) -> list[str]:
    spec, errors = doc["spec"], []
    for dead in ("serviceUnhealthySecondThreshold", "deploymentUnhealthySecondThreshold"):
        if dead in spec:
            errors.append(f"{dead} has no effect any more")
    head_service = spec["rayClusterConfig"]["headGroupSpec"].get("headService", {})
    if head_service.get("metadata", {}).get("name"):
        errors.append("headService.metadata.name must not be set")
    strategy = spec.get("upgradeStrategy", {})
    if strategy.get("type") == "NewClusterWithIncrementalUpgrade":
        options = strategy.get("clusterUpgradeOptions", {})
        if options.get("stepSizePercent", 101) > options.get("maxSurgePercent", 100):
            errors.append("stepSizePercent must be set and at most maxSurgePercent")
    timeout = doc["metadata"].get("annotations", {}).get("ray.io/initializing-timeout", "")
    if not re.fullmatch(r"[1-9]\d*|(\d+[hms])+", timeout):
        errors.append(f"ray.io/initializing-timeout: {timeout!r} is no duration")
    return errors


def _job_errors(doc: Doc) -> list[str]:
    spec, errors = doc["spec"], []
    if spec.get("ttlSecondsAfterFinished", 0) > 0 and not spec.get("shutdownAfterJobFinishes"):
        errors.append("ttlSecondsAfterFinished needs shutdownAfterJobFinishes")
    if spec.get("activeDeadlineSeconds", 1) <= 0 or spec.get("backoffLimit", 0) < 0:
        errors.append("activeDeadlineSeconds must be positive and backoffLimit not negative")
    if spec.get("submissionMode") == "SidecarMode" and "submitterPodTemplate" in spec:
        errors.append("SidecarMode takes no submitterPodTemplate")
    return errors


def restricted_errors(template: Doc) -> list[str]:
    """What the pod security standard `restricted` would refuse in a pod template."""
    spec = template["spec"]
    pod = spec.get("securityContext", {})
    errors = [f"{key} is set" for key in ("hostNetwork", "hostPID", "hostIPC") if spec.get(key)]
    errors += [f"volume {v['name']}: hostPath" for v in spec.get("volumes", ()) if "hostPath" in v]
    for container in containers(template):
        errors += [f"{container['name']}: {e}" for e in container_errors(container, pod)]
    return errors


def container_errors(container: Doc, pod: Doc) -> list[str]:
    """The part of `restricted` that is about one container; `pod` is the pod's securityContext."""
    own = container.get("securityContext", {})
    both = {**pod, **own}
    errors = []
    if not both.get("runAsNonRoot") or not isinstance(both.get("runAsUser"), int) or both["runAsUser"] == 0:
        errors.append("must run as a numeric user other than root")
    if both.get("seccompProfile", {}).get("type") != "RuntimeDefault":
        errors.append("seccompProfile must be RuntimeDefault")
    if own.get("allowPrivilegeEscalation") is not False or own.get("privileged"):
        errors.append("must not escalate privileges")
    if own.get("capabilities", {}).get("drop") != ["ALL"] or own.get("capabilities", {}).get("add"):
        errors.append("must drop ALL capabilities and add none")
    return errors


def resource_errors(resources: Doc) -> list[str]:
    """Requests and limits must both be there, be quantities, and memory be the same in both."""
    errors = [f"{kind} missing" for kind in ("requests", "limits") if kind not in resources]
    for kind in resources:
        for name in ("cpu", "memory"):
            value = str(resources[kind].get(name, ""))
            if not QUANTITY.fullmatch(value):
                errors.append(f"{kind}.{name}: {value!r} is no quantity")
    return errors


def selects(selector: Doc, labels: dict[str, str]) -> bool:
    """Whether a label selector (matchLabels and In expressions) matches `labels`."""
    exact = all(labels.get(k) == v for k, v in selector.get("matchLabels", {}).items())
    rules = selector.get("matchExpressions", ())
    assert all(rule["operator"] == "In" for rule in rules), "only In is used here"
    return exact and all(labels.get(rule["key"]) in rule["values"] for rule in rules)


def connects(policies: list[Doc], source: dict[str, str], target: dict[str, str], port: int) -> bool:
    """Whether a pod labelled `source` may open the TCP port of one labelled `target` in its namespace."""
    return _opens(policies, "egress", source, target, port) and _opens(
        policies, "ingress", target, source, port
    )


def _opens(policies: list[Doc], way: str, own: dict[str, str], other: dict[str, str], port: int) -> bool:
    """One end of a connection: open unless policies select it, then as far as some rule of theirs says."""
    specs = [policy["spec"] for policy in policies if way.capitalize() in policy["spec"]["policyTypes"]]
    specs = [spec for spec in specs if selects(spec["podSelector"], own)]
    peers = "to" if way == "egress" else "from"
    rules = [rule for spec in specs for rule in spec.get(way, ())]
    return not specs or any(_lets(rule, peers, other, port) for rule in rules)


def _lets(rule: Doc, peers: str, other: dict[str, str], port: int) -> bool:
    ports = {(entry["protocol"], entry["port"]) for entry in rule.get("ports", ())}
    if ports and ("TCP", port) not in ports:
        return False
    return peers not in rule or any(_is_peer(peer, other) for peer in rule[peers])


def _is_peer(peer: Doc, other: dict[str, str]) -> bool:
    # A namespace that is named is another than ours; `{}` is every namespace.
    return not peer.get("namespaceSelector") and selects(peer.get("podSelector", {}), other)


def expanded(env: list[Doc], secrets: dict[tuple[str, str], str]) -> dict[str, str]:
    """What a container finds in its environment, as the kubelet works it out from top to bottom.

    secrets: value by (Secret, key). A `$(NAME)` that no earlier variable has stays as it is.
    """
    found: dict[str, str] = {}
    for variable in env:
        if "valueFrom" in variable:
            reference = variable["valueFrom"]["secretKeyRef"]
            found[variable["name"]] = secrets[reference["name"], reference["key"]]
        else:
            found[variable["name"]] = re.sub(
                r"\$\(([A-Za-z_][A-Za-z0-9_]*)\)",
                lambda match: found.get(match[1], match[0]),
                variable["value"],
            )
    return found
