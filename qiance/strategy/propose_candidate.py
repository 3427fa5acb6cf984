"""A strategy before it has words, and the audiences that it may be for."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from qiance.domain import Audience, Channel, Item, Offer, StrategyKind
from qiance.strategy.promotion import Schedule, admitted_offer
from qiance.strategy.propose_grid import Grid
from qiance.strategy.propose_request import Request
from qiance.strategy.propose_words import value_words

_MIN_SAMPLE_SHARE = 0.02


@dataclass(frozen=True)
class Candidate:
    """A strategy before it has words.

    channels: one, or at most two, the better first; depth: of `offer`.
    per_contact: mean objective per contact; total: that over the contacts the budget pays for;
    uplift: mean incremental margin per contact, minor units; reach: matching users of the table.
    learned: a model of logged strategies proposed it. schedule: when it runs; None leaves that open.
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
    learned: bool = False
    schedule: Schedule | None = None

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


def segment_of(request: Request, grid: Grid, audience: Audience, source: str) -> Segment | None:
    """The audience within the brief's; None when too few sampled users match to predict for it."""
    narrowed = request.narrowed(audience)
    mask = grid.mask(narrowed)
    if mask.sum() < max(1.0, np.ceil(_MIN_SAMPLE_SHARE * len(grid.sample))):
        return None
    return Segment(narrowed, request.matching(narrowed), mask, source)


def mean_of(values: NDArray[np.float64], segment: Segment, column: int) -> float:
    """Mean over the segment of one column of `[S, A]`."""
    return float(values[segment.mask, column].mean())


def candidate(
    request: Request,
    grid: Grid,
    kind: StrategyKind,
    item: Item,
    segment: Segment,
    depth: float,
    channels: tuple[Channel, ...],
    *reasons: str,
) -> Candidate:
    """Valued by the cell of its first channel; ValueError where a limit does not admit `depth`."""
    brief = request.brief
    column = grid.cells[item.item_id, channels[0], depth]
    per_contact = mean_of(grid.value, segment, column)
    reach = int(segment.rows.size)
    words = value_words(brief.objective, per_contact, brief.budget.currency)
    return Candidate(
        kind=kind,
        item=item,
        audience=segment.audience,
        offer=admitted_offer(item, depth, brief),
        channels=channels,
        per_contact=per_contact,
        total=per_contact * contacts(request, reach, mean_of(grid.cost, segment, column)),
        uplift=mean_of(grid.uplift, segment, column),
        reach=reach,
        reasons=(*reasons, f"Before its words were written it was predicted to bring {words}."),
        provenance={
            "audience": segment.source,
            "item": "brief" if brief.items else "affinity, popularity and margin, then predicted objective",
            "offer": "depth of highest predicted uplift within the floors" if depth else "full price",
        },
    )


def contacts(request: Request, reach: float, cost: float) -> float:
    """Contacts, `cost` minor units each, that the brief's budget pays for: at most one per user."""
    return float(reach) if cost == 0 else min(float(reach), request.brief.budget.minor / cost)
