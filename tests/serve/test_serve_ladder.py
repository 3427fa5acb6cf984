"""What is answered when a part is missing, who may ask, and how fast a change is seen."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.compute as pc
import pytest
from built_cases import BRIEF, GUARD, LOOSE, Built, action, catalogue, go_live, launch, strategy, train_model
from serve_cases import Counted, Logged, Shop, open_predictor, open_shop
from sqlalchemy import NullPool, create_engine

from qiance.domain import Audience, Channel, Decision, StrategyState
from qiance.ledger import NO_VERSION, Ledger, LedgerUnavailableError
from serve.args import AppArgs
from serve.engine import DOWN_S, NotReadyError
from serve.live import Watcher
from serve.metrics import MAX_SURFACES, OTHER, GatewayMetrics
from serve.predictor import Predictor
from serve.scoring import NoModelError, ScoredBatch, ScoreRequest

DECISION = {"user_id": "u0", "surface": "home"}


def eventually(holds: Callable[[], bool], within_s: float = 60.0) -> bool:
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


class Broken:
    """A predictor whose replica is gone."""

    def score(self, _: Sequence[ScoreRequest]) -> ScoredBatch:
        raise ConnectionError("the replica is gone")


class Nonsense:
    """A predictor whose model predicts `bad`."""

    def __init__(self, predictor: Predictor, bad: float) -> None:
        self._predictor, self._bad = predictor, bad

    def score(self, requests: Sequence[ScoreRequest]) -> ScoredBatch:
        scored = self._predictor.score(requests)
        return replace(scored, value=np.full_like(scored.value, self._bad))


def test_without_a_predictor_the_strategies_means_decide(built: Built, tmp_path: Path) -> None:
    """Only open audiences stay, as no rule can be checked; the margin floor holds all the same."""
    with open_shop(built, tmp_path, Broken()) as shop:
        cheap = action(catalogue()["i0"], Channel.EMAIL, 0.5, "s9")
        go_live(shop.ledger, [strategy(9, audience=Audience("everybody"), actions=(cheap,))], guard=LOOSE)
        shop.refresh()
        started = time.monotonic()
        answer, row = decided(shop, shop.users(held=False)[0])
        assert time.monotonic() - started < 20.0, "nothing is waited for"
        assert answer["degraded"] == ["predictor"]
        assert Logged(row).possible == {"control", "s0-email", "s0-display", "s2-email", "s2-display"}
        uplift = dict(zip(row.candidates, row.score_row(), strict=True))
        assert (uplift["s0-email"], uplift["s2-email"]) == (5.0, 7.0)
        assert decided(shop, shop.users(held=True)[0])[0]["actions"][0]["action_id"] == "control"
        assert shop.metrics.decisions[0][2] == ("predictor",)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_a_model_that_predicts_nonsense_is_not_followed(built: Built, tmp_path: Path, bad: float) -> None:
    with open_shop(built, tmp_path) as shop:
        shop.service.engine._scorer = Nonsense(shop.predictor, bad)
        answer, row = decided(shop, shop.users(held=False)[0])
        assert answer["degraded"] == ["predictor"]
        assert np.isfinite(row.score_row()[row.mask()]).all()


class Late:
    """A predictor that fails with `error` at first."""

    def __init__(self, predictor: Predictor, failures: int, error: Exception) -> None:
        self._predictor, self._left, self._error = predictor, failures, error

    def score(self, requests: Sequence[ScoreRequest]) -> ScoredBatch:
        self._left -= 1
        if self._left >= 0:
            raise self._error
        return self._predictor.score(requests)


def test_nothing_is_ready_before_the_predictor_made_a_pass(shop: Shop) -> None:
    engine = shop.service.engine
    engine._scorer = Late(shop.predictor, 10, ConnectionError("no replica yet"))
    with pytest.raises(NotReadyError, match=r"no pass within 0.3 s .*no replica yet"):
        engine.warm_up(0.3)
    engine._scorer = late = Late(shop.predictor, 2, ConnectionError("no replica yet"))
    engine.warm_up(60.0)
    assert late._left == -1, "it was asked until it answered"


def test_a_model_that_is_missing_or_predicts_nonsense_does_not_hold_up_the_start(shop: Shop) -> None:
    """What it says is seen in `/healthz` and `degraded`, as when it comes later."""
    for scorer in (Late(shop.predictor, 9, NoModelError("no model")), Nonsense(shop.predictor, np.nan)):
        shop.service.engine._scorer = scorer
        shop.service.engine.warm_up(0.0)


@pytest.mark.parametrize(
    ("change", "degraded"),
    [
        (lambda ledger: ledger.set_versions(killed=True), "killed"),
        (lambda ledger: ledger.stop_policy("test", "test"), "no_policy"),
    ],
)
def test_without_leave_to_act_everybody_gets_control(
    shop: Shop, change: Callable[[Ledger], Any], degraded: str
) -> None:
    change(shop.ledger)
    shop.refresh()
    for user in [*shop.users(held=False)[:5], "stranger"]:
        answer, row = decided(shop, user, n=3)
        assert answer["degraded"] == [degraded]
        assert [a["action_id"] for a in answer["actions"]] == ["control"]
        assert row.propensity == 1.0
    shop.ledger.set_versions(killed=False)
    launch(shop.ledger, shop.built.policy, 0.0)
    shop.refresh()
    assert shop.decide(shop.users(held=False)[0])["degraded"] == []


@contextmanager
def ledger_down(shop: Shop, folder: Path) -> Iterator[None]:
    """The ledger's file is not there; it goes and comes in one step, since the service's threads look."""
    file, away, instead = folder / "ledger.db", folder / "away.db", folder / "instead"
    away.hardlink_to(file)
    instead.symlink_to(folder, target_is_directory=True)
    instead.replace(file)
    shop.ledger.engine.dispose()  # what a thread opened before
    try:
        yield
    finally:
        away.replace(file)


def click(decision_id: str) -> dict[str, Any]:
    return {
        "event_id": f"click {decision_id}", "decision_id": decision_id, "type": "click",
        "occurred_at": "2025-05-01T00:00:00Z",
    }  # fmt: skip


def test_without_a_ledger_everybody_gets_control_and_nothing_is_lost(shop: Shop, tmp_path: Path) -> None:
    """Decisions and outcomes are on the disk, without the user's id, and in the ledger when it is back."""
    user = shop.users(held=False)[0]
    before = shop.decide(user)
    spent = shop.ledger.budget(BRIEF)
    with ledger_down(shop, tmp_path):
        told = [
            shop.decide(u, request_id=r) for u, r in ((user, "r1"), ("an unseen user", "r2"), (user, "r1"))
        ]
        assert all([a["action_id"] for a in d["actions"]] == ["control"] for d in told)
        assert all(d["degraded"] == ["ledger"] for d in told)
        assert told[0]["decision_id"] == told[2]["decision_id"] != told[1]["decision_id"]
        taken = shop.post("/v1/decisions", {**DECISION, "user_id": "another user", "request_id": "r1"})
        assert taken.status_code == 409
        events = [click(before["decision_id"]), click(told[0]["decision_id"]), click("made up")]
        answer = shop.post("/v1/outcomes", {"events": events})
        assert (answer.status_code, answer.json()["degraded"]) == (202, ["ledger"])
        assert shop.metrics.outcomes_degraded == ["ledger"]
        kept = b"".join(path.read_bytes() for path in (tmp_path / "spool").iterdir())
        assert kept.count(b"\n") == 5
        assert b"unseen" not in kept
    assert eventually(lambda: not list((tmp_path / "spool").glob("*.jsonl")))
    rows = [shop.log(d["decision_id"]).decision for d in told]
    assert [(row.action_id, row.degraded, row.propensity) for row in rows] == [
        ("control", ("ledger",), 1.0)
    ] * 3
    assert rows[0].pseudonym == shop.ledger.pseudonym(user)
    clicks = shop.ledger.decision_outcomes()
    clicked = clicks.filter(pc.equal(clicks["click"], 1))["decision_id"].to_pylist()
    assert set(clicked) == {before["decision_id"], told[0]["decision_id"]}
    time.sleep(DOWN_S)
    again = shop.decide(user, request_id="r1")
    assert (again["decision_id"], again["degraded"]) == (told[0]["decision_id"], ["ledger", "repeated"])
    assert shop.ledger.budget(BRIEF).spent == spent.spent


