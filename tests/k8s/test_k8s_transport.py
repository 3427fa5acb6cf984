"""Transport on Kubernetes: HAProxy by our program, limits above the application's own, GPUs for one part."""

from __future__ import annotations

import re
import stat
from pathlib import Path
from typing import Any

import pytest
import yaml
from manifest_rules import groups, selects

from serve.args import AppArgs, BatchArgs
from serve.limit import Admittance
from serve.transport import COMMON, THROUGHPUT, Transport

ROOT = Path(__file__).resolve().parents[2]
CONFIGS = ROOT / "serve" / "config"
GPU = "nvidia.com/gpu"
Doc = dict[str, Any]
Docs = tuple[Doc, ...]


def _serving_groups(documents: Docs) -> dict[str, Doc]:
    return dict(groups(next(doc for doc in documents if doc["kind"] == "RayService")))


def _environment(group: Doc) -> dict[str, str]:
    (container,) = group["template"]["spec"]["containers"]
    return {variable["name"]: variable.get("value", "") for variable in container["env"]}


def test_every_node_has_the_transport_of_one_machine(documents: Docs) -> None:
    """What `serve.transport` sets on one machine, but for what belongs to that machine."""
    own = set(Transport(True, "", Path("/h"), "", range(64)).environment())
    of_the_machine = {
        name for name in own if re.search(r"_PORT$|_SOCKET_PATH$|_FILE|_STATE_|_MAXCONN$", name)
    }
    for name, group in _serving_groups(documents).items():
        environment = _environment(group)
        assert own - of_the_machine - environment.keys() == set(), name
        assert {**COMMON, **THROUGHPUT}.items() <= environment.items(), name
        assert environment["RAY_SERVE_ENABLE_HA_PROXY"] == "1"


def test_ray_starts_our_program_as_haproxy(documents: Docs) -> None:
    for group in _serving_groups(documents).values():
        program = Path(_environment(group)["RAY_SERVE_HAPROXY_BINARY_PATH"])
        ours = ROOT / program.relative_to("/app")  # the image's WORKDIR; it copies serve/ whole
        assert ours.read_text(encoding="utf-8").startswith("#!/usr/bin/env python3\n")
        assert ours.stat().st_mode & stat.S_IXUSR, "Ray refuses a file that cannot be executed"


def test_a_node_waits_for_its_replicas_to_drain(documents: Docs) -> None:
    for name, group in _serving_groups(documents).items():
        drain = float(_environment(group)["RAY_SERVE_DIRECT_INGRESS_MIN_DRAINING_PERIOD_S"])
        if name != "head":
            grace = group["template"]["spec"]["terminationGracePeriodSeconds"]
            for path in CONFIGS.glob("kubernetes*.yaml"):
                gateway = _deployments(path)["Gateway"]
                assert drain < gateway["graceful_shutdown_timeout_s"] < grace, path.name


def _deployments(path: Path) -> dict[str, Doc]:
    (application,) = yaml.safe_load(path.read_text(encoding="utf-8"))["applications"]
    return {deployment["name"]: deployment for deployment in application["deployments"]}


@pytest.mark.parametrize("path", sorted(CONFIGS.glob("*.yaml")), ids=lambda path: path.name)
def test_the_application_refuses_before_ray_does_and_ray_before_memory_ends(path: Path) -> None:
    config = yaml.safe_load(path.read_text(encoding="utf-8"))
    args = AppArgs.model_validate(config["applications"][0]["args"])
    gateway, batching = _deployments(path)["Gateway"], args.batching
    own = batching.max_waiting + batching.workers * batching.max_batch
    assert own < gateway["max_ongoing_requests"]
    assert 0 < gateway["max_queued_requests"] <= 1_000
    assert gateway["backpressure_config"] == {"status_code": 503, "retry_after_s": 1}
    assert args.request_timeout_s < config["http_options"]["request_timeout_s"]
    if scaling := gateway.get("autoscaling_config"):
        target, fewest = scaling["target_ongoing_requests"], _fewest_at_once(batching)
        assert target <= fewest / 2, "scale before requests are refused, and while they are"


def _fewest_at_once(batching: BatchArgs) -> int:
    """Requests that the slowest replica has under way while it refuses others."""
    slow = Admittance(
        max_batch=batching.max_batch, workers=batching.workers, target_s=batching.target_ms / 1e3
    )
    for _ in range(100):
        slow.ended(batching.max_batch, 60.0)
    return slow.pace.at_once


def test_only_the_predictor_has_gpus_and_only_where_it_is_a_deployment_of_its_own(render: Any) -> None:
    deployments = _deployments(CONFIGS / "kubernetes-gpu.yaml")
    assert [n for n, d in deployments.items() if d["ray_actor_options"].get("num_gpus")] == ["Predictor"]
    found = _serving_groups(render("overlays/gpu"))
    with_gpus = {
        name: group
        for name, group in found.items()
        if GPU in group["template"]["spec"]["containers"][0]["resources"]["limits"]
    }
    assert list(with_gpus) == ["gpu"]
    spec = with_gpus["gpu"]["template"]["spec"]
    resources = spec["containers"][0]["resources"]
    assert resources["requests"][GPU] == resources["limits"][GPU]
    assert spec["nodeSelector"]
    assert [toleration["key"] for toleration in spec["tolerations"]] == [GPU]
    for folder in ("base", "overlays/dev", "overlays/production"):
        assert "gpu" not in _serving_groups(render(folder))


def test_no_pod_stands_under_two_disruption_budgets(documents: Docs) -> None:
    """The API server refuses to evict such a pod, and a drain never ends."""
    budgets = [doc["spec"]["selector"] for doc in documents if doc["kind"] == "PodDisruptionBudget"]
    for name, group in _serving_groups(documents).items():
        labels = group["template"]["metadata"]["labels"]
        assert sum(selects(budget, labels) for budget in budgets) == (0 if name == "head" else 1), name
