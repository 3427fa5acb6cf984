"""The image: what is copied exists, versions agree, it does not run as root."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from manifest_rules import containers, pod_templates

ROOT = Path(__file__).resolve().parents[2]
DOCKERFILE = (ROOT / "k8s" / "Dockerfile").read_text(encoding="utf-8")
SOURCE_COPY = re.compile(r"^COPY (?!--from)(.+) \S+$", re.MULTILINE)


def _copied() -> list[str]:
    return [source.rstrip("/") for line in SOURCE_COPY.findall(DOCKERFILE) for source in line.split()]


@pytest.mark.parametrize("source", _copied())
def test_what_is_copied_exists_and_reaches_the_builder(source: str) -> None:
    assert (ROOT / source).exists()
    allowed = (ROOT / ".dockerignore").read_text(encoding="utf-8").splitlines()
    assert "*" in allowed, "everything is left out that is not let in"
    assert f"!{source}" in allowed


def test_every_room_that_runs_in_a_cluster_is_copied() -> None:
    assert {"qiance", "serve", "training", "rllib", "feature_repo"} <= set(_copied())


def test_uv_is_the_version_of_the_makefile() -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    pins = {re.search(r"\buv==(\S+)", text).group(1) for text in (DOCKERFILE, makefile)}  # type: ignore[union-attr]
    assert len(pins) == 1


def test_packages_come_from_the_pins() -> None:
    installs = [line for line in DOCKERFILE.splitlines() if "uv pip install" in line]
    pinned = ("constraints.txt", "data.txt", "--editable")
    assert installs
    assert all(any(word in line for word in pinned) for line in installs), installs


def test_the_user_of_the_image_is_the_user_of_the_pods(render: Any) -> None:
    (user,) = re.findall(r"^USER (\d+):(\d+)$", DOCKERFILE, re.MULTILINE)
    for doc in render("base"):
        for where, template in pod_templates(doc):
            pod = template["spec"]["securityContext"]
            assert (str(pod["runAsUser"]), str(pod["runAsGroup"])) == user, where


def test_what_the_operator_needs_is_installed() -> None:
    final = DOCKERFILE.rpartition("\nFROM ")[2]
    (packages,) = re.findall(r"--no-install-recommends (.+?) \\", final)
    assert {"bash", "wget", "libgomp1"} <= set(packages.split())
    assert "WORKDIR /app" in final
    assert "PYTHONPATH=/app" in final


def test_a_read_only_root_leaves_room_to_write(render: Any) -> None:
    """Ray writes below /tmp, and $HOME is there too."""
    for doc in render("base"):
        if not doc["kind"].startswith("Ray"):
            continue
        for where, template in pod_templates(doc):
            for container in template["spec"]["containers"]:
                mounts = {m["mountPath"] for m in container["volumeMounts"]}
                home = {e["name"]: e.get("value") for e in container["env"]}["HOME"]
                assert home in mounts, f"{where}/{container['name']}"
            assert all(c["securityContext"]["readOnlyRootFilesystem"] for c in containers(template))
