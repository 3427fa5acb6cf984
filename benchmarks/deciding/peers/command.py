"""What every server's command shares."""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import shutil
import signal
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

LOGICAL_CPUS = 8  # Ray only counts these; all servers have the same real cores


@dataclass(frozen=True)
class Command:
    """args: arguments of `serve.app:build`; stock: Feast's own store; options: of this server alone."""

    args: dict[str, Any]
    stock: str
    options: dict[str, Any]
    port: int


def read_command(argv: Sequence[str] | None = None) -> Command:
    """Read the command line, and make SIGTERM an ordinary end."""
    found = parse_command(argv)
    signal.signal(signal.SIGTERM, _end)
    return Command(**json.loads(found.job.read_text()), port=found.port)


def parse_command(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """`job` and `port` as given."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--job", type=Path, required=True)
    parser.add_argument("--port", type=int, required=True)
    return parser.parse_args(argv)


def _end(*_: object) -> None:
    raise SystemExit(0)


def wait_for_end() -> None:
    """Until SIGTERM."""
    while True:
        signal.pause()


@contextlib.contextmanager
def default_ray(port: int) -> Iterator[None]:
    """A Ray instance with Serve as it comes, but for the port and that every socket is on loopback."""
    from serve.loopback import prepare

    prepare(os.environ)
    import ray
    from ray import serve

    with contextlib.ExitStack() as opened:
        folder = tempfile.mkdtemp(prefix="qiance-")
        opened.callback(shutil.rmtree, folder, ignore_errors=True)
        opened.callback(ray.shutdown)
        ray.init(num_cpus=LOGICAL_CPUS, include_dashboard=False, log_to_driver=False, _temp_dir=folder)
        opened.callback(serve.shutdown)
        serve.start(http_options={"host": "127.0.0.1", "port": port})
        yield
