"""Strategies as vectors: offer, channel mix and timing, encoded for a model and decoded to the domain."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, replace
from datetime import timedelta
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from qiance.domain import Action, Audience, Brief, Channel, Item, Offer, OfferKind, Strategy, StrategyKind
from qiance.market import CONTACT_COST
from qiance.strategy.promotion import admissible_depths, admitted_offer

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

CHANNELS = (Channel.EMAIL, Channel.PUSH, Channel.DISPLAY, Channel.MAILER)
SHARES = tuple(f"share_{channel.value}" for channel in CHANNELS)
COLUMNS = ("offer_kind", "depth", "threshold", *SHARES, "start_day", "days")
KINDS = tuple(OfferKind)
# What the model chooses among: no offer, an offer on everything, an offer from some basket on.
NO_OFFER, PLAIN, FROM_THRESHOLD = range(3)
FORMS = 3
NUMBERS = ("depth", "threshold", "start", "length")
PERCENT, SHARE_PARTS, THRESHOLD_STEPS = 100, 20, 40


@dataclass(frozen=True)
class Vectors:
    """n strategies, column by column.

    kind: `[n]` codes into `KINDS`. depth: `[n]` fraction of the price; threshold: `[n]` minor units, 0 for
    none; both 0 without offer. shares: `[n, channels]` of the contacts, each row sums to 1. start: `[n]` days
    after the brief's start; days: `[n]` how long it runs, at least 1. ValueError names the row at fault.
    """

    kind: Ints
    depth: Floats
    threshold: Ints
    shares: Floats
    start: Ints
    days: Ints

    def __post_init__(self) -> None:
        none = self.kind == KINDS.index(OfferKind.NONE)
        self._refuse("offer_kind", (self.kind < 0) | (self.kind >= len(KINDS)), "is not known")
        self._refuse("depth", ~((self.depth >= 0) & (self.depth < 1)), "is outside [0, 1)")
        self._refuse("depth", none != (self.depth == 0), "does not fit offer_kind: 0 exactly without offer")
        self._refuse("threshold", (self.threshold < 0) | (none & (self.threshold > 0)), "needs an offer, ≥ 0")
        whole = np.abs(self.shares.sum(axis=1) - 1) < 1e-6
        self._refuse("shares", ~(whole & (self.shares >= 0).all(axis=1)), "must be ≥ 0 and sum to 1")
        self._refuse("start_day", self.start < 0, "is negative")
        self._refuse("days", self.days < 1, "is below 1")

    def _refuse(self, name: str, bad: NDArray[np.bool_], problem: str) -> None:
        if bad.any():
            row = int(np.flatnonzero(bad)[0])
            field = {"offer_kind": "kind", "start_day": "start"}.get(name, name)
            value = getattr(self, field)
            raise ValueError(f"{name}: {value[row]} of strategy {row + 1} {problem}")

    def __len__(self) -> int:
        return len(self.kind)

    def take(self, rows: NDArray[np.int64] | NDArray[np.bool_]) -> Vectors:
        """The strategies by mask or index."""
        return Vectors(*(getattr(self, name)[rows] for name in self.__dataclass_fields__))

    @cached_property
    def features(self) -> Floats:
        """`[n, 10]` plain numbers for a regression: an offer, a threshold, and all that is in `COLUMNS`."""
        flags = [self.depth > 0, self.threshold > 0]
        numbers = [*flags, self.depth, self.threshold, self.start, self.days]
        return np.column_stack([np.stack(numbers, axis=1).astype(np.float64), self.shares])


@dataclass(frozen=True)
class Encoded:
    """form: `[n]` of `FORMS`. numbers: `[n, 4]` in [0, 1], as in `NUMBERS`; used: `[n, 4]` which of them mean
    something for the form. shares: `[n, channels]`."""

    form: Ints
    numbers: Floats
    used: NDArray[np.bool_]
    shares: Floats


@dataclass(frozen=True, slots=True)
class Space:
    """What strategies range over: the deepest offer (fraction), the highest threshold (minor units), and the
    period that start and end lie in (days)."""

    deepest: float
    highest: int
    period: int

    @classmethod
    def of(cls, vectors: Vectors) -> Space:
        """The smallest space that holds them all."""
        deepest = max(float(vectors.depth.max()), 1 / PERCENT)
        period = int((vectors.start + vectors.days).max())
        return cls(deepest, max(int(vectors.threshold.max()), 1), period)

    @property
    def step(self) -> int:
        """Of thresholds, minor units."""
        return max(1, round(self.highest / THRESHOLD_STEPS))

    def encode(self, vectors: Vectors) -> Encoded:
        """Numbers relative to the space; the length relative to what the start leaves of the period."""
        form = np.where(vectors.depth > 0, np.where(vectors.threshold > 0, FROM_THRESHOLD, PLAIN), NO_OFFER)
        left = np.maximum(self.period - vectors.start - 1, 1)
        numbers = [
            vectors.depth / self.deepest,
            vectors.threshold / self.highest,
            vectors.start / max(self.period - 1, 1),
            (vectors.days - 1) / left,
        ]
        every = np.ones(len(vectors), dtype=bool)
        used = np.stack([form != NO_OFFER, form == FROM_THRESHOLD, every, every], axis=1)
        return Encoded(form, np.clip(np.stack(numbers, axis=1), 0, 1), used, vectors.shares)

    def decode(self, form: Ints, numbers: Floats, shares: Floats) -> Vectors:
        """The nearest strategies of whole percents, shares of 5 %, whole days and steps of the threshold."""
        unit = np.clip(numbers, 0.0, 1.0)
        offer = form != NO_OFFER
        percents = np.clip(np.rint(unit[:, 0] * self.deepest * PERCENT), 1, PERCENT - 1)
        parts = np.rint(unit[:, 1] * self.highest / self.step)
        start = np.rint(unit[:, 2] * max(self.period - 1, 0)).astype(np.int64)
        return Vectors(
            kind=np.where(offer, KINDS.index(OfferKind.PERCENT), KINDS.index(OfferKind.NONE)),
            depth=np.where(offer, percents / PERCENT, 0.0),
            threshold=np.where(form == FROM_THRESHOLD, np.maximum(parts, 1) * self.step, 0).astype(np.int64),
            shares=rounded_shares(shares),
            start=start,
            days=1 + np.rint(unit[:, 3] * (self.period - start - 1)).astype(np.int64),
        )


def rounded_shares(shares: Floats) -> Floats:
    """`[n, channels]` on the simplex in steps of 1 ÷ `SHARE_PARTS`, by largest remainders."""
    parts = shares / shares.sum(axis=1, keepdims=True) * SHARE_PARTS
    whole = np.floor(parts + 1e-9)
    rank = np.argsort(np.argsort(-(parts - whole), axis=1, kind="stable"), axis=1, kind="stable")
    missing = np.rint(SHARE_PARTS - whole.sum(axis=1, keepdims=True))
    return np.asarray((whole + (rank < missing)) / SHARE_PARTS)


def constrained(vectors: Vectors, item: Item, brief: Brief) -> Vectors:
    """The nearest strategies that the brief admits for `item`: depth, margin floor, channels, period.

    Where no depth is admitted the offer is dropped. ValueError where none of the brief's channels is known.
    """
    grid = [percent / PERCENT for percent in range(PERCENT)]
    depths = np.array(admissible_depths(item, grid, brief) or (0.0,))
    depth = depths[np.searchsorted(depths, vectors.depth + 1e-9, side="right") - 1]
    offer = depth > 0
    period = max((brief.ends - brief.starts).days, 1)
    start = np.minimum(vectors.start, period - 1)
    return Vectors(
        kind=np.where(offer, vectors.kind, KINDS.index(OfferKind.NONE)),
        depth=depth,
        threshold=np.where(offer, vectors.threshold, 0),
        shares=_within(vectors.shares, brief.channels),
        start=start,
        days=np.minimum(vectors.days, period - start),
    )


def _within(shares: Floats, channels: Collection[Channel]) -> Floats:
    allowed = np.array([channel in channels for channel in CHANNELS])
    if not allowed.any():
        names = ", ".join(channel.value for channel in CHANNELS)
        raise ValueError(f"brief.channels: none of them can be proposed for; name one of {names}")
    if allowed.all():
        return shares
    return rounded_shares((shares + 1e-6) * allowed)


def offer_of(vectors: Vectors, row: int, item: Item, brief: Brief) -> Offer:
    """The offer of one strategy; ValueError where the brief's limits do not admit it."""
    offer = admitted_offer(item, float(vectors.depth[row]), brief)
    return replace(offer, threshold=int(vectors.threshold[row]))