@contextmanager
def somebody_holds(ledger: Ledger, tables: str) -> Iterator[None]:
    """Another session holds SQLite's one write lock, or the locks of these tables in PostgreSQL."""
    postgres = ledger.dialect == "postgresql"
    other = create_engine(ledger.engine.url, poolclass=NullPool)
    with other.connect() as connection:
        lock = f"LOCK TABLE {tables} IN ACCESS EXCLUSIVE MODE" if postgres else "BEGIN IMMEDIATE"
        connection.exec_driver_sql(lock)
        yield


@pytest.mark.parametrize("tables", ["", "decisions", "leases, budgets"])
def test_a_ledger_that_hangs_is_one_that_does_not_answer(
    built: Built, tmp_path: Path, request: pytest.FixtureRequest, tables: str
) -> None:
    """It neither answers nor fails; every caller gets control while his request still waits for it."""
    postgres = bool(tables)
    url = (
        built.fill_ledger(request.getfixturevalue("postgres")()) if postgres else built.copy_ledger(tmp_path)
    )
    with open_shop(built, tmp_path, ledger_url=url, request_timeout_s=2.0) as shop:
        user = shop.users(held=False)[0]
        shop.decide(user)
        for held in list(shop.service.leases._all):
            shop.service.leases.lost(held)  # so that a slice is to be leased within
        told = []
        with somebody_holds(shop.ledger, tables):
            for name in (user, "an unseen user", user):
                started = time.monotonic()
                told.append(shop.decide(name))
                assert time.monotonic() - started < 2.0
            assert time.monotonic() < shop.service.engine._down_until, "only the first one waited"
        assert all(d["degraded"] == ["ledger"] for d in told)
        assert all([a["action_id"] for a in d["actions"]] == ["control"] for d in told)
        assert eventually(lambda: not list((tmp_path / "spool").glob("*.jsonl")), 20.0)
        rows = [shop.log(d["decision_id"]).decision for d in told]
        assert [(row.action_id, row.degraded) for row in rows] == [("control", ("ledger",))] * 3
        assert eventually(lambda: shop.decide(user)["degraded"] == [], 20.0)


