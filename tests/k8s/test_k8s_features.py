"""Features on Kubernetes: every process of ours is told of their Redis, may reach it, and nobody else may."""

from __future__ import annotations

import copy
import re
from typing import Any

import pytest
from manifest_rules import CLUSTER_KEY, connects, containers, expanded, groups, pod_templates, selects

from qiance.features.rows import redis_options
from qiance.settings import load_settings

NAME = "qiance-features"
SECRETS = {
    ("qiance-app", "ledger-url"): "sqlite:///ledger.db",
    ("qiance-features", "password"): "0123456789abcdef",
    ("qiance-redis", "password"): "of the other Redis",
}
# What of ours runs none of our code: it waits for a file, or hands the training job over.
WITHOUT_FEATURES = {"wait-for-training", "submitter"}
REACHING = {
    ("serving", "head"),
    ("serving", "worker"),
    ("training", "head"),
    ("training", "worker"),
}
Doc = dict[str, Any]
Docs = tuple[Doc, ...]


def _ours(documents: Docs) -> dict[str, Doc]:
    """Containers that run our code, by where they stand."""
    return {
        f"{where}/{container['name']}": container
        for doc in documents
        for where, template in pod_templates(doc)
        for container in containers(template)
        if "qiance" in container["image"] and container["name"] not in WITHOUT_FEATURES
    }


def _named(documents: Docs, kind: str, name: str = NAME) -> Doc:
    return next(doc for doc in documents if (doc["kind"], doc["metadata"]["name"]) == (kind, name))


def test_every_process_of_ours_finds_the_features(documents: Docs) -> None:
    found = _ours(documents)
    assert len(found) == sum(len(list(groups(doc))) for doc in documents if doc["kind"] in CLUSTER_KEY) >= 4
    service = _named(documents, "Service")
    for where, container in found.items():
        environment = expanded(container["env"], SECRETS)
        assert load_settings(None, environment).features.online == "redis", where
        assert redis_options(environment["QIANCE_REDIS"]) == {
            "host": service["metadata"]["name"],
            "port": service["spec"]["ports"][0]["port"],
            "password": SECRETS["qiance-features", "password"],
        }, where


def test_a_variable_below_the_one_that_names_it_is_found(render: Any) -> None:
    container = copy.deepcopy(next(iter(_ours(render("base")).values())))
    container["env"].reverse()
    assert "$(" in expanded(container["env"], SECRETS)["QIANCE_REDIS"]


def test_nothing_in_an_environment_is_left_unexpanded(documents: Docs) -> None:
    for doc in documents:
        for where, template in pod_templates(doc):
            for container in containers(template):
                names = [variable["name"] for variable in container.get("env", ())]
                assert len(names) == len(set(names)), where
                left = {k: v for k, v in expanded(container.get("env", []), SECRETS).items() if "$(" in v}
                assert left == {}, f"{where}/{container['name']}"


def test_no_password_stands_in_a_manifest(documents: Docs) -> None:
    for doc in documents:
        for where, template in pod_templates(doc):
            for container in containers(template):
                for variable in container.get("env", ()):
                    secret = "PASSWORD" in variable["name"] or variable["name"] == "QIANCE_REDIS"
                    plain = re.sub(r"\$\(\w+\)", "", variable.get("value", ""))
                    assert not secret or plain in ("", f"{NAME}:6379,password="), where


def _pods(documents: Docs) -> list[dict[str, str]]:
    return [template["metadata"]["labels"] for doc in documents for _, template in pod_templates(doc)]


def _place(labels: dict[str, str]) -> tuple[str, str | None]:
    return labels["qiance/component"], labels.get("qiance/node")


