"""Money: a cap holds under concurrency, outcomes settle, the pacer releases and moves the price."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from built_cases import BRIEF, CAP, DAYS, START, Built, go_live, launch, strategy, write_plan
from serve_cases import Shop, open_shop

from qiance.artifacts.pacing import ExportedPolicy
from qiance.decide.pacing import LIMIT
from qiance.domain import Decision, StrategyState
from qiance.ledger import BudgetStatus, Claim, Entry, Recorded
from serve.pacer import TICK_S, Pacer
from serve.scoring import ScoreRequest

DAY = timedelta(days=1)
NOW = START + timedelta(days=DAYS)


def only(shop: Shop, number: int, brief_id: str, cap: int) -> None:
    """Leave one strategy live, with a budget of its own."""
    for n in range(4):
        shop.ledger.set_strategy_state(f"s{n}", StrategyState.PAUSED, "test", "test")
    shop.ledger.open_budget(brief_id, cap)
    go_live(shop.ledger, [strategy(number, brief_id)])
    shop.refresh()


def outcome(decision_id: str, kind: str, value: int = 0, at: datetime = NOW) -> dict[str, Any]:
    return {
        "event_id": f"{decision_id}:{kind}", "decision_id": decision_id, "type": kind, "value": value,
        "occurred_at": at.isoformat(),
    }  # fmt: skip


def decide_for(shop: Shop, action_id: str, user: str) -> str:
    """A decision for `action_id`; asks until exploration gives it."""
    for _ in range(200):
        answer = shop.decide(user)
        if answer["actions"][0]["action_id"] == action_id:
            return str(answer["decision_id"])
    raise AssertionError(f"{action_id} was never chosen")


def test_a_budget_is_never_passed_and_then_control_is_all(built: Built, tmp_path: Path) -> None:
    """An e-mail costs 1, a display contact 2: 8 clients at once empty a budget of 61 to the last unit."""
    with open_shop(built, tmp_path, epsilon=1.0, holdout=0.0) as shop:
        only(shop, 4, "tight", 61)
        seen: list[BudgetStatus] = []

        async def watch() -> None:
            while True:
                seen.append(await asyncio.to_thread(shop.ledger.budget, "tight"))
                await asyncio.sleep(0.01)

        async def rush() -> list[Any]:
            watcher = asyncio.create_task(watch())
            bodies = [{"user_id": f"u{n % 150}", "surface": "home"} for n in range(160)]
            answers = await shop.ask_all([("POST", "/v1/decisions", {"json": b}) for b in bodies], at_once=8)
            watcher.cancel()
            return answers

        answers = [r.json()["actions"][0]["action_id"] for r in asyncio.run(rush())]
        assert all(status.spent + status.reserved <= status.cap == 61 for status in seen)
        status = shop.ledger.budget("tight")
        assert status.left == 0
        assert answers.count("s4-email") + 2 * answers.count("s4-display") == status.reserved == 61
        assert {shop.decide(f"u{n}")["actions"][0]["action_id"] for n in range(5)} == {"control"}


def test_an_action_that_its_budget_refuses_is_not_logged(shop: Shop) -> None:
    only(shop, 4, "empty", 0)
    user = shop.users(held=False)[0]
    answer = shop.decide(user, n=3)
    row = shop.ledger.decision(answer["decision_id"])
    assert [a["action_id"] for a in answer["actions"]] == ["control"]
    assert row is not None
    assert row.propensity == 1.0
    assert len(shop.ledger.decision_outcomes()) == 1


def test_a_strategy_without_a_budget_is_not_shown(shop: Shop) -> None:
    for n in range(4):
        shop.ledger.set_strategy_state(f"s{n}", StrategyState.PAUSED, "test", "test")
    go_live(shop.ledger, [strategy(4, "brief without a budget")])
    shop.refresh()
    for user in shop.users(held=False)[:5]:
        assert [a["action_id"] for a in shop.decide(user)["actions"]] == ["control"]


def test_a_conversion_settles_the_whole_reservation_once(shop: Shop) -> None:
    """s5 gives 20 % of 650: an e-mail may cost 1 + 130."""
    only(shop, 5, "mail", 10_000)
    recency = shop.built.snapshot.users.columns["recency_days"]
    free = shop.users(held=False)
    user = next(u for u in free if recency[int(u[1:])] <= 10)
    decision_id = decide_for(shop, "s5-email", user)
    before = shop.ledger.budget("mail")
    assert shop.post("/v1/outcomes", {"events": [outcome(decision_id, "click")]}).status_code == 202
    assert shop.ledger.budget("mail") == before
    for _ in range(2):
        shop.post("/v1/outcomes", {"events": [outcome(decision_id, "conversion", 900)]})
        after = shop.ledger.budget("mail")
        assert (after.spent, after.reserved) == (131, before.reserved - 131)
    second = {**outcome(decision_id, "conversion", 400), "event_id": "another order"}
    assert shop.post("/v1/outcomes", {"events": [second]}).json()["accepted"] == 1
    assert shop.ledger.budget("mail").spent == 131


def test_a_conversion_settles_after_its_strategy_ended(shop: Shop) -> None:
    only(shop, 4, "mail", 10_000)
    decision_id = decide_for(shop, "s4-display", shop.users(held=False)[0])
    shop.ledger.set_strategy_state("s4", StrategyState.ENDED, "test", "test")
    shop.refresh()
    reserved = shop.ledger.budget("mail").reserved
    shop.post("/v1/outcomes", {"events": [outcome(decision_id, "conversion", 500)]})
    status = shop.ledger.budget("mail")
    assert (status.spent, status.reserved) == (2, reserved - 2)


def test_a_conversion_after_control_costs_nothing(shop: Shop) -> None:
    decision_id = shop.decide(shop.users(held=True)[0])["decision_id"]
    response = shop.post("/v1/outcomes", {"events": [outcome(decision_id, "conversion", 500)]})
    assert response.json()["accepted"] == 1
    assert shop.ledger.budget(BRIEF).spent == 0


class Paced:
    """A pacer over a plan of 10 days from `NOW` at λ₀ = 0.5, and what it published."""

    def __init__(self, shop: Shop) -> None:
        built = shop.built
        policy = write_plan(built.workspace, built.model, NOW)
        launch(shop.ledger, policy, 0.5)
        self.published: list[tuple[str, int, int, float]] = []
        self.pacer = Pacer(
            built.workspace,
            shop.ledger,
            ExportedPolicy.load,
            shop.ledger.clock,
            lambda *figures: self.published.append(figures),
        )


def spend(shop: Shop, number: int, amount: int) -> None:
    """Book `amount` on the budget, by a decision that converted."""
    state = shop.gateway.watcher.state
    mask = np.array([action_id in ("control", "s0-email") for action_id in state.action_ids])
    decision = Decision(
        decision_id=f"spent{number}", tenant_id="default", request_id=None, pseudonym="p", surface="home",
        decided_at=NOW, candidates=state.action_ids, candidate_set=state.candidate_set,
        admissible=np.packbits(mask, bitorder="little").tobytes(),
        scores=np.array([0.0, 1.0], dtype="<f4").tobytes(), chosen=state.index["s0-email"], propensity=0.5,
        uniform=0.5, epsilon=1.0, shadow_price=0.0, channel="email", holdout=False, model_version="m",
        policy_version="p",
    )  # fmt: skip
    lease = shop.ledger.lease(BRIEF, amount, "test", 30.0)
    assert lease is not None
    claim = Claim(lease.lease_id, BRIEF, amount, 0, NOW + 90 * DAY)
    assert shop.ledger.record_slates([(Entry(decision, claim),)], ()) == [Recorded.STORED]
    shop.ledger.settle(f"spent{number}", amount)


def test_the_pacer_gives_expired_reservations_back_less_the_contact(shop: Shop) -> None:
    only(shop, 4, "mail", 10_000)
    pacer = Paced(shop).pacer
    decide_for(shop, "s4-display", shop.users(held=False)[0])
    shop.service.leases.close()
    before = shop.ledger.budget("mail")
    assert before.reserved > 0
    assert before.leased == 0
    pacer.tick(shop.gateway.args.now() + timedelta(hours=23))
    assert shop.ledger.budget("mail") == before
    pacer.tick(shop.gateway.args.now() + timedelta(hours=25))
    after = shop.ledger.budget("mail")
    assert (after.spent, after.reserved) == (before.reserved, 0), "contacts only: these have no offer"


def test_an_unused_offer_goes_back_to_its_budget(shop: Shop) -> None:
    only(shop, 5, "mail", 10_000)
    pacer = Paced(shop).pacer
    recency = shop.built.snapshot.users.columns["recency_days"]
    user = next(u for u in shop.users(held=False) if recency[int(u[1:])] <= 10)
    decide_for(shop, "s5-email", user)
    contacts = shop.ledger.decision_outcomes()["action_id"].to_pylist()
    shop.service.leases.close()
    pacer.tick(shop.gateway.args.now() + timedelta(hours=25))
    status = shop.ledger.budget("mail")
    assert (status.spent, status.reserved) == (
        contacts.count("s5-email") + 2 * contacts.count("s5-display"),
        0,
    )


def test_the_price_moves_once_a_day_within_its_bounds(shop: Shop) -> None:
    paced = Paced(shop)
    assert paced.pacer.tick(NOW - timedelta(hours=1)) is None, "the plan has not begun"
    assert paced.pacer.tick(NOW) == pytest.approx(0.5), "on the even pace"
    assert paced.pacer.tick(NOW + timedelta(hours=23)) is None, "once a day"
    prices = [paced.pacer.tick(NOW + day * DAY) for day in range(1, 10)]
    assert all(price is not None and 0.5 / LIMIT - 1e-9 <= price <= 0.5 for price in prices)
    assert prices == sorted(prices, reverse=True), "money is left over: the price falls"  # type: ignore[type-var]
    assert prices[-1] == pytest.approx(0.5 / LIMIT), "no further than to a third"
    assert paced.pacer.tick(NOW + 10 * DAY) is None, "the plan is over"
    assert shop.ledger.versions().shadow_price == prices[-1]


def test_a_budget_that_runs_out_early_raises_the_price(shop: Shop) -> None:
    paced = Paced(shop)
    paced.pacer.tick(NOW)
    spend(shop, 1, CAP // 2)
    first = paced.pacer.tick(NOW + DAY)
    spend(shop, 2, CAP // 2 - 10)
    second = paced.pacer.tick(NOW + 2 * DAY)
    assert first is not None
    assert second is not None
    assert 0.5 < first < second == pytest.approx(0.5 * LIMIT)


def test_a_moved_price_reaches_decisions(shop: Shop) -> None:
    paced = Paced(shop)
    paced.pacer.tick(NOW)
    paced.pacer.tick(NOW + 9 * DAY)
    shop.refresh()
    user = shop.users(held=False)[0]
    row = shop.ledger.decision(shop.decide(user)["decision_id"])
    assert row is not None
    found = shop.post("/v1/effects", {"user_ids": [user], "actions": list(row.candidates[1:])}).json()
    values = [0.0, *(pair["effect"]["uplift"]["value"] for pair in found["effects"])]
    costs = shop.predictor.score([ScoreRequest(user, 0, row.decided_at, True)]).cost[0]
    expected = np.array([v - c * 0.5 / LIMIT for v, c in zip(values, costs, strict=True)])
    mask = row.mask()
    assert mask.sum() > 4
    assert row.score_row()[mask] == pytest.approx(expected[mask], rel=1e-4, abs=1e-3)


def test_every_tick_publishes_where_the_budget_stands(shop: Shop) -> None:
    paced = Paced(shop)
    spend(shop, 1, 700)
    paced.pacer.tick(NOW)
    paced.pacer.tick(NOW + timedelta(hours=1))
    assert [entry[:3] for entry in paced.published] == [(BRIEF, 700, CAP)] * 2
    assert paced.published[1][3] == shop.ledger.versions().shadow_price


def test_the_thread_follows_its_clock_and_waits_out_what_it_cannot_read(shop: Shop) -> None:
    """A policy that is not there must not end pacing for good."""
    paced = Paced(shop)
    good = shop.ledger.versions().policy
    launch(shop.ledger, "missing", 0.5)
    thread = threading.Thread(target=paced.pacer.run, daemon=True)
    thread.start()
    try:
        shop.ledger.advance_clock(NOW + 4 * DAY)
        time.sleep(3 * TICK_S)
        assert shop.ledger.versions().shadow_price == 0.5
        launch(shop.ledger, good, 0.5)
        assert eventually(lambda: shop.ledger.versions().shadow_price < 0.5)
    finally:
        paced.pacer.stop()
        thread.join(timeout=10)
    assert not thread.is_alive()


def eventually(holds: Callable[[], bool], within_s: float = 60.0) -> bool:
    deadline = time.monotonic() + within_s
    while time.monotonic() < deadline:
        if holds():
            return True
        time.sleep(0.02)
    return False