@pytest.mark.parametrize("comes_back", [False, True], ids=["stays away", "comes back before"])
def test_who_is_erased_during_an_outage_is_not_brought_back(
    shop: Shop, tmp_path: Path, comes_back: bool
) -> None:
    user = shop.users(held=False)[0]
    shop.decide(user)
    with ledger_down(shop, tmp_path):
        told = shop.decide(user)
        shop.service.outage._stop.set()
        shop.service.outage._thread.join()
    shop.ledger.begin_erasure(user, "test", "asked for it")
    back = {user: shop.ledger.pseudonym(user)} if comes_back else {}
    assert shop.service.outage.hand_over() == 1
    assert shop.ledger.decision(told["decision_id"]) is None
    assert shop.ledger.resolve([user]) == back


def test_a_full_spool_turns_clients_away(built: Built, tmp_path: Path) -> None:
    with open_shop(built, tmp_path, spool_bytes=4_096) as shop:
        shop.decide("u0")
        with ledger_down(shop, tmp_path):
            answers = [shop.post("/v1/decisions", DECISION) for _ in range(20)]
            refused = [a for a in answers if a.status_code == 503]
            assert 3 < len(refused) < 20
            assert all(a.json()["degraded"] == ["ledger"] for a in answers if a.status_code == 200)
            assert {a.headers["retry-after"] for a in refused} == {"2"}
            assert refused[0].json()["detail"].startswith("ledger: does not answer, and what can be kept")
            assert (
                shop.post("/v1/outcomes", {"events": [click(c * 150) for c in "abcdefghijkl"]}).status_code
                == 503
            )
        assert eventually(lambda: not list((tmp_path / "spool").glob("*.jsonl")))
        assert len(shop.ledger.decision_outcomes()) == 1 + len(answers) - len(refused)


def test_a_torn_line_of_a_dead_replica_does_not_hold_up_the_rest(shop: Shop, tmp_path: Path) -> None:
    with ledger_down(shop, tmp_path):
        told = shop.decide("u0")
        shop.service.outage.close()
        (left,) = (tmp_path / "spool").glob("*.jsonl")
        with left.open("ab") as file:
            file.write(b'{"kind": "decision", "decision_id": "cut o')
    with open_shop(shop.built, tmp_path):
        assert eventually(lambda: not list((tmp_path / "spool").glob("*.jsonl")))
    assert shop.log(told["decision_id"]).decision.action_id == "control"


def test_without_a_ledger_what_needs_it_says_when_to_return(shop: Shop, tmp_path: Path) -> None:
    shop.decide("u0")
    with ledger_down(shop, tmp_path):
        response = shop.ask("GET", "/v1/strategies")
        assert response.status_code == 503
        assert response.headers["retry-after"] == "1"
        assert response.headers["content-type"] == "application/problem+json"
        assert response.json()["detail"].startswith("ledger:")
        health(shop)
    time.sleep(DOWN_S)
    assert shop.decide("u0")["degraded"] == []


