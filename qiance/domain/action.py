"""What can be done to a user: offers, creatives, actions, and the strategies that hold them."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum

CONTROL = "control"


class Channel(StrEnum):
    """Where an action reaches the user; `NONE` belongs to `control`."""

    EMAIL = "email"
    PUSH = "push"
    DISPLAY = "display"
    MAILER = "mailer"
    NONE = "none"


class OfferKind(StrEnum):
    """How an offer lowers the price; `NONE` is full price."""

    NONE = "none"
    PERCENT = "percent"


class StrategyKind(StrEnum):
    """The four kinds of strategy that a brief may lead to."""

    RECOMMENDATION = "recommendation"
    AD = "ad"
    PROMOTION = "promotion"
    CONTENT = "content"


class StrategyState(StrEnum):
    """Life of a strategy; only `LIVE` ones are candidates of a decision."""

    DRAFT = "draft"
    APPROVED = "approved"
    LIVE = "live"
    PAUSED = "paused"
    ENDED = "ended"


class CreativeState(StrEnum):
    """Life of words in the bank; only `APPROVED` ones are served."""

    DRAFT = "draft"
    APPROVED = "approved"
    RETIRED = "retired"


@dataclass(frozen=True, slots=True)
class Offer:
    """A price reduction.

    kind: how the price is lowered.
    depth: fraction of the price, in [0, 1); 0 exactly when kind is `NONE`.
    threshold: least basket, minor units, for the offer to hold; 0 is none.
    """

    kind: OfferKind = OfferKind.NONE
    depth: float = 0.0
    threshold: int = 0

    def __post_init__(self) -> None:
        if not 0.0 <= self.depth < 1.0:
            raise ValueError(f"offer.depth: {self.depth} is outside [0, 1)")
        if (self.kind is OfferKind.NONE) != (self.depth == 0.0):
            raise ValueError(f"offer.depth: {self.depth} does not fit offer.kind {self.kind.value!r}")
        if self.threshold < 0:
            raise ValueError(f"offer.threshold: {self.threshold} is negative")


@dataclass(frozen=True, slots=True)
class Creative:
    """The words of an action; facts appear as slots such as `{product}` until they are bound.

    language: BCP 47 tag, `en` or `zh`.
    source: what wrote it: `llm`, `template` or `person`.
    """

    channel: Channel
    language: str
    headline: str
    body: str
    call_to_action: str
    source: str = "template"


@dataclass(frozen=True, slots=True)
class Action:
    """One thing that may be done to a user: item × offer × creative × channel, or `control`.

    action_id: unique within a tenant; `control` for doing nothing.
    contact_cost: minor units paid for the contact itself, whatever follows.
    """

    action_id: str
    strategy_id: str
    kind: StrategyKind | None
    item_id: str | None
    offer: Offer
    creative: Creative | None
    channel: Channel
    contact_cost: int = 0

    @property
    def is_control(self) -> bool:
        return self.action_id == CONTROL


CONTROL_ACTION = Action(CONTROL, CONTROL, None, None, Offer(), None, Channel.NONE)


@dataclass(frozen=True, slots=True)
class Audience:
    """A readable rule over user features: every condition must hold; none means everybody.

    conditions: (feature, operator, value), operator one of `<`, `<=`, `>`, `>=`, `==`.
    """

    name: str
    conditions: tuple[tuple[str, str, float], ...] = ()

    def describe(self) -> str:
        """The rule in words, e.g. `recency_days > 14 and baskets_90d <= 6`."""
        return " and ".join(f"{f} {op} {v:g}" for f, op, v in self.conditions) or "everybody"


@dataclass(frozen=True, slots=True)
class Interval:
    """A point with its lower and upper bound."""

    value: float
    low: float
    high: float


@dataclass(frozen=True, slots=True)
class Effect:
    """Predicted effect of an action per contacted user within the outcome window.

    ctr, cvr: fractions (probability of a click; of a conversion, per contact).
    sales, margin: expected minor units; margin is after goods, discount and contact cost.
    uplift: expected margin minus that of `control` for the same users, minor units.
    """

    ctr: Interval
    cvr: Interval
    sales: Interval
    margin: Interval
    uplift: Interval


@dataclass(frozen=True, slots=True)
class Strategy:
    """A proposal that a marketer can approve: audience + actions + schedule + budget.

    budget: minor units that its actions may spend together; None shares the brief's.
    reasons: why it was proposed, one sentence each.
    provenance: which part came from what, e.g. {"creative": "llm smollm2-135m"}.
    """

    strategy_id: str
    brief_id: str
    kind: StrategyKind
    title: str
    audience: Audience
    actions: tuple[Action, ...]
    starts: datetime
    ends: datetime
    budget: int | None = None
    state: StrategyState = StrategyState.DRAFT
    effect: Effect | None = None
    reach: int = 0
    reasons: tuple[str, ...] = ()
    provenance: dict[str, str] = field(default_factory=dict)
