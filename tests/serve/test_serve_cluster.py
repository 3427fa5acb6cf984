"""The real thing on this machine: Ray Serve from its YAML, asked over HTTP, gone without a trace."""

from __future__ import annotations

import asyncio
import itertools
import socket
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest
from built_cases import DAYS, START, Built, train_model, user_ids

from qiance.cli.replay import replayer
from qiance.domain import BriefState, Decision
from qiance.ledger import BriefRecord, Ledger
from serve.launch import EMBEDDED, LaunchError, LocalCluster, free_port, read_config
from tests.privacy.privacy_cases import words_in
from tests.serve.sockets import bound_by, named, processes_of

NOW = START + timedelta(days=DAYS, hours=1)
SLOW = pytest.mark.slow
BRIEF = {
    "objective": "conversions",
    "budget": {"amount": "100.00", "currency": "USD"},
    "starts": "2025-05-01T00:00:00Z",
    "ends": "2190-01-01T00:00:00Z",
    "n": 2,
}


@dataclass
class Running:
    """A served shop; `processes` are those that it started, by then."""

    cluster: LocalCluster
    config: dict[str, Any]
    url: str
    ledger: Ledger
    built: Built

    topology: str

    def processes(self) -> list[psutil.Process]:
        return processes_of(self.cluster._temp_dir)

    def logged(self, answer: dict[str, Any]) -> Decision:
        """The decision that was answered, as it is in the log."""
        found = self.ledger.decision(answer["decision_id"])
        assert found is not None, f"an answer that is not in the log: {answer}"
        return found


# Every topology and transport; each costs a minute of starting, so the quick tests have the default alone.
WAYS = [
    ("haproxy", "ingress"),
    pytest.param(("haproxy", "deployment"), marks=SLOW),
    pytest.param(("plain", "ingress"), marks=SLOW),
]


@pytest.fixture(scope="module", params=WAYS, ids="-".join)
def running(
    request: pytest.FixtureRequest, built: Built, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Running]:
    """Starts the service, and after the tests looks whether anything of it is left."""
    proxy, topology = request.param
    folder = tmp_path_factory.mktemp("served")
    ledger = built.open_ledger(folder)
    args = {
        "workspace": str(built.workspace.root),
        "ledger_url": f"sqlite:///{folder / 'ledger.db'}",
        "key_file": str(built.workspace.key_file),
        "epsilon": 0.5,
        # An hour after the features were built, so that they are fresh; everybody agreed to being known.
        "clock_offset_s": (NOW - datetime.now(UTC)).total_seconds(),
        "unrecorded_consent": "granted",
        "llm": {"enabled": False},
        "topology": topology,
    }
    before = {p.pid for p in psutil.Process().children(recursive=True)}
    config = read_config(EMBEDDED, "127.0.0.1", free_port(), args)
    with LocalCluster(proxy=proxy) as cluster:
        started = Running(cluster, config, "", ledger, built, topology)
        started.url = cluster.serve(config)
        yield started
        processes = [p for p in started.processes() if p.pid not in before]
    ledger.close()
    assert len(processes) > 5
    _, left = psutil.wait_procs(processes, timeout=15)
    assert not left, left
    assert not Path(cluster._temp_dir).exists()


def until(ask: Callable[[], Any], holds: Callable[[Any], bool], within_s: float) -> Any:
    """The first answer that `holds`, or the last one."""
    deadline = time.monotonic() + within_s
    answer = ask()
    while not holds(answer) and time.monotonic() < deadline:
        time.sleep(0.1)
        answer = ask()
    return answer


def searches_of(http: httpx.Client, path: str) -> float | None:
    """Searches of the user's session, as far as the features know."""
    rows = http.get(f"{path}/features").json()["rows"]
    sessions = [row["values"] for row in rows if row["view"] == "user_session"]
    return sessions[0]["session_searches"] if sessions else None


def test_the_service_describes_itself(running: Running) -> None:
    with httpx.Client(base_url=running.url) as http:
        assert http.get("/healthz").json() == {
            "status": "ready", "model_version": running.built.model,
            "policy_version": running.built.policy, "degraded": [],
        }  # fmt: skip
        assert "/v1/decisions" in http.get("/openapi.json").json()["paths"]
        assert http.get("/docs").status_code == 200


def test_every_socket_is_on_loopback(running: Running) -> None:
    """Without keys nobody outside this machine may reach any part, Ray's own servers included."""
    bound = bound_by(running.processes())
    assert int(running.url.rsplit(":", 1)[1]) in {found.port for found in bound}
    assert len(bound) > 5, "the cluster's own servers were found too"
    assert [found for found in bound if not found.is_loopback] == []


