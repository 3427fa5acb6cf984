"""Features at a decision: consent, age, cold start, a store that dies and comes back, fresh events."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from built_cases import DAYS, START, Built
from serve_cases import Shop, open_predictor, open_shop

from qiance.domain import Purpose
from qiance.features.online import OnlineReader
from qiance.ledger.schema import to_micros
from qiance.privacy import Eraser, erase_packed_sqlite
from serve.feature_store import SessionPusher, open_reader
from serve.people import PeopleService
from serve.predictor import Predictor
from serve.scoring import ScoreRequest
from serve.users import PAUSE_S
from tests.features.redis_server import RedisServer
from training.featurise import apply_definitions, materialise

NOW = START + timedelta(days=DAYS, hours=1)
REDIS_YAML = """project: qiance
provider: local
registry: registry.db
offline_store:
  type: file
online_store:
  type: feature_repo.packed_store.PackedRedisOnlineStore
  connection_string: {}
entity_key_serialization_version: 3
"""


@dataclass(frozen=True)
class One:
    """Scores of one user, a row of the batch."""

    value: Any
    admissible: Any
    degraded: tuple[str, ...]


def score(predictor: Predictor, users: Sequence[tuple[str, int]], at: datetime = NOW) -> list[One]:
    """Scores of (user, contacts), each read under the consent that the ledger has."""
    allowed = predictor.users.allowed([user for user, _ in users])
    requests = [
        ScoreRequest(user, contacts, at, bool(agrees))
        for (user, contacts), agrees in zip(users, allowed, strict=True)
    ]
    batch = predictor.score(requests)
    return [One(batch.value[u], batch.admissible[u], batch.degraded[u]) for u in range(len(users))]


def same(one: Any, other: Any) -> None:
    """Equal but for the order in which the users of a pass are added up."""
    np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-4)


def scored(predictor: Predictor, *users: str, at: Any = NOW) -> list[Any]:
    return score(predictor, [(user, 0) for user in users], at)


@pytest.fixture
def asked(built: Built, tmp_path: Path) -> Iterator[Shop]:
    """A shop that knows nobody who did not agree."""
    with open_shop(built, tmp_path, unrecorded_consent="denied") as shop:
        yield shop


def test_without_consent_a_user_is_scored_as_a_stranger(asked: Shop) -> None:
    asked.ledger.set_consent("u1", {Purpose.PERSONALISATION: True}, "test")
    asked.ledger.set_consent("u2", {Purpose.PERSONALISATION: False}, "test")
    known, refused, never_asked, stranger = scored(asked.predictor, "u1", "u2", "u3", "nobody")
    assert known.degraded == ()
    assert refused.degraded == never_asked.degraded == stranger.degraded == ("no_consent",)
    same(refused.value, stranger.value)
    np.testing.assert_array_equal(refused.admissible, stranger.admissible)
    assert np.abs(known.value - refused.value).max() > 0.01


def test_contacts_of_who_did_not_agree_do_not_count(asked: Shop) -> None:
    asked.ledger.set_consent("u1", {Purpose.PERSONALISATION: True}, "test")
    users = [(user, contacts) for user in ("u1", "u2") for contacts in (0, 6)]
    mine_rested, mine_tired, rested, tired = score(asked.predictor, users)
    assert np.abs(mine_rested.value - mine_tired.value).max() > 0.01
    same(rested.value, tired.value)


def test_planning_takes_who_withdrew_for_an_average_user(asked: Shop) -> None:
    asked.ledger.set_consent("u1", {Purpose.PERSONALISATION: True}, "test")
    actions = asked.predictor._watcher.state.actions[1:]
    found = asked.predictor.predict(["u1", "u2", "u3"], actions)
    assert np.abs(found.margin[0] - found.margin[1]).max() > 0.01
    same(found.margin[1], found.margin[2])


def test_consent_that_is_withdrawn_holds_from_the_next_decision_on(asked: Shop) -> None:
    asked.ledger.set_consent("u1", {Purpose.PERSONALISATION: True}, "test")
    assert "no_consent" not in asked.decide("u1")["degraded"]
    asked.ledger.set_consent("u1", {Purpose.PERSONALISATION: False}, "test")
    assert "no_consent" in asked.decide("u1")["degraded"]


def test_effects_and_decisions_are_under_the_same_consent(asked: Shop) -> None:
    answer = asked.post("/v1/effects", {"user_ids": ["u1"], "actions": ["s0-email"]}).json()
    assert answer["degraded"] == ["no_consent:u1"]


def test_what_is_too_old_is_not_used_and_that_is_told(shop: Shop) -> None:
    fresh, stranger = scored(shop.predictor, "u1", "nobody")
    assert (fresh.degraded, stranger.degraded) == ((), ("cold_start",))
    later = NOW + timedelta(days=130)
    old, old_stranger = scored(shop.predictor, "u1", "nobody", at=later)
    assert old.degraded == ("stale_features", "cold_start_item")
    same(old.value, old_stranger.value)
    assert not np.array_equal(old.value, fresh.value)


def test_an_item_without_a_row_has_its_categorys_values_and_is_named(built: Built, tmp_path: Path) -> None:
    folder = tmp_path / "features"
    shutil.copytree(built.workspace.features, folder)
    reader = open_reader(folder, 0.2)
    reader.erase("item_id", "i0")
    with open_shop(built, tmp_path) as shop:
        predictor = open_predictor(built, shop.ledger, shop.gateway.args, reader)
        (found,) = scored(predictor, "u1")
        assert found.degraded == ("cold_start_item",)
        assert np.isfinite(found.value).all()
        _, values = predictor.items.at(to_micros(NOW))
        assert np.isfinite(values["price"]).all()
        predictor.close()


def test_items_are_worked_out_once_and_yet_never_used_past_their_age(shop: Shop) -> None:
    predictor, now = shop.predictor, to_micros(NOW)

    def price(at: int) -> Any:
        return predictor.items.at(at)[1]["price"]

    first = predictor._current(now)
    assert predictor._current(now + 1_000_000) is first
    ttl = shop.built.reader.views["item_state"].ttl_us
    assert ttl is not None
    last = to_micros(shop.built.snapshot.as_of) + ttl
    np.testing.assert_array_equal(price(last), price(now))
    assert not np.array_equal(price(last + 1), price(now))
    assert predictor._current(last) is first
    after = predictor._current(last + 1)
    assert after is not first
    assert after.items != first.items
    assert predictor._current(now).items == first.items
    again = predictor._current(now)
    assert predictor.items.refresh()
    assert predictor._current(now) is again, "what is the same is not worked out anew"


def on_redis(built: Built, folder: Path, server: RedisServer) -> OnlineReader:
    """The shop's features once more, online in Redis."""
    shutil.copytree(built.workspace.features, folder)
    (folder / "feature_store.yaml").write_text(REDIS_YAML.format(server.connection))
    (folder / "registry.db").unlink()
    apply_definitions(folder)
    materialise(folder, built.snapshot.as_of)
    return open_reader(folder, 0.5)


