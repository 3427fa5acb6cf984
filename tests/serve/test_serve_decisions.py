"""What a decision promises, in both topologies: propensities, holdout, idempotence, positions, filters."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Sequence
from dataclasses import replace
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from built_cases import BRIEF, DAYS, GUARD, LOOSE, START, Built, action, catalogue, go_live, strategy
from serve_cases import Logged, Shop, open_behind_a_handle, open_shop

from qiance.decide.rule import replay
from qiance.domain import Audience, Catalogue, Channel, Decision, StrategyState
from serve.answers import Answer, Writer
from serve.problems import Problem
from serve.scoring import ScoredBatch, ScoreRequest
from serve.slates import Call

NOW = START + timedelta(days=DAYS)


@pytest.fixture(params=["ingress", "deployment"])
def shop(request: pytest.FixtureRequest, built: Built, tmp_path: Path) -> Iterator[Shop]:
    """One of each topology: whatever a decision promises, it promises in both."""
    opened = open_shop if request.param == "ingress" else open_behind_a_handle
    with opened(built, tmp_path) as found:
        yield found


def logged(shop: Shop, decision_id: str) -> Decision:
    return shop.log(decision_id).decision


def possible(decision: Decision) -> set[str]:
    """Actions that could have been chosen."""
    return Logged(decision).possible


def test_the_log_has_the_propensity_that_was_answered(shop: Shop) -> None:
    for user in shop.users(held=False)[:20]:
        answer = shop.decide(user)
        row = logged(shop, answer["decision_id"])
        chances = Logged(row).probabilities
        assert chances.sum() == pytest.approx(1.0, abs=1e-12)
        assert chances[row.chosen] == row.propensity
        assert answer["actions"][0]["propensity"] == row.propensity
        assert answer["actions"][0]["action_id"] == row.action_id
        share = shop.gateway.args.epsilon / len(possible(row))
        assert chances[chances > 0].min() == pytest.approx(share)
        assert (row.model_version, row.policy_version) == (shop.built.model, shop.built.policy)
        assert (answer["model_version"], answer["degraded"]) == (row.model_version, [])
        assert row.pseudonym != user


def test_the_choice_replays_from_the_log(shop: Shop) -> None:
    for user in shop.users(held=False)[:20]:
        row = logged(shop, shop.decide(user)["decision_id"])
        mask = row.mask()
        score = np.where(mask, row.score_row(), 0.0)
        choice = replay([score], [mask], row.epsilon, [row.uniform])
        assert int(choice[0]) == row.chosen


def test_scores_are_the_effect_less_the_price_of_its_cost(shop: Shop) -> None:
    user = shop.users(held=False)[0]
    shop.ledger.set_versions(shadow_price=0.25)
    shop.refresh()
    row = logged(shop, shop.decide(user)["decision_id"])
    actions = [a for a in row.candidates if a != "control"]
    found = shop.post("/v1/effects", {"user_ids": [user], "actions": actions}).json()["effects"]
    uplift = {pair["action_id"]: pair["effect"]["uplift"]["value"] for pair in found}
    assert len(actions) == 8
    scored = shop.predictor.score([ScoreRequest(user, 0, row.decided_at, True)])
    scores, checked = row.score_row(), 0
    for column, name in enumerate(row.candidates):
        if row.mask()[column]:
            expected = uplift.get(name, 0.0) - 0.25 * float(scored.cost[0, column])
            assert scores[column] == pytest.approx(expected, rel=1e-4, abs=1e-3)
            checked += 1
    assert checked > 4
    assert row.shadow_price == 0.25


def test_the_holdout_gets_control_and_nobody_else_is_flagged(shop: Shop) -> None:
    held, others = shop.users(held=True)[:15], shop.users(held=False)[:15]
    for user in held:
        answer = shop.decide(user, n=3)
        row = logged(shop, answer["decision_id"])
        assert [a["action_id"] for a in answer["actions"]] == ["control"]
        assert row.holdout
        assert row.propensity == 1.0
        assert answer["actions"][0] == {
            "action_id": "control", "strategy_id": "control", "kind": None, "item_id": None, "offer": None,
            "creative": None, "channel": "none", "propensity": 1.0, "effect": None,
        }  # fmt: skip
    rows = [logged(shop, shop.decide(user)["decision_id"]) for user in others]
    assert not any(row.holdout for row in rows)
    assert any(row.action_id != "control" for row in rows)
    assert sum(held for _, held, _, _ in shop.metrics.decisions) == 15


@pytest.mark.parametrize("n", [1, 3])
def test_a_repeated_request_gets_the_same_decision(shop: Shop, n: int) -> None:
    user = shop.users(held=False)[1]
    first = shop.decide(user, n=n, request_id="r1")
    for again in (shop.decide(user, n=n, request_id="r1"), shop.decide(user, request_id="r1")):
        assert again["decision_id"] == first["decision_id"]
        assert again["degraded"] == ["repeated"]
        assert without_effects(again) == without_effects(first)
    assert shop.decide(user, request_id="r2")["decision_id"] != first["decision_id"]


def without_effects(answer: dict[str, Any]) -> list[dict[str, Any]]:
    return [{k: v for k, v in a.items() if k != "effect"} for a in answer["actions"]]


@pytest.mark.parametrize("n", [1, 3])
def test_eight_repeats_at_once_make_one_decision(shop: Shop, n: int) -> None:
    user = shop.users(held=False)[2]
    for round_ in range(4):
        body = {"user_id": user, "surface": "home", "n": n, "request_id": f"r{round_}"}
        answers = [r.json() for r in shop.post_all("/v1/decisions", [body] * 8)]
        assert len({a["decision_id"] for a in answers}) == 1
        assert all(without_effects(a) == without_effects(answers[0]) for a in answers)
    made = shop.ledger.decision_outcomes()["decision_id"].to_pylist()
    assert len([d for d in made if "." not in d]) == 4


def test_two_replicas_agree_on_one_decision(built: Built, tmp_path: Path) -> None:
    """They meet in the ledger alone."""
    with open_shop(built, tmp_path) as one, open_shop(built, tmp_path) as two:
        user = one.users(held=False)[3]
        requests = [
            ("POST", "/v1/decisions", {"json": {"user_id": user, "surface": "home", "request_id": f"r{n}"}})
            for n in range(10)
        ]

        async def both() -> list[list[httpx.Response]]:
            return await asyncio.gather(one.ask_all(requests), two.ask_all(requests))

        ids = [[r.json()["decision_id"] for r in answers] for answers in asyncio.run(both())]
        assert ids[0] == ids[1]
        assert len(one.ledger.decision_outcomes()) == 10


def test_a_request_id_belongs_to_one_user(shop: Shop) -> None:
    one, two = shop.users(held=False)[:2]
    shop.decide(one, request_id="r")
    response = shop.post("/v1/decisions", {"user_id": two, "surface": "home", "request_id": "r"})
    assert response.status_code == 409
    assert response.json()["detail"].startswith("request_id: was used for another user")


def calls_of(shop: Shop, request_id: str) -> list[Call]:
    """One request of each of two users, under the same id."""
    at = shop.gateway.args.now()
    return [Call(user, "home", at, request_id, 1, None) for user in shop.users(held=False)[:2]]


def test_a_request_id_belongs_to_one_user_in_a_micro_batch_too(shop: Shop) -> None:
    for round_ in range(3):
        first, second = shop.service.engine.decide(calls_of(shop, f"r{round_}"))
        assert isinstance(first, Answer)
        assert isinstance(second, Problem)
        assert second.status_code == 409


def test_a_request_id_belongs_to_one_user_in_a_batch_over_http(shop: Shop) -> None:
    one, two = shop.users(held=False)[:2]
    asked = [{"user_id": user, "surface": "home", "request_id": "r"} for user in (one, two, one)]
    first, second, again = shop.post("/v1/decisions:batch", {"requests": asked}).json()["decisions"]
    assert second["status"] == 409
    assert first["decision_id"] not in str(second)
    assert again["decision_id"] == first["decision_id"]


def test_a_request_id_that_another_replica_uses_meanwhile_belongs_to_its_user(
    built: Built, tmp_path: Path
) -> None:
    """The other one answers after our look at the ledger and before our record."""
    with open_shop(built, tmp_path) as other:
        one, two = calls_of(other, "r")

        class Meanwhile:
            def score(self, requests: Sequence[ScoreRequest]) -> ScoredBatch:
                (answer,) = other.service.engine.decide([one])
                assert isinstance(answer, Answer)
                return other.predictor.score(requests)

        with open_shop(built, tmp_path, Meanwhile()) as ours:
            (late,) = ours.service.engine.decide([two])
            (again,) = ours.service.engine.decide([two])
    for result in (late, again):
        assert isinstance(result, Problem)
        assert result.status_code == 409


def without_words(answer: dict[str, Any]) -> list[dict[str, Any]]:
    """Its actions but for effects, and for words, whose last day is not known once the strategy ended."""
    return [
        {k: v for k, v in action.items() if k not in ("effect", "creative")} for action in answer["actions"]
    ]


def test_a_repeat_survives_the_end_of_its_strategy(shop: Shop) -> None:
    user = shop.users(held=False)[4]
    first = shop.decide(user, n=3, request_id="r")
    for number in range(4):
        shop.ledger.set_strategy_state(f"s{number}", StrategyState.ENDED, "test", "test")
    shop.refresh()
    again = shop.decide(user, n=3, request_id="r")
    assert without_words(again) == without_words(first)
    shown = [a for a in again["actions"] if a["creative"] is not None]
    assert all(not (a["offer"] or {}).get("depth") for a in shown), "no offer outlives its end"
    assert [a["action_id"] for a in shop.decide(user)["actions"]] == ["control"]


def test_positions_are_logged_each_with_its_own_propensity(shop: Shop) -> None:
    seen = 0
    for user in shop.users(held=False)[:12]:
        answer = shop.decide(user, n=3, request_id=f"for {user}")
        decision_id, actions = answer["decision_id"], [a["action_id"] for a in answer["actions"]]
        assert len(set(actions)) == len(actions)
        if "control" in actions:
            assert actions.index("control") == len(actions) - 1
        else:
            assert len(actions) == 3
        names = [decision_id, f"{decision_id}.1", f"{decision_id}.2"][: len(actions)]
        rows = [logged(shop, name) for name in names]
        assert [row.action_id for row in rows] == actions
        assert [row.propensity for row in rows] == [a["propensity"] for a in answer["actions"]]
        assert [row.request_id for row in rows] == [f"for {user}", None, None][: len(actions)]
        for position, row in enumerate(rows):
            assert not possible(row) & set(actions[:position])
        assert shop.ledger.decision(f"{decision_id}.{len(actions)}") is None
        seen += len(actions) == 3
    assert seen > 0


def test_more_positions_than_actions_are_all_that_there_are(shop: Shop) -> None:
    user = shop.users(held=False)[0]
    actions = [a["action_id"] for a in shop.decide(user, n=20)["actions"]]
    assert len(set(actions)) == len(actions) <= 9


@pytest.mark.parametrize(
    ("candidates", "items"),
    [(["i0"], {"i0"}), (["i0", "i2"], {"i0", "i2"}), (["i5"], set()), ([], set())],
)
def test_only_candidates_are_chosen(shop: Shop, candidates: list[str], items: set[str]) -> None:
    """`i5` is in the catalogue, but no live strategy is about it."""
    user = shop.users(held=False)[0]
    row = logged(shop, shop.decide(user, candidates=candidates)["decision_id"])
    of = {a.action_id: a.item_id for a in shop.gateway.watcher.state.actions}
    assert {of[a] for a in possible(row)} == items | {None}


def test_a_strategy_runs_from_its_start_until_before_its_end(built: Built, tmp_path: Path) -> None:
    with open_shop(built, tmp_path, clock="request") as shop:
        go_live(shop.ledger, [strategy(8, starts=NOW, ends=NOW + timedelta(days=1))])
        shop.refresh()
        user = shop.users(held=False)[0]

        def shown(at: datetime) -> bool:
            answer = shop.decide(user, context={"now": at.isoformat()})
            return "s8-email" in possible(logged(shop, answer["decision_id"]))

        second = timedelta(seconds=1)
        assert [shown(NOW - second), shown(NOW), shown(NOW + timedelta(days=1) - second)] == [
            False,
            True,
            True,
        ]
        assert not shown(NOW + timedelta(days=1))
        assert shop.ledger.clock() == NOW + timedelta(days=1)


def test_no_action_sells_below_the_margin_floor(shop: Shop) -> None:
    """Item i0 costs 200 of 400: 40 % off leaves a margin of 17 %, 50 % off leaves none."""
    item = catalogue()["i0"]
    cheap = [
        strategy(n, audience=Audience("everybody"), actions=(action(item, Channel.EMAIL, depth, f"s{n}"),))
        for n, depth in ((10, 0.4), (11, 0.5), (12, 0.6))
    ]
    go_live(shop.ledger, cheap[:1])
    go_live(shop.ledger, cheap[1:2], guard=LOOSE)
    for guard in (GUARD, LOOSE):
        with pytest.raises(ValueError, match="floor-price offer: '60% off coffee 0'"):
            go_live(shop.ledger, cheap[2:], guard=guard)
    shop.refresh()
    row = logged(shop, shop.decide(shop.users(held=False)[0])["decision_id"])
    assert {"s10-email", "s11-email", "s12-email"} & set(row.candidates) == {"s10-email"}
    assert "s10-email" in possible(row)


def test_an_audience_keeps_others_out_and_strangers_too(shop: Shop) -> None:
    """s1 and s3 are for users seen in the last 10 days; of a stranger nothing is known."""
    users, recency = shop.built.snapshot.users, shop.built.snapshot.users.columns["recency_days"]
    free = set(shop.users(held=False))
    recent = [u for u, r in zip(users.user_ids, recency, strict=True) if r <= 10 and u in free][:5]
    lapsed = [u for u, r in zip(users.user_ids, recency, strict=True) if r > 10 and u in free][:5]
    strangers = [f"stranger {n}" for n in range(5)]
    everybody = {"s0-email", "s0-display", "s2-email", "s2-display", "control"}
    for user in recent:
        assert possible(logged(shop, shop.decide(user)["decision_id"])) > everybody
    for user in lapsed:
        assert possible(logged(shop, shop.decide(user)["decision_id"])) == everybody
    assert np.nanmean(recency) <= 40  # the average user is no reason to treat a stranger as one
    for user in strangers:
        assert possible(logged(shop, shop.decide(user)["decision_id"])) <= everybody


def test_a_stranger_is_not_in_a_rule_that_the_average_user_meets(shop: Shop) -> None:
    go_live(shop.ledger, [strategy(6, audience=Audience("most", (("recency_days", "<=", 1_000.0),)))])
    shop.refresh()
    known = logged(shop, shop.decide(shop.users(held=False)[0])["decision_id"])
    assert "s6-email" in possible(known)
    strangers = [logged(shop, shop.decide(f"stranger {n}")["decision_id"]) for n in range(10)]
    assert not any("s6-email" in possible(row) for row in strangers)


def test_every_admissible_action_is_explored(built: Built, tmp_path: Path) -> None:
    with open_shop(built, tmp_path, epsilon=1.0, holdout=0.0) as shop:
        recency = shop.built.snapshot.users.columns["recency_days"]
        user = shop.built.snapshot.users.user_ids[int(np.nanargmin(recency))]
        bodies = [{"user_id": user, "surface": "home"}] * 150
        answers = [r.json()["actions"][0] for r in shop.post_all("/v1/decisions", bodies)]
        counts = {a["action_id"]: 0 for a in answers}
        for answer in answers:
            counts[answer["action_id"]] += 1
            assert answer["propensity"] == pytest.approx(1 / 9)
        # Binomial(150, 1/9): below 3 or above 40 has a chance of some 10⁻⁵ for each action.
        assert len(counts) == 9
        assert 3 <= min(counts.values()) <= max(counts.values()) <= 40


def test_contacts_of_the_last_seven_days_reach_the_model(shop: Shop) -> None:
    asked: list[int] = []
    score = shop.predictor.score

    def noting(requests: Any) -> Any:
        asked.extend(r.contacts_7d for r in requests)
        return score(requests)

    shop.predictor.score = noting  # type: ignore[method-assign]
    user = shop.users(held=False)[0]
    contacts = 0
    for _ in range(8):
        answer = shop.decide(user)
        assert asked[-1] == contacts
        contacts += answer["actions"][0]["action_id"] != "control"
    assert contacts > 0


def test_a_strategy_of_an_item_no_longer_sold_holds_up_nobody(shop: Shop) -> None:
    gone = action(catalogue()["i0"], Channel.EMAIL, 0.0, "s20")
    gone = type(gone)(**{f: getattr(gone, f) for f in gone.__slots__} | {"item_id": "discontinued"})
    once = Catalogue((*catalogue(), replace(catalogue()["i0"], item_id="discontinued")))
    go_live(shop.ledger, [strategy(20, actions=(gone,))], once)
    shop.ledger.set_versions(killed=True)
    shop.refresh()
    assert shop.gateway.watcher.state.versions.killed
    assert "s20-email" not in shop.gateway.watcher.state.action_ids
    assert BRIEF in {s.brief_id for s in shop.gateway.watcher.state.strategies.values()}


def test_a_decision_gives_words_with_the_facts_in_them(shop: Shop) -> None:
    answers = [shop.decide(user) for user in shop.users(held=False)[:20]]
    shown = [a for answer in answers for a in answer["actions"] if a["creative"] is not None]
    assert shown, "somebody is contacted"
    for found in shown:
        item = shop.gateway.watcher.catalogue[found["item_id"]]
        words = " ".join(found["creative"][part] for part in ("headline", "body", "call_to_action"))
        assert item.title in words
        assert "{" not in words
        assert "}" not in words


def test_words_that_lack_a_fact_are_left_out(shop: Shop) -> None:
    item = next(iter(shop.gateway.watcher.catalogue))
    odd = action(item, Channel.EMAIL, 0.0, "odd")
    assert odd.creative is not None
    broken = replace(odd, creative=replace(odd.creative, headline="Only {stock} left"))
    state = shop.gateway.watcher.state
    writer = Writer(shop.gateway.watcher.catalogue, shop.gateway.args.currency)
    bound = writer.words(odd, state)
    text = f"{bound.headline} {bound.body} {bound.call_to_action}"
    assert item.title in text
    assert "{" not in text
    assert writer.words(broken, state) is None