def test_a_decision_its_outcome_and_its_effect(running: Running) -> None:
    with httpx.Client(base_url=running.url, timeout=30) as http:
        body = {"request_id": "one", "user_id": "u1", "surface": "home", "n": 2}
        answer = http.post("/v1/decisions", json=body)
        if answer.status_code == 503:  # as a client does: the same request again
            time.sleep(float(answer.headers["retry-after"]))
            answer = http.post("/v1/decisions", json=body)
        assert answer.status_code == 200, answer.text
        decision = answer.json()
        assert decision["model_version"] == running.built.model
        assert decision["degraded"] == []
        assert running.logged(decision).action_id == decision["actions"][0]["action_id"]
        assert http.post("/v1/decisions", json=body).json()["decision_id"] == decision["decision_id"]

        event = {
            "event_id": "e", "decision_id": decision["decision_id"], "type": "conversion", "value": 900,
            "occurred_at": "2025-05-02T00:00:00Z",
        }  # fmt: skip
        response = http.post("/v1/outcomes", json={"events": [event, {**event, "decision_id": "?"}]})
        assert response.status_code == 202
        assert response.json()["accepted"] == 1
        learned = running.ledger.decision_outcomes().to_pylist()
        assert [r["sales"] for r in learned if r["decision_id"] == decision["decision_id"]] == [900]

        asked = {"user_ids": ["u1", "stranger"], "actions": ["s0-email"]}
        effects = http.post("/v1/effects", json=asked).json()
        assert [e["user_id"] for e in effects["effects"]] == ["u1", "stranger"]
        assert effects["degraded"] == ["cold_start:stranger"]
        explained = http.post("/v1/effects?explain=shap", json=asked).json()["effects"]
        uplift = [e["effect"]["uplift"]["value"] for e in effects["effects"]]
        assert [e["explanation"]["prediction"] for e in explained] == pytest.approx(
            uplift, rel=1e-3, abs=0.01
        )
        assert all(abs(e["explanation"]["additivity_error"]) < 1e-3 for e in explained)
        segment = http.post("/v1/effects", json={"segment": "millionaires", "actions": ["s0-email"]})
        assert segment.status_code == 422
        assert segment.json()["errors"][0]["field"] == "segment"


def test_a_brief_becomes_strategies(running: Running) -> None:
    with httpx.Client(base_url=running.url, timeout=30) as http:
        response = http.post("/v1/briefs", json=BRIEF)
        assert response.status_code == 202
        path = f"/v1/briefs/{response.json()['brief_id']}"
        shown = until(lambda: http.get(path).json(), lambda s: s["state"] in ("done", "failed"), 60)
        assert shown["state"] == "done", shown
        assert 1 <= len(shown["strategies"]) <= 2
        drafts = http.get("/v1/strategies", params={"state": "draft"}).json()
        assert {s["strategy_id"] for s in shown["strategies"]} <= {s["strategy_id"] for s in drafts}


def test_a_brief_is_followed_through_the_proxy(running: Running) -> None:
    with httpx.Client(base_url=running.url, timeout=30) as http:
        path = f"/v1/briefs/{http.post('/v1/briefs', json=BRIEF).json()['brief_id']}"
        events: list[str] = []
        with http.stream("GET", f"{path}/events") as answer:
            assert answer.headers["content-type"].startswith("text/event-stream")
            for line in answer.iter_lines():
                events += [line.removeprefix("event: ")] if line.startswith("event: ") else []
        assert (events[0], events[-1]) == ("progress", "end")
        assert http.get(path).json()["state"] == "done"
        assert http.delete(path).status_code == 409


def test_a_generator_that_is_killed_in_mid_brief_leaves_it_to_the_next(running: Running) -> None:
    """It is begun anew when the term of the dead one is over; decisions go on as if nothing were."""
    with httpx.Client(base_url=running.url, timeout=30) as http:
        brief_id = http.post("/v1/briefs", json=BRIEF).json()["brief_id"]

        def record() -> BriefRecord:
            found = running.ledger.brief(brief_id)
            assert found is not None
            return found

        while record().state is BriefState.QUEUED:
            time.sleep(0.005)
        (replica,) = named(running.processes(), "ServeReplica:qiance:Generator")
        replica.kill()
        replica.wait(10)
        assert record().state is BriefState.RUNNING, "killed in the middle"
        deadline, degraded = time.monotonic() + 120, set()
        while not record().state.is_final and time.monotonic() < deadline:
            decision = http.post("/v1/decisions", json={"user_id": "u4", "surface": "home"})
            assert decision.status_code == 200, decision.text
            degraded |= set(decision.json()["degraded"])
            time.sleep(0.2)
        done = record()
        assert (done.state, done.attempts, degraded) == (BriefState.DONE, 2, set()), done.message
        assert 1 <= len(http.get(f"/v1/briefs/{brief_id}").json()["strategies"]) <= 2


