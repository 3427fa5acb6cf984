"""Candidates that a model of logged strategies proposes (see docs/proposer.md), beside the others."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from datetime import timedelta

import numpy as np

from qiance.domain import Channel, EffectPredictor, Item, StrategyKind
from qiance.features.transforms import USER_FEATURES
from qiance.proposer.proposer import PREFIX, Proposer
from qiance.proposer.proposer import Request as Asked
from qiance.proposer.vector import CHANNELS, Floats, Vectors
from qiance.strategy.audience import SEGMENT_NAMES
from qiance.strategy.promotion import Schedule, admitted_offer
from qiance.strategy.propose_candidate import Candidate, Segment, candidate
from qiance.strategy.propose_grid import Cell, Grid, widened
from qiance.strategy.propose_promotions import left_out_words, with_sold
from qiance.strategy.propose_request import Request
from qiance.strategy.propose_words import gain_words, kept_words, money, offer_words, percent
from qiance.strategy.recommend import suited_items
from qiance.strategy.timing import Window, span_words

ITEMS_PER_SEGMENT = 2
PER_ITEM = 2  # of each kind
KINDS = (StrategyKind.PROMOTION, StrategyKind.RECOMMENDATION)


@dataclass(frozen=True)
class Proposed:
    """One strategy of the proposer. gain: expected of the budget, per member, in units of the goal; budget:
    minor units per member; outside: features in which no segment of its log is like this one."""

    kind: StrategyKind
    item: Item
    segment: Segment
    depth: float
    shares: dict[Channel, float]
    start: int
    days: int
    gain: float
    budget: float
    outside: tuple[str, ...]


def learned_candidates(
    request: Request,
    grid: Grid,
    segments: list[Segment],
    proposer: Proposer,
    predictor: EffectPredictor,
    note: Callable[[str], None],
) -> tuple[list[Candidate], Grid]:
    """What the proposer proposes for each segment, valued by the effect model, and the grid with that.

    note: told why it was not asked, where it was not.
    """
    known = _known(request, segments, proposer, note)
    found = [one for pair in known for one in _for_segment(request, grid.items, *pair, proposer)]
    cells: list[Cell] = [(one.item.item_id, channel, one.depth) for one in found for channel in one.shares]
    wide = widened(request, grid, cells, predictor)
    made = [_candidate(request, wide, one, proposer) for one in found]
    kept = [one for one in made if one.sold is None or one.sold.units.high <= one.sold.limit]
    if len(kept) < len(made):
        note(left_out_words([one.item.title for one in made if one not in kept]))
    return kept, wide


def features_of(proposer: Proposer, request: Request, segment: Segment) -> Floats | None:
    """`[F]` of the segment as the proposer knows segments; None where it does not know this one.

    Features named `segment_` + a column of the users table are the members' means; else the segment must be
    in the proposer's log by its name, and not be narrowed by the brief's own audience.
    """
    columns = [name.removeprefix(PREFIX) for name in proposer.names]
    if all(name in request.users.columns for name in columns):
        own = np.stack([request.users.columns[name][segment.rows] for name in columns])
        known = np.isfinite(own)
        if not known.any(axis=1).all():
            return None
        return np.asarray(np.where(known, own, 0.0).sum(axis=1) / known.sum(axis=1))
    narrowed = request.base.conditions and segment.audience != request.base
    return None if narrowed else proposer.segments.get(segment.audience.name)


def check_proposer(proposer: Proposer) -> None:
    """Raises ValueError where no brief can ask it: it knows segments neither by name nor by features."""
    columns = {name.removeprefix(PREFIX) for name in proposer.names}
    if columns <= {*USER_FEATURES} or SEGMENT_NAMES & set(proposer.segments):
        return
    foreign = ", ".join(sorted(columns - {*USER_FEATURES}))
    raise ValueError(
        f"briefs.proposer: {proposer.version} cannot be asked for a brief: {foreign} cannot be computed from "
        f"features of users, and none of its segments is called {', '.join(sorted(SEGMENT_NAMES))}; name its "
        f"features {PREFIX} + a feature of users, such as {PREFIX}{USER_FEATURES[0]}, or its segments so"
    )


def _known(
    request: Request, segments: list[Segment], proposer: Proposer, note: Callable[[str], None]
) -> list[tuple[Segment, Floats]]:
    brief = request.brief
    if brief.objective not in proposer.goals:
        goals = ", ".join(goal.value for goal in proposer.goals)
        note(f"the proposer was not asked: it has learned for {goals}, not for {brief.objective.value}")
        return []
    if brief.budget.minor == 0:
        note("the proposer was not asked: it plans with a budget, and the brief has none")
        return []
    pairs = [(segment, features_of(proposer, request, segment)) for segment in segments]
    known = [(segment, features) for segment, features in pairs if features is not None]
    if not known:
        note("the proposer was not asked: it knows none of the brief's segments")
    return known


def _for_segment(
    request: Request, items: tuple[Item, ...], segment: Segment, features: Floats, proposer: Proposer
) -> Iterator[Proposed]:
    """At most `PER_ITEM` of each kind for each of the items that suit the segment."""
    brief, budget = request.brief, request.brief.budget.minor / segment.rows.size
    for item, _, _ in suited_items(request, items, segment.rows, ITEMS_PER_SEGMENT):
        for kind in KINDS:
            channels = tuple(channel for channel in request.channels(kind) if channel in CHANNELS)
            if channels:
                asked = Asked(features, item, replace(brief, channels=channels, n=PER_ITEM), budget)
                yield from _drawn(asked, kind, segment, proposer, request.seed)


def _drawn(
    asked: Asked, kind: StrategyKind, segment: Segment, proposer: Proposer, seed: int
) -> Iterator[Proposed]:
    vectors = proposer.draw(asked, seed)
    # A decision does not know the basket, so what holds from a threshold on cannot be promised by a brief.
    fits = ((vectors.depth > 0) == (kind is StrategyKind.PROMOTION)) & (vectors.threshold == 0)
    if not fits.any():
        return
    found = proposer.choose(asked, vectors.take(fits))
    span = np.array(list(proposer.segments.values()))
    outside = (asked.features < span.min(axis=0)) | (asked.features > span.max(axis=0))
    for row in np.flatnonzero(found.gain > 0).tolist():
        yield Proposed(
            kind=kind,
            item=asked.item,
            segment=segment,
            depth=float(found.vectors.depth[row]),
            shares=_mix(found.vectors, row),
            start=int(found.vectors.start[row]),
            days=int(found.vectors.days[row]),
            gain=float(found.gain[row]),
            budget=asked.budget,
            outside=tuple(name for name, out in zip(proposer.names, outside, strict=True) if out),
        )


def _mix(vectors: Vectors, row: int) -> dict[Channel, float]:
    """Shares above 0 by channel, the largest first."""
    shares = vectors.shares[row]
    return {CHANNELS[k]: float(shares[k]) for k in np.argsort(-shares, kind="stable") if shares[k] > 0}


def _candidate(request: Request, grid: Grid, one: Proposed, proposer: Proposer) -> Candidate:
    brief, currency = request.brief, request.brief.budget.currency
    places = 1 if len(dict.fromkeys(brief.languages)) > 1 else 2
    mix = ", ".join(f"{channel.value} {percent(share)}" for channel, share in one.shares.items())
    offer = offer_words(admitted_offer(one.item, one.depth, brief))
    reasons = [
        f"Proposed by a model of logged strategies: {offer} with contacts by {mix}; it expects"
        f" {gain_words(brief.objective, one.gain, currency)} from {money(one.budget, currency)} a member.",
    ]
    if one.outside:
        named = ", ".join(name.removeprefix(PREFIX) for name in one.outside)
        reasons.append(f"No segment of that log is like this one in {named}, so it had to extrapolate.")
    if one.depth:
        reasons.append(kept_words(one.item, one.depth, brief.min_margin, currency))
    channels = tuple(one.shares)[:places]
    starts = brief.starts + timedelta(days=one.start)
    window = Window(starts, min(starts + timedelta(days=one.days), brief.ends), "its days")
    made = candidate(
        request, grid, one.kind, one.item, one.segment, one.depth, channels, *reasons, days=window.days
    )
    name = f"proposer {proposer.version}"
    made = replace(
        made,
        learned=True,
        schedule=Schedule(
            window.starts,
            window.ends,
            f"Runs {span_words(window.starts, window.ends)}, as the model of logged strategies has it.",
        ),
        provenance=made.provenance | {"offer": name, "channels": name, "timing": name},
    )
    return with_sold(request, grid, made, one.segment, window) if one.depth else made