def eventually(check: Callable[[], bool], seconds: float) -> bool:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if check():
            return True
        time.sleep(0.05)
    return check()


def test_decisions_go_on_while_redis_is_gone_and_are_fresh_when_it_is_back(
    built: Built, tmp_path: Path, redis_server: RedisServer, caplog: pytest.LogCaptureFixture
) -> None:
    reader = on_redis(built, tmp_path / "features", redis_server)
    with open_shop(built, tmp_path) as shop:
        predictor = open_predictor(built, shop.ledger, shop.gateway.args, reader)
        before, stranger = scored(predictor, "u1", "nobody")
        assert before.degraded == ()
        redis_server.kill()
        started = time.monotonic()
        during, unknown = scored(predictor, "u1", "nobody")
        assert time.monotonic() - started < 10.0, "the wait for a dead store is bounded"
        assert during.degraded[0] == "feature_snapshot"
        assert unknown.degraded[0] == "feature_defaults"
        np.testing.assert_array_equal(during.value, before.value)
        np.testing.assert_array_equal(unknown.value, stranger.value)
        started = time.monotonic()
        for _ in range(50):
            scored(predictor, "u1")
        asked = sum("users are read from the snapshot" in record.message for record in caplog.records)
        assert asked <= 2 + (time.monotonic() - started) / PAUSE_S, "a dead store is not asked every time"
        assert eventually(lambda: "item_snapshot" in scored(predictor, "u1")[0].degraded, 30.0)
        redis_server.start()
        assert eventually(lambda: scored(predictor, "u1")[0].degraded == (), 30.0)
        predictor.close()


def test_a_snapshot_past_its_age_is_no_stand_in(
    built: Built, tmp_path: Path, redis_server: RedisServer
) -> None:
    reader = on_redis(built, tmp_path / "features", redis_server)
    with open_shop(built, tmp_path) as shop:
        predictor = open_predictor(built, shop.ledger, shop.gateway.args, reader)
        redis_server.kill()
        (found,) = scored(predictor, "u1", at=NOW + timedelta(days=130))
        assert found.degraded[0] == "feature_defaults"
        predictor.close()


def test_a_consent_ledger_that_is_down_means_no_consent(built: Built, tmp_path: Path) -> None:
    with open_shop(built, tmp_path) as shop:
        assert scored(shop.predictor, "u1")[0].degraded == ()
        path = tmp_path / "ledger.db"
        hidden = tmp_path / "hidden"
        shop.ledger.engine.dispose()
        path.rename(hidden)
        path.mkdir()  # what cannot be opened as a database
        assert scored(shop.predictor, "u1")[0].degraded[0] == "no_consent"
        path.rmdir()
        hidden.rename(path)


