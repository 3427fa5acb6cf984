"""The bank of words over HTTP: nothing gets in or is approved past the guard, and who did it is known."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from qiance.domain import Catalogue, CreativeState, Item
from qiance.guard import Guard
from qiance.ledger import Ledger, Scope
from qiance.workspace import Workspace
from serve.args import AppArgs
from serve.gateway import Gateway, build_api
from serve.live import Watcher

CATALOGUE = Catalogue((Item("i0", "Coffee", "coffee", "grocery", "National", 400, 200),))
WORDS = {
    "channel": "email",
    "language": "en",
    "headline": "Coffee for slow mornings",
    "body": "A cup of {product} keeps you company.",
    "call_to_action": "Shop now",
    "item_id": "i0",
}
UNTRUE = {**WORDS, "body": "The best {product} in the world, guaranteed to cure you."}


class _Nothing:
    """Nothing is decided here."""

    def decide(self, *_: Any) -> Any:
        raise AssertionError("nothing is decided here")


class Bank:
    """The API over a ledger; asked over HTTP without sockets."""

    def __init__(self, folder: Path) -> None:
        self.ledger = Ledger.open(Workspace(folder).ledger_url, key=b"a key that only tests use, 32 b.")
        self.watcher = Watcher(self.ledger, CATALOGUE, Guard.load())
        unused: Any = _Nothing()
        self.gateway = Gateway(
            AppArgs(workspace=folder), self.ledger, self.watcher, unused, unused, lambda _: None, unused
        )

    def ask(self, method: str, path: str, **request: Any) -> httpx.Response:
        async def once() -> httpx.Response:
            api = build_api(lambda: self.gateway, self.gateway.args.max_body_bytes)
            transport = httpx.ASGITransport(app=api, client=("127.0.0.1", 50_000))
            async with httpx.AsyncClient(transport=transport, base_url="http://shop") as http:
                return await http.request(method, path, **request)

        return asyncio.run(once())

    def add(self, words: dict[str, Any]) -> dict[str, Any]:
        answer = self.ask("POST", "/v1/creatives", json=words)
        assert answer.status_code in (200, 201), answer.text
        return dict(answer.json())

    def move(self, creative_id: str, verb: str, reason: str = "as agreed") -> httpx.Response:
        return self.ask("POST", f"/v1/creatives/{creative_id}/{verb}", json={"reason": reason})


@pytest.fixture
def bank(tmp_path: Path) -> Iterator[Bank]:
    found = Bank(tmp_path)
    yield found
    found.watcher.close()
    found.ledger.close()


def test_words_are_added_approved_and_retired(bank: Bank) -> None:
    added = bank.add(WORDS)
    assert (added["state"], added["verdict"], added["creative"]["source"]) == ("draft", "pass", "person")
    name = added["creative_id"]
    approved = bank.move(name, "approve")
    assert approved.json()["state"] == "approved"
    assert set(bank.ledger.approved_creatives()) == {name}
    assert [one["creative_id"] for one in bank.ask("GET", "/v1/creatives?state=approved").json()] == [name]
    assert bank.ask("GET", "/v1/creatives?state=draft").json() == []
    assert bank.move(name, "retire").json()["state"] == "retired"
    assert bank.ledger.approved_creatives() == {}
    again = bank.move(name, "approve")
    assert again.status_code == 409
    assert "is retired" in again.json()["detail"]
    assert bank.move(name, "retire").status_code == 409


def test_the_same_words_are_kept_once_and_in_their_state(bank: Bank) -> None:
    first = bank.ask("POST", "/v1/creatives", json=WORDS)
    assert first.status_code == 201
    bank.move(first.json()["creative_id"], "approve")
    second = bank.ask("POST", "/v1/creatives", json=WORDS)
    assert (second.status_code, second.json()["state"]) == (200, "approved")
    assert len(bank.ledger.creatives()) == 1


def test_what_is_blocked_is_shown_and_never_approved(bank: Bank) -> None:
    added = bank.add(UNTRUE)
    assert added["verdict"] == "block"
    assert all(finding["rule"] and finding["source"] for finding in added["findings"])
    refused = bank.move(added["creative_id"], "approve")
    assert refused.status_code == 409
    assert added["findings"][0]["rule"] in refused.json()["detail"]
    assert bank.ledger.approved_creatives() == {}


def test_words_are_linted_again_when_they_are_approved(bank: Bank, tmp_path: Path) -> None:
    name = bank.add(WORDS)["creative_id"]
    bank.move(name, "approve")
    own = tmp_path / "rules.yaml"
    own.write_text("brand:\n  never: {en: [slow]}\n")
    stricter = Bank(tmp_path)
    stricter.gateway.creatives._guard = Guard.load(own)
    try:
        assert stricter.move(name, "approve").status_code == 409
        entry = stricter.ledger.creative(name)
        assert entry.state is CreativeState.DRAFT, "what does not pass any more is not served"
    finally:
        stricter.watcher.close()
        stricter.ledger.close()


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"item_id": "i9"}, "item_id"),
        ({"channel": "none"}, "channel"),
        ({"language": "de"}, "language"),
        ({"offer": {"kind": "percent"}}, "offer"),
        ({"headline": "x" * 2_001}, "headline"),
        ({"source": "template"}, "source"),
        ({"starts": "2026-05-02T00:00:00Z", "ends": "2026-05-01T00:00:00Z"}, "body"),
    ],
)
def test_bad_words_are_refused_by_field(bank: Bank, changes: dict[str, Any], field: str) -> None:
    answer = bank.ask("POST", "/v1/creatives", json={**WORDS, **changes})
    assert answer.status_code == 422
    assert any(field in error["field"] for error in answer.json()["errors"]), answer.text
    assert bank.ledger.creatives() == []


@pytest.mark.parametrize("verb", ["approve", "retire"])
def test_unknown_words_and_a_missing_reason_are_refused(bank: Bank, verb: str) -> None:
    assert bank.move("email-en-0", verb).status_code == 404
    assert bank.move("email-en-0", verb, reason="").status_code == 422


def test_each_route_has_its_scope_and_the_audit_log_names_the_key(bank: Bank) -> None:
    name = bank.add(WORDS)["creative_id"]
    routes = (
        ("GET", "/v1/creatives", None, Scope.READ),
        ("POST", "/v1/creatives", WORDS, Scope.WRITE),
        ("POST", f"/v1/creatives/{name}/approve", {"reason": "fine"}, Scope.ADMIN),
    )
    for number, (method, path, body, scope) in enumerate(routes):
        others = [each for each in Scope if each not in (scope, Scope.ADMIN)]
        tokens = [bank.ledger.create_key(f"{kind}{number}", s) for kind, s in (("w", others), ("r", [scope]))]
        request = {} if body is None else {"json": body}
        statuses = [
            bank.ask(method, path, headers={"Authorization": f"Bearer {token}"}, **request).status_code
            for token in tokens
        ]
        assert statuses[0] == 403
        assert statuses[1] in (200, 201)
        assert bank.ask(method, path, **request).status_code == 401
    entry = bank.ledger.creative(name)
    assert (entry.state, entry.by) == (CreativeState.APPROVED, "r2")
