"""Users of the simulated market meet the real service: decisions and outcomes over HTTP."""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any

import aiohttp
import numpy as np
from numpy.typing import NDArray

from qiance.cli.loop.world import World
from qiance.cli.stages import Stage
from qiance.ledger import Ledger
from qiance.market.market import ActionTable, Responses, Truth
from qiance.market.simulate import DAY_S, arrivals, second_of_day
from qiance.settings import Settings

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
CONCURRENCY = 16
TIMEOUT_S = 30.0
OUTCOME_BATCH = 1_000
RETRIES = 3
PARTS_A_DAY = 4
POLICY_TIMEOUT_S = 30.0
PACER_TIMEOUT_S = 120.0  # it imports and loads its policy first


class ServiceError(RuntimeError):
    """The service answered with an error that a retry does not mend."""


@dataclass(frozen=True)
class LiveLog:
    """What came of the live phase, `[n]` each; money in minor units.

    true_uplift, true_cost: the market's expectations of the chosen action; all_uplift, all_cost: `[n, A]`
    of every action, for the oracle (−10⁹ where the audience does not admit the user).
    """

    user: Ints
    action: Ints
    at: Ints
    decision_id: NDArray[np.object_]
    true_uplift: Floats
    true_cost: Floats
    all_uplift: Floats
    all_cost: Floats
    latency_ms: Floats
    retries: int
    degraded: dict[str, int]
    accepted: int
    events: int
    seconds: float


@dataclass
class _Collected:
    parts: list[dict[str, Any]] = field(default_factory=list)
    latency_ms: list[float] = field(default_factory=list)
    degraded: dict[str, int] = field(default_factory=dict)
    retries: int = 0
    accepted: int = 0
    events: int = 0


class DayBreak:
    """Lets a simulated day begin only when the pacer has set its price.

    A day of the simulation takes seconds. A pacer that still loads its policy would miss whole days, which
    no real one does, and money reserved on one day would not be back on the next.

    days: that the plan of the policy has, 0 without one.
    """

    def __init__(self, ledger: Ledger, days: int, patience_s: float = PACER_TIMEOUT_S) -> None:
        self._ledger, self._days, self._patience_s = ledger, days, patience_s

    async def __call__(self, day: int, at: datetime) -> None:
        """Move the clock to `at`, the start of `day`; raises ServiceError if nobody paces it in time."""
        before = self._ledger.versions().serial
        self._ledger.advance_clock(at)
        deadline = time.monotonic() + self._patience_s
        while day < self._days and self._ledger.versions().serial == before:
            if time.monotonic() > deadline:
                raise ServiceError(
                    f"the pacer set no price for day {day} within {self._patience_s:.0f} s; "
                    "see the log of the deployment Pacer"
                )
            await asyncio.sleep(0.05)


async def run_live(
    url: str,
    world: World,
    actions: ActionTable,
    admits: NDArray[np.bool_],
    settings: Settings,
    stage: Stage,
    day_break: DayBreak,
) -> LiveLog:
    """Serve `live_days` days: a random cohort asks over HTTP, the market answers, outcomes go back."""
    market, seen = settings.market, _Collected()
    rng = world.rng
    cohort = np.sort(rng.choice(len(world.market.population), market.live_users, replace=False))
    started = time.perf_counter()
    async with aiohttp.ClientSession(url, timeout=aiohttp.ClientTimeout(TIMEOUT_S)) as client:
        for day in range(market.live_days):
            await day_break(day, world.now)
            users = arrivals(rng, cohort, min(market.live_per_day, len(cohort)))
            for part, some in enumerate(_parts_of_day(users)):
                tell = _teller(stage, day + part / PARTS_A_DAY, market.live_days, len(users))
                choice, ids = await _decide_all(client, world, actions, some, seen, tell)
                truth = world.market.truth(some, actions)
                answers = world.market.step(some, actions, choice)
                await _report(client, world, ids, choice, answers, seen, some)
                seen.parts.append(_record(world, some, choice, ids, truth, actions, admits))
                world.window.add(some, actions.channel[choice] > 0)
            world.window.end_day()
            world.market.advance_day()
            world.pass_days(1)
    return _finish(seen, time.perf_counter() - started)


def _parts_of_day(users: Ints) -> list[Ints]:
    """Users by the quarter of the day they come in: outcomes of one are known in the next."""
    quarter = second_of_day(users) * PARTS_A_DAY // DAY_S
    return [users[quarter == part] for part in range(PARTS_A_DAY) if (quarter == part).any()]


async def wait_for_policy(url: str, version: str) -> None:
    """Return once the service decides by the policy `version`."""
    deadline = time.monotonic() + POLICY_TIMEOUT_S
    async with aiohttp.ClientSession(url, timeout=aiohttp.ClientTimeout(TIMEOUT_S)) as client:
        while time.monotonic() < deadline:
            async with client.get("/healthz") as response:
                health = await response.json()
            if health.get("policy_version") == version:
                return
            await asyncio.sleep(0.1)
    raise ServiceError(
        f"/healthz: the service did not take up policy {version} within {POLICY_TIMEOUT_S:.0f} s"
    )


