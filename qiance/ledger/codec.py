"""Strategies and briefs as plain JSON objects and back; the same shapes in the ledger and over HTTP."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from enum import StrEnum
from typing import Any, TypeVar

from qiance.domain import (
    Action,
    Audience,
    Brief,
    Channel,
    Creative,
    Effect,
    Interval,
    Money,
    Objective,
    Offer,
    OfferKind,
    Strategy,
    StrategyKind,
    StrategyState,
)
from qiance.guard import Subject

T = TypeVar("T")
E = TypeVar("E", bound=StrEnum)
Json = dict[str, Any]
_EFFECT_PARTS = ("ctr", "cvr", "sales", "margin", "uplift")


def interval_to_dict(interval: Interval) -> Json:
    """`{"value", "low", "high"}`."""
    return {"value": interval.value, "low": interval.low, "high": interval.high}


def effect_to_dict(effect: Effect) -> Json:
    """One interval object per part: ctr, cvr, sales, margin, uplift."""
    return {part: interval_to_dict(getattr(effect, part)) for part in _EFFECT_PARTS}


def offer_to_dict(offer: Offer) -> Json:
    """`{"kind", "depth", "threshold"}`."""
    return {"kind": offer.kind.value, "depth": offer.depth, "threshold": offer.threshold}


def creative_to_dict(creative: Creative) -> Json:
    """The words of an action."""
    return {
        "channel": creative.channel.value,
        "language": creative.language,
        "headline": creative.headline,
        "body": creative.body,
        "call_to_action": creative.call_to_action,
        "source": creative.source,
    }


def action_to_dict(action: Action) -> Json:
    """An action with its offer and creative."""
    return {
        "action_id": action.action_id,
        "strategy_id": action.strategy_id,
        "kind": action.kind.value if action.kind else None,
        "item_id": action.item_id,
        "offer": offer_to_dict(action.offer),
        "creative": creative_to_dict(action.creative) if action.creative else None,
        "channel": action.channel.value,
        "contact_cost": action.contact_cost,
    }


def audience_to_dict(audience: Audience) -> Json:
    """`{"name", "conditions": [{"feature", "operator", "value"}]}`."""
    conditions = [{"feature": f, "operator": op, "value": v} for f, op, v in audience.conditions]
    return {"name": audience.name, "conditions": conditions}


def strategy_to_dict(strategy: Strategy) -> Json:
    """A whole strategy; times in ISO 8601, UTC; budget in minor units or null."""
    return {
        "strategy_id": strategy.strategy_id,
        "brief_id": strategy.brief_id,
        "kind": strategy.kind.value,
        "title": strategy.title,
        "audience": audience_to_dict(strategy.audience),
        "actions": [action_to_dict(action) for action in strategy.actions],
        "starts": time_to_text(strategy.starts),
        "ends": time_to_text(strategy.ends),
        "budget": strategy.budget,
        "state": strategy.state.value,
        "effect": effect_to_dict(strategy.effect) if strategy.effect else None,
        "reach": strategy.reach,
        "reasons": list(strategy.reasons),
        "provenance": dict(strategy.provenance),
    }


def brief_to_dict(brief: Brief) -> Json:
    """A whole brief; the budget as `{"minor", "currency"}`, exact."""
    return {
        "brief_id": brief.brief_id,
        "objective": brief.objective.value,
        "budget": {"minor": brief.budget.minor, "currency": brief.budget.currency},
        "starts": time_to_text(brief.starts),
        "ends": time_to_text(brief.ends),
        "audience": brief.audience,
        "items": list(brief.items),
        "channels": [channel.value for channel in brief.channels],
        "languages": list(brief.languages),
        "max_depth": brief.max_depth,
        "min_margin": brief.min_margin,
        "n": brief.n,
        "notes": dict(brief.notes),
    }


def interval_from_dict(data: Json, at: str = "interval") -> Interval:
    """Inverse of `interval_to_dict`. `at` is the path that errors name."""
    return Interval(*(_number(data, key, at) for key in ("value", "low", "high")))


def effect_from_dict(data: Json, at: str = "effect") -> Effect:
    """Inverse of `effect_to_dict`."""
    parts = (interval_from_dict(_typed(data, part, dict, at), f"{at}.{part}") for part in _EFFECT_PARTS)
    return Effect(*parts)


def offer_from_dict(data: Json, at: str = "offer") -> Offer:
    """Inverse of `offer_to_dict`."""
    kind = _choice(OfferKind, data, "kind", at)
    return Offer(kind, _number(data, "depth", at), _typed(data, "threshold", int, at))


def creative_from_dict(data: Json, at: str = "creative") -> Creative:
    """Inverse of `creative_to_dict`."""
    words = ("language", "headline", "body", "call_to_action", "source")
    return Creative(_choice(Channel, data, "channel", at), *(_typed(data, word, str, at) for word in words))


def action_from_dict(data: Json, at: str = "action") -> Action:
    """Inverse of `action_to_dict`."""
    creative = _optional(data, "creative", dict, at)
    return Action(
        action_id=_typed(data, "action_id", str, at),
        strategy_id=_typed(data, "strategy_id", str, at),
        kind=None if data.get("kind") is None else _choice(StrategyKind, data, "kind", at),
        item_id=_optional(data, "item_id", str, at),
        offer=offer_from_dict(_typed(data, "offer", dict, at), f"{at}.offer"),
        creative=None if creative is None else creative_from_dict(creative, f"{at}.creative"),
        channel=_choice(Channel, data, "channel", at),
        contact_cost=_typed(data, "contact_cost", int, at),
    )


def audience_from_dict(data: Json, at: str = "audience") -> Audience:
    """Inverse of `audience_to_dict`."""

    def condition(entry: Json, where: str) -> tuple[str, str, float]:
        feature, operator = (_typed(entry, key, str, where) for key in ("feature", "operator"))
        return feature, operator, _number(entry, "value", where)

    return Audience(_typed(data, "name", str, at), _each(data, "conditions", dict, condition, at))


def strategy_from_dict(data: Json, at: str = "strategy") -> Strategy:
    """Inverse of `strategy_to_dict`; ValueError names the field that does not fit."""
    effect = _optional(data, "effect", dict, at)
    return Strategy(
        strategy_id=_typed(data, "strategy_id", str, at),
        brief_id=_typed(data, "brief_id", str, at),
        kind=_choice(StrategyKind, data, "kind", at),
        title=_typed(data, "title", str, at),
        audience=audience_from_dict(_typed(data, "audience", dict, at), f"{at}.audience"),
        actions=_each(data, "actions", dict, action_from_dict, at),
        starts=_time(data, "starts", at),
        ends=_time(data, "ends", at),
        budget=_optional(data, "budget", int, at),
        state=_choice(StrategyState, data, "state", at),
        effect=None if effect is None else effect_from_dict(effect, f"{at}.effect"),
        reach=_typed(data, "reach", int, at),
        reasons=_each(data, "reasons", str, _same, at),
        provenance=_words(data, "provenance", at),
    )


def brief_from_dict(data: Json, at: str = "brief") -> Brief:
    """Inverse of `brief_to_dict`; ValueError names the field that does not fit."""
    budget = _typed(data, "budget", dict, at)
    return Brief(
        brief_id=_typed(data, "brief_id", str, at),
        objective=_choice(Objective, data, "objective", at),
        budget=Money(
            _typed(budget, "minor", int, f"{at}.budget"), _typed(budget, "currency", str, f"{at}.budget")
        ),
        starts=_time(data, "starts", at),
        ends=_time(data, "ends", at),
        audience=_optional(data, "audience", str, at),
        items=_each(data, "items", str, _same, at),
        channels=_each(data, "channels", str, lambda value, where: _member(Channel, value, where), at),
        languages=_each(data, "languages", str, _same, at),
        max_depth=_number(data, "max_depth", at),
        min_margin=_number(data, "min_margin", at),
        n=_typed(data, "n", int, at),
        notes=_words(data, "notes", at),
    )


def subject_to_dict(subject: Subject) -> Json:
    """Words with what they are about; the catalogue's row is not kept, since it changes."""
    return {
        "creative": creative_to_dict(subject.creative),
        "offer": offer_to_dict(subject.offer),
        "item_id": subject.item_id,
        "segment": subject.segment,
        "starts": None if subject.starts is None else time_to_text(subject.starts),
        "ends": None if subject.ends is None else time_to_text(subject.ends),
        "stock": subject.stock,
    }


