"""Candidates of the four kinds of strategy, each valued from the predicted grid."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from qiance.decide.floors import discounted_price
from qiance.domain import Audience, Channel, Item, Money, Offer, StrategyKind
from qiance.strategy.audience import (
    UpliftAudience,
    named_segments,
    uplift_audiences,
)
from qiance.strategy.promotion import admitted_offer, choose_depth
from qiance.strategy.propose_grid import Grid
from qiance.strategy.propose_request import Request
from qiance.strategy.propose_words import money, percent, value_words
from qiance.strategy.recommend import suited_items
from qiance.strategy.segments import EVERYBODY

_ITEMS_PER_SEGMENT = 4
_LEAVES_PER_ITEM = 2
_MIN_SAMPLE_SHARE = 0.02


@dataclass(frozen=True)
class Candidate:
    """A strategy before it has words.

    channels: one, or for content at most two, the better first; depth: of `offer`.
    per_contact: mean objective per contact; total: that over the contacts the budget pays for;
    uplift: mean incremental margin per contact, minor units; reach: matching users of the table.
    """

    kind: StrategyKind
    item: Item
    audience: Audience
    offer: Offer
    channels: tuple[Channel, ...]
    per_contact: float
    total: float
    uplift: float
    reach: int
    reasons: tuple[str, ...]
    provenance: dict[str, str] = field(default_factory=dict)

    @property
    def content(self) -> tuple[object, ...]:
        """What makes two candidates the same, and their order when they are worth the same."""
        return (
            self.kind.value,
            self.item.item_id,
            self.audience.conditions,
            self.offer.depth,
            tuple(channel.value for channel in self.channels),
        )


@dataclass(frozen=True)
class Segment:
    """An audience with its members: rows `[M']` of the users table, mask `[S]` of the grid's sample."""

    audience: Audience
    rows: NDArray[np.int64]
    mask: NDArray[np.bool_]
    source: str


def candidates(request: Request, grid: Grid) -> list[Candidate]:
    """All candidates of the kinds that the brief's channels and floors permit."""
    segments = usable_segments(request, grid)
    return [
        *recommendations(request, grid, segments),
        *ads(request, grid),
        *promotions(request, grid, segments),
        *contents(request, grid, segments),
    ]


def usable_segments(request: Request, grid: Grid) -> list[Segment]:
    """The brief's whole audience, then its named segments."""
    whole = _segment(request, grid, EVERYBODY, "brief")
    if whole is None:
        raise ValueError("brief.audience: no user of it was sampled; widen it")
    named = (_segment(request, grid, a, "named segment") for a in named_segments(request.users))
    return [whole, *(segment for segment in named if segment is not None)]


def recommendations(request: Request, grid: Grid, segments: list[Segment]) -> Iterator[Candidate]:
    """Item without offer, per segment, chosen by affinity."""
    for segment in segments:
        suited = suited_items(request, grid.items, segment.rows, _ITEMS_PER_SEGMENT)
        for item, inside, overall in suited:
            reason = (
                f"Mean affinity of this audience for {item.category} is {inside:.3g}, of all {overall:.3g}."
            )
            for channel in request.channels(StrategyKind.RECOMMENDATION):
                yield _candidate(
                    request, grid, StrategyKind.RECOMMENDATION, item, segment, 0.0, (channel,), reason
                )


def ads(request: Request, grid: Grid) -> Iterator[Candidate]:
    """Item without offer, for the users whom a shallow tree on predicted uplift picks out."""
    for channel in request.channels(StrategyKind.AD):
        for item in grid.items:
            column = grid.cells[item.item_id, channel, 0.0]
            leaves = _leaves(request, grid, column)
            for segment, leaf in leaves:
                yield _candidate(
                    request,
                    grid,
                    StrategyKind.AD,
                    item,
                    segment,
                    0.0,
                    (channel,),
                    _leaf_reason(request, leaf),
                )
            whole = None if leaves else _segment(request, grid, EVERYBODY, "brief")
            if whole is not None:
                reason = "No user feature separates high from low predicted uplift, so the ad goes to all."
                yield _candidate(request, grid, StrategyKind.AD, item, whole, 0.0, (channel,), reason)


def promotions(request: Request, grid: Grid, segments: list[Segment]) -> Iterator[Candidate]:
    """Who × level: for each audience the depth of highest predicted uplift that the floors admit."""
    for channel in request.channels(StrategyKind.PROMOTION):
        for item in grid.items:
            columns = {d: grid.cells[item.item_id, channel, d] for d in grid.depths(item, channel)}
            if len(columns) < 2:
                continue
            deals = max(columns.values(), key=lambda column: float(grid.uplift[:, column].mean()))
            leaves = [segment for segment, _ in _leaves(request, grid, deals)]
            for segment in [*segments, *leaves]:
                yield _promotion(request, grid, item, segment, channel, columns)


