"""The small shop: built once per session, with a ledger of its own for every test that writes."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from built_cases import Built, build
from serve_cases import Shop, open_shop

from tests.features.redis_server import RedisServer


@pytest.fixture(scope="session")
def built(tmp_path_factory: pytest.TempPathFactory) -> Built:
    return build(tmp_path_factory.mktemp("workspace"))


@pytest.fixture
def redis_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    server = RedisServer(tmp_path_factory.mktemp("redis"))
    server.start()
    yield server
    server.kill()


@pytest.fixture
def shop(built: Built, tmp_path: Path) -> Iterator[Shop]:
    with open_shop(built, tmp_path) as opened:
        yield opened


@pytest.fixture(scope="module")
def shared_shop(built: Built, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Shop]:
    """For tests that leave nothing behind which another test of the module would notice."""
    with open_shop(built, tmp_path_factory.mktemp("shared")) as opened:
        yield opened
