"""A strategy before it has words, and the audiences that it may be for."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from qiance.domain import Audience, Channel, Interval, Item, Offer, StrategyKind
from qiance.domain.prediction import interval_of
from qiance.strategy.audience import UpliftAudience, uplift_audiences
from qiance.strategy.promotion import Schedule, admitted_offer
from qiance.strategy.propose_grid import Grid
from qiance.strategy.propose_request import Request
from qiance.strategy.propose_words import value_words
from qiance.strategy.timing import BASKETS, share_reached

Floats = NDArray[np.float64]

CONFIDENCE = 0.9
# Share of the stock that may be planned for before the words are written, since words move what is sold.
PLANNED = 0.8
_MIN_SAMPLE_SHARE = 0.02
_LEAVES_PER_ITEM = 2


@dataclass(frozen=True)
class Candidate:
    """A strategy before it has words.

    channels: one, or at most two, the better first; depth: of `offer`.
    per_contact: mean objective per contact; total: that over the contacts the budget pays for;
    uplift: mean incremental margin per contact, minor units; reach: matching users of the table.
    learned: a model of logged strategies proposed it. schedule: when it runs; None: the whole period.
    sold: what a promotion is predicted to sell.
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
    sold: Sold | None = None

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


@dataclass(frozen=True, slots=True)
class Sold:
    """units: that a promotion is predicted to sell, with the interval of the predictor's heads.
    demand: on its days, 1 on average ones. on_hand: units, None where that is not known."""

    units: Interval
    demand: float
    on_hand: float | None

    @property
    def limit(self) -> float:
        """Units that may be planned for."""
        return np.inf if self.on_hand is None else PLANNED * self.on_hand


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
    days: float | None = None,
    demand: float = 1.0,
) -> Candidate:
    """Valued by the cell of its first channel; ValueError where a limit does not admit `depth`.

    days: that it runs, None for the whole period; demand: on these days, 1 on average ones.
    """
    brief = request.brief
    column = grid.cells[item.item_id, channels[0], depth]
    per_contact = mean_of(grid.value, segment, column)
    reach, lengths = int(segment.rows.size), np.array([days or request.windows[0].days])
    words = value_words(brief.objective, per_contact, brief.budget.currency)
    return Candidate(
        kind=kind,
        item=item,
        audience=segment.audience,
        offer=admitted_offer(item, depth, brief),
        channels=channels,
        per_contact=per_contact,
        total=per_contact * demand * float(contacts(request, grid, segment, column, lengths)[0]),
        uplift=mean_of(grid.uplift, segment, column),
        reach=reach,
        reasons=(*reasons, f"Before its words were written it was predicted to bring {words}."),
        provenance={
            "audience": segment.source,
            "item": "brief" if brief.items else f"{grid.source}, then predicted objective",
            "offer": "depth of highest predicted uplift within the floors" if depth else "full price",
        },
    )


def contacts(request: Request, grid: Grid, segment: Segment, column: int, days: Floats) -> Floats:
    """`[n]` contacts within each of `days` `[n]`: at most what the brief's budget pays for at the cost of the
    cell, and at most one per user, of whom fewer shop within a part of the period than within all of it."""
    baskets = grid.sample.columns.get(BASKETS)
    own = None if baskets is None else baskets[segment.mask]
    count = segment.rows.size * share_reached(own, days, request.windows[0].days)
    cost = mean_of(grid.cost, segment, column)
    return count if cost == 0 else np.minimum(count, request.brief.budget.minor / cost)


def rate_of(grid: Grid, segment: Segment, column: int) -> Interval:
    """Conversions per contact over the segment, with the interval of the predictor's heads."""
    heads = grid.conversion[segment.mask, column].mean(axis=0, dtype=np.float64)
    return interval_of(heads, float(grid.widths[column]), CONFIDENCE, 0.0, 1.0)


def units_of(rate: Interval, count: float, demand: float) -> Interval:
    """Units that `count` contacts sell: an offer holds for one, and nobody buys more surely than surely."""
    return Interval(*(count * min(bound * demand, 1.0) for bound in (rate.value, rate.low, rate.high)))


def leaves_of(request: Request, grid: Grid, column: int) -> list[tuple[Segment, UpliftAudience]]:
    """The audiences of highest predicted uplift for one action, best first."""
    found = []
    for leaf in uplift_audiences(grid.sample, grid.uplift[:, column], seed=request.seed)[:_LEAVES_PER_ITEM]:
        # A leaf below the average is not a reason to advertise to it.
        if leaf.uplift > leaf.average:
            segment = segment_of(request, grid, leaf.audience, "decision tree on predicted uplift")
            if segment is not None:
                found.append((segment, leaf))
    return found