def test_hostile_requests_are_problems_behind_the_proxy_too(running: Running) -> None:
    headers = {"content-type": "application/json"}
    cases: list[tuple[Any, int]] = [
        (b'{"user_id": "' + b"u" * 10_000_000 + b'"}', 413),
        ((b" " * 65_536 for _ in range(100)), 413),
        (b"\xff\xfe", 400),
        (b"{", 400),
        (b'{"user_id": "u0", "surface": "home", "n": 0}', 422),
        (b'{"user_id": "u0", "surface": "home", "context": {"a": NaN}}', 422),
    ]
    for content, status in cases:
        response = httpx.post(f"{running.url}/v1/decisions", content=content, headers=headers, timeout=30)
        assert response.status_code == status
        assert response.headers["content-type"] == "application/problem+json"
    assert httpx.get(f"{running.url}/v1/decisions").headers["allow"] == "POST"


def test_many_at_once_are_all_answered(
    running: Running, record_property: Callable[[str, object], None]
) -> None:
    ids, seconds = user_ids(), []

    async def one(http: httpx.AsyncClient, gate: asyncio.Semaphore, n: int) -> httpx.Response:
        async with gate:
            started = time.perf_counter()
            body = {"user_id": ids[n % len(ids)], "surface": "home"}
            response = await http.post("/v1/decisions", json=body)
            seconds.append(time.perf_counter() - started)
            return response

    async def rush(count: int) -> tuple[list[httpx.Response], float]:
        gate, started = asyncio.Semaphore(8), time.perf_counter()
        async with httpx.AsyncClient(base_url=running.url, timeout=30) as http:
            answers = await asyncio.gather(*(one(http, gate, n) for n in range(count)))
        return answers, time.perf_counter() - started

    answers, wall = asyncio.run(rush(300))
    assert {r.status_code for r in answers} == {200}
    assert all(r.json()["degraded"] == [] for r in answers)
    record_property("decisions_per_second", round(300 / wall, 1))
    record_property("p50_ms", round(statistics.median(seconds) * 1e3, 1))
    print(f"{300 / wall:.0f} decisions/s, p50 {statistics.median(seconds) * 1e3:.0f} ms with 8 clients")
    budget = running.ledger.budget("brief-one")
    assert budget.spent + budget.reserved <= budget.cap


async def swapped_under_load(
    running: Running, versions: Sequence[str], seconds: float
) -> list[httpx.Response]:
    """Answers to four clients while the champion is each of `versions` by turns."""
    answers: list[httpx.Response] = []
    deadline = time.monotonic() + seconds
    async with httpx.AsyncClient(base_url=running.url, timeout=30) as http:

        async def client(place: int) -> None:
            for n in itertools.count(place, 4):
                if time.monotonic() > deadline:
                    return
                body = {"user_id": user_ids()[n % len(user_ids())], "surface": "home"}
                answers.append(await http.post("/v1/decisions", json=body))

        async def swap() -> None:
            for version in itertools.cycle(versions):
                if time.monotonic() > deadline:
                    return
                await asyncio.to_thread(running.ledger.set_versions, model=version)
                await asyncio.sleep(1.5)

        await asyncio.gather(swap(), *(client(place) for place in range(4)))
    return answers