def health(shop: Shop) -> None:
    assert shop.ask("GET", "/healthz").status_code == 200
    with pytest.raises(LedgerUnavailableError):
        shop.ledger.versions()
    shop.gateway.watcher._seen_at -= 60.0
    assert "ledger" in shop.ask("GET", "/healthz").json()["degraded"]


def test_health_says_what_is_missing(shop: Shop) -> None:
    health = shop.ask("GET", "/healthz").json()
    assert health == {
        "status": "ready", "model_version": shop.built.model, "policy_version": shop.built.policy,
        "degraded": [],
    }  # fmt: skip
    shop.ledger.stop_policy("test", "test")
    shop.refresh()
    health = shop.ask("GET", "/healthz").json()
    assert (health["status"], health["degraded"]) == ("degraded", ["policy"])


ROUTES = [
    ("POST", "/v1/decisions", "decide"),
    ("POST", "/v1/outcomes", "outcomes"),
    ("POST", "/v1/effects", "read"),
    ("POST", "/v1/briefs", "write"),
    ("GET", "/v1/briefs/b", "read"),
    ("GET", "/v1/briefs/b/events", "read"),
    ("DELETE", "/v1/briefs/b", "write"),
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

    assert eventually(lambda: ask(None).status_code == 401), "the first key counts before long"
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
    assert eventually(lambda: ask(f"Bearer {right}").status_code == 401), "before long"
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
        assert eventually(lambda: shop.gateway.watcher.state.versions.shadow_price == 0.125)
        elsewhere.set_strategy_state("s0", StrategyState.PAUSED, "test", "test")
        assert eventually(lambda: "s0" not in shop.gateway.watcher.state.strategies)
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
    assert eventually(lambda: shop.decide(user)["degraded"] == ["killed"])


def test_a_watcher_outlives_what_it_cannot_use(built: Built, tmp_path: Path) -> None:
    ledger = built.open_ledger(tmp_path)
    fail = [False]

    def adopt(_: Any) -> None:
        if fail[0]:
            raise OSError("the disk is full")

    watcher = Watcher(ledger, built.snapshot.catalogue, GUARD, adopt)
    before, fail[0] = watcher.state, True
    ledger.set_versions(shadow_price=0.5)
    time.sleep(0.6)
    assert watcher.state is before
    fail[0] = False
    assert eventually(lambda: watcher.state.versions.shadow_price == 0.5)
    watcher.close()
    ledger.close()


def test_without_a_model_the_predictor_says_so(built: Built, tmp_path: Path) -> None:
    ledger = built.open_ledger(tmp_path)
    ledger.set_versions(model=NO_VERSION)
    predictor = open_predictor(built, ledger, AppArgs(workspace=built.workspace.root))
    with pytest.raises(NoModelError, match="no model is registered; run `qiance run` first"):
        predictor.score([ScoreRequest("u0", 0, datetime.now(UTC), True)])
    predictor.close()
    ledger.close()


def test_surfaces_do_not_fill_the_memory() -> None:
    metrics = GatewayMetrics()
    for n in range(MAX_SURFACES + 10):
        metrics.decided(f"surface {n}", holdout=False, degraded=("killed",), seconds=0.01)
    assert metrics._known("surface 0") == "surface 0"
    assert metrics._known("one more") == OTHER
    metrics.recorded(accepted=1, duplicates=0, rejected=2, degraded=("ledger",))


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


def test_every_part_that_an_answer_lacks_is_counted(shop: Shop) -> None:
    """The last day of an offer is not known once its strategy ended: a repeated answer lacks its words."""
    dated = ("s1", "s3")
    for n, user in enumerate(shop.users(held=False)):
        first = shop.decide(user, request_id=f"r{n}")
        if first["actions"][0]["strategy_id"] in dated:
            break
    for name in dated:
        shop.ledger.set_strategy_state(name, StrategyState.ENDED, "test", "test")
    shop.refresh()
    again = shop.decide(user, request_id=f"r{n}")
    assert again["actions"][0]["creative"] is None
    assert again["degraded"] == ["repeated", "words"]
    assert [told for _, _, told, _ in shop.metrics.decisions[-2:]] == [(), ("repeated", "words")]