async def _decide_all(
    client: aiohttp.ClientSession,
    world: World,
    actions: ActionTable,
    users: Ints,
    seen: _Collected,
    tell: Any,
) -> tuple[Ints, list[str]]:
    index = {a.action_id: n for n, a in enumerate(actions.actions)}
    gate = asyncio.Semaphore(CONCURRENCY)
    done = 0

    async def one(user: int) -> dict[str, Any]:
        nonlocal done
        at = world.now + timedelta(seconds=int(second_of_day(np.array([user]))[0]))
        body = {
            "request_id": secrets.token_hex(8),
            "user_id": world.snapshot.users.user_ids[user],
            "surface": "email",
            "context": {"now": at.isoformat()},
        }
        async with gate:
            before = time.perf_counter()
            answer, retries = await post(client, "/v1/decisions", body)
            seen.latency_ms.append((time.perf_counter() - before) * 1e3)
        seen.retries += retries
        for part in answer["degraded"]:
            seen.degraded[part] = seen.degraded.get(part, 0) + 1
        done += 1
        tell(done)
        return answer

    found = await asyncio.gather(*(one(int(user)) for user in users))
    choice = np.array([index[a["actions"][0]["action_id"]] for a in found], dtype=np.int64)
    return choice, [a["decision_id"] for a in found]


async def _report(
    client: aiohttp.ClientSession,
    world: World,
    ids: Sequence[str],
    choice: Ints,
    answers: Responses,
    seen: _Collected,
    users: Ints,
) -> None:
    seconds = second_of_day(users)
    events = []
    for n, decision_id in enumerate(ids):
        at = world.now + timedelta(seconds=int(seconds[n]))
        later = [("impression", 0, 1)] if choice[n] else []
        later += [("click", 0, 60)] if answers.click[n] else []
        later += [("conversion", int(answers.sales[n]), 600)] if answers.conversion[n] else []
        for kind, value, delay in later:
            moment = (at + timedelta(seconds=delay)).isoformat()
            events.append(
                {
                    "event_id": f"{decision_id}:{kind}",
                    "decision_id": decision_id,
                    "type": kind,
                    "value": value,
                    "occurred_at": moment,
                }
            )
    for low in range(0, len(events), OUTCOME_BATCH):
        receipt, _ = await post(client, "/v1/outcomes", {"events": events[low : low + OUTCOME_BATCH]})
        if receipt["rejected"]:
            raise ServiceError(f"outcomes were rejected: {receipt['rejected'][:3]}")
        seen.accepted += receipt["accepted"]
    seen.events += len(events)


async def post(client: aiohttp.ClientSession, path: str, body: Any) -> tuple[dict[str, Any], int]:
    """The answer, and how often it was asked again: after a broken connection, 429 or 503.

    Raises ServiceError where that does not help.
    """
    for attempt in range(RETRIES + 1):
        try:
            async with client.post(path, json=body) as response:
                if response.ok:
                    return await response.json(), attempt
                problem = f"{response.status} {(await response.text())[:500]}"
                if response.status not in (429, 503):
                    break
                wait_s = float(response.headers.get("Retry-After", "1"))
        except (aiohttp.ClientConnectionError, aiohttp.ClientPayloadError, TimeoutError) as error:
            problem, wait_s = repr(error), 0.2 * 2**attempt
        if attempt < RETRIES:
            await asyncio.sleep(wait_s)
    raise ServiceError(f"{path}: {problem}")


def _record(
    world: World,
    users: Ints,
    choice: Ints,
    ids: Sequence[str],
    truth: Truth,
    actions: ActionTable,
    admits: NDArray[np.bool_],
) -> dict[str, Any]:
    rows = np.arange(len(users))
    uplift = truth.margin - actions.contact_cost[None, :] - truth.margin[:, :1]
    midnight = int(world.now.timestamp())
    return {
        "user": users,
        "action": choice,
        "at": midnight + second_of_day(users),
        "decision_id": np.array(ids, dtype=object),
        "true_uplift": uplift[rows, choice],
        "true_cost": truth.cost[rows, choice],
        "all_uplift": np.where(admits[users], uplift, -1e9),
        "all_cost": truth.cost,
    }


def _finish(seen: _Collected, seconds: float) -> LiveLog:
    names = seen.parts[0].keys()
    arrays = {name: np.concatenate([part[name] for part in seen.parts]) for name in names}
    return LiveLog(
        **arrays,
        latency_ms=np.array(seen.latency_ms),
        retries=seen.retries,
        degraded=seen.degraded,
        accepted=seen.accepted,
        events=seen.events,
        seconds=seconds,
    )


def _teller(stage: Stage, day: float, days: int, size: int) -> Any:
    return lambda done: stage.tell((day + done / size) / days, f"day {int(day) + 1} of {days}")
