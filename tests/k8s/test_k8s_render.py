"""What kustomize renders is valid, complete and consistent in itself."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jsonschema
import kubernetes_validate
import pytest
import yaml
from manifest_rules import (
    CLUSTER_KEY,
    DNS_1123,
    container_errors,
    containers,
    groups,
    pod_templates,
    resource_errors,
    restricted_errors,
    selects,
)

ROOT = Path(__file__).resolve().parents[2]
CRDS = ROOT.parent / "shared" / "crds"
CUSTOM = {"RayService", "RayJob", "PodMonitor"}
OUR_SECRETS = {"qiance-app", "qiance-redis", "qiance-features", "qiance-ray"}
Docs = tuple[dict[str, Any], ...]


class _NoDuplicates(yaml.SafeLoader):
    """PyYAML keeps the last of two equal keys in silence; this refuses them."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        keys = [self.construct_object(key, deep=True) for key, _ in node.value if key.value != "<<"]
        twice = {key for key in keys if keys.count(key) > 1}
        if twice:
            raise ValueError(f"{node.start_mark}: {sorted(twice)} stands there twice")
        return super().construct_mapping(node, deep)


def _all_yaml() -> list[Path]:
    return sorted([*(ROOT / "k8s").rglob("*.yaml"), *(ROOT / "serve" / "config").glob("*.yaml")])


@pytest.mark.parametrize("path", _all_yaml(), ids=lambda path: str(path.relative_to(ROOT)))
def test_no_key_stands_twice(path: Path) -> None:
    assert list(yaml.load_all(path.read_text(encoding="utf-8"), _NoDuplicates))


def test_the_duplicate_check_finds_one() -> None:
    with pytest.raises(ValueError, match="'cpu'"):
        list(yaml.load_all("limits: {cpu: 1, memory: 2, cpu: 3}", _NoDuplicates))


def test_every_part_is_there(documents: Docs) -> None:
    kinds = {doc["kind"] for doc in documents}
    assert kinds >= {
        "RayService",
        "RayJob",
        "StatefulSet",
        "Service",
        "ServiceAccount",
        "PersistentVolumeClaim",
        "PodDisruptionBudget",
        "NetworkPolicy",
    }
    assert "Secret" not in kinds, "passwords do not belong into the repository"


def test_core_kinds_are_valid_in_strict_mode(documents: Docs) -> None:
    version = kubernetes_validate.latest_version()
    checked = 0
    for doc in documents:
        if doc["kind"] not in CUSTOM:
            # Raises for a mistake, and SchemaNotFoundError for a kind that it does not know.
            kubernetes_validate.validate(doc, version, strict=True)
            checked += 1
    assert checked == sum(doc["kind"] not in CUSTOM for doc in documents) >= 10


@pytest.fixture(scope="session")
def custom_validators() -> dict[tuple[str, str], jsonschema.Draft7Validator]:
    if not CRDS.is_dir():
        pytest.skip(f"{CRDS} is absent: custom resources are not checked against their CRDs")
    files = ["ray.io_rayservices", "ray.io_rayjobs", "monitoring.coreos.com_podmonitors"]
    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    validators = {}
    for name in files:
        spec = yaml.load((CRDS / f"{name}.yaml").read_text(), loader)["spec"]
        for version in spec["versions"]:
            schema = _closed(version["schema"]["openAPIV3Schema"])
            key = (f"{spec['group']}/{version['name']}", spec["names"]["kind"])
            validators[key] = jsonschema.Draft7Validator(schema)
    return validators


def _closed(schema: Any) -> Any:
    """A structural schema as draft 7 in which an unknown field is an error."""
    if isinstance(schema, list):
        return [_closed(part) for part in schema]
    if not isinstance(schema, dict):
        return schema
    out = {
        key: {name: _closed(part) for name, part in value.items()} if key == "properties" else _closed(value)
        for key, value in schema.items()
    }
    if out.get("x-kubernetes-int-or-string"):
        out.pop("type", None)
    if out.pop("nullable", False) and "type" in out:
        out["type"] = [out["type"], "null"]
    fields = out.get("properties", {})
    if fields and not out.get("x-kubernetes-preserve-unknown-fields"):
        out.setdefault("additionalProperties", False)
    if "required" in out:  # the server fills in defaults before it checks
        out["required"] = [n for n in out["required"] if "default" not in fields.get(n, {})]
    return out


