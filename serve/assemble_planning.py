"""What works on briefs and judges policies, from the arguments. Who decides loads nothing of it."""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta

from qiance.artifacts.proposer import load_proposer
from qiance.artifacts.recommend import load_recommender
from qiance.domain import Catalogue
from qiance.evaluate.gate import GateRule
from qiance.launch import GateSetup, PolicyDesk
from qiance.ledger import Ledger
from qiance.proposer.proposer import Proposer
from qiance.strategy.propose_learned import check_proposer
from qiance.strategy.retrieve import Purchases, Retriever, SequenceRetriever
from qiance.workspace import Workspace
from serve.args import AppArgs
from serve.assemble import clock_of, read_catalogue
from serve.users import LedgerConsents


def open_policy_desk(args: AppArgs, ledger: Ledger) -> PolicyDesk:
    """What judges policies by the log and makes them live."""
    gate = args.gate
    setup = GateSetup(
        GateRule(gate.margin, gate.margins, gate.confidence),
        args.epsilon,
        gate.margin_rate,
        timedelta(hours=args.outcome_window_hours),
        gate.days,
        gate.max_rows,
        unrecorded=args.unrecorded,
        seed=args.seed,
    )
    return PolicyDesk(Workspace(args.workspace), ledger, setup, clock_of(args, ledger))


def open_proposer(args: AppArgs) -> Proposer | None:
    """The model of logged strategies that the arguments name; ArtifactError or ValueError for a wrong one."""
    if args.briefs.proposer is None:
        return None
    proposer = load_proposer(args.briefs.proposer)
    check_proposer(proposer)
    return proposer


def open_retrieval(args: AppArgs, ledger: Ledger) -> Callable[[Catalogue], Retriever] | None:
    """What makes retrievers by the model of purchase sequences that the arguments name.

    Only of users who agree to personalisation it knows what they bought. Raises ArtifactError or ValueError
    for a model or a workspace that it cannot work with.
    """
    if args.briefs.recommender is None:
        return None
    model = load_recommender(args.briefs.recommender)
    events = Workspace(args.workspace).data / "events.parquet"
    purchases = Purchases(events, LedgerConsents(ledger, args.unrecorded))

    def retriever_of(catalogue: Catalogue) -> Retriever:
        return SequenceRetriever(model, catalogue, purchases)

    retriever_of(read_catalogue(args))  # now, so that a foreign model is told at the start
    return retriever_of
