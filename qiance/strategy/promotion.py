"""Promotion planning: which depths the floors admit, and which one pays."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime

from qiance.decide.floors import margin_floor_mask
from qiance.domain import Brief, Item, Offer, OfferKind


def admits(item: Item, depth: float, *, max_depth: float, min_margin: float) -> bool:
    """Whether `depth` off (fraction) keeps the depth limit and the floor of `decide.floors`."""
    if not 0.0 <= depth < 1.0 or depth > max_depth:
        return False
    return bool(margin_floor_mask(item.price, item.unit_cost, depth, min_margin))


def admissible_depths(item: Item, depths: Iterable[float], brief: Brief) -> tuple[float, ...]:
    """Those of `depths` that the brief's limits admit for `item`, ascending; 0 is full price."""
    limits = {"max_depth": brief.max_depth, "min_margin": brief.min_margin}
    return tuple(sorted({depth for depth in depths if admits(item, depth, **limits)}))


def admitted_offer(item: Item, depth: float, brief: Brief) -> Offer:
    """The only way to an offer in a proposal.

    Raises ValueError when the brief's limits do not admit it, whoever asked.
    """
    if not admits(item, depth, max_depth=brief.max_depth, min_margin=brief.min_margin):
        raise ValueError(
            f"offer.depth: {depth:g} off {item.item_id!r} passes brief.max_depth {brief.max_depth:g} or"
            f" leaves less than brief.min_margin {brief.min_margin:g} of its price; use a smaller depth"
        )
    return Offer(OfferKind.PERCENT, depth) if depth > 0 else Offer()


@dataclass(frozen=True, slots=True)
class DepthChoice:
    """A depth and why: uplifts are minor units per contact, after discount and contact cost.

    others: (depth, uplift) of every other depth that was admitted; full_price: uplift without offer.
    """

    depth: float
    uplift: float
    others: tuple[tuple[float, float], ...]
    full_price: float


def choose_depth(uplift: Mapping[float, float]) -> DepthChoice | None:
    """The depth > 0 of highest predicted uplift, the shallowest of equals; None if there is none.

    uplift: depth → mean uplift per contact; depth 0 (full price) must be there for comparison.
    """
    offers = sorted(((depth, value) for depth, value in uplift.items() if depth > 0), key=lambda o: o[0])
    if not offers:
        return None
    best = max(offers, key=lambda offer: (offer[1], -offer[0]))
    others = tuple(offer for offer in offers if offer != best)
    return DepthChoice(best[0], best[1], others, uplift[0.0])


@dataclass(frozen=True, slots=True)
class Schedule:
    """When a strategy runs, and the sentence that says why."""

    starts: datetime
    ends: datetime
    reason: str