def test_custom_resources_are_valid(documents: Docs, custom_validators: Any) -> None:
    seen = set()
    for doc in documents:
        if doc["kind"] in CUSTOM:
            validator = custom_validators[doc["apiVersion"], doc["kind"]]
            errors = [
                f"{'/'.join(map(str, e.absolute_path))}: {e.message[:200]}"
                for e in validator.iter_errors(doc)
            ]
            assert errors == []
            seen.add(doc["kind"])
    assert seen >= {"RayService", "RayJob"}


def test_a_typo_in_a_custom_resource_is_found(render: Any, custom_validators: Any) -> None:
    service = next(doc for doc in render("base") if doc["kind"] == "RayService")
    wrong = {**service, "spec": {**service["spec"], "excludeHeadPodFromServeSvcs": True}}
    assert not custom_validators["ray.io/v1", "RayService"].is_valid(wrong)


def test_names_and_ports_are_possible(documents: Docs) -> None:
    for doc in documents:
        assert DNS_1123.fullmatch(doc["metadata"]["name"]), doc["metadata"]["name"]
        if doc["kind"] == "Service":
            assert all(1 <= port["port"] <= 65535 for port in doc["spec"]["ports"])
        for where, template in pod_templates(doc):
            names = [c["name"] for c in containers(template)]
            assert len(names) == len(set(names)), where
            for container in containers(template):
                ports = container.get("ports", ())
                assert all(1 <= p["containerPort"] <= 65535 for p in ports), where
                assert all(len(p["name"]) <= 15 for p in ports), where


def test_pods_meet_the_restricted_standard(documents: Docs) -> None:
    found = {where: restricted_errors(t) for doc in documents for where, t in pod_templates(doc)}
    assert len(found) >= 7
    assert {where: errors for where, errors in found.items() if errors} == {}


def test_the_autoscaler_container_meets_it_too(documents: Docs) -> None:
    service = next(doc for doc in documents if doc["kind"] == "RayService")
    cluster = service["spec"]["rayClusterConfig"]
    pod = cluster["headGroupSpec"]["template"]["spec"]["securityContext"]
    options = cluster["autoscalerOptions"]
    assert container_errors(options, pod) == []
    assert resource_errors(options["resources"]) == []


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"securityContext": {}}, "privileges"),
        ({"securityContext": {"allowPrivilegeEscalation": False}}, "capabilities"),
        (
            {"securityContext": {"allowPrivilegeEscalation": False, "runAsUser": 0}},
            "numeric user other than root",
        ),
    ],
)
def test_the_restricted_check_finds_a_loose_container(change: dict[str, Any], expected: str) -> None:
    pod = {"runAsNonRoot": True, "runAsUser": 10001, "seccompProfile": {"type": "RuntimeDefault"}}
    assert any(expected in error for error in container_errors(change, pod))


def test_every_container_states_its_resources(documents: Docs) -> None:
    for doc in documents:
        for where, template in pod_templates(doc):
            for container in containers(template):
                assert resource_errors(container["resources"]) == [], f"{where}/{container['name']}"


def test_every_selector_matches_a_pod_of_ours(documents: Docs) -> None:
    pods = [template["metadata"]["labels"] for doc in documents for _, template in pod_templates(doc)]
    for doc in documents:
        for selector in _selectors(doc):
            assert any(selects(selector, labels) for labels in pods), f"{doc['metadata']['name']}: {selector}"


def _selectors(doc: dict[str, Any]) -> list[dict[str, Any]]:
    spec = doc.get("spec", {})
    if doc["kind"] == "Service":
        return [{"matchLabels": spec["selector"]}]
    if doc["kind"] == "NetworkPolicy":
        return [spec["podSelector"]]
    if doc["kind"] in ("StatefulSet", "PodDisruptionBudget", "PodMonitor"):
        return [spec["selector"]]
    return []


def test_network_policies_close_every_pod_and_open_known_ports(documents: Docs) -> None:
    policies = [doc for doc in documents if doc["kind"] == "NetworkPolicy"]
    closed = next(p for p in policies if p["metadata"]["name"] == "qiance-closed")
    assert "ingress" not in closed["spec"]
    assert "egress" not in closed["spec"]
    for doc in documents:
        for where, template in pod_templates(doc):
            labels = template["metadata"]["labels"]
            assert selects(closed["spec"]["podSelector"], labels), where
    opened = {
        port["port"]
        for policy in policies
        for rule in (*policy["spec"].get("ingress", ()), *policy["spec"].get("egress", ()))
        for port in rule.get("ports", ())
    }
    assert opened <= {53, 443, 5432, 6379, 6443, 8000, 8080, 8265, 44217, 44227}