def subject_from_dict(data: Json, at: str = "subject") -> Subject:
    """Inverse of `subject_to_dict`."""
    return Subject(
        creative=creative_from_dict(_typed(data, "creative", dict, at), f"{at}.creative"),
        offer=offer_from_dict(_typed(data, "offer", dict, at), f"{at}.offer"),
        item_id=_optional(data, "item_id", str, at),
        segment=_typed(data, "segment", str, at),
        starts=None if data.get("starts") is None else _time(data, "starts", at),
        ends=None if data.get("ends") is None else _time(data, "ends", at),
        stock=_optional(data, "stock", int, at),
    )


def time_to_text(value: datetime) -> str:
    """ISO 8601 in UTC, e.g. `2017-01-01T00:00:00+00:00`; a time without a zone is refused."""
    if value.tzinfo is None:
        raise ValueError(f"time: {value.isoformat()} has no time zone; pass one in UTC")
    return value.astimezone(UTC).isoformat()


def _typed(data: Mapping[str, Any], key: str, wanted: type[T], at: str) -> T:
    if not isinstance(data, Mapping) or key not in data:
        raise ValueError(f"{at}.{key}: is missing")
    value = data[key]
    if not isinstance(value, wanted) or (isinstance(value, bool) and wanted is not bool):
        raise ValueError(f"{at}.{key}: {value!r} is not of type {wanted.__name__}")
    return value


