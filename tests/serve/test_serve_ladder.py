"""What is answered when a part is missing, who may ask, and how fast a change is seen."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from serve_cases import (
    Built,
    Counted,
    Shop,
    action,
    catalogue,
    go_live,
    open_predictor,
    open_shop,
    strategy,
    train_model,
)

from qiance.domain import Audience, Channel, Decision, StrategyState
from qiance.ledger import NO_VERSION, LedgerUnavailableError
from serve.args import AppArgs
from serve.live import Watcher
from serve.metrics import MAX_SURFACES, OTHER, GatewayMetrics
from serve.predictor import NoModelError, Scored, ScoreRequest

DECISION = {"user_id": "u0", "surface": "home"}


def eventually(holds: Callable[[], bool], within_s: float) -> bool:
    deadline = time.monotonic() + within_s
    while time.monotonic() < deadline:
        if holds():
            return True
        time.sleep(0.01)
    return False


def decided(shop: Shop, user: str, **body: Any) -> tuple[dict[str, Any], Decision]:
    answer = shop.decide(user, **body)
    row = shop.ledger.decision(answer["decision_id"])
    assert row is not None
    return answer, row


async def broken(_: ScoreRequest) -> Scored:
    raise ConnectionError("the replica is gone")


async def silent(_: ScoreRequest) -> Scored:
    await asyncio.sleep(3_600)
    raise AssertionError


@pytest.mark.parametrize("scorer", [broken, silent])
def test_without_a_predictor_the_strategies_means_decide(built: Built, tmp_path: Path, scorer: Any) -> None:
    """Only open audiences stay, as no rule can be checked; the margin floor holds all the same."""
    with open_shop(built, tmp_path, scorer, request_timeout_s=0.2) as shop:
        cheap = action(catalogue()["i0"], Channel.EMAIL, 0.6, "s9")
        go_live(shop.ledger, [strategy(9, audience=Audience("everybody"), actions=(cheap,))])
        shop.refresh()
        started = time.monotonic()
        answer, row = decided(shop, shop.users(held=False)[0])
        assert time.monotonic() - started < 2.0
        assert answer["degraded"] == ["predictor"]
        open_to = {a for a, p in zip(row.candidates, row.probabilities, strict=True) if p > 0}
        assert open_to == {"control", "s0-email", "s0-display", "s2-email", "s2-display"}
        uplift = dict(zip(row.candidates, row.scores, strict=True))
        assert (uplift["s0-email"], uplift["s2-email"]) == (5.0, 7.0)
        assert decided(shop, shop.users(held=True)[0])[0]["actions"][0]["action_id"] == "control"
        assert shop.metrics.decisions[0][2] == ("predictor",)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_a_model_that_predicts_nonsense_is_not_followed(built: Built, tmp_path: Path, bad: float) -> None:
    with open_shop(built, tmp_path) as shop:

        async def nonsense(request: ScoreRequest) -> Scored:
            scored = shop.predictor.score([request])[0]
            return replace(scored, value=np.full_like(scored.value, bad))

        shop.gateway.decisions._scorer = nonsense
        answer, row = decided(shop, shop.users(held=False)[0])
        assert answer["degraded"] == ["predictor"]
        assert np.isfinite(row.scores).all()


@pytest.mark.parametrize(
    ("change", "degraded"), [({"killed": True}, "killed"), ({"policy": NO_VERSION}, "no_policy")]
)
def test_without_leave_to_act_everybody_gets_control(
    shop: Shop, change: dict[str, Any], degraded: str
) -> None:
    shop.ledger.set_versions(**change)
    shop.refresh()
    for user in [*shop.users(held=False)[:5], "stranger"]:
        answer, row = decided(shop, user, n=3)
        assert answer["degraded"] == [degraded]
        assert [a["action_id"] for a in answer["actions"]] == ["control"]
        assert row.propensity == 1.0
    shop.ledger.set_versions(killed=False, policy=shop.built.policy)
    shop.refresh()
    assert shop.decide(shop.users(held=False)[0])["degraded"] == []


def test_without_a_ledger_nothing_is_spent_and_the_client_is_told_to_return(
    shop: Shop, tmp_path: Path
) -> None:
    file, away = tmp_path / "ledger.db", tmp_path / "away.db"
    shop.ledger.engine.dispose()
    file.rename(away)
    file.mkdir()
    bodies: dict[str, Any] = {
        "/v1/decisions": DECISION,
        "/v1/outcomes": {
            "events": [
                {"event_id": "e", "decision_id": "d", "type": "click", "occurred_at": "2025-05-01T00:00:00Z"}
            ]
        },
        "/v1/effects": {"user_ids": ["u0"], "actions": ["s0-email"]},
    }
    for path, body in bodies.items():
        response = shop.post(path, body)
        assert response.status_code == 503, response.text
        assert response.headers["retry-after"] == "1"
        assert response.headers["content-type"] == "application/problem+json"
        assert response.json()["detail"].startswith("ledger:")
    assert shop.ask("GET", "/v1/strategies").status_code == 503
    assert shop.ask("GET", "/healthz").status_code == 200
    with pytest.raises(LedgerUnavailableError):
        shop.ledger.versions()
    shop.gateway.watcher._seen_at -= 60.0
    assert "ledger" in shop.ask("GET", "/healthz").json()["degraded"]
    file.rmdir()
    away.rename(file)
    assert shop.decide("u0")["degraded"] == []


def test_health_says_what_is_missing(shop: Shop) -> None:
    health = shop.ask("GET", "/healthz").json()
    assert health == {
        "status": "ready", "model_version": shop.built.model, "policy_version": shop.built.policy,
        "degraded": [],
    }  # fmt: skip
    shop.ledger.set_versions(policy=NO_VERSION)
    shop.refresh()
    health = shop.ask("GET", "/healthz").json()
    assert (health["status"], health["degraded"]) == ("degraded", ["policy"])


ROUTES = [
    ("POST", "/v1/decisions", "decide"),
    ("POST", "/v1/outcomes", "outcomes"),
    ("POST", "/v1/effects", "read"),
    ("POST", "/v1/briefs", "write"),
    ("GET", "/v1/briefs/b", "read"),
    ("GET", "/v1/strategies", "read"),
]


@pytest.mark.parametrize(("method", "path", "scope"), ROUTES)
def test_with_keys_every_call_needs_one_of_its_scope(shop: Shop, method: str, path: str, scope: str) -> None:
    others = {"decide", "outcomes", "read", "write"} - {scope}
    right, wrong = shop.ledger.create_key("right", [scope]), shop.ledger.create_key("wrong", others)
    admin = shop.ledger.create_key("admin", ["admin"])

    def ask(authorization: str | None) -> Any:
        headers = {} if authorization is None else {"authorization": authorization}
        return shop.ask(method, path, headers=headers, **({"json": {}} if method == "POST" else {}))

    for header in (None, "", "Bearer", "Bearer ", "Bearer nonsense", f"Basic {right}", f"Bearer {right}x"):
        response = ask(header)
        assert response.status_code == 401, header
        assert response.headers["www-authenticate"] == "Bearer"
        assert response.headers["content-type"] == "application/problem+json"
        assert right not in response.text
    response = ask(f"Bearer {wrong}")
    assert response.status_code == 403
    assert f"lacks the scope '{scope}'" in response.json()["detail"]
    for token in (right, admin):
        assert ask(f"Bearer {token}").status_code not in (401, 403)
    shop.ledger.revoke_key("right")
    assert ask(f"Bearer {right}").status_code == 401
    assert shop.ask("GET", "/healthz").status_code == 200


def test_without_keys_only_this_machine_may_ask(shop: Shop) -> None:
    assert shop.ask("POST", "/v1/decisions", json=DECISION, client="::1").status_code == 200
    response = shop.ask("POST", "/v1/decisions", json=DECISION, client="192.0.2.7")
    assert response.status_code == 403
    assert "192.0.2.7" in response.json()["detail"]
    token = shop.ledger.create_key("k", ["decide"])
    headers = {"authorization": f"Bearer {token}"}
    allowed = shop.ask("POST", "/v1/decisions", json=DECISION, client="192.0.2.7", headers=headers)
    assert allowed.status_code == 200


def test_a_change_is_seen_within_a_second(built: Built, tmp_path: Path) -> None:
    """The change comes through another connection, as from another process."""
    with open_shop(built, tmp_path) as shop:
        elsewhere = built.open_ledger(tmp_path)
        elsewhere.set_versions(shadow_price=0.125)
        assert eventually(lambda: shop.gateway.watcher.state.versions.shadow_price == 0.125, 1.0)
        elsewhere.set_strategy_state("s0", StrategyState.PAUSED, "test", "test")
        assert eventually(lambda: "s0" not in shop.gateway.watcher.state.strategies, 1.0)
        elsewhere.close()


def test_a_new_champion_is_loaded_and_a_missing_one_is_not_followed(shop: Shop) -> None:
    second = train_model(shop.built.workspace, shop.built.snapshot, seed=1)
    assert second != shop.built.model
    shop.ledger.set_versions(model=second)
    shop.refresh()
    user = shop.users(held=False)[0]
    assert shop.decide(user)["model_version"] == second
    shop.ledger.set_versions(model="missing")
    time.sleep(0.6)
    answer = shop.decide(user)
    assert (answer["model_version"], answer["degraded"]) == (second, [])
    shop.ledger.set_versions(killed=True)
    assert eventually(lambda: shop.decide(user)["degraded"] == ["killed"], 2.0)


def test_a_watcher_outlives_what_it_cannot_use(built: Built, tmp_path: Path) -> None:
    ledger = built.open_ledger(tmp_path)
    fail = [False]

    def adopt(_: Any) -> None:
        if fail[0]:
            raise OSError("the disk is full")

    watcher = Watcher(ledger, built.snapshot.catalogue, adopt)
    before, fail[0] = watcher.state, True
    ledger.set_versions(shadow_price=0.5)
    time.sleep(0.6)
    assert watcher.state is before
    fail[0] = False
    assert eventually(lambda: watcher.state.versions.shadow_price == 0.5, 1.0)
    watcher.close()
    ledger.close()


def test_without_a_model_the_predictor_says_so(built: Built, tmp_path: Path) -> None:
    ledger = built.open_ledger(tmp_path)
    ledger.set_versions(model=NO_VERSION)
    predictor = open_predictor(built, ledger, AppArgs(workspace=built.workspace.root))
    with pytest.raises(NoModelError, match="no model is registered; run `qiance run` first"):
        predictor.score([ScoreRequest("u0", 0, datetime.now(UTC))])
    predictor.close()
    ledger.close()


def test_surfaces_do_not_fill_the_memory() -> None:
    metrics = GatewayMetrics()
    for n in range(MAX_SURFACES + 10):
        metrics.decided(f"surface {n}", holdout=False, degraded=("killed",), seconds=0.01)
    assert metrics._known("surface 0") == "surface 0"
    assert metrics._known("one more") == OTHER
    metrics.recorded(accepted=1, duplicates=0, rejected=2)


def test_every_answer_is_counted(shop: Shop) -> None:
    decision_id = shop.decide("u0")["decision_id"]
    event = {
        "event_id": "e",
        "decision_id": decision_id,
        "type": "click",
        "occurred_at": "2025-05-01T00:00:00Z",
    }
    shop.post("/v1/outcomes", {"events": [event, event, {**event, "event_id": "f", "decision_id": "?"}]})
    assert isinstance(shop.metrics, Counted)
    assert [d[0] for d in shop.metrics.decisions] == ["home"]
    assert shop.metrics.decisions[0][3] > 0
    assert shop.metrics.outcomes == [(1, 1, 1)]
