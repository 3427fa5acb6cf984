"""What holds whatever happens: known propensities, budgets, caps and floors, over replicas and their ends."""

from __future__ import annotations

import asyncio
import sqlite3
import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from built_cases import (
    BRIEF,
    DAYS,
    GUARD,
    LOOSE,
    START,
    Built,
    action,
    catalogue,
    go_live,
    strategy,
    train_model,
    user_ids,
)
from scipy import stats
from serve_cases import Logged, Shop, open_shop

from qiance.decide.floors import discounted_price
from qiance.domain import Audience, Channel, Decision, StrategyState
from qiance.evaluate.arrays import FloatArray
from qiance.guard import Guard
from qiance.ledger import LedgerUnavailableError
from qiance.market import Market
from serve.answers import Answer
from serve.schemas import DecisionRequest
from serve.slates import Call

NOW = START + timedelta(days=DAYS, hours=1)
EVERYBODY = Audience("everybody")


def calls(users: Sequence[str], n: int = 1) -> list[Call]:
    return [Call.of(DecisionRequest(user_id=user, surface="home", n=n), NOW) for user in users]


def decide_many(shop: Shop, users: Sequence[str], batch: int = 500) -> list[Answer]:
    """Answers for `users`, in batches; every one of them must be a decision."""
    found: list[Answer] = []
    for start in range(0, len(users), batch):
        results = shop.service.engine.decide(calls(users[start : start + batch]))
        assert all(isinstance(result, Answer) for result in results)
        found += results  # type: ignore[arg-type]
    return found


def logged(shop: Shop, answers: Sequence[Answer]) -> list[Logged]:
    return [shop.log(answer.decision_id) for answer in answers]


def expected_and_chosen(rows: Sequence[Logged]) -> tuple[FloatArray, FloatArray, FloatArray]:
    """Per candidate: sum of its probabilities, of p(1 − p), and how often it was chosen."""
    chances = np.stack([row.probabilities for row in rows])
    chosen = np.bincount([row.decision.chosen for row in rows], minlength=chances.shape[1])
    return chances.sum(axis=0), (chances * (1.0 - chances)).sum(axis=0), chosen.astype(np.float64)


@pytest.mark.parametrize("count", [6_000, pytest.param(100_000, marks=pytest.mark.slow)])
def test_actions_are_chosen_as_often_as_their_propensities_say(
    built: Built, tmp_path: Path, count: int
) -> None:
    """Chi-square over deciles of the propensity of every (decision, candidate), and z per candidate."""
    with open_shop(built, tmp_path, holdout=0.0, epsilon=0.6) as shop:
        rng = np.random.default_rng(7)
        users = [f"u{n}" for n in rng.integers(0, 150, count)]
        rows = logged(shop, decide_many(shop, users))
    expected, variance, chosen = expected_and_chosen(rows)
    z = (chosen - expected) / np.sqrt(np.maximum(variance, 1e-12))
    assert np.abs(z[variance > 1.0]).max() < 4.5
    chances = np.stack([row.probabilities for row in rows])
    hits = np.zeros_like(chances)
    hits[np.arange(len(rows)), [row.decision.chosen for row in rows]] = 1.0
    asked = chances > 0
    levels = np.round(chances[asked], 6)
    level, count_of = np.unique(levels, return_counts=True)
    observed = np.array([hits[asked][levels == one].sum() for one in level])
    due, spread = count_of * level, count_of * level * (1.0 - level)
    told = spread >= 5.0  # a rarer level has no normal deviation
    assert told.sum() >= 3
    statistic = float((np.square(observed - due)[told] / spread[told]).sum())
    assert stats.chi2.sf(statistic, told.sum()) > 1e-4