def _optional(data: Mapping[str, Any], key: str, wanted: type[T], at: str) -> T | None:
    return None if data.get(key) is None else _typed(data, key, wanted, at)


def _number(data: Mapping[str, Any], key: str, at: str) -> float:
    if isinstance(data.get(key), int):
        return float(_typed(data, key, int, at))
    return _typed(data, key, float, at)


def _choice(kind: type[E], data: Mapping[str, Any], key: str, at: str) -> E:
    return _member(kind, _typed(data, key, str, at), f"{at}.{key}")


def _member(kind: type[E], value: str, at: str) -> E:
    try:
        return kind(value)
    except ValueError:
        raise ValueError(
            f"{at}: {value!r} is not one of {', '.join(member.value for member in kind)}"
        ) from None


def _time(data: Mapping[str, Any], key: str, at: str) -> datetime:
    text = _typed(data, key, str, at)
    try:
        value = datetime.fromisoformat(text)
    except ValueError:
        raise ValueError(f"{at}.{key}: {text!r} is not an ISO 8601 time") from None
    if value.tzinfo is None:
        raise ValueError(f"{at}.{key}: {text!r} has no time zone; write it with +00:00")
    return value.astimezone(UTC)


def _each(
    data: Mapping[str, Any], key: str, wanted: type[Any], build: Callable[[Any, str], T], at: str
) -> tuple[T, ...]:
    entries: Sequence[Any] = _typed(data, key, list, at)
    numbered = {str(index): entry for index, entry in enumerate(entries)}
    return tuple(
        build(_typed(numbered, index, wanted, f"{at}.{key}"), f"{at}.{key}.{index}") for index in numbered
    )


def _same(value: Any, _at: str) -> Any:
    return value


def _words(data: Mapping[str, Any], key: str, at: str) -> dict[str, str]:
    words = _typed(data, key, dict, at)
    return {str(name): _typed(words, name, str, f"{at}.{key}") for name in words}
