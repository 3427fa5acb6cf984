"""RayService and RayJob: the operator's rules, the Serve configuration, versions."""

from __future__ import annotations

import copy
import importlib.metadata
import importlib.util
import subprocess
import sys
import tomllib
import typing
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from manifest_rules import containers, groups, operator_errors, pod_templates
from pydantic import BaseModel
from ray.serve import Deployment
from ray.serve.schema import ServeDeploySchema

ROOT = Path(__file__).resolve().parents[2]
CONFIGS = ROOT / "serve" / "config"
CONFIG = CONFIGS / "kubernetes.yaml"
Doc = dict[str, Any]
Docs = tuple[Doc, ...]


def _config() -> Doc:
    return yaml.safe_load(CONFIG.read_text(encoding="utf-8"))  # type: ignore[no-any-return]


def _one(documents: Docs, kind: str) -> Doc:
    return next(doc for doc in documents if doc["kind"] == kind)


def _config_of(documents: Docs) -> Doc:
    """The Serve configuration that the manifest should hold: with a group of GPUs the one for them."""
    name = (
        "kubernetes-gpu.yaml" if "gpu" in dict(groups(_one(documents, "RayService"))) else "kubernetes.yaml"
    )
    return yaml.safe_load((CONFIGS / name).read_text(encoding="utf-8"))  # type: ignore[no-any-return]


def _group_of(documents: Docs, deployment: Doc) -> Doc:
    """The workers that a deployment's replicas run on."""
    wants_gpu = deployment["ray_actor_options"].get("num_gpus", 0) > 0
    return dict(groups(_one(documents, "RayService")))["gpu" if wants_gpu else "serving"]


def test_the_operator_accepts_both(documents: Docs) -> None:
    assert operator_errors(_one(documents, "RayService")) == []
    assert operator_errors(_one(documents, "RayJob")) == []


def _head(doc: Doc) -> Doc:
    return dict(groups(doc))["head"]


def _set_name(doc: Doc) -> None:
    doc["metadata"]["name"] = "q" * 48


def _both_resources(doc: Doc) -> None:
    _head(doc)["resources"] = {"CPU": "1"}


def _restart(doc: Doc) -> None:
    _head(doc)["template"]["spec"]["restartPolicy"] = "Always"


def _redis_env(doc: Doc) -> None:
    container = _head(doc)["template"]["spec"]["containers"][0]
    container["env"].append({"name": "RAY_REDIS_ADDRESS", "value": "redis:6379"})


def _head_service_name(doc: Doc) -> None:
    _head(doc)["headService"] = {"metadata": {"name": "mine"}}


def _step_above_surge(doc: Doc) -> None:
    options = {"maxSurgePercent": 10, "stepSizePercent": 20, "intervalSeconds": 10}
    doc["spec"]["upgradeStrategy"] = {
        "type": "NewClusterWithIncrementalUpgrade",
        "clusterUpgradeOptions": options,
    }


def _dead_field(doc: Doc) -> None:
    doc["spec"]["serviceUnhealthySecondThreshold"] = 300


def _bad_timeout(doc: Doc) -> None:
    doc["metadata"]["annotations"]["ray.io/initializing-timeout"] = "soon"


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (_set_name, "at most 47"),
        (_both_resources, "rayStartParams and in resources"),
        (_restart, "restartPolicy"),
        (_redis_env, "RAY_REDIS_ADDRESS"),
        (_head_service_name, "headService"),
        (_step_above_surge, "maxSurgePercent"),
        (_dead_field, "no effect"),
        (_bad_timeout, "no duration"),
    ],
)
def test_the_operator_rules_find_a_mistake(render: Any, change: Callable[[Doc], None], expected: str) -> None:
    doc = copy.deepcopy(_one(render("base"), "RayService"))
    change(doc)
    assert any(expected in error for error in operator_errors(doc)), operator_errors(doc)


def test_the_manifest_holds_the_serve_configuration_of_this_repository(documents: Docs) -> None:
    held = yaml.safe_load(_one(documents, "RayService")["spec"]["serveConfigV2"])
    assert held == _config_of(documents)