def test_inverse_propensity_weighting_finds_the_value_of_a_policy(built: Built, tmp_path: Path) -> None:
    """The policy always does the same; its value is known, since the market's truth is."""
    snapshot = built.snapshot
    shares = snapshot.user_category["category_share"]
    market = Market.build(snapshot.users, shares, snapshot.categories, snapshot.catalogue, 0)
    with open_shop(built, tmp_path, holdout=0.0, epsilon=0.8) as shop:
        shop.ledger.open_budget(BRIEF, 10**9)  # one that runs out would leave a policy without support
        rng = np.random.default_rng(3)
        places = rng.integers(0, 150, 5_000)
        rows = logged(shop, decide_many(shop, [f"u{n}" for n in places]))
        actions = shop.gateway.watcher.state.actions
    truth = market.truth(places, market.table(actions)).margin
    open_to_all = [0, *(c for c, a in enumerate(actions) if a.strategy_id in ("s0", "s2"))]
    assert len(open_to_all) == 5
    for column in open_to_all:
        hit = np.array([row.decision.chosen == column for row in rows])
        propensity = np.array([row.probabilities[column] for row in rows])
        weighted = hit / propensity * truth[:, column]
        error = weighted.mean() - truth[:, column].mean()
        # Over the draw alone: the users and their outcomes are the same on both sides.
        deviation = np.sqrt(np.mean((1.0 / propensity - 1.0) * np.square(truth[:, column])) / len(rows))
        assert abs(error) < 4.5 * deviation
        assert deviation < 0.2 * abs(truth[:, column].mean()), "the test could tell a wrong value"


def only(shop: Shop, brief_id: str, cap: int, *strategies: Any, guard: Guard = GUARD) -> None:
    """Leave these strategies live, with a budget of their own; guard: by which they were approved."""
    for n in range(4):
        shop.ledger.set_strategy_state(f"s{n}", StrategyState.PAUSED, "test", "test")
    shop.ledger.open_budget(brief_id, cap)
    go_live(shop.ledger, strategies, guard=guard)
    shop.refresh()