@pytest.mark.parametrize(
    ("server", "reaching"),
    [("features", REACHING), ("redis", {("serving", "head")})],
    ids=["features", "ray"],
)
def test_exactly_these_pods_reach_each_redis(
    documents: Docs, server: str, reaching: set[tuple[str, str]]
) -> None:
    policies = [doc for doc in documents if doc["kind"] == "NetworkPolicy"]
    pods, target = _pods(documents), {"qiance/component": server}
    assert {_place(pod) for pod in pods if connects(policies, pod, target, 6379)} == reaching
    strangers: list[dict[str, str]] = [{}, {"qiance/client": "true"}, {"qiance/node": "worker"}]
    assert not any(connects(policies, stranger, target, 6379) for stranger in strangers)
    everywhere = (53, 80, 443, 5432, 6380, 6443, 8000, 8080, 8265, 10001, 16379, 44217)
    assert not any(connects(policies, pod, target, port) for pod in pods for port in everywhere)
    assert not any(
        connects(policies, target, pod, port) for pod in [*pods, {}] for port in (6379, *everywhere)
    ), "a database opens no connection"


def test_the_rules_of_connection_find_what_is_open(render: Any) -> None:
    policies = [doc for doc in render("base") if doc["kind"] == "NetworkPolicy"]
    worker = {"qiance/component": "serving", "qiance/node": "worker"}
    assert connects(policies, worker, worker, 12345), "nodes of one purpose"
    assert connects(policies, {"qiance/client": "true"}, worker, 8000)
    assert not connects(policies, {}, worker, 8000)
    without = [p for p in policies if p["metadata"]["name"] not in ("qiance-closed", f"{NAME}-server")]
    assert connects(without, {}, {"qiance/component": "features"}, 6379), "no policy selects it"


def test_service_set_and_budget_choose_the_pod_of_their_own_redis(documents: Docs) -> None:
    pods = _pods(documents)
    for name in (NAME, "qiance-redis"):
        own = _named(documents, "StatefulSet", name)["spec"]
        labels = own["template"]["metadata"]["labels"]
        assert own["serviceName"] == name
        selectors = [
            own["selector"],
            {"matchLabels": _named(documents, "Service", name)["spec"]["selector"]},
            _named(documents, "PodDisruptionBudget", name)["spec"]["selector"],
        ]
        for selector in selectors:
            assert [pod for pod in pods if selects(selector, pod)] == [labels], name


def test_each_redis_has_its_own_secret_configuration_and_disk(documents: Docs) -> None:
    for name in (NAME, "qiance-redis"):
        spec = _named(documents, "StatefulSet", name)["spec"]
        pod = spec["template"]["spec"]
        (container,) = pod["containers"]
        assert container["env"][0]["valueFrom"]["secretKeyRef"] == {"name": name, "key": "password"}
        environment = expanded(container["env"], SECRETS)
        assert environment["REDISCLI_AUTH"] == environment["REDIS_PASSWORD"] == SECRETS[name, "password"]
        assert [v["configMap"]["name"] for v in pod["volumes"] if "configMap" in v] == [name]
        assert [claim["metadata"] for claim in spec["volumeClaimTemplates"]] == [{"name": "data"}], (
            "the claims of a set that exists cannot change"
        )


UNITS = {"mb": 2**20, "gb": 2**30, "Mi": 2**20, "Gi": 2**30}


def _bytes(text: str) -> int:
    number, unit = re.fullmatch(r"(\d+)(\w+)", text).groups()  # type: ignore[union-attr]
    return int(number) * UNITS[unit]


def test_the_rows_leave_room_for_the_second_process_and_fit_on_the_disk(documents: Docs) -> None:
    config = _named(documents, "ConfigMap")["data"]["memory.conf"]
    maxmemory = _bytes(re.search(r"^maxmemory (\S+)$", config, re.MULTILINE)[1])  # type: ignore[index]
    spec = _named(documents, "StatefulSet")["spec"]
    resources = spec["template"]["spec"]["containers"][0]["resources"]
    assert resources["requests"]["memory"] == resources["limits"]["memory"], "rows are no spare memory"
    assert 2 * maxmemory <= _bytes(resources["limits"]["memory"])
    storage = spec["volumeClaimTemplates"][0]["spec"]["resources"]["requests"]["storage"]
    assert 4 * maxmemory <= _bytes(storage)
