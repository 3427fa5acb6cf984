"""Candidates of the four kinds of strategy, each valued from the predicted grid."""

from __future__ import annotations

from collections.abc import Iterator

from qiance.domain import StrategyKind
from qiance.strategy.audience import UpliftAudience, named_segments
from qiance.strategy.propose_candidate import Candidate, Segment, candidate, leaves_of, mean_of, segment_of
from qiance.strategy.propose_grid import Grid
from qiance.strategy.propose_promotions import Note, promotions
from qiance.strategy.propose_request import Request
from qiance.strategy.propose_words import money, percent
from qiance.strategy.recommend import suited_items
from qiance.strategy.segments import EVERYBODY

_ITEMS_PER_SEGMENT = 4


def candidates(request: Request, grid: Grid, segments: list[Segment], note: Note) -> list[Candidate]:
    """All candidates of the kinds that the brief's channels, floors and the stock permit.

    note: told what the stock does not permit.
    """
    return [
        *recommendations(request, grid, segments),
        *ads(request, grid),
        *promotions(request, grid, segments, note),
        *contents(request, grid, segments),
    ]


def usable_segments(request: Request, grid: Grid) -> list[Segment]:
    """The brief's whole audience, then its named segments."""
    whole = segment_of(request, grid, EVERYBODY, "brief")
    if whole is None:
        raise ValueError("brief.audience: no user of it was sampled; widen it")
    named = (segment_of(request, grid, a, "named segment") for a in named_segments(request.users))
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
                yield candidate(
                    request, grid, StrategyKind.RECOMMENDATION, item, segment, 0.0, (channel,), reason
                )


def ads(request: Request, grid: Grid) -> Iterator[Candidate]:
    """Item without offer, for the users whom a shallow tree on predicted uplift picks out."""
    for channel in request.channels(StrategyKind.AD):
        for item in grid.items:
            column = grid.cells[item.item_id, channel, 0.0]
            leaves = leaves_of(request, grid, column)
            for segment, leaf in leaves:
                yield candidate(
                    request,
                    grid,
                    StrategyKind.AD,
                    item,
                    segment,
                    0.0,
                    (channel,),
                    _leaf_reason(request, leaf),
                )
            whole = None if leaves else segment_of(request, grid, EVERYBODY, "brief")
            if whole is not None:
                reason = "No user feature separates high from low predicted uplift, so the ad goes to all."
                yield candidate(request, grid, StrategyKind.AD, item, whole, 0.0, (channel,), reason)


def contents(request: Request, grid: Grid, segments: list[Segment]) -> Iterator[Candidate]:
    """The same item at full price in words of its own for each segment, on its one or two best channels."""
    for segment in segments:
        for item in grid.items:
            channels = sorted(
                request.channels(StrategyKind.CONTENT),
                key=lambda channel: -mean_of(grid.value, segment, grid.cells[item.item_id, channel, 0.0]),
            )
            places = tuple(channels[: 1 if len(request.brief.languages) > 1 else 2])
            reason = "Item and price stay the same; the words are written for this audience."
            if places:
                yield candidate(request, grid, StrategyKind.CONTENT, item, segment, 0.0, places, reason)


def _leaf_reason(request: Request, leaf: UpliftAudience) -> str:
    currency = request.brief.budget.currency
    return (
        f"Users with {leaf.audience.describe()} ({percent(leaf.share)} of those sampled) are predicted"
        f" to bring {money(leaf.uplift, currency)} more margin a contact than doing nothing;"
        f" all users {money(leaf.average, currency)}."
    )