class Crowd:
    """Eight clients of several replicas, each of which may be killed on the way."""

    def __init__(self, shops: Sequence[Shop]) -> None:
        self.shops = list(shops)
        self.answers: list[Answer] = []
        self._lock = threading.Lock()

    def run(self, users: Sequence[str], rounds: int, n: int = 1, kill: Shop | None = None) -> None:
        with ThreadPoolExecutor(8) as pool:
            jobs = [pool.submit(self._client, c, users, rounds, n, kill) for c in range(8)]
            for job in jobs:
                job.result()

    def _client(self, client: int, users: Sequence[str], rounds: int, n: int, kill: Shop | None) -> None:
        rng = np.random.default_rng(client)
        for round_ in range(rounds):
            living = [s for s in self.shops if kill is None or s is not kill or round_ < rounds // 2]
            shop = living[int(rng.integers(len(living)))]
            wanted = [users[int(place)] for place in rng.integers(0, len(users), int(rng.integers(1, 5)))]
            results = shop.service.engine.decide(calls(wanted, n))
            with self._lock:
                self.answers += [r for r in results if isinstance(r, Answer)]
                assert len(results) == len(wanted)


def dies(shop: Shop) -> None:
    """What a killed replica does: nothing more, and it gives nothing back."""
    shop.service.leases._stop.set()
    shop.service.leases._thread.join()
    shop.service.leases._all.clear()
    shop.service.leases._current.clear()


def spent_by(answers: Sequence[Answer], cost: dict[str, int]) -> int:
    return sum(cost.get(pick[0].action_id, 0) for answer in answers for pick in answer.picks)


@pytest.mark.parametrize("cap", [37, 400, 1_500])
def test_eight_clients_of_three_replicas_never_pass_a_budget(built: Built, tmp_path: Path, cap: int) -> None:
    """One replica dies with money leased; after its term others can spend it, to the last unit."""
    with ExitStack() as stack:
        made = [
            stack.enter_context(open_shop(built, tmp_path, holdout=0.0, epsilon=1.0, leases={"term_s": 1.0}))
            for _ in range(3)
        ]
        only(made[0], "tight", cap, strategy(4, "tight"), strategy(6, "tight", audience=EVERYBODY))
        for shop in made:
            shop.refresh()
        state = made[0].gateway.watcher.state
        cost = dict(zip(state.action_ids, state.liability.tolist(), strict=True))
        crowd = Crowd(made)
        crowd.run(user_ids(), rounds=6, kill=made[2])
        dies(made[2])
        status = made[0].ledger.budget("tight")
        assert status.spent + status.reserved <= cap
        assert status.reserved - status.leased == spent_by(crowd.answers, cost)
        crowd.shops = made[:2]
        deadline = threading.Event()
        for _ in range(60):
            crowd.run(user_ids(), rounds=3)
            status = made[0].ledger.budget("tight")
            assert status.spent + status.reserved <= cap
            if status.reserved - status.leased == cap:
                break
            deadline.wait(0.1)
        assert status.reserved - status.leased == spent_by(crowd.answers, cost) == cap


def test_a_ledger_that_fails_within_a_draw_costs_no_money(built: Built, tmp_path: Path) -> None:
    """What the first of a batch took goes back when money cannot be looked up for the next."""
    with open_shop(built, tmp_path, holdout=0.0, epsilon=1.0) as shop:
        leases, calls_left = shop.service.leases, [12]
        decide_many(shop, ["u0"])
        ensure, slices = leases.ensure, list(leases._all.values())
        before = [one.left for one in slices]

        def failing(budget_id: str, amount: int) -> int:
            calls_left[0] -= 1
            if calls_left[0] < 0:
                raise LedgerUnavailableError("ledger: gone")
            return ensure(budget_id, amount)

        leases.ensure = failing  # type: ignore[method-assign]
        results = shop.service.engine.decide(calls(user_ids()[:30]))
        assert all(isinstance(r, Answer) and r.degraded == ("ledger",) for r in results)
        assert calls_left[0] < 0
        assert [one.left for one in slices] == before
        assert [one.pending for one in slices] == [0] * len(slices)


def test_an_answer_stands_though_its_slice_cannot_be_ended(built: Built, tmp_path: Path) -> None:
    """The ledger fails after the commit, when what is left of a slice that was replaced should go back."""
    with open_shop(built, tmp_path, holdout=0.0, epsilon=1.0, request_timeout_s=0.5) as shop:
        decide_many(shop, ["u0"])
        leases, record = shop.service.leases, shop.ledger.record_slates
        other = sqlite3.connect(tmp_path / "ledger.db", isolation_level=None)

        def hung_after(*batch: Any) -> Any:
            for slice_ in list(leases._current.values()):  # as another thread does that needs more
                leases.ensure(slice_.lease.budget_id, slice_.left + 1)
            recorded = record(*batch)
            other.execute("BEGIN IMMEDIATE")
            return recorded

        shop.ledger.record_slates = hung_after  # type: ignore[method-assign]
        results = shop.service.engine.decide(calls(user_ids()[:20]))
        other.close()
        assert all(isinstance(result, Answer) and result.degraded == () for result in results)
        chosen = [row.decision.action_id for row in logged(shop, results)]  # type: ignore[arg-type]
        assert chosen == [result.picks[0][0].action_id for result in results if isinstance(result, Answer)]
        assert len(set(chosen)) > 1, "some took money"
        assert all(slice_.pending == 0 for slice_ in leases._all.values())


def test_frequency_caps_hold_over_replicas(built: Built, tmp_path: Path) -> None:
    """Few users, many at once, two replicas: never more contacts than a cap allows, on any channel."""
    caps = [{"contacts": 4, "days": 7}, {"contacts": 2, "days": 1, "channel": "email"}]
    with ExitStack() as stack:
        made = [
            stack.enter_context(open_shop(built, tmp_path, holdout=0.0, epsilon=1.0, frequency_caps=caps))
            for _ in range(2)
        ]
        crowd = Crowd(made)
        users = user_ids()[:6]
        crowd.run(users, rounds=10, n=2)
        rows = made[0].ledger.decision_outcomes()
        state = made[0].gateway.watcher.state
    channel = dict(zip(state.action_ids, state.channels, strict=True))
    contacts: dict[str, list[str]] = {}
    for name, action_id in zip(rows["pseudonym"].to_pylist(), rows["action_id"].to_pylist(), strict=True):
        if channel[action_id] != "none":
            contacts.setdefault(name, []).append(channel[action_id])
    assert max(len(found) for found in contacts.values()) == 4
    assert max(found.count("email") for found in contacts.values()) == 2
    assert len(contacts) == 6


def test_racing_for_the_last_contact_leaves_propensities_true(built: Built, tmp_path: Path) -> None:
    """Were only those refused who drew a contact, too many who drew control would be left in the log."""
    caps = [{"contacts": 1, "days": 7}]
    with ExitStack() as stack:
        made = [
            stack.enter_context(open_shop(built, tmp_path, holdout=0.0, epsilon=1.0, frequency_caps=caps))
            for _ in range(2)
        ]
        answers: list[Answer] = []
        with ThreadPoolExecutor(8) as pool:
            for user in user_ids()[:60]:
                jobs = [pool.submit(made[n % 2].service.engine.decide, calls([user])) for n in range(8)]
                answers += [result for job in jobs for result in job.result() if isinstance(result, Answer)]
        rows = logged(made[0], answers)
    free = [row for row in rows if len(row.possible) > 1]
    assert len(free) > 60, "some raced"
    expected, variance, chosen = expected_and_chosen(free)
    assert abs(chosen[0] - expected[0]) < 4.5 * np.sqrt(variance[0])


def test_a_capped_channel_is_no_choice_and_the_others_are(built: Built, tmp_path: Path) -> None:
    caps = [{"contacts": 1, "days": 7, "channel": "email"}]
    with open_shop(built, tmp_path, holdout=0.0, epsilon=1.0, frequency_caps=caps) as shop:
        user = "u0"
        seen = [shop.log(shop.decide(user)["decision_id"]) for _ in range(30)]
        first = next(n for n, row in enumerate(seen) if row.decision.channel == "email")
        for row in seen[first + 1 :]:
            assert not any(name.endswith("-email") for name in row.possible)
            assert any(name.endswith("-display") for name in row.possible)
            assert row.probabilities[row.decision.chosen] == row.decision.propensity
        assert any(name.endswith("-email") for name in seen[first].possible)
        later = Call.of(DecisionRequest(user_id=user, surface="home"), NOW + timedelta(days=8))
        (answer,) = shop.service.engine.decide([later])
        assert isinstance(answer, Answer)
        assert any(name.endswith("-email") for name in shop.log(answer.decision_id).possible)


def test_no_replica_sells_below_the_floor(built: Built, tmp_path: Path) -> None:
    """Over depths from none to nearly the whole margin, by exploration alone.

    This shop's guard would refuse what is below its floor; the engine must not rely on that, so these are
    approved by a guard whose floor is 0.
    """
    items = list(catalogue())
    barely = [1 - item.unit_cost / (0.98 * item.price) for item in items]
    depths = [0.0, 0.1, 0.2, 0.3, *barely[4:], barely[0]]
    offered = [
        strategy(
            20 + n,
            "deep",
            audience=EVERYBODY,
            actions=(action(items[n % 6], Channel.EMAIL, d, f"s{20 + n}"),),
        )
        for n, d in enumerate(depths)
    ]
    with open_shop(built, tmp_path, holdout=0.0, epsilon=1.0, min_margin=0.05) as shop:
        only(shop, "deep", 10**6, *offered, guard=LOOSE)
        crowd = Crowd([shop])
        crowd.run(user_ids(), rounds=12, n=3)
        chosen = {pick[0].action_id: pick[0] for a in crowd.answers for pick in a.picks if pick[0].item_id}
    assert len(chosen) >= 4
    for found in chosen.values():
        item = catalogue()[str(found.item_id)]
        paid = int(discounted_price(item.price, found.offer.depth))
        assert paid - item.unit_cost >= 0.05 * paid
    assert {o.actions[0].action_id for o in offered} - set(chosen), "some were below it"


def test_what_is_sold_out_is_not_offered(built: Built, tmp_path: Path) -> None:
    with open_shop(built, tmp_path, holdout=0.0, epsilon=1.0) as shop:
        frame = shop.predictor.items.frame
        stock = np.full(6, np.nan)
        stock[0], stock[2] = 0.0, 3.0
        shop.predictor.items._stop.set()
        shop.predictor.items.frame = replace(frame, columns={**frame.columns, "stock": stock})
        row = shop.log(shop.decide("u0")["decision_id"])
        assert "s0-email" not in row.possible
        assert "s2-email" in row.possible


def test_a_new_model_comes_in_without_a_failed_or_mixed_answer(built: Built, tmp_path: Path) -> None:
    """Two champions by turns under load: no request fails, and each answer is of exactly one of them."""
    second = train_model(built.workspace, built.snapshot, seed=1)
    with open_shop(built, tmp_path, holdout=0.0) as shop:
        seen: list[tuple[str, Decision]] = []
        stop = threading.Event()

        def client(number: int) -> int:
            count = 0
            while not stop.is_set():
                results = shop.service.engine.decide(calls([f"u{(number * 7 + count) % 150}"] * 3))
                for result in results:
                    assert isinstance(result, Answer)
                    assert result.degraded == ()
                    seen.append((result.model_version, shop.log(result.decision_id).decision))
                count += 3
            return count

        with ThreadPoolExecutor(4) as pool:
            jobs = [pool.submit(client, n) for n in range(4)]
            for version in (second, built.model, second):
                shop.ledger.set_versions(model=version)
                shop.refresh()
                stop.wait(0.5)
            stop.set()
            assert sum(job.result() for job in jobs) == len(seen) > 50
    versions = [answered for answered, _ in seen]
    assert set(versions) == {built.model, second}
    assert all(answered == row.model_version for answered, row in seen)
    first: dict[tuple[str, str, bytes, bytes], FloatArray] = {}
    for version, row in seen:
        scores = np.frombuffer(row.scores, dtype="<f4")
        before = first.setdefault((row.pseudonym, version, row.user_row, row.admissible), scores)
        np.testing.assert_allclose(scores, before, rtol=1e-4, atol=1e-3)


def test_each_of_a_bulk_request_has_its_own_fate(shop: Shop) -> None:
    one, two = shop.users(held=False)[:2]
    first = shop.decide(one, request_id="r")
    body = {"requests": [
        {"user_id": one, "surface": "home", "request_id": "r"},
        {"user_id": two, "surface": "home", "request_id": "r"},
        {"user_id": two, "surface": "home"},
    ]}  # fmt: skip
    again, taken, fresh = shop.post("/v1/decisions:batch", body).json()["decisions"]
    assert (again["decision_id"], again["degraded"]) == (first["decision_id"], ["repeated"])
    assert (taken["status"], taken["detail"][:10]) == (409, "request_id")
    assert fresh["degraded"] == []
    refused = shop.post("/v1/decisions:batch", {"requests": [{"user_id": "u", "surface": "s", "n": 99}]})
    assert refused.status_code == 422
    assert refused.json()["detail"].startswith("requests.0.n: at most")


def test_a_decision_that_is_due_too_soon_is_not_made(shop: Shop) -> None:
    response = shop.post("/v1/decisions", {"user_id": "u0", "surface": "home", "deadline_ms": 0.001})
    assert response.status_code == 503
    assert response.headers["retry-after"] == "1"
    assert shop.decide("u0", deadline_ms=5_000)["degraded"] == []


def test_who_is_refused_learns_it_before_the_body_is_read(built: Built, tmp_path: Path) -> None:
    """A slow engine and a short queue: what does not fit is refused while the engine is still busy."""
    with open_shop(built, tmp_path, batching={"max_waiting": 2, "workers": 1, "max_batch": 1}) as shop:
        gate, decide = threading.Event(), shop.service.engine.decide

        def slow(batch: Any) -> Any:
            assert gate.wait(10.0)
            return decide(batch)

        shop.service.engine.decide = slow  # type: ignore[method-assign]

        async def rush() -> list[Any]:
            body = {"json": {"user_id": "u0", "surface": "home"}}
            waiting = asyncio.create_task(shop.ask_all([("POST", "/v1/decisions", body)] * 3))
            await asyncio.sleep(0.3)
            refused = await shop.ask_all([("POST", "/v1/decisions", {"content": b"not json"})] * 5)
            gate.set()
            return [await waiting, refused]

        taken, refused = asyncio.run(rush())
        assert [r.status_code for r in taken] == [200] * 3
        assert {r.status_code for r in refused} == {503}
        assert {r.headers["retry-after"] for r in refused} == {"1"}
        assert refused[0].json()["detail"].startswith("decision: too many requests wait")
        assert shop.decide("u0")["degraded"] == []
        assert BRIEF in {s.brief_id for s in shop.gateway.watcher.state.strategies.values()}
