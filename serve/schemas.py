"""What the HTTP interface takes and gives; unknown fields are refused."""

from datetime import UTC, datetime
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, AwareDatetime, BaseModel, ConfigDict, Field, StringConstraints

from qiance.domain import Action, Channel, Creative, Effect, Interval, Objective, OutcomeType, Strategy
from qiance.ledger.schema import ID_LENGTH


def _printable(text: str) -> str:
    if not text.isprintable():
        raise ValueError("has control characters; send plain text")
    return text


def within_reach(moment: datetime) -> datetime:
    """`moment` in UTC; ValueError for a year that no campaign is in."""
    # Far years overflow when a zone is converted or a window is added.
    if not EARLIEST_YEAR <= moment.year <= LATEST_YEAR:
        raise ValueError(f"the year must be from {EARLIEST_YEAR} to {LATEST_YEAR}")
    return moment.astimezone(UTC)


def carrying(channel: Channel) -> Channel:
    if channel is Channel.NONE:
        raise ValueError("carries nothing; use email, display, mailer or push")
    return channel


EARLIEST_YEAR, LATEST_YEAR = 1970, 2199
Identifier = Annotated[str, StringConstraints(min_length=1, max_length=ID_LENGTH), AfterValidator(_printable)]
Moment = Annotated[AwareDatetime, AfterValidator(within_reach)]
ContextValue = Annotated[float, Field(allow_inf_nan=False)] | bool | Annotated[str, Field(max_length=256)]
MAX_EVENTS = 5_000
MAX_DECISIONS = 1_000
MAX_MINOR = 10**12
MAX_MAJOR = 10**12


