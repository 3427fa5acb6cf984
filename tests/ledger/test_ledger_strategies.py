"""Briefs, strategies, versions, the clock and the audit trail, on both databases; and the JSON shapes."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import UTC, datetime, timedelta, timezone
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from ledger_cases import BRIEF, NOW

from qiance.domain import (
    Action,
    Audience,
    Catalogue,
    Channel,
    Creative,
    Effect,
    Interval,
    Item,
    Offer,
    OfferKind,
    Strategy,
    StrategyKind,
    StrategyState,
)
from qiance.guard import Guard
from qiance.ledger import Ledger
from qiance.ledger.codec import brief_from_dict, brief_to_dict, strategy_from_dict, strategy_to_dict

PART = Interval(0.1, 0.05, 0.2)
ACTION = Action(
    "a1",
    "s1",
    StrategyKind.PROMOTION,
    "item-9",
    Offer(OfferKind.PERCENT, 0.2, 500),
    Creative(
        Channel.EMAIL, "zh", "{product}，{discount}", "截至{ends}，订单满{threshold}可用。", "立即选购", "llm"
    ),
    Channel.EMAIL,
    3,
)
STRATEGY = Strategy(
    strategy_id="s1",
    brief_id="b1",
    kind=StrategyKind.PROMOTION,
    title="Milk for the lapsed",
    audience=Audience("lapsed", (("recency_days", ">", 14.0),)),
    actions=(ACTION, replace(ACTION, action_id="a2", item_id=None, creative=None, kind=None)),
    starts=NOW,
    ends=NOW + timedelta(days=14),
    budget=150_000,
    effect=Effect(PART, PART, PART, PART, Interval(-1.0, -2.5, 0.25)),
    reach=412,
    reasons=("they bought it monthly",),
    provenance={"creative": "llm smollm2-135m"},
)
CATALOGUE = Catalogue((Item("item-9", "鲜牛奶", "奶", "冷藏", "自有", 900, 500),))
LINTED = Guard.load().lint_strategy(STRATEGY, CATALOGUE)


def test_strategies_are_kept_whole_and_found(ledger: Ledger) -> None:
    other = replace(STRATEGY, strategy_id="s2", brief_id="b2", effect=None, budget=None)
    ledger.put_strategies([STRATEGY, other])
    assert ledger.strategies() == [STRATEGY, other]
    assert ledger.strategies(brief_id="b2") == [other]
    assert ledger.strategies(state=StrategyState.LIVE) == []
    assert ledger.strategies(brief_id="\x00") == []


PATHS = {
    StrategyState.DRAFT: [],
    StrategyState.APPROVED: [StrategyState.APPROVED],
    StrategyState.LIVE: [StrategyState.APPROVED, StrategyState.LIVE],
    StrategyState.PAUSED: [StrategyState.APPROVED, StrategyState.LIVE, StrategyState.PAUSED],
    StrategyState.ENDED: [StrategyState.APPROVED, StrategyState.LIVE, StrategyState.ENDED],
}


def test_a_strategy_moves_only_along_its_life(ledger: Ledger) -> None:
    allowed = {
        ("draft", "approved"),
        ("approved", "live"),
        ("live", "paused"),
        ("live", "ended"),
        ("paused", "live"),
        ("paused", "ended"),
    }
    for start in StrategyState:
        for end in StrategyState:
            name = f"{start}-{end}"
            ledger.put_strategies([replace(STRATEGY, strategy_id=name)])
            for step in PATHS[start]:
                ledger.set_strategy_state(name, step, "mei", "", LINTED)
            if (start.value, end.value) in allowed:
                moved = ledger.set_strategy_state(name, end, by="mei", reason="why not", linted=LINTED)
                assert moved.state is end
                assert moved in ledger.strategies(state=end)
                assert ledger.strategy(name) == moved
            else:
                with pytest.raises(ValueError, match=f"state: '{name}' is {start.value}, it can become"):
                    ledger.set_strategy_state(name, end, by="mei", reason="why not", linted=LINTED)
    with pytest.raises(ValueError, match="strategy_id: 'nobody' is not known"):
        ledger.set_strategy_state("nobody", StrategyState.LIVE, "mei", "")


@pytest.mark.parametrize("state", [s for s in StrategyState if s is not StrategyState.DRAFT])
def test_nobody_is_born_approved(ledger: Ledger, state: StrategyState) -> None:
    with pytest.raises(ValueError, match=f"state {state.value} is not one to begin with; store a draft"):
        ledger.put_strategies([replace(STRATEGY, state=state)])
    assert ledger.strategies() == []


def test_every_change_of_a_strategy_is_seen_and_audited(ledger: Ledger) -> None:
    before = ledger.versions()
    ledger.put_strategies([STRATEGY], by="proposer")
    ledger.set_strategy_state("s1", StrategyState.APPROVED, "mei", "fits the season", LINTED)
    after = ledger.versions()
    assert (after.serial, after.strategies_serial) == (before.serial + 2, before.strategies_serial + 2)
    approved, words, banked, proposed = ledger.audit_lines(4)
    assert (words.event, banked.event, words.subject) == (
        "creative.approved",
        "creative.proposed",
        LINTED[0].creative_id,
    )
    assert (approved.event, approved.subject, approved.by) == ("strategy.approved", "s1", "mei")
    assert approved.detail == {"from": "draft", "to": "approved", "reason": "fits the season"}
    assert (proposed.event, proposed.by) == ("strategy.proposed", "proposer")


def test_what_was_approved_cannot_be_rewritten(ledger: Ledger) -> None:
    ledger.put_strategies([STRATEGY])
    ledger.put_strategies([replace(STRATEGY, title="Better words")])
    ledger.set_strategy_state("s1", StrategyState.APPROVED, "mei", "", LINTED)
    approved = ledger.strategies()[0]
    assert approved.title == "Better words"
    with pytest.raises(ValueError, match="strategy 's1' is approved: its title, budget cannot change"):
        ledger.put_strategies([replace(approved, title="Other words", budget=9)])
    ledger.put_strategies([replace(approved, reach=7, effect=None, state=StrategyState.DRAFT)])
    assert ledger.strategies() == [replace(approved, reach=7, effect=None)]


def test_only_one_of_many_approvals_wins(ledger: Ledger) -> None:
    ledger.put_strategies([STRATEGY])

    def approve(number: int) -> bool:
        try:
            ledger.set_strategy_state("s1", StrategyState.APPROVED, f"person-{number}", "", LINTED)
        except ValueError:
            return False
        return True

    with ThreadPoolExecutor(6) as pool:
        assert sum(pool.map(approve, range(6))) == 1


def test_versions_change_together_with_their_audit_line(ledger: Ledger) -> None:
    first = ledger.versions()
    assert (first.serial, first.model, first.policy, first.shadow_price, first.killed) == (
        0,
        "none",
        "none",
        0.0,
        False,
    )
    changed = ledger.set_versions(model="m1", shadow_price=1.25)
    assert (changed.serial, changed.model, changed.policy, changed.shadow_price) == (1, "m1", "none", 1.25)
    killed = ledger.set_versions(killed=True, by="mei")
    assert (killed.serial, killed.killed, killed.model) == (2, True, "m1")
    assert ledger.versions() == killed
    assert ledger.audit_lines(1)[0].detail == {"killed": True}
    with ThreadPoolExecutor(6) as pool:
        serials = list(pool.map(lambda _: ledger.set_versions(model="p").serial, range(30)))
    assert sorted(serials) == list(range(3, 33))


@pytest.mark.parametrize("price", [float("nan"), float("inf"), -1.0])
def test_a_shadow_price_that_is_no_price_is_refused(ledger: Ledger, price: float) -> None:
    with pytest.raises(ValueError, match=r"versions.shadow_price"):
        ledger.set_versions(shadow_price=price)
    assert ledger.versions().serial == 0


def test_simulated_time_never_goes_back(ledger: Ledger) -> None:
    assert ledger.clock() is None
    with ThreadPoolExecutor(6) as pool:
        list(pool.map(lambda day: ledger.advance_clock(NOW + timedelta(days=day % 7)), range(21)))
    assert ledger.clock() == NOW + timedelta(days=6)
    assert ledger.advance_clock(NOW) == NOW + timedelta(days=6)
    with pytest.raises(ValueError, match="no time zone"):
        ledger.advance_clock(datetime(2017, 1, 1))


def test_audit_lines_are_newest_first(ledger: Ledger) -> None:
    ledger.audit("gate.overridden", "policy-3", "mei", {"reason": "test", "bound": -0.5})
    ledger.audit("note", "shop", "mei", "plain words 千策")
    lines = ledger.audit_lines(5)
    assert [line.detail for line in lines] == ["plain words 千策", {"reason": "test", "bound": -0.5}]
    assert len(ledger.audit_lines(1)) == 1
    with pytest.raises(ValueError, match=r"audit.by: is empty"):
        ledger.audit("note", "shop", "", "")


def through_json(data: dict[str, Any]) -> Any:
    return json.loads(json.dumps(data, allow_nan=False))


def test_strategies_and_briefs_survive_json() -> None:
    assert strategy_from_dict(through_json(strategy_to_dict(STRATEGY))) == STRATEGY
    assert brief_from_dict(through_json(brief_to_dict(BRIEF))) == BRIEF
    shanghai = timezone(timedelta(hours=8))
    assert strategy_to_dict(replace(STRATEGY, starts=NOW.astimezone(shanghai)))["starts"] == NOW.isoformat()


FINITE = st.floats(allow_nan=False, allow_infinity=False)


@settings(max_examples=60, deadline=None)
@given(
    title=st.text(),
    value=FINITE,
    low=FINITE,
    budget=st.none() | st.integers(0, 2**53),
    starts=st.datetimes(datetime(1900, 1, 1), datetime(2200, 1, 1), timezones=st.just(UTC)),
    conditions=st.lists(
        st.tuples(st.text(), st.sampled_from(["<", "<=", ">", ">=", "=="]), FINITE), max_size=3
    ),
)
def test_any_strategy_survives_json(
    title: str, value: float, low: float, budget: int | None, starts: datetime, conditions: list[Any]
) -> None:
    strategy = replace(
        STRATEGY,
        title=title,
        effect=Effect(PART, PART, PART, PART, Interval(value, low, value)),
        budget=budget,
        starts=starts,
        audience=Audience("any", tuple(conditions)),
    )
    assert strategy_from_dict(through_json(strategy_to_dict(strategy))) == strategy


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        (["title"], 5, "strategy.title: 5 is not of type str"),
        (["title"], None, "strategy.title: None is not of type str"),
        (["kind"], "coupon", "strategy.kind: 'coupon' is not one of recommendation, ad, promotion, content"),
        (["budget"], 1.5, "strategy.budget: 1.5 is not of type int"),
        (["reach"], True, "strategy.reach: True is not of type int"),
        (["starts"], "soon", "strategy.starts: 'soon' is not an ISO 8601 time"),
        (["starts"], "2017-01-01T00:00:00", "strategy.starts: .* has no time zone"),
        (["actions"], {}, "strategy.actions: {} is not of type list"),
        (["actions", 0, "channel"], "fax", "strategy.actions.0.channel: 'fax' is not one of"),
        (
            ["actions", 0, "offer", "depth"],
            "20%",
            "strategy.actions.0.offer.depth: '20%' is not of type float",
        ),
        (["actions", 0, "offer", "depth"], 1.5, "offer.depth: 1.5 is outside"),
        (["actions", 1], "x", "strategy.actions.1: 'x' is not of type dict"),
        (["effect", "ctr", "low"], None, "strategy.effect.ctr.low: None is not of type float"),
        (["audience", "conditions", 0, "value"], "14", "strategy.audience.conditions.0.value: '14' is not"),
        (["provenance"], {"a": 1}, "strategy.provenance.a: 1 is not of type str"),
    ],
)
def test_a_malformed_strategy_names_the_field(path: list[Any], value: object, message: str) -> None:
    data = through_json(strategy_to_dict(STRATEGY))
    inner = data
    for step in path[:-1]:
        inner = inner[step]
    inner[path[-1]] = value
    with pytest.raises(ValueError, match=message.replace("{}", r"\{\}")):
        strategy_from_dict(data)


def test_a_missing_field_is_named() -> None:
    data = strategy_to_dict(STRATEGY)
    del data["ends"]
    with pytest.raises(ValueError, match=r"strategy.ends: is missing"):
        strategy_from_dict(data)


def test_an_effect_that_is_not_finite_is_not_stored(ledger: Ledger) -> None:
    broken = replace(STRATEGY, effect=Effect(PART, PART, PART, PART, Interval(float("nan"), 0.0, 0.0)))
    with pytest.raises(ValueError, match=r"effect: .*every number must be finite"):
        ledger.put_strategies([broken])
    assert ledger.strategies() == []
