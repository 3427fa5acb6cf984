"""The judge of plans: money is money, and who plans with the truth is not beaten by who plans without."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from benchmarks.target import summary
from benchmarks.targeting.days import explained
from benchmarks.targeting.plans import Gains, Judge, gains, request_of
from benchmarks.targeting.retrieval import inflated, retriever_of
from qiance.domain import Brief, Catalogue, Channel, Item, Money, Objective, UserTable
from qiance.market import Market
from qiance.strategy.demand import DayDemand
from qiance.strategy.propose_grid import draft_action
from qiance.strategy.propose_request import Request
from qiance.workspace import Snapshot

NOW = datetime(2025, 3, 3, tzinfo=UTC)
NOON_US = 1_741_003_200_000_000
BRIEF = Brief(
    "b",
    Objective.MARGIN,
    Money.of("1500.00"),
    NOW,
    NOW + timedelta(days=14),
    channels=(Channel.EMAIL, Channel.DISPLAY, Channel.MAILER),
)
CATEGORIES = ("Coffee", "Tea")


@pytest.fixture(scope="module")
def snapshot() -> Snapshot:
    rng = np.random.default_rng(0)
    baskets = rng.poisson(6.0, 900).astype(np.float64)
    users = UserTable(
        tuple(f"u{n}" for n in range(900)),
        {
            "baskets_90d": baskets,
            "avg_basket": rng.lognormal(8.0, 0.5, 900),
            "discount_share": rng.beta(2.0, 8.0, 900),
            "recency_days": rng.exponential(10.0, 900),
        },
    )
    items = tuple(
        Item(f"i{n}", f"{CATEGORIES[n % 2]} {n}", CATEGORIES[n % 2], "g", "House", 900 + 50 * n, 450)
        for n in range(6)
    )
    shares = {"category_share": rng.dirichlet(np.ones(2), 900)}
    return Snapshot(Catalogue(items), CATEGORIES, users, {"units_28d": np.ones(6)}, shares, NOW)


@pytest.fixture(scope="module")
def market(snapshot: Snapshot) -> Market:
    share = snapshot.user_category["category_share"]
    return Market.build(snapshot.users, share, CATEGORIES, snapshot.catalogue, 0)


@pytest.fixture(scope="module")
def request_(snapshot: Snapshot) -> Request:
    return request_of(snapshot, BRIEF, 0)


def test_money_is_spent_to_the_last_and_no_further(market: Market, request_: Request) -> None:
    action = draft_action(request_, market.catalogue["i0"], Channel.MAILER, 0.2)
    seen, everybody = Judge(market, request_, market, 1.0).of(action), np.arange(900)
    gain, cost = seen.gain, seen.cost
    rich = Judge(market, request_, market, float(cost.sum()))
    assert rich.by_response(action) == pytest.approx(float(gain.sum()))
    assert rich.at_random(action, everybody) == pytest.approx(float(gain.sum()))
    assert rich.by_value(action, everybody) == pytest.approx(float(gain[gain > 0].sum()), rel=1e-4)
    fifth = Judge(market, request_, market, float(cost.sum()) / 5)
    assert fifth.at_random(action, everybody) == pytest.approx(float(gain.sum()) / 5)
    assert fifth.by_value(action, everybody) > fifth.by_response(action)
    first = int(np.argmax(seen.response))
    poor = Judge(market, request_, market, float(cost[first]) / 2)
    assert poor.by_response(action) == pytest.approx(float(gain[first]) / 2)


@pytest.mark.parametrize("kind", ["audience", "promotion"])
def test_planning_with_the_truth_is_foresight(
    snapshot: Snapshot, market: Market, request_: Request, kind: str
) -> None:
    found = gains(kind, request_, market, market)
    assert len(found.by["ours"]) >= 2
    np.testing.assert_array_equal(found.by["ours"], found.by["foresight"])
    assert found.total("ours") > found.total("random")


class Opposite:
    """Predicts the opposite of the truth."""

    def __init__(self, market: Market) -> None:
        self._market = market

    def predict(self, user_ids: Any, actions: Any) -> Any:
        found = self._market.predict(user_ids, actions)
        return replace(found, margin=-found.margin)


def test_planning_against_the_truth_loses(market: Market, request_: Request) -> None:
    found = gains("audience", request_, Opposite(market), market)
    assert found.total("ours") < found.total("foresight")
    assert (found.by["foresight"] > 0).all()


def test_differences_come_with_an_interval_over_worlds() -> None:
    def world(ours: float) -> Gains:
        by = {"ours": [ours], "random": [100.0], "response": [300.0], "foresight": [400.0]}
        return Gains({who: np.array(values) for who, values in by.items()})

    one = summary([world(200.0)])
    assert one["over_random"] == {"mean": 1.0, "low": None, "high": None}
    two = summary([world(200.0), world(220.0)])
    assert two["over_random"]["low"] < two["over_random"]["mean"] == pytest.approx(1.1)
    assert (two["better_than_random"], two["better_than_response"]) == (1.0, 0.0)
    assert two["share_of_foresight"] == pytest.approx(420 / 800)


def test_a_catalogue_of_any_size_can_be_retrieved_from(snapshot: Snapshot, tmp_path: Path) -> None:
    large = inflated(snapshot, 200)
    assert len(large.catalogue.index) == 200
    assert len({item.category for item in large.catalogue}) == 2 * 34
    assert len(large.item["units_28d"]) == 200
    events = {"user_id": ["u1", "u1"], "item_id": ["i1", "i3.2"], "type": ["purchase", "purchase"]}
    times = pa.array([NOON_US, NOON_US + 1], pa.timestamp("us", "UTC"))
    pq.write_table(pa.table(events | {"occurred_at": times}), tmp_path / "events.parquet")
    chances = retriever_of(large.catalogue, tmp_path / "events.parquet").chances(["u1"])
    assert chances.sum() == pytest.approx(1.0)
    assert chances[[large.catalogue.index[name] for name in ("i1", "i3.2")]].tolist() == [0.0, 0.0]


@pytest.mark.parametrize(("weekend", "low", "high"), [(3.0, 0.8, 1.0), (1.0, -0.1, 0.1)])
def test_days_explain_what_differs_between_them(weekend: float, low: float, high: float) -> None:
    rng, days = np.random.default_rng(1), np.arange(19_000, 19_200)
    mean = np.where((days + 3) % 7 >= 5, 100.0 * weekend, 100.0)
    demand = DayDemand(CATEGORIES, int(days[0]), rng.poisson(mean, (2, len(days))).astype(np.float64))
    found = explained(demand, 0.25, "US")
    assert (found["days"], found["days_held_out"]) == (150, 50)
    assert low < found["explained"] < high
