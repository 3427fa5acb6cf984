"""Users over HTTP: consent, shop events and erasure, on a real ledger and real files."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from urllib.parse import quote

import httpx
import pyarrow as pa
import pytest

from qiance.data.store import write_parquet
from qiance.domain import Catalogue, Item, Purpose
from qiance.features.packed import RowLayout
from qiance.features.partition import Partition
from qiance.features.rows import Row, SqliteRows, field_of, partition_of
from qiance.guard import Guard
from qiance.ledger import Ledger, Scope
from qiance.privacy import Eraser, erase_packed_sqlite, workspace_lock
from qiance.workspace import Workspace
from serve.args import AppArgs
from serve.gateway import Gateway, build_api
from serve.live import Watcher
from serve.people import PeopleService

KEY = b"a key that only tests use, 32 b."
PROJECT = "shop"
LAYOUT = RowLayout.of("user_session", [("events", "Float64")])
BOTH = {"personalisation": True, "learning": True}


@dataclass
class Publisher:
    """Writes a row per user into the packed store, as the real one does; can be slow or broken."""

    rows: SqliteRows
    seen: list[list[str]] = field(default_factory=list)
    error: Exception | None = None
    before: Any = None

    def publish(self, user_ids: list[str], at: datetime) -> None:
        self.seen.append(user_ids)
        if self.before is not None:
            self.before()
        if self.error is not None:
            raise self.error
        moment = int(at.timestamp() * 1e6)
        value = LAYOUT.pack(moment, moment, {"events": 1.0})
        self.rows.put([Row(partition_of("user_id", u), field_of("user_session"), value) for u in user_ids])


@dataclass
class People:
    """The API over a workspace with one table; asked over HTTP without sockets."""

    workspace: Workspace
    ledger: Ledger
    publisher: Publisher
    service: PeopleService
    gateway: Gateway

    def ask(self, method: str, path: str, client: str = "127.0.0.1", **request: Any) -> httpx.Response:
        return asyncio.run(self.ask_all([(method, path, request)], client))[0]

    async def ask_all(
        self, requests: Sequence[tuple[str, str, dict[str, Any]]], client: str = "127.0.0.1"
    ) -> list[httpx.Response]:
        api = build_api(lambda: self.gateway, self.gateway.args.max_body_bytes)
        transport = httpx.ASGITransport(app=api, client=(client, 50_000))
        async with httpx.AsyncClient(transport=transport, base_url="http://shop") as http:
            return await asyncio.gather(*(http.request(m, path, **given) for m, path, given in requests))

    def consent(self, user: str, **purposes: bool) -> None:
        answer = self.ask("PUT", f"/v1/users/{quote(user, safe='')}/consent", json={"purposes": purposes})
        assert answer.status_code == 200, answer.text

    def send(self, *events: dict[str, Any], status: int = 202) -> dict[str, Any]:
        answer = self.ask("POST", "/v1/events", json={"events": list(events)})
        assert answer.status_code == status, answer.text
        return dict(answer.json())

    def online(self, user: str) -> int:
        return len(Partition(*self.publisher.rows.get([partition_of("user_id", user)])))


def event(number: int, user: str = "alice", **changes: Any) -> dict[str, Any]:
    given = {
        "event_id": f"e{number}",
        "user_id": user,
        "type": "view",
        "item_id": "i0",
        "occurred_at": "2026-05-04T10:15:00Z",
    }
    return {key: value for key, value in (given | changes).items() if value is not None}


@pytest.fixture
def people(tmp_path: Path) -> Iterator[People]:
    workspace = Workspace(tmp_path)
    write_parquet(pa.table({"user_id": ["alice", "bob", "a/b"]}), workspace.data / "users.parquet")
    ledger = Ledger.open(workspace.ledger_url, key=KEY)
    file = workspace.features / "online.db"
    file.parent.mkdir()
    publisher = Publisher(SqliteRows(file, PROJECT))
    publisher.rows.create()
    catalogue = Catalogue((Item("i0", "Coffee", "coffee", "grocery", "National", 400, 200),))
    service = PeopleService(
        ledger,
        Eraser(ledger, workspace, lambda user_id: erase_packed_sqlite(file, PROJECT, user_id)),
        publisher,
        known_item=lambda item_id: item_id in catalogue.index,
        profile=_never,
    )
    watcher = Watcher(ledger, catalogue, Guard.load())
    gateway = Gateway(
        args=AppArgs(workspace=tmp_path),
        ledger=ledger,
        watcher=watcher,
        desk=_Nothing(),  # type: ignore[arg-type]
        effects=_never,
        wake=lambda: None,
        metrics=object(),  # type: ignore[arg-type]
        people=service,
    )
    yield People(workspace, ledger, publisher, service, gateway)
    watcher.close()
    publisher.rows.close()
    ledger.close()


class _Nothing:
    """Nothing is decided here."""

    def decide(self, *_: Any) -> Any:
        raise AssertionError("nothing is decided here")


async def _never(*_: Any) -> Any:
    raise AssertionError("nothing is decided here")


def test_consent_is_what_was_said_last(people: People) -> None:
    path = "/v1/users/alice/consent"
    assert people.ask("GET", path).json() == {"purposes": {"personalisation": False, "learning": False}}
    assert people.ledger.resolve(["alice"]) == {}, "asking makes nobody known"
    answer = people.ask("PUT", path, json={"purposes": {"personalisation": True}})
    assert answer.json() == {"purposes": {"personalisation": True, "learning": False}}
    people.consent("alice", learning=True)
    people.consent("alice", personalisation=False)
    assert people.ask("GET", path).json() == {"purposes": {"personalisation": False, "learning": True}}
    assert [change.by for change in people.ledger.consent_history("alice")] == ["loopback"] * 3


def test_the_history_names_the_key(people: People) -> None:
    token = people.ledger.create_key("hotline", [Scope.PRIVACY])
    answer = people.ask(
        "PUT",
        "/v1/users/alice/consent",
        json={"purposes": {"learning": True}},
        headers={"Authorization": f"Bearer {token}"},
    )
    assert answer.status_code == 200
    assert [change.by for change in people.ledger.consent_history("alice")] == ["hotline"]


@pytest.mark.parametrize(
    ("method", "path", "body", "scope"),
    [
        ("PUT", "/v1/users/alice/consent", {"purposes": {"learning": True}}, Scope.PRIVACY),
        ("GET", "/v1/users/alice/consent", None, Scope.PRIVACY),
        ("DELETE", "/v1/users/alice", None, Scope.PRIVACY),
        ("GET", "/v1/erasures/none", None, Scope.PRIVACY),
        ("POST", "/v1/events", {"events": [event(1)]}, Scope.EVENTS),
    ],
)
def test_each_route_has_its_scope(people: People, method: str, path: str, body: Any, scope: Scope) -> None:
    others = [each for each in Scope if each not in (scope, Scope.ADMIN)]
    wrong, right = (people.ledger.create_key(name, s) for name, s in (("w", others), ("r", [scope])))
    request = {} if body is None else {"json": body}
    for token, statuses in ((None, {401}), (wrong, {403}), (right, {200, 202, 404})):
        headers = {} if token is None else {"Authorization": f"Bearer {token}"}
        answer = people.ask(method, path, headers=headers, **request)
        assert answer.status_code in statuses, answer.text
    assert people.ask(method, path, client="10.0.0.9", **request).status_code == 401


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({"purposes": {}}, "purposes"),
        ({"purposes": {"spam": True}}, "purposes.spam"),
        ({"purposes": {"learning": "yes"}}, "purposes.learning"),
        ({"purposes": {"learning": True}, "by": "me"}, "by"),
        ({}, "purposes"),
    ],
)
def test_bad_consent_is_told(people: People, body: Any, field: str) -> None:
    answer = people.ask("PUT", "/v1/users/alice/consent", json=body)
    assert answer.status_code == 422
    assert answer.headers["content-type"] == "application/problem+json"
    assert answer.json()["errors"][0]["field"].startswith(field)


def test_a_body_must_be_json_of_one_meaning(people: People) -> None:
    text = '{"purposes": {"learning": true, "learning": false}}'
    for kind, status in (("application/json", 422), ("text/plain", 415)):
        answer = people.ask("PUT", "/v1/users/a/consent", content=text, headers={"Content-Type": kind})
        assert answer.status_code == status
    assert people.ledger.resolve(["a"]) == {}


def test_events_are_stored_and_shown(people: People) -> None:
    people.consent("alice", **BOTH)
    answer = people.send(
        event(1),
        event(1),
        event(2, item_id="i9"),
        event(3, "bob"),
        event(4, type="search", item_id=None, query="coffee"),
        event(5, type="search", item_id=None),
        event(6, item_id="i9", type="cart", value=5),
        event(7, type="purchase", value=399),
    )
    rejected = answer.pop("rejected")
    assert answer == {"accepted": 3, "duplicates": 1, "without_consent": 1, "visible": True}
    assert [(r["index"], r["code"]) for r in rejected] == [
        (2, "unknown_item"), (5, "invalid"), (6, "unknown_item"),
    ]  # fmt: skip
    assert people.publisher.seen == [["alice"]]
    assert (people.online("alice"), people.online("bob")) == (1, 0)
    assert people.send(event(1))["duplicates"] == 1
    assert people.publisher.seen == [["alice"]] * 2, "a repeat shows them again, should the first have failed"


def test_nothing_is_published_of_who_did_not_agree(people: People) -> None:
    assert people.send(event(1, "bob")) == {
        "accepted": 0, "duplicates": 0, "without_consent": 1, "rejected": [], "visible": True,
    }  # fmt: skip
    assert people.publisher.seen == []


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"type": "stare"}, "events.0.type"),
        ({"occurred_at": "2026-05-04T10:15:00"}, "events.0.occurred_at"),
        ({"value": -1}, "events.0.value"),
        ({"value": 1.5}, "events.0.value"),
        ({"user_id": "a\nb"}, "events.0.user_id"),
        ({"query": "x" * 257}, "events.0.query"),
        ({"device": "x"}, "events.0.device"),
    ],
)
def test_bad_events_are_told(people: People, changes: dict[str, Any], field: str) -> None:
    answer = people.send(event(1, **changes), status=422)
    assert answer["errors"][0]["field"] == field


def test_too_many_events_at_once(people: People) -> None:
    answer = people.send(*(event(n) for n in range(1_001)), status=422)
    assert answer["errors"][0]["field"] == "events"


@pytest.mark.parametrize("trouble", ["broken", "slow"])
def test_events_are_safe_when_they_cannot_be_shown(people: People, trouble: str) -> None:
    people.consent("alice", **BOTH)
    release = threading.Event()
    if trouble == "broken":
        people.publisher.error = ConnectionError("no answer")
    else:
        people.service._publish_timeout_s = 0.1
        people.publisher.before = lambda: release.wait(5.0)
    started = time.perf_counter()
    # The loop of asyncio.run waits for threads at its end: the answer itself is timed inside.
    took: list[float] = []

    async def one() -> httpx.Response:
        answer = (await people.ask_all([("POST", "/v1/events", {"json": {"events": [event(1)]}})]))[0]
        took.append(time.perf_counter() - started)
        release.set()
        return answer

    answer = asyncio.run(one())
    assert (answer.status_code, answer.json()["accepted"], answer.json()["visible"]) == (202, 1, False)
    assert took[0] < 3.0
    assert len(people.ledger.recent_events(["alice"], datetime(2026, 1, 1, tzinfo=UTC))["alice"]) == 1


def test_an_erased_user_is_gone_and_followed(people: People) -> None:
    people.consent("alice", **BOTH)
    people.send(event(1))
    answer = people.ask("DELETE", "/v1/users/alice", params={"reason": "asked by letter"})
    report = answer.json()
    assert (answer.status_code, report["state"], report["problems"]) == (200, "done", [])
    assert report["removed"]["shop_events"] == report["removed"]["online"] == report["removed"]["data"] == 1
    assert "alice" not in answer.text
    again = people.ask("GET", f"/v1/erasures/{report['erasure_id']}")
    assert (again.status_code, again.json()) == (200, report)
    held = [
        path for path in people.workspace.root.rglob("*") if path.is_file() and b"alice" in path.read_bytes()
    ]
    assert held == []
    assert people.send(event(2))["without_consent"] == 1
    assert people.ask("GET", "/v1/erasures/nope").status_code == 404
    line = people.ledger.audit_lines()[0]
    assert (line.by, line.detail["reason"]) == ("loopback", "asked by letter")


def test_a_long_erasure_goes_on_behind_the_answer(people: People) -> None:
    people.consent("alice", **BOTH)
    people.service._erase_timeout_s = 0.05

    async def story() -> tuple[httpx.Response, list[str]]:
        with workspace_lock(people.workspace.root):  # somebody rebuilds the files
            first = (await people.ask_all([("DELETE", "/v1/users/alice", {})]))[0]
        states = []
        for _ in range(200):
            answer = (await people.ask_all([("GET", first.headers["Location"], {})]))[0]
            states.append(answer.json()["state"])
            if answer.status_code == 200:
                break
            await asyncio.sleep(0.05)
        return first, states

    first, states = asyncio.run(story())
    assert (first.status_code, first.json()["state"]) == (202, "pending")
    assert int(first.headers["Retry-After"]) > 0
    assert people.ledger.resolve(["alice"]) == {}, "in the ledger it holds at once"
    assert states[-1] == "done"


def test_a_failed_erasure_is_tried_again(people: People, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("serve.people._AGAIN_AFTER_S", (0.05,) * 5)
    broken = people.workspace.data / "broken.parquet"
    broken.write_bytes(b"half a file")

    async def story() -> tuple[httpx.Response, httpx.Response]:
        first = (await people.ask_all([("DELETE", "/v1/users/alice", {})]))[0]
        broken.unlink()
        last = first
        for _ in range(100):
            last = (await people.ask_all([("GET", first.headers["Location"], {})]))[0]
            if last.status_code == 200:
                break
            await asyncio.sleep(0.05)
        return first, last

    first, last = asyncio.run(story())
    assert (first.status_code, first.json()["state"]) == (202, "pending")
    assert first.json()["problems"][0].startswith("data: ")
    assert (last.json()["state"], last.json()["problems"]) == ("done", [])


def test_a_replica_that_starts_finishes_what_is_pending(people: People) -> None:
    begun = people.ledger.begin_erasure("alice", by="another replica")
    people.service.resume()
    assert people.ask("GET", f"/v1/erasures/{begun.erasure_id}").json()["state"] == "done"


def test_who_is_erased_while_features_are_shown_does_not_come_back(people: People) -> None:
    people.consent("alice", **BOTH)
    people.publisher.before = lambda: people.ledger.erase("alice", by="another replica")
    people.send(event(1))
    assert people.publisher.seen == [["alice"]]
    assert people.online("alice") == 0


def test_any_id_can_be_named_in_a_path(people: People) -> None:
    for user in ("a/b", "a b", "小明", "a%2Fb", "x?y#z", "consent", "a/consent"):
        people.consent(user, learning=True)
        assert people.ledger.consents([user])[user] == {Purpose.LEARNING}, user
        answer = people.ask("DELETE", f"/v1/users/{quote(user, safe='')}")
        assert answer.status_code == 200, answer.text
        assert people.ledger.resolve([user]) == {}


def test_a_slash_that_is_not_encoded_means_no_user(people: People) -> None:
    people.consent("alice", learning=True)
    for method, path in (("DELETE", "/v1/users/alice/consent"), ("GET", "/v1/users/a/b/consent")):
        answer = people.ask(method, path)
        assert answer.status_code == 404, answer.text
    assert people.ledger.consents(["alice"])["alice"] == {Purpose.LEARNING}
    assert people.ledger.erasures() == []


def test_a_reason_must_not_name_the_user(people: People) -> None:
    answer = people.ask("DELETE", "/v1/users/alice", params={"reason": "alice wrote"})
    assert answer.status_code == 422
    assert "names the user" in answer.json()["detail"]
    assert people.ledger.erasures() == []


def test_a_server_without_the_service_says_so(people: People) -> None:
    people.gateway._people = None
    answer = people.ask("GET", "/v1/users/alice/consent")
    assert (answer.status_code, answer.json()["title"]) == (503, "Temporarily unavailable")