def test_ingress_rules_name_ports_that_the_pods_declare(documents: Docs) -> None:
    pods = [t for doc in documents for _, t in pod_templates(doc)]
    for policy in (doc for doc in documents if doc["kind"] == "NetworkPolicy"):
        chosen = [t for t in pods if selects(policy["spec"]["podSelector"], t["metadata"]["labels"])]
        declared = {p["containerPort"] for t in chosen for c in containers(t) for p in c.get("ports", ())}
        for rule in policy["spec"].get("ingress", ()):
            assert {port["port"] for port in rule.get("ports", ())} <= declared, policy["metadata"]["name"]


def test_what_pods_refer_to_exists(documents: Docs) -> None:
    by_kind: dict[str, set[str]] = {}
    for doc in documents:
        by_kind.setdefault(doc["kind"], set()).add(doc["metadata"]["name"])
    for doc in documents:
        for where, template in pod_templates(doc):
            spec = template["spec"]
            assert spec.get("serviceAccountName", "qiance-head") in by_kind["ServiceAccount"], where
            volumes = {v["name"] for v in spec.get("volumes", ())}
            volumes |= {c["metadata"]["name"] for c in doc["spec"].get("volumeClaimTemplates", ())}
            for container in containers(template):
                mounts = {mount["name"] for mount in container.get("volumeMounts", ())}
                assert mounts <= volumes, f"{where}/{container['name']}"
            for volume in spec.get("volumes", ()):
                if claim := volume.get("persistentVolumeClaim"):
                    assert claim["claimName"] in by_kind["PersistentVolumeClaim"], where
                if config := volume.get("configMap"):
                    assert config["name"] in by_kind["ConfigMap"], where
            assert _secrets(template) <= OUR_SECRETS, where


def _secrets(node: Any) -> set[str]:
    if isinstance(node, list):
        return set().union(*map(_secrets, node))
    if not isinstance(node, dict):
        return set()
    own = {node["secretKeyRef"]["name"]} if "secretKeyRef" in node else set()
    if isinstance(node.get("secret"), dict):
        own.add(node["secret"]["secretName"])
    return own.union(*map(_secrets, node.values()))


def test_the_secrets_used_are_the_ones_documented() -> None:
    text = (ROOT / "docs" / "kubernetes.md").read_text(encoding="utf-8")
    for name in OUR_SECRETS:
        assert f"create secret generic {name}" in text


def test_only_the_head_gets_a_token_of_the_api_server(documents: Docs) -> None:
    accounts = {d["metadata"]["name"]: d for d in documents if d["kind"] == "ServiceAccount"}
    for doc in documents:
        for where, template in pod_templates(doc):
            spec = template["spec"]
            account = accounts.get(spec.get("serviceAccountName", ""), {})
            mounted = spec.get(
                "automountServiceAccountToken", account.get("automountServiceAccountToken", True)
            )
            assert mounted == (where == "RayService/qiance/head"), where


def test_the_disruption_budgets_leave_someone_up(documents: Docs) -> None:
    service = next(doc for doc in documents if doc["kind"] == "RayService")
    workers = next(group for name, group in groups(service) if name == "serving")
    budgets = {d["metadata"]["name"]: d["spec"] for d in documents if d["kind"] == "PodDisruptionBudget"}
    kept = budgets["qiance-serving-workers"]["minAvailable"]
    assert type(kept) is int
    assert 1 <= kept < workers["minReplicas"], "a drain must be possible and leave a worker"


def test_prometheus_scrapes_ports_that_exist(render: Any) -> None:
    docs = render("overlays/production")
    monitor = next(doc for doc in docs if doc["kind"] == "PodMonitor")
    pods = [t for doc in docs for _, t in pod_templates(doc)]
    pods = [t for t in pods if selects(monitor["spec"]["selector"], t["metadata"]["labels"])]
    declared = [{p["name"] for c in t["spec"]["containers"] for p in c["ports"]} for t in pods]
    assert len(pods) == 4
    assert all("metrics" in names for names in declared)
    for endpoint in monitor["spec"]["podMetricsEndpoints"]:
        assert any(endpoint["port"] in names for names in declared), endpoint["port"]
        assert endpoint["relabelings"][0]["targetLabel"] == "ray_io_cluster"


def test_the_production_overlay_names_its_images_and_namespace(render: Any) -> None:
    docs = render("overlays/production")
    cluster_wide = {"Namespace"}
    assert {d["metadata"].get("namespace") for d in docs if d["kind"] not in cluster_wide} == {"qiance"}
    images = {c["image"] for doc in docs for _, t in pod_templates(doc) for c in containers(t)}
    assert {image.rpartition(":")[0] for image in images} == {"registry.example.com/qiance", "redis"}
    assert any(doc["kind"] in CLUSTER_KEY for doc in docs)
