"""Hostile input: each gets a 4xx problem that names the field, and nothing gets a 500."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from built_cases import Built
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from serve_cases import Shop, open_shop

DECISIONS, OUTCOMES, EFFECTS, BRIEFS = "/v1/decisions", "/v1/outcomes", "/v1/effects", "/v1/briefs"
DECISION = {"user_id": "u0", "surface": "home"}
EVENT = {"event_id": "e", "decision_id": "d", "type": "click", "occurred_at": "2025-05-01T00:00:00Z"}
EFFECT = {"user_ids": ["u0"], "actions": ["s0-email"]}
BRIEF = {
    "objective": "margin",
    "budget": {"amount": "100.00", "currency": "USD"},
    "starts": "2025-05-01T00:00:00Z",
    "ends": "2025-05-15T00:00:00Z",
}
VALID = {DECISIONS: DECISION, OUTCOMES: {"events": [EVENT]}, EFFECTS: EFFECT, BRIEFS: BRIEF}
NOT_A_NUMBER = float("nan")


def problem(response: httpx.Response, status: int, field: str) -> dict[str, Any]:
    """The problem in `response`, which must have `status` and name `field`."""
    assert response.status_code == status, response.text
    assert response.headers["content-type"] == "application/problem+json"
    body: dict[str, Any] = response.json()
    assert body.keys() == {"type", "title", "status", "detail", "errors"}
    assert body["status"] == status
    assert body["title"]
    named = [entry["field"] for entry in body["errors"]] or [body["detail"]]
    assert any(name.startswith(field) for name in named), body
    assert len(response.content) < 50_000
    return body


def event(**changes: Any) -> dict[str, Any]:
    return {"events": [{**EVENT, **changes}]}


def brief(**changes: Any) -> dict[str, Any]:
    return {**BRIEF, **changes}


FIELDS: list[tuple[str, Any, str]] = [
    # wrong types
    (DECISIONS, {**DECISION, "user_id": 5}, "user_id"),
    (DECISIONS, {**DECISION, "user_id": None}, "user_id"),
    (DECISIONS, {**DECISION, "surface": ["home"]}, "surface"),
    (DECISIONS, {**DECISION, "n": "two"}, "n"),
    (DECISIONS, {**DECISION, "n": 1.5}, "n"),
    (DECISIONS, {**DECISION, "candidates": "i0"}, "candidates"),
    (DECISIONS, {**DECISION, "context": ["now"]}, "context"),
    (DECISIONS, {**DECISION, "context": {"hour": {"value": 3}}}, "context.hour"),
    (DECISIONS, [DECISION], "body"),
    (DECISIONS, "u0", "body"),
    (DECISIONS, None, "body"),
    (OUTCOMES, {"events": {"event_id": "e"}}, "events"),
    (OUTCOMES, event(type="purchase"), "events.0.type"),
    (OUTCOMES, event(type="conversion", value="5"), "events.0.value"),
    (OUTCOMES, event(type="conversion", value=5.5), "events.0.value"),
    (OUTCOMES, event(type="conversion", value=True), "events.0.value"),
    (OUTCOMES, event(occurred_at="yesterday"), "events.0.occurred_at"),
    (EFFECTS, {"user_ids": "u0", "actions": ["s0-email"]}, "user_ids"),
    (BRIEFS, brief(budget="100 USD"), "budget"),
    (BRIEFS, brief(budget={"amount": 12.3, "currency": "USD"}), "budget.amount"),
    (BRIEFS, brief(budget={"amount": True, "currency": "USD"}), "budget.amount"),
    (BRIEFS, brief(objective="fame"), "objective"),
    (BRIEFS, brief(channels=["none"]), "channels.0"),
    (BRIEFS, brief(channels=[]), "channels"),
    (BRIEFS, brief(languages=["fr"]), "languages.0"),
    # missing, unknown and empty
    (DECISIONS, {"surface": "home"}, "user_id"),
    (DECISIONS, {**DECISION, "userid": "u1"}, "userid"),
    (DECISIONS, {**DECISION, "\ud800": 1}, "body"),
    (DECISIONS, {**DECISION, "x" * 5_000: 1}, "x" * 79),
    (DECISIONS, {**DECISION, "user_id": ""}, "user_id"),
    (OUTCOMES, {"events": []}, "events"),
    (OUTCOMES, event(currency="USD"), "events.0.currency"),
    (EFFECTS, {**EFFECT, "actions": []}, "actions"),
    (EFFECTS, {**EFFECT, "user_ids": []}, "user_ids"),
    (EFFECTS, {"actions": ["s0-email"]}, "user_ids"),
    (EFFECTS, {**EFFECT, "segment": "all"}, "user_ids"),
    (EFFECTS, {**EFFECT, "explain": True}, "explain"),
    (BRIEFS, brief(constraints={"max_dept": 0.3}), "constraints.max_dept"),
    # unknown to the shop
    (DECISIONS, {**DECISION, "candidates": ["i0", "nothing"]}, "candidates"),
    (EFFECTS, {**EFFECT, "actions": ["s0-email", "s9-fax"]}, "actions"),
    (EFFECTS, {**EFFECT, "actions": ["control"]}, "actions"),
    (EFFECTS, {"segment": "millionaires", "actions": ["s0-email"]}, "segment"),
    (EFFECTS, {"segment": "shoe_size > 40", "actions": ["s0-email"]}, "segment"),
    (EFFECTS, {"segment": "recency_days < -1", "actions": ["s0-email"]}, "segment"),
    (BRIEFS, brief(items=["i0", "nothing"]), "items"),
    (BRIEFS, brief(budget={"amount": "100", "currency": "EUR"}), "budget.currency"),
    # out of range
    (DECISIONS, {**DECISION, "n": 0}, "n"),
    (DECISIONS, {**DECISION, "n": -1}, "n"),
    (DECISIONS, {**DECISION, "n": 10**6}, "n"),
    (DECISIONS, {**DECISION, "n": 10**4_000}, "n"),
    (DECISIONS, {**DECISION, "candidates": ["i0"] * 2_000}, "candidates"),
    (DECISIONS, {**DECISION, "context": {f"c{n}": 1 for n in range(100)}}, "context"),
    (OUTCOMES, event(type="conversion", value=-1), "events.0.value"),
    (OUTCOMES, event(type="conversion", value=10**15), "events.0.value"),
    (OUTCOMES, {"events": [{**EVENT, "event_id": f"e{n}"} for n in range(6_000)]}, "events"),
    (EFFECTS, {"user_ids": [f"u{n}" for n in range(1_000)], "actions": ["s0-email"] * 6}, "user_ids"),
    (BRIEFS, brief(budget={"amount": "-100.00", "currency": "USD"}), "budget.amount"),
    (BRIEFS, brief(budget={"amount": -100, "currency": "USD"}), "budget.amount"),
    (BRIEFS, brief(budget={"amount": 10**400, "currency": "USD"}), "budget.amount"),
    (BRIEFS, brief(budget={"amount": "1e9", "currency": "USD"}), "budget.amount"),
    (BRIEFS, brief(constraints={"max_depth": 1.0}), "constraints.max_depth"),
    (BRIEFS, brief(constraints={"min_margin": -0.5}), "constraints.min_margin"),
    (BRIEFS, brief(n=0), "n"),
    (BRIEFS, brief(ends="2025-04-01T00:00:00Z"), "ends"),
    (BRIEFS, brief(ends=BRIEF["starts"]), "ends"),
    # not a number
    (DECISIONS, {**DECISION, "context": {"hour": NOT_A_NUMBER}}, "context.hour"),
    (DECISIONS, {**DECISION, "context": {"hour": float("inf")}}, "context.hour"),
    (DECISIONS, {**DECISION, "n": NOT_A_NUMBER}, "n"),
    (OUTCOMES, event(type="conversion", value=NOT_A_NUMBER), "events.0.value"),
    (OUTCOMES, event(type="conversion", value=float("-inf")), "events.0.value"),
    (BRIEFS, brief(constraints={"max_depth": NOT_A_NUMBER}), "constraints.max_depth"),
    # text that is none
    (DECISIONS, {**DECISION, "user_id": "u" * 100_000}, "user_id"),
    (DECISIONS, {**DECISION, "request_id": "r" * 201}, "request_id"),
    (DECISIONS, {**DECISION, "surface": "s" * 201}, "surface"),
    (DECISIONS, {**DECISION, "user_id": "u\x00"}, "user_id"),
    (DECISIONS, {**DECISION, "user_id": "u\n0"}, "user_id"),
    (DECISIONS, {**DECISION, "surface": "\u202ehome"}, "surface"),
    (DECISIONS, {**DECISION, "user_id": "\ud800"}, "user_id"),
    (DECISIONS, {**DECISION, "context": {"a\x07": 1}}, "context.a\x07"),
    (OUTCOMES, event(event_id="\x1b[2J"), "events.0.event_id"),
    (BRIEFS, brief(audience="\x00"), "audience"),
    # times
    (OUTCOMES, event(occurred_at="2025-05-01T00:00:00"), "events.0.occurred_at"),
    (OUTCOMES, event(occurred_at="0001-01-01T00:00:00+14:00"), "events.0.occurred_at"),
    (OUTCOMES, event(occurred_at="9999-12-31T23:59:59-14:00"), "events.0.occurred_at"),
    (BRIEFS, brief(starts="2025-05-01T00:00:00"), "starts"),
    (BRIEFS, brief(ends="9999-12-31T23:59:59-14:00"), "ends"),
]


@pytest.mark.parametrize(("path", "body", "field"), FIELDS)
def test_a_bad_field_is_named(shared_shop: Shop, path: str, body: Any, field: str) -> None:
    content = json.dumps(body).encode()  # httpx would refuse NaN
    headers = {"content-type": "application/json"}
    problem(shared_shop.ask("POST", path, content=content, headers=headers), 422, field)


TEXTS: list[tuple[bytes, int, str]] = [
    (b"", 422, "body"),
    (b"{", 400, "body"),
    (b'{"user_id": "u0", "surface": "home",}', 400, "body"),
    (b"user_id=u0", 400, "body"),
    (b"\xef\xbb\xbf{}", 400, "body"),
    (b'{"user_id": "\xff\xfe", "surface": "home"}', 400, "body"),
    (json.dumps(DECISION).encode("utf-16"), 400, "body"),
    (b"[" * 100_000 + b"]" * 100_000, 400, "body"),
    (b'{"context": ' * 900 + b"1" + b"}" * 900, 422, "user_id"),
    (b'{"n": ' + b"9" * 5_000 + b"}", 400, "body"),
    (b'{"user_id": "u0", "user_id": "u1", "surface": "home"}', 422, "user_id"),
    (b'{"user_id": "u0", "surface": "home", "context": {"a": 1, "a": 2}}', 422, "a"),
    (b'{"user_id": "u0", "surface": "home", "context": {"a": NaN}}', 422, "context.a"),
    (b'{"user_id": "u0", "surface": "home", "context": {"a": -Infinity}}', 422, "context.a"),
    (b'{"user_id": "u0", "surface": "home", "context": {"a": 1e999}}', 422, "context.a"),
]


@pytest.mark.parametrize(("content", "status", "field"), TEXTS, ids=range(len(TEXTS)))
def test_text_that_is_no_json_is_refused(shared_shop: Shop, content: bytes, status: int, field: str) -> None:
    headers = {"content-type": "application/json"}
    problem(shared_shop.ask("POST", DECISIONS, content=content, headers=headers), status, field)


@pytest.mark.parametrize("path", VALID)
def test_ten_megabytes_are_refused_however_they_come(shared_shop: Shop, path: str) -> None:
    body = b'{"user_id": "' + b"u" * 10_000_000 + b'"}'
    headers = {"content-type": "application/json"}
    declared = shared_shop.ask("POST", path, content=body, headers=headers)
    assert "1048576 bytes" in problem(declared, 413, "body")["detail"]

    async def chunks() -> AsyncIterator[bytes]:
        for start in range(0, len(body), 65_536):
            yield body[start : start + 65_536]

    streamed = asyncio.run(shared_shop.ask_all([("POST", path, {"content": chunks(), "headers": headers})]))[
        0
    ]
    problem(streamed, 413, "body")


@pytest.mark.parametrize("length", ["-1", "ten", "99999999999999999999"])
def test_a_false_length_is_refused(shared_shop: Shop, length: str) -> None:
    headers = {"content-type": "application/json", "content-length": length}
    assert shared_shop.ask("POST", DECISIONS, content=b"{}", headers=headers).status_code == 413


@pytest.mark.parametrize("kind", ["text/plain", "application/x-www-form-urlencoded", "json", ""])
def test_another_media_type_is_refused(shared_shop: Shop, kind: str) -> None:
    content = json.dumps(DECISION).encode()
    response = shared_shop.ask("POST", DECISIONS, content=content, headers={"content-type": kind})
    problem(response, 415, "Content-Type")


@pytest.mark.parametrize("path", VALID)
@pytest.mark.parametrize("method", ["GET", "PUT", "DELETE", "PATCH"])
def test_another_method_is_refused_and_told_which_is_allowed(
    shared_shop: Shop, method: str, path: str
) -> None:
    response = shared_shop.ask(method, path)
    problem(response, 405, "Method Not Allowed")
    assert response.headers["allow"] == "POST"


@pytest.mark.parametrize("path", ["/", "/v1", "/v1/decision", "/v1/briefs/", "/../etc/passwd"])
def test_an_unknown_path_is_a_problem_too(shared_shop: Shop, path: str) -> None:
    response = shared_shop.ask("GET", path)
    assert response.status_code in (404, 307, 405)
    if response.status_code == 404:
        problem(response, 404, "Not Found")


@pytest.mark.parametrize("brief_id", ["nobody", "%00", "%ff", "x" * 3_000, "a%0d%0aSet-Cookie:b"])
def test_an_unknown_brief_is_not_found(shared_shop: Shop, brief_id: str) -> None:
    problem(shared_shop.ask("GET", f"/v1/briefs/{brief_id}"), 404, "brief_id")


def test_a_bad_query_is_named(shared_shop: Shop) -> None:
    problem(shared_shop.ask("GET", "/v1/strategies", params={"state": "dead"}), 422, "query.state")
    assert shared_shop.ask("GET", "/v1/strategies", params={"brief_id": "\x00"}).json() == []


def test_many_faults_make_a_short_answer(shared_shop: Shop) -> None:
    body = {**DECISION, **{f"unknown{n}": n for n in range(20_000)}}
    assert len(problem(shared_shop.post(DECISIONS, body), 422, "unknown")["errors"]) == 50


def test_an_unknown_user_is_served_as_the_average_one(shared_shop: Shop) -> None:
    for user in ("nobody", "用户", "u" * 200, "' OR 1=1 --", "../../etc"):
        answer = shared_shop.decide(user)
        assert answer["degraded"] == ["cold_start"]
        assert answer["actions"]


def test_bad_events_do_not_hold_up_good_ones(shop: Shop) -> None:
    decision_id = shop.decide()["decision_id"]
    events = [
        {**EVENT, "event_id": "a", "decision_id": decision_id},
        {**EVENT, "event_id": "a", "decision_id": decision_id},
        {**EVENT, "event_id": "b", "decision_id": "no such decision"},
        {**EVENT, "event_id": "c", "decision_id": decision_id, "value": 5},
        {**EVENT, "event_id": "d", "decision_id": decision_id, "type": "impression"},
    ]
    response = shop.post(OUTCOMES, {"events": events})
    assert response.status_code == 202
    body = response.json()
    assert (body["accepted"], body["duplicates"]) == (2, 1)
    assert [(r["index"], r["code"]) for r in body["rejected"]] == [(2, "unknown_decision"), (3, "invalid")]
    assert "value" in body["rejected"][1]["detail"]
    again = shop.post(OUTCOMES, {"events": events}).json()
    assert (again["accepted"], again["duplicates"]) == (0, 3)


LIMITS = settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True)
TEXT = st.text(max_size=12) | st.sampled_from(["u0", "i0", "s0-email", "all", "now", "2025-05-01T00:00:00Z"])
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | TEXT,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner, max_size=3),
    max_leaves=8,
)


@pytest.mark.parametrize("path", VALID)
@LIMITS
@given(data=st.data())
def test_no_body_makes_the_server_fail(shared_shop: Shop, path: str, data: st.DataObject) -> None:
    """Any JSON at all, and valid bodies in which one field holds any JSON."""
    body: Any = data.draw(JSON)
    if data.draw(st.booleans()):
        fields = list(VALID[path])
        fields += ["n", "request_id", "candidates", "context", "segment", "items", "audience", "constraints"]
        body = {**VALID[path], data.draw(st.sampled_from(fields)): body}
    if path == OUTCOMES and data.draw(st.booleans()):
        body = event(**{data.draw(st.sampled_from([*EVENT, "value"])): data.draw(JSON)})
    content = json.dumps(body).encode()
    response = shared_shop.ask("POST", path, content=content, headers={"content-type": "application/json"})
    assert response.status_code < 500, response.text
    if response.is_error:
        problem(response, response.status_code, "")


@LIMITS
@given(content=st.binary(max_size=200), kind=st.sampled_from(["application/json", "application/a+json"]))
def test_no_bytes_make_the_server_fail(shared_shop: Shop, content: bytes, kind: str) -> None:
    response = shared_shop.ask("POST", DECISIONS, content=content, headers={"content-type": kind})
    assert 400 <= response.status_code < 500


@pytest.fixture(scope="module")
def simulated(built: Built, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Shop]:
    folder: Path = tmp_path_factory.mktemp("simulated")
    with open_shop(built, folder, clock="request") as shop:
        yield shop


@pytest.mark.parametrize(
    "now",
    [
        None, "", "soon", "2025-05-01", "2025-05-01T00:00:00", 20250501, True, 1e300,
        "0001-01-01T00:00:00+14:00", "9999-12-31T23:59:59-14:00", "1969-12-31T00:00:00Z",
    ],
)  # fmt: skip
def test_a_bad_simulated_time_is_named(simulated: Shop, now: Any) -> None:
    problem(simulated.post(DECISIONS, {**DECISION, "context": {"now": now}}), 422, "context.now")
    problem(simulated.post(DECISIONS, DECISION), 422, "context.now")


@LIMITS
@given(now=st.datetimes(timezones=st.timezones()).map(lambda t: t.isoformat()) | TEXT)
def test_no_simulated_time_makes_the_server_fail(simulated: Shop, now: str) -> None:
    assert simulated.post(DECISIONS, {**DECISION, "context": {"now": now}}).status_code in (200, 422)