def test_the_manifest_is_up_to_date_to_the_byte() -> None:
    command = [sys.executable, "-m", "k8s.embed", "--check"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr


def _embed() -> Callable[[str, str], str]:
    spec = importlib.util.spec_from_file_location("embed_under_test", ROOT / "k8s" / "embed.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.embed  # type: ignore[no-any-return]


def test_embedding_replaces_the_block_and_nothing_else() -> None:
    manifest = "a: 1\nspec:\n  serveConfigV2: |\n    old: 1\n\n    older: 2\n  after: 3\n"
    config = "# why\nnew:\n  - 1\n\nlast: 2\n"
    embedded = _embed()(manifest, config)
    parsed = yaml.safe_load(embedded)
    assert yaml.safe_load(parsed["spec"]["serveConfigV2"]) == {"new": [1], "last": 2}
    assert parsed["spec"]["after"] == 3
    assert _embed()(embedded, config) == embedded


@pytest.mark.parametrize("manifest", ["a: 1\n", "  serveConfigV2: |\n  serveConfigV2: |\n"])
def test_embedding_refuses_a_manifest_without_one_place_for_it(manifest: str) -> None:
    with pytest.raises(ValueError, match="times; it must stand there once"):
        _embed()(manifest, "a: 1")


def _models(annotation: Any) -> list[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [model for part in typing.get_args(annotation) for model in _models(part)]


def unknown_keys(model: type[BaseModel], data: Any, path: str = "") -> Iterator[str]:
    """Keys of `data` that are no fields of `model`, which Ray itself would drop in silence."""
    for item in data if isinstance(data, list) else [data]:
        for key, value in item.items():
            if key not in model.model_fields:
                yield f"{path}{key}"
                continue
            for inner in _models(model.model_fields[key].annotation):
                if isinstance(value, dict | list):
                    yield from unknown_keys(inner, value, f"{path}{key}.")


@pytest.mark.parametrize("path", sorted(CONFIGS.glob("*.yaml")), ids=lambda path: path.name)
def test_ray_knows_every_key_of_each_serve_configuration(path: Path) -> None:
    config = yaml.safe_load(path.read_text(encoding="utf-8"))
    ServeDeploySchema.model_validate(config)
    assert list(unknown_keys(ServeDeploySchema, config)) == []


@pytest.mark.parametrize(
    ("where", "key"),
    [
        ((), "proxylocation"),
        (("http_options",), "keepalive"),
        (("applications", 0), "routeprefix"),
        (("applications", 0, "deployments", 0), "num_replica"),
        (("applications", 0, "deployments", 0, "autoscaling_config"), "min_replica"),
        (("applications", 0, "deployments", 0, "ray_actor_options"), "num_cpu"),
    ],
)
def test_a_misspelt_key_is_found_at_every_level(where: tuple[Any, ...], key: str) -> None:
    config = _config()
    node = config
    for step in where:
        node = node[step]
    node[key] = 3
    assert [found.rpartition(".")[2] for found in unknown_keys(ServeDeploySchema, config)] == [key]


@pytest.mark.parametrize("path", sorted(CONFIGS.glob("*.yaml")), ids=lambda path: path.name)
def test_the_application_takes_these_arguments_and_has_these_deployments(path: Path) -> None:
    import serve
    from serve import app
    from serve.args import AppArgs

    assert Path(serve.__file__).is_relative_to(ROOT)
    (application,) = yaml.safe_load(path.read_text(encoding="utf-8"))["applications"]
    module, _, builder = application["import_path"].partition(":")
    assert module == app.__name__
    assert callable(getattr(app, builder))
    args = AppArgs.model_validate(application["args"])
    assert args.topology == ("deployment" if path.stem == "kubernetes-gpu" else "ingress")
    names = {value.name for value in vars(app).values() if isinstance(value, Deployment)}
    assert {deployment["name"] for deployment in application["deployments"]} == names


def test_every_deployment_survives_the_loss_of_a_node(documents: Docs) -> None:
    (application,) = _config_of(documents)["applications"]
    for deployment in application["deployments"]:
        if deployment["name"] == "Pacer":  # one on purpose, see the file
            assert deployment["num_replicas"] == 1
            continue
        scaling = deployment.get("autoscaling_config", {})
        least = scaling.get("min_replicas", deployment.get("num_replicas"))
        most = scaling.get("max_replicas", least)
        workers = _group_of(documents, deployment)
        assert 2 <= least <= workers["minReplicas"]
        if workers["maxReplicas"] > workers["minReplicas"]:  # overlays/dev has one node only
            assert most <= workers["maxReplicas"], "with one replica a node, more could never be placed"
        assert deployment["max_replicas_per_node"] == 1


def test_a_worker_holds_one_replica_of_each_of_its_deployments(documents: Docs) -> None:
    (application,) = _config_of(documents)["applications"]
    for name, workers in groups(_one(documents, "RayService")):
        if name == "head":
            continue
        limits = workers["template"]["spec"]["containers"][0]["resources"]["limits"]
        options = [
            deployment["ray_actor_options"]
            for deployment in application["deployments"]
            if _group_of(documents, deployment) == workers
        ]
        assert options, name
        cpus = float(workers["rayStartParams"].get("num-cpus", limits["cpu"]))
        assert sum(option["num_cpus"] for option in options) <= cpus
        assert sum(option.get("num_gpus", 0) for option in options) == int(limits.get("nvidia.com/gpu", 0))


def test_paths_of_the_arguments_are_mounted(documents: Docs) -> None:
    args = _config()["applications"][0]["args"]
    paths = [args["workspace"], args["ledger_url_file"], args["key_file"], args["llm"]["cache_dir"]]
    workers = dict(groups(_one(documents, "RayService")))["serving"]
    mounts = [m["mountPath"] for m in workers["template"]["spec"]["containers"][0]["volumeMounts"]]
    for path in paths:
        assert any(Path(path).is_relative_to(mount) for mount in mounts), path


def test_training_writes_where_serving_reads(documents: Docs) -> None:
    job = _one(documents, "RayJob")
    workspace = _config()["applications"][0]["args"]["workspace"]
    assert job["spec"]["entrypoint"].split()[-1] == workspace
    assert (
        _head(_one(documents, "RayService"))["template"]["spec"]["initContainers"][0]["command"][2].find(
            f"{workspace}/snapshot/"
        )
        > 0
    )
    for name in ("RayService", "RayJob"):
        for _, group in groups(_one(documents, name)):
            volumes = {v["name"]: v for v in group["template"]["spec"]["volumes"]}
            assert volumes["data"]["persistentVolumeClaim"]["claimName"] == "qiance-data"


def test_ray_in_the_manifests_is_the_ray_that_is_installed(documents: Docs) -> None:
    installed = importlib.metadata.version("ray")
    pinned = (ROOT / "constraints.txt").read_text(encoding="utf-8").split()
    assert f"ray=={installed}" in pinned, "the image installs what constraints.txt pins"
    assert _one(documents, "RayService")["spec"]["rayClusterConfig"]["rayVersion"] == installed
    assert _one(documents, "RayJob")["spec"]["rayClusterSpec"]["rayVersion"] == installed


def test_every_pod_of_ours_runs_the_image_of_this_version(documents: Docs) -> None:
    version = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["version"]
    images = {
        container["image"]
        for doc in documents
        for _, template in pod_templates(doc)
        for container in containers(template)
    }
    ours = {image for image in images if "qiance" in image}
    assert len(ours) == 1
    assert ours.pop().rpartition(":")[2] == version
    assert not any(image.endswith(":latest") or ":" not in image for image in images)


def test_the_head_runs_nothing_but_ray(documents: Docs) -> None:
    for kind in ("RayService", "RayJob"):
        assert _head(_one(documents, kind))["rayStartParams"]["num-cpus"] == "0"
    service = _one(documents, "RayService")["spec"]
    assert service["excludeHeadPodFromServeSvc"] is True


def test_serving_is_fault_tolerant_authenticated_and_scales(documents: Docs) -> None:
    service = _one(documents, "RayService")
    cluster = service["spec"]["rayClusterConfig"]
    redis = {d["metadata"]["name"]: d for d in documents if d["kind"] == "Service"}["qiance-redis"]
    host, _, port = cluster["gcsFaultToleranceOptions"]["redisAddress"].partition(":")
    assert host == redis["metadata"]["name"]
    assert int(port) == redis["spec"]["ports"][0]["port"]
    assert "value" not in cluster["gcsFaultToleranceOptions"]["redisPassword"]
    assert "ray.io/gcs-ft-deletion-timeout" in service["metadata"]["annotations"]
    assert cluster["authOptions"]["mode"] == "token"
    assert cluster["enableInTreeAutoscaling"] is True
    assert cluster["autoscalerOptions"]["version"] == "v2"
    assert all("idleTimeoutSeconds" in g and "priority" in g for n, g in groups(service) if n != "head")


def test_training_ends_and_cleans_up(documents: Docs) -> None:
    spec = _one(documents, "RayJob")["spec"]
    assert spec["shutdownAfterJobFinishes"] is True
    assert spec["ttlSecondsAfterFinished"] > 0
    assert spec["activeDeadlineSeconds"] > 0
    assert spec["backoffLimit"] <= 3