class Strict(BaseModel):
    """Base of all requests."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class DecisionRequest(Strict):
    """Ask what to do for a user at a surface."""

    request_id: Identifier | None = Field(None, description="A repeat returns the stored decision")
    user_id: Identifier
    surface: Identifier = Field(description="Where the answer is shown, e.g. `home`, `email`")
    n: int = Field(1, ge=1, description="Actions wanted")
    candidates: list[Identifier] | None = Field(None, description="Item ids to choose among; all if absent")
    context: dict[Identifier, ContextValue] = Field({}, max_length=64)
    deadline_ms: Annotated[float, Field(gt=0, le=60_000, allow_inf_nan=False)] | None = Field(
        None,
        description="Milliseconds after which the answer is of no use: then 503, and what had not begun "
        "is not decided",
    )


class IntervalOut(BaseModel):
    """A point with a 90 % interval."""

    value: float
    low: float
    high: float


class EffectOut(BaseModel):
    """Predicted effect per contact; rates are fractions, sales, margin and uplift minor units."""

    ctr: IntervalOut
    cvr: IntervalOut
    sales: IntervalOut
    margin: IntervalOut
    uplift: IntervalOut


class ActionOut(BaseModel):
    """One chosen action."""

    action_id: str
    strategy_id: str
    kind: str | None
    item_id: str | None
    offer: dict[str, Any] | None
    creative: dict[str, Any] | None
    channel: str
    propensity: float
    effect: EffectOut | None


class DecisionResponse(BaseModel):
    """The decision; outcomes of position k > 0 name `decision_id` + `.k`."""

    decision_id: str
    actions: list[ActionOut]
    model_version: str
    policy_version: str
    degraded: list[str]


class DecisionsRequest(Strict):
    """Many decisions at once, each of its own."""

    requests: list[DecisionRequest] = Field(min_length=1, max_length=MAX_DECISIONS)


class DecisionsResponse(BaseModel):
    """One entry per request, in order: a decision, or a problem (RFC 9457)."""

    decisions: list[DecisionResponse | dict[str, Any]]


class OutcomeEvent(Strict):
    """Something that happened after a decision."""

    event_id: Identifier
    decision_id: Identifier
    type: OutcomeType
    value: int = Field(0, ge=0, le=MAX_MINOR, strict=True, description="Minor units")
    occurred_at: Moment


class OutcomesRequest(Strict):
    """A batch of outcome events."""

    events: list[OutcomeEvent] = Field(min_length=1, max_length=MAX_EVENTS)


class RejectedOut(BaseModel):
    """An event that was not stored, and why."""

    index: int
    code: str
    detail: str


class OutcomesResponse(BaseModel):
    """Accepted events are durable."""

    accepted: int
    duplicates: int
    rejected: list[RejectedOut]
    degraded: list[str] = Field([], description="`ledger`: kept on a local disk, checked when it is back")


class MoneyIn(Strict):
    """Amount in major units, as text so that no cent is lost."""

    amount: (
        Annotated[str, StringConstraints(pattern=r"^\d{1,12}(\.\d{1,3})?$")]
        | Annotated[int, Field(strict=True, ge=0, le=MAX_MAJOR)]
    )
    currency: Annotated[str, StringConstraints(pattern=r"^[A-Z]{3}$")]


class Constraints(Strict):
    """Bounds that no proposal passes; fractions of the price."""

    max_depth: float = Field(0.4, ge=0.0, lt=1.0, allow_inf_nan=False)
    min_margin: float = Field(0.05, ge=0.0, lt=1.0, allow_inf_nan=False)


class BriefRequest(Strict):
    """What a marketer asks for."""

    objective: Objective
    budget: MoneyIn
    audience: Identifier | None = None
    items: list[Identifier] = Field([], max_length=1_000)
    channels: list[Annotated[Channel, AfterValidator(carrying)]] = Field(
        [Channel.EMAIL, Channel.DISPLAY, Channel.MAILER], min_length=1, max_length=16
    )
    languages: list[Literal["en", "zh"]] = Field(["en"], min_length=1, max_length=8)
    starts: Moment
    ends: Moment
    constraints: Constraints = Constraints()
    n: int = Field(8, ge=1, le=50)


class StrategyOut(BaseModel):
    """A strategy as a marketer sees it."""

    strategy_id: str
    brief_id: str
    kind: str
    title: str
    state: str
    audience: dict[str, Any]
    reach: int
    actions: list[dict[str, Any]]
    effect: EffectOut | None
    budget: int | None
    starts: datetime
    ends: datetime
    reasons: list[str]
    provenance: dict[str, str]


class BriefResponse(BaseModel):
    """State of the work on a brief; strategies come when it is done."""

    brief_id: str
    state: str
    progress: float
    message: str
    strategies: list[StrategyOut] = []


class Health(BaseModel):
    """What the replica knows: `ready` only when a model and the ledger answer."""

    status: Literal["ready", "degraded"]
    model_version: str
    policy_version: str
    degraded: list[str]


def interval_out(interval: Interval) -> IntervalOut:
    return IntervalOut(value=interval.value, low=interval.low, high=interval.high)


def effect_out(effect: Effect) -> EffectOut:
    """Domain → HTTP."""
    return EffectOut(
        ctr=interval_out(effect.ctr),
        cvr=interval_out(effect.cvr),
        sales=interval_out(effect.sales),
        margin=interval_out(effect.margin),
        uplift=interval_out(effect.uplift),
    )


def offer_out(action: Action) -> dict[str, Any] | None:
    """The offer of an action, None for control."""
    if action.is_control:
        return None
    return {"kind": action.offer.kind.value, "depth": action.offer.depth, "threshold": action.offer.threshold}


def creative_out(creative: Creative | None) -> dict[str, Any] | None:
    """Words as JSON: slots unbound in a strategy, bound in a decision."""
    if creative is None:
        return None
    return {
        "channel": creative.channel.value,
        "language": creative.language,
        "headline": creative.headline,
        "body": creative.body,
        "call_to_action": creative.call_to_action,
        "source": creative.source,
    }


def strategy_out(strategy: Strategy) -> StrategyOut:
    """Domain → HTTP."""
    return StrategyOut(
        strategy_id=strategy.strategy_id,
        brief_id=strategy.brief_id,
        kind=strategy.kind.value,
        title=strategy.title,
        state=strategy.state.value,
        audience={"name": strategy.audience.name, "rule": strategy.audience.describe()},
        reach=strategy.reach,
        actions=[
            {
                "action_id": a.action_id,
                "item_id": a.item_id,
                "offer": offer_out(a),
                "creative": creative_out(a.creative),
                "channel": a.channel.value,
            }
            for a in strategy.actions
        ],
        effect=effect_out(strategy.effect) if strategy.effect else None,
        budget=strategy.budget,
        starts=strategy.starts,
        ends=strategy.ends,
        reasons=list(strategy.reasons),
        provenance=dict(strategy.provenance),
    )