@dataclass
class Visited:
    """A shop whose events are pushed into its own copy of the features."""

    shop: Shop
    predictor: Predictor

    def post(self, *events: dict[str, Any]) -> dict[str, Any]:
        at = NOW.isoformat()
        body = {"events": [{"occurred_at": at, **event} for event in events]}
        answer = self.shop.post("/v1/events", body)
        assert answer.status_code == 202, answer.text
        return dict(answer.json())

    def features(self, user: str) -> dict[str, dict[str, Any]]:
        answer = self.shop.ask("GET", f"/v1/users/{user}/features")
        assert answer.status_code == 200, answer.text
        return {"/".join([row["view"], *row["keys"]]): row for row in answer.json()["rows"]}


@pytest.fixture
def visited(built: Built, tmp_path: Path) -> Iterator[Visited]:
    folder = tmp_path / "features"
    shutil.copytree(built.workspace.features, folder)
    with open_shop(built, tmp_path, unrecorded_consent="denied") as shop:
        # The ledger's clock is the shop's, so that what is received now is not from another year.
        shop.ledger._now = shop.gateway.args.now
        predictor = open_predictor(built, shop.ledger, shop.gateway.args, open_reader(folder, 0.2))

        online = folder / "online.db"

        async def profile(user_id: str) -> Any:
            return predictor.describe(user_id)

        workspace = replace(built.workspace, root=tmp_path / "nothing")
        shop.gateway._people = PeopleService(
            shop.ledger,
            Eraser(shop.ledger, workspace, lambda user: erase_packed_sqlite(online, "qiance", user)),
            SessionPusher(shop.ledger, folder, frozenset()),
            known_item=built.snapshot.catalogue.index.__contains__,
            profile=profile,
            now=shop.gateway.args.now,
            publish_timeout_s=10.0,
        )
        shop.ledger.set_consent("u1", dict.fromkeys(Purpose, True), "test")
        yield Visited(shop, predictor)
        predictor.close()


def test_an_event_is_part_of_the_next_decision(visited: Visited) -> None:
    assert visited.features("u1")["user_session"]["status"] == "missing"
    visited.post({"event_id": "first", "user_id": "u1", "type": "view", "item_id": "i0"})
    started = time.monotonic()
    answer = visited.post(
        {"event_id": "a", "user_id": "u1", "type": "view", "item_id": "i1"},
        {"event_id": "b", "user_id": "u1", "type": "cart", "item_id": "i1"},
        {"event_id": "b", "user_id": "u1", "type": "cart", "item_id": "i1"},
    )
    row = visited.features("u1")["user_session"]
    assert time.monotonic() - started < 1.0, "visible within a second"
    assert (answer["accepted"], answer["duplicates"], answer["visible"]) == (2, 1, True)
    assert row["status"] == "present"
    assert (row["values"]["session_views"], row["values"]["session_carts"]) == (2.0, 1.0)
    now_us = np.array([to_micros(NOW + timedelta(seconds=5))])
    read = visited.predictor.users.read(["u1"], [], now_us, np.array([True]))
    assert read.known.columns["session_carts"].tolist() == [1.0]
    assert read.known.columns["session_items"].tolist() == [2.0]


def test_events_of_who_did_not_agree_are_not_kept(visited: Visited) -> None:
    answer = visited.post({"event_id": "x", "user_id": "u2", "type": "view", "item_id": "i0"})
    assert (answer["accepted"], answer["without_consent"]) == (0, 1)
    found = visited.features("u2")
    assert {row["status"] for row in found.values()} == {"withheld"}
    assert not any(row["values"] for row in found.values())


def test_an_erased_user_is_a_stranger_at_the_next_decision(visited: Visited) -> None:
    visited.post({"event_id": "x", "user_id": "u1", "type": "view", "item_id": "i0"})
    assert visited.features("u1")["user_profile"]["status"] == "present"
    answer = visited.shop.ask("DELETE", "/v1/users/u1")
    assert answer.status_code in (200, 202), answer.text
    visited.shop.ledger.set_consent("u1", dict.fromkeys(Purpose, True), "came back")
    found = visited.features("u1")
    assert {name: row["status"] for name, row in found.items()} == {
        "user_profile": "missing", "user_session": "missing", "user_exposure": "missing",
        "user_search": "missing",
    }  # fmt: skip
    assert scored(visited.predictor, "u1")[0].degraded == ("cold_start",)


def test_a_users_rows_are_told_view_by_view(visited: Visited) -> None:
    found = visited.features("u1")
    profile = found["user_profile"]
    assert profile["status"] == "present"
    row = visited.shop.built.snapshot.users.user_ids.index("u1")
    recency = visited.shop.built.snapshot.users.columns["recency_days"][row]
    assert profile["values"]["recency_days"] == recency
    assert any(name.startswith("user_category/") for name in found)
