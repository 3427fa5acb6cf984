"""Puts the parts of the decision path together, in whatever process: a replica, a batch job, a benchmark."""

from __future__ import annotations

import os
import secrets
import socket
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime

from qiance.artifacts.effect import EffectModel
from qiance.artifacts.runner import padded_sizes
from qiance.domain import Catalogue
from qiance.features.columns import EFFECT_SCHEMA
from qiance.guard import Guard
from qiance.ledger import Ledger, load_or_create_key
from qiance.workspace import Snapshot, Workspace
from serve.args import AppArgs, PredictorArgs
from serve.engine import Engine
from serve.feature_store import open_reader
from serve.housekeeping import Checkpointer
from serve.leases import LeaseBook
from serve.live import Watcher
from serve.outage import Outage
from serve.predictor import ModelLoader, Predictor
from serve.scoring import Scorer
from serve.spool import Spool
from serve.users import LedgerConsents


@dataclass(frozen=True)
class Service:
    """An engine with what it stands on; close it when done. predictor: None where it runs elsewhere."""

    engine: Engine
    watcher: Watcher
    outage: Outage
    leases: LeaseBook
    checkpointer: Checkpointer
    predictor: Predictor | None

    def close(self) -> None:
        """Give leased money back, and stop every thread."""
        self.leases.close()
        self.outage.close()
        self.checkpointer.close()
        self.watcher.close()
        if self.predictor is not None:
            self.predictor.close()


def open_ledger(args: AppArgs, timeout_s: float | None = None) -> Ledger:
    """The ledger that the arguments name; timeout_s: see `Ledger.open`, for who answers requests by it."""
    key_file = args.key_file or Workspace(args.workspace).key_file
    key = load_or_create_key(key_file)
    return Ledger.open(args.open_url(), tenant=args.tenant, key=key, timeout_s=timeout_s)


def open_guard(args: AppArgs) -> Guard:
    """The text lint that the arguments name; a rules file that cannot be read closes it."""
    return Guard.load(args.guard_rules, currency=args.currency, min_margin=args.min_margin)


def clock_of(args: AppArgs, ledger: Ledger) -> Callable[[], datetime]:
    """What time it is: the system's, or in a simulation the latest that a request told."""
    return (lambda: ledger.clock() or args.now()) if args.clock == "request" else args.now


def open_predictor(args: AppArgs, ledger: Ledger) -> Predictor:
    """A predictor on the features and models of the workspace, warmed up."""
    workspace = Workspace(args.workspace)
    return Predictor(
        workspace,
        ledger,
        open_reader(workspace.features, args.features.wait_ms / 1_000.0),
        LedgerConsents(ledger, args.unrecorded),
        clock_of(args, ledger),
        args.min_margin,
        open_guard(args),
        args.features.refresh_s,
        args.replay_days,
        model_loader(args.predictor),
        warm_sizes(args),
    )


def model_loader(how: PredictorArgs) -> ModelLoader:
    """Loads effect models onto the device, and in the way, that the arguments name."""
    return lambda path: EffectModel.load(
        path, EFFECT_SCHEMA, how.threads, how.device, how.dtype, how.cuda_graphs
    )


def warm_sizes(args: AppArgs) -> tuple[int, ...]:
    """Numbers of users that the predictor scores before it is asked: all that are recorded, or one user."""
    return padded_sizes(args.batching.max_batch) if args.predictor.cuda_graphs else (1,)


def open_engine(
    args: AppArgs, ledger: Ledger, scorer: Scorer | None = None, holder: str | None = None
) -> Service:
    """An engine that scores in this process, or by `scorer`; ready to decide when this returns.

    holder: whom the ledger knows as having its leases; None is a name that nobody else has.
    """
    predictor = open_predictor(args, ledger) if scorer is None else None
    catalogue = predictor.snapshot.catalogue if predictor else read_catalogue(args)
    watcher = Watcher(ledger, catalogue, open_guard(args))
    leases = LeaseBook(ledger, holder or _holder(), args.leases.term_s)
    outage = Outage(args, ledger, Spool(Workspace(args.workspace).spool, args.spool_bytes))
    used = scorer or predictor
    assert used is not None, "one of the two is there"
    engine = Engine(args, ledger, watcher, used, leases, outage)
    return Service(engine, watcher, outage, leases, Checkpointer(ledger), predictor)


def read_catalogue(args: AppArgs) -> Catalogue:
    """The catalogue as of the workspace's snapshot."""
    return Snapshot.load(Workspace(args.workspace).snapshot).catalogue


def _holder() -> str:
    """A name for this replica that no other has."""
    return f"{socket.gethostname()[:60]}-{os.getpid()}-{secrets.token_hex(4)}"
