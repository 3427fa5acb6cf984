"""A small local Ray cluster, loopback only, and one model trained on planted data."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator

import pytest
from effect_cases import Planted, fit, plant

from training.effect.fit import Trained

# Read when Ray is imported, which any test may do: with it every Ray socket binds to loopback.
os.environ["RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"] = "0"
os.environ["RAY_USAGE_STATS_ENABLED"] = "0"


@pytest.fixture(scope="session")
def planted() -> Planted:
    return plant()


@pytest.fixture(scope="session")
def trained(planted: Planted, tmp_path_factory: pytest.TempPathFactory) -> Trained:
    return fit(planted, tmp_path_factory.mktemp("trained"))


@pytest.fixture(scope="module")
def ray_cluster() -> Iterator[None]:
    import ray

    if ray.is_initialized():
        # Another room's tests hold a cluster in this session.
        yield
        return
    folder = tempfile.mkdtemp(prefix="qiance-")
    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False, _temp_dir=folder)
    yield
    ray.shutdown()
    shutil.rmtree(folder, ignore_errors=True)