def strategy_of(
    vectors: Vectors, row: int, item: Item, brief: Brief, audience: Audience, strategy_id: str
) -> Strategy:
    """A draft of the domain with an action per channel of the mix, in order of their shares, without words.

    The domain has no place for shares: they are in `reasons` and `provenance`.
    """
    offer, shares = offer_of(vectors, row, item, brief), vectors.shares[row]
    kind = StrategyKind.RECOMMENDATION if offer.kind is OfferKind.NONE else StrategyKind.PROMOTION
    mix = [CHANNELS[k] for k in np.argsort(-shares, kind="stable") if shares[k] > 0]
    starts = brief.starts + timedelta(days=int(vectors.start[row]))
    words = ", ".join(f"{channel.value} {shares[CHANNELS.index(channel)]:.0%}" for channel in mix)
    return Strategy(
        strategy_id=strategy_id,
        brief_id=brief.brief_id,
        kind=kind,
        title=f"{item.title}: {offer.depth:.0%} off" if offer.depth else item.title,
        audience=audience,
        actions=tuple(
            Action(
                f"{strategy_id}-{channel.value}",
                strategy_id,
                kind,
                item.item_id,
                offer,
                None,
                channel,
                CONTACT_COST[channel],
            )
            for channel in mix
        ),
        starts=starts,
        ends=min(starts + timedelta(days=int(vectors.days[row])), brief.ends),
        reasons=(f"Contacts by channel: {words}.",),
        provenance={"channel_mix": words},
    )