@SLOW
def test_models_are_swapped_under_load_without_a_failed_request(running: Running) -> None:
    """Every answer is by the one model that it names, which its scores show when they are made again."""
    first, second = running.built.model, train_model(running.built.workspace, running.built.snapshot, seed=1)
    try:
        answers = asyncio.run(swapped_under_load(running, (second, first), 15.0))
    finally:
        running.ledger.set_versions(model=first)
    assert len(answers) > 100
    assert {answer.status_code for answer in answers} == {200}
    told = [answer.json() for answer in answers]
    assert {part for answer in told for part in answer["degraded"]} == set()
    named = [answer["model_version"] for answer in told]
    assert set(named) == {first, second}
    assert sum(one != other for one, other in itertools.pairwise(named)) >= 4, (
        "they were swapped again and again"
    )
    again = replayer(running.built.workspace, running.ledger)
    for answer in told[:: max(1, len(told) // 60)]:
        row = running.logged(answer)
        assert row.model_version == answer["model_version"]
        assert again.replay(row).differs == ()
    body = {"user_id": "u1", "surface": "home"}
    now = until(
        lambda: httpx.post(f"{running.url}/v1/decisions", json=body, timeout=30).json()["model_version"],
        lambda version: version == first,
        60.0,
    )
    assert now == first


def test_policies_are_judged_behind_a_handle(running: Running) -> None:
    live = running.built.policy
    with httpx.Client(base_url=running.url, timeout=60.0) as http:
        found = http.post("/v1/policies/evaluate", json={"policy_version": live})
        assert found.status_code == 200, found.text
        assert (found.json()["live_version"], found.json()["opens"]) == (live, False)
        unknown = http.post("/v1/policies/evaluate", json={"policy_version": "0" * 16})
        assert (unknown.status_code, unknown.json()["title"]) == (404, "Not found")
        again = http.post(f"/v1/policies/{live}:promote", json={})
        assert again.status_code == 422
        assert "is live already" in again.json()["detail"]


def test_the_kill_switch_works(running: Running) -> None:
    def degraded() -> list[str]:
        body = {"user_id": "u2", "surface": "home"}
        return list(httpx.post(f"{running.url}/v1/decisions", json=body, timeout=30).json()["degraded"])

    running.ledger.set_versions(killed=True)
    assert until(degraded, lambda parts: parts == ["killed"], 60.0) == ["killed"]
    running.ledger.set_versions(killed=False)
    assert until(degraded, lambda parts: parts == [], 60.0) == []


def test_while_the_predictor_hangs_decisions_are_made_in_time(running: Running) -> None:
    def degraded() -> list[str]:
        body = {"user_id": "u3", "surface": "home", "deadline_ms": 1_000}
        response = httpx.post(f"{running.url}/v1/decisions", json=body, timeout=30)
        assert response.status_code == 200
        return list(response.json()["degraded"])

    (replica,) = named(running.processes(), "ServeReplica:qiance:Predictor")
    replica.suspend()
    try:
        found = [degraded() for _ in range(20)]
    finally:
        replica.resume()
    assert found == [["predictor"] if running.topology == "deployment" else []] * 20
    assert until(degraded, lambda parts: parts == [], 60) == []


def test_a_dead_predictor_degrades_answers_until_it_is_back(running: Running) -> None:
    def degraded() -> list[str]:
        body = {"user_id": "u3", "surface": "home"}
        response = httpx.post(f"{running.url}/v1/decisions", json=body, timeout=30)
        assert response.status_code == 200
        return list(response.json()["degraded"])

    (replica,) = named(running.processes(), "ServeReplica:qiance:Predictor")
    replica.kill()
    assert degraded() == (["predictor"] if running.topology == "deployment" else [])
    assert until(degraded, lambda parts: parts == [], 90) == []
    # What is known of a user is asked there in every topology.
    features = f"{running.url}/v1/users/u3/features"
    assert until(lambda: httpx.get(features, timeout=60).status_code, lambda code: code == 200, 60) == 200


def test_a_taken_port_is_named(running: Running) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        config = {**running.config, "http_options": {**running.config["http_options"], "port": port}}
        with pytest.raises(LaunchError, match=rf"serve\.port: 127\.0\.0\.1:{port} cannot be used"):
            running.cluster.serve(config)
    assert httpx.get(f"{running.url}/healthz").status_code == 200


def test_what_a_user_does_is_seen_and_erased_to_the_last_byte(running: Running) -> None:
    person, words = "planted-person-5e1f", "planted-words-9c27"
    roots = [running.built.workspace.root, Path(str(running.ledger.engine.url.database)).parent]
    path = f"/v1/users/{person}"
    with httpx.Client(base_url=running.url, timeout=30) as http:
        consent = http.put(f"{path}/consent", json={"purposes": {"personalisation": True, "learning": True}})
        assert consent.status_code == 200, consent.text
        event = {"user_id": person, "occurred_at": NOW.isoformat(), "event_id": f"{person}-1"}
        sent = http.post("/v1/events", json={"events": [{**event, "type": "search", "query": words}]})
        assert sent.status_code == 202, sent.text
        # How soon is measured by benchmarks.stream. What is said to be visible is.
        within_s = 0.0 if sent.json()["visible"] else 60.0
        assert until(lambda: searches_of(http, path), lambda count: count == 1.0, within_s) == 1.0
        request = {"request_id": f"{person}-visit", "user_id": person, "surface": "home"}
        decision = http.post("/v1/decisions", json=request).json()
        assert "cold_start" in decision["degraded"]
        assert any(found for root in roots for found in words_in(root, [person])), "it is somewhere before"
        answer = http.delete(path)
        assert answer.status_code in (200, 202), answer.text
        done = until(
            lambda: http.get(f"/v1/erasures/{answer.json()['erasure_id']}").json(),
            lambda found: found["state"] == "done",
            20.0,
        )
        assert (done["state"], done["problems"]) == ("done", [])
        assert http.get(f"{path}/consent").json()["purposes"] == {"personalisation": True, "learning": True}
    # Ray's own folder too: its logs must not name who asked.
    for root in (*roots, Path(running.cluster._temp_dir)):
        assert words_in(root, [person, words]) == set()
    assert running.ledger.known([person]) == {}
