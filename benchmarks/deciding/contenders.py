"""Who is measured: the product in both topologies, and its peers."""

from __future__ import annotations

import contextlib
import json
import re
import sqlite3
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.deciding.rates import Prober
from benchmarks.deciding.servers import Server, free_port, running
from benchmarks.deciding.shop import Shop
from benchmarks.deciding.wire import SERIAL
from benchmarks.harness import ROOT

PATH = "/v1/decisions"
SURFACE = "home"
# Looked up at every decision, and high enough that nobody runs out of contacts while it is measured.
CAPS = [{"contacts": 1_000, "days": 7.0}]


@dataclass(frozen=True)
class Contender:
    """A server to measure.

    module: of its command. about: what it is, for the protocol. options: of its command. environment: name
    of its own environment, empty for ours. ready: path that answers 200 when it serves. durable: it writes
    the product's decision log. wrap: name under which its request holds a list of requests, empty where a
    request stands by itself.
    """

    name: str
    module: str
    about: str
    options: Mapping[str, Any] = field(default_factory=dict)
    environment: str = ""
    ready: str = "/healthz"
    durable: bool = True
    wrap: str = ""

    @property
    def is_ours(self) -> bool:
        return self.module == "qiance"


QIANCE = Contender(
    "qiance",
    "qiance",
    "the product's application, engine in a process beside the replica",
    {"topology": "ingress"},
)
TWO_HOP = Contender(
    "two_hop", "qiance", "the product's application, predictor as a deployment", {"topology": "deployment"}
)
BARE = Contender(
    "bare", "bare", "one uvicorn process, the engine in two threads, a request at a time", {"threads": 2}
)
NAIVE_RAY = Contender(
    "naive_ray",
    "naive_ray",
    "ingress and predictor under Serve's defaults, Feast's client and SQLite store, no log",
    durable=False,
)
NAIVE_TWO_HOP = Contender(
    "naive_two_hop",
    "naive_two_hop",
    "ingress and predictor with @serve.batch under Serve's defaults, our engine",
)
# With no timeout LitServe polls without a pause; it decided more a second so than with 2 ms, and sooner.
LITSERVE = Contender(
    "litserve", "lit", "batches of at most 32, one worker, our engine", {"batch_timeout_s": 0.0}, "litserve"
)
BENTOML = Contender(
    "bentoml",
    "bento",
    "adaptive batches of at most 32, one worker, our engine",
    environment="bentoml",
    ready="/readyz",
    wrap="requests",
)


@dataclass(frozen=True)
class Log:
    """The decision log: how many decisions it has, and the bytes of the ledger's file."""

    decisions: int
    bytes: int


@dataclass(frozen=True)
class Stand:
    """A contender that serves, and the file of its ledger."""

    contender: Contender
    server: Server
    ledger: Path
    prober: Prober

    def transport(self) -> str:
        """What stands before the replicas of ours; empty for others, who do not say."""
        found = re.search(r"^transport: (\w+)$", self.server.log.read_text(errors="replace"), re.M)
        return found[1] if found else ""

    def log(self) -> Log:
        """The decision log now."""
        with contextlib.closing(sqlite3.connect(self.ledger, timeout=30.0)) as connection:
            found = [
                int(connection.execute(statement).fetchone()[0])
                for statement in ("SELECT count(*) FROM decisions", "PRAGMA page_count", "PRAGMA page_size")
            ]
        return Log(found[0], found[1] * found[2])


@contextlib.contextmanager
def standing(contender: Contender, shop: Shop, folder: Path, python: Path | None = None) -> Iterator[Stand]:
    """The contender on a ledger of its own in `folder`; ServerError if it does not come up."""
    folder.mkdir(parents=True)
    job, port = folder / "job.json", free_port()
    args = {**shop.app_args(folder), "frequency_caps": CAPS}
    job.write_text(json.dumps({"args": args, "stock": str(shop.stock), "options": dict(contender.options)}))
    module = f"benchmarks.deciding.peers.{contender.module}"
    command = [str(python or sys.executable), "-m", module, "--job", str(job), "--port", str(port)]
    environment = {"PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "1"}
    with running(command, port, contender.ready, folder / "server.log", environment) as server:
        yield Stand(contender, server, folder / "ledger.db", Prober(port, PATH, bodies(contender, shop)))


def bodies(contender: Contender, shop: Shop) -> list[str]:
    """One request per user, in a random order that is the same for everybody."""
    import numpy as np

    order = np.random.default_rng(shop.size.seed).permutation(shop.users())
    return [_body(contender, str(user)) for user in order]


def _body(contender: Contender, user: str) -> str:
    request: Any = {"request_id": SERIAL, "user_id": user, "surface": SURFACE}
    return json.dumps({contender.wrap: [request]} if contender.wrap else request)