def contents(request: Request, grid: Grid, segments: list[Segment]) -> Iterator[Candidate]:
    """The same item at full price in words of its own for each segment, on its one or two best channels."""
    for segment in segments:
        for item in grid.items:
            channels = sorted(
                request.channels(StrategyKind.CONTENT),
                key=lambda channel: -_mean(grid.value, segment, grid.cells[item.item_id, channel, 0.0]),
            )
            places = tuple(channels[: 1 if len(request.brief.languages) > 1 else 2])
            reason = "Item and price stay the same; the words are written for this audience."
            if places:
                yield _candidate(request, grid, StrategyKind.CONTENT, item, segment, 0.0, places, reason)


def _promotion(
    request: Request, grid: Grid, item: Item, segment: Segment, channel: Channel, columns: dict[float, int]
) -> Candidate:
    choice = choose_depth({depth: _mean(grid.uplift, segment, c) for depth, c in columns.items()})
    assert choice is not None, "called with a depth above 0"
    currency = request.brief.budget.currency
    others = "".join(f", {money(uplift, currency)} at {percent(depth)}" for depth, uplift in choice.others)
    paid = int(discounted_price(item.price, choice.depth))
    kept, floor = Money(paid - item.unit_cost, currency), percent(request.brief.min_margin)
    reasons = (
        f"{percent(choice.depth)} off is predicted to bring {money(choice.uplift, currency)} more margin a"
        f" contact than doing nothing{others}, {money(choice.full_price, currency)} at full price.",
        f"A unit then sells at {Money(paid, currency)} and keeps {kept}; the floor is {floor} of that price.",
    )
    return _candidate(
        request, grid, StrategyKind.PROMOTION, item, segment, choice.depth, (channel,), *reasons
    )


def _candidate(
    request: Request,
    grid: Grid,
    kind: StrategyKind,
    item: Item,
    segment: Segment,
    depth: float,
    channels: tuple[Channel, ...],
    *reasons: str,
) -> Candidate:
    brief = request.brief
    column = grid.cells[item.item_id, channels[0], depth]
    per_contact = _mean(grid.value, segment, column)
    reach = int(segment.rows.size)
    words = value_words(brief.objective, per_contact, brief.budget.currency)
    return Candidate(
        kind=kind,
        item=item,
        audience=segment.audience,
        offer=admitted_offer(item, depth, brief),
        channels=channels,
        per_contact=per_contact,
        total=per_contact * _contacts(request, reach, _mean(grid.cost, segment, column)),
        uplift=_mean(grid.uplift, segment, column),
        reach=reach,
        reasons=(*reasons, f"Before its words were written it was predicted to bring {words}."),
        provenance={
            "audience": segment.source,
            "item": "brief" if brief.items else "affinity, popularity and margin, then predicted objective",
            "offer": "depth of highest predicted uplift within the floors" if depth else "full price",
        },
    )


def _contacts(request: Request, reach: int, cost: float) -> float:
    """Contacts, `cost` minor units each, that the brief's budget pays for: at most one per user."""
    return float(reach) if cost == 0 else min(float(reach), request.brief.budget.minor / cost)


def _segment(request: Request, grid: Grid, audience: Audience, source: str) -> Segment | None:
    """The audience within the brief's; None when too few sampled users match to predict for it."""
    narrowed = request.narrowed(audience)
    mask = grid.mask(narrowed)
    if mask.sum() < max(1.0, np.ceil(_MIN_SAMPLE_SHARE * len(grid.sample))):
        return None
    return Segment(narrowed, request.matching(narrowed), mask, source)


def _leaves(request: Request, grid: Grid, column: int) -> list[tuple[Segment, UpliftAudience]]:
    """The audiences of highest predicted uplift for one action, best first."""
    found = []
    for leaf in uplift_audiences(grid.sample, grid.uplift[:, column], seed=request.seed)[:_LEAVES_PER_ITEM]:
        # A leaf below the average is not a reason to advertise to it.
        if leaf.uplift > leaf.average:
            segment = _segment(request, grid, leaf.audience, "decision tree on predicted uplift")
            if segment is not None:
                found.append((segment, leaf))
    return found


def _leaf_reason(request: Request, leaf: UpliftAudience) -> str:
    currency = request.brief.budget.currency
    return (
        f"Users with {leaf.audience.describe()} ({percent(leaf.share)} of those sampled) are predicted"
        f" to bring {money(leaf.uplift, currency)} more margin a contact than doing nothing;"
        f" all users {money(leaf.average, currency)}."
    )


def _mean(values: NDArray[np.float64], segment: Segment, column: int) -> float:
    return float(values[segment.mask, column].mean())
