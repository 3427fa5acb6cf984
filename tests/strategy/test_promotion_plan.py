"""Promotions: who × level × when; dates inside the period, never more sold than is on hand."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from brief_cases import (
    BRIEF,
    CATALOGUE,
    CATEGORIES,
    COSTS,
    PlainWriter,
    PlantedMarket,
    make_affinity,
    make_users,
)
from hypothesis import given, settings
from hypothesis import strategies as st

from qiance.decide.predictor import discount_of
from qiance.domain import Action, Brief, Channel, GridPrediction, Money, Strategy, StrategyKind
from qiance.features.calendar import calendar_features
from qiance.strategy.audience import audience_mask
from qiance.strategy.demand import DayDemand, day_number
from qiance.strategy.propose import propose
from qiance.strategy.propose_request import Known
from qiance.strategy.timing import MAX_WINDOWS, Window, share_coming, share_reached, windows

USERS = make_users(240)
AFFINITY = make_affinity(USERS)
MONDAY = day_number(date(2025, 3, 3))


def demand_of(weekdays: Sequence[float], weeks: int = 20, holiday: float = 1.0) -> DayDemand:
    """Every category sells so many units on each weekday, and `holiday` times as many near one."""
    days = np.arange(MONDAY, MONDAY + 7 * weeks)
    near = calendar_features(days * 86_400_000_000, "US")["days_to_holiday"] <= 3
    units = np.tile(weekdays, weeks) * np.where(near, holiday, 1.0)
    return DayDemand(CATEGORIES, MONDAY, np.tile(units, (len(CATEGORIES), 1)))


WEEKENDS = demand_of([100.0] * 5 + [400.0] * 2)


def run(brief: Brief = BRIEF, notes: list[str] | None = None, **options: object) -> list[Strategy]:
    known = {name: options.pop(name) for name in ("stock", "demand", "country") if name in options}
    defaults: dict[str, object] = {"predictor": PlantedMarket(USERS, CATALOGUE)}
    return propose(
        brief,
        CATALOGUE,
        USERS,
        AFFINITY,
        CATEGORIES,
        writer=PlainWriter(),
        contact_cost=COSTS,
        known=Known(**known),  # type: ignore[arg-type]
        seed=7,
        on_note=(notes if notes is not None else []).append,
        **(defaults | options),  # type: ignore[arg-type]
    )


def promoted(strategies: list[Strategy]) -> list[Strategy]:
    return [strategy for strategy in strategies if strategy.kind is StrategyKind.PROMOTION]


def in_stock(units: float) -> np.ndarray:
    return np.full(len(CATALOGUE), units)


PERIODS = st.tuples(st.datetimes(datetime(2024, 1, 1), datetime(2027, 1, 1)), st.integers(1, 24 * 500)).map(
    lambda drawn: (drawn[0].replace(tzinfo=UTC), drawn[0].replace(tzinfo=UTC) + timedelta(hours=drawn[1]))
)


@given(PERIODS, st.sampled_from(["US", "DE", "CN"]))
@settings(max_examples=60, deadline=None)
def test_windows_lie_in_the_period(period: tuple[datetime, datetime], country: str) -> None:
    starts, ends = period
    found = windows(starts, ends, country)
    assert (found[0].starts, found[0].ends) == period
    assert len(found) == len({(window.starts, window.ends) for window in found}) <= MAX_WINDOWS + 1
    for window in found:
        assert starts <= window.starts < window.ends <= ends
        assert day_number(window.starts) == window.dates[0]
        assert (
            day_number(window.ends - timedelta(microseconds=1)) == window.dates[-1]
        )  # periods are short here


def test_weeks_weekends_and_the_days_up_to_public_holidays() -> None:
    found = windows(datetime(2026, 3, 25, 9, tzinfo=UTC), datetime(2026, 4, 13, tzinfo=UTC), "DE")
    assert [window.describe() for window in found] == [
        "the whole period (25 March to 12 April)",
        "the days up to the public holiday of 3 April (31 March to 3 April)",
        "the days up to the public holiday of 6 April (3 to 6 April)",
        "the week of 30 March (30 March to 5 April)",
        "the week of 6 April (6 to 12 April)",
        "the weekend of 28 March (28 to 29 March)",
        "the weekend of 4 April (4 to 5 April)",
        "the weekend of 11 April (11 to 12 April)",
    ]
    # Good Friday is none in the United States, and a period within a day has nothing to choose.
    assert not [w for w in windows(found[0].starts, found[0].ends, "US") if "holiday" in w.words]
    assert len(windows(BRIEF.starts, BRIEF.starts + timedelta(hours=5), "US")) == 1
    with pytest.raises(ValueError, match="country: 'XX' has no holiday calendar"):
        windows(BRIEF.starts, BRIEF.ends, "XX")


def test_a_period_of_centuries_is_no_more_work_than_one_of_years() -> None:
    found = windows(BRIEF.starts, datetime(9000, 1, 1, tzinfo=UTC), "US")
    assert found[0].ends.year == 9000
    assert len(found[0].dates) <= 3 * 366 + 1
    assert max(window.ends.year for window in found[1:]) < 2030


def test_who_shops_often_comes_in_a_short_time() -> None:
    # 89.5 baskets and the half that is added are one a day.
    assert share_coming(np.array([89.5]), np.array([1.0, 2.0])) == pytest.approx(1 - np.exp([-1.0, -2.0]))
    some = share_coming(np.array([0.0, 9.0, np.nan]), np.array([1.0, 7.0, 30.0, 1e4]))
    assert (np.diff(some) > 0).all()
    assert some[-1] == pytest.approx(1.0)
    few = share_reached(np.array([0.0, 9.0]), np.array([2.0, 14.0]), 14.0)
    assert 0 < few[0] < few[1] == 1
    assert (share_coming(None, np.array([1.0, 2.0])) == 1).all()
    assert (share_coming(np.array([np.nan]), np.array([1.0])) == 1).all()


def test_demand_by_day_is_found_in_a_log() -> None:
    monday = MONDAY + 70  # 2025-05-12; the next public holiday is on the 26th
    week = np.arange(monday, monday + 7)
    found = WEEKENDS.index("TEA", week, "US")
    assert found is not None
    assert found[5:].mean() / found[:5].mean() == pytest.approx(4.0, rel=0.05)
    holiday = demand_of([100.0] * 7, weeks=52, holiday=2.0)
    near = holiday.index("TEA", np.array([day_number(date(2026, 7, 2)), day_number(date(2026, 7, 8))]), "US")
    assert near is not None
    assert near[0] / near[1] == pytest.approx(2.0, rel=0.05)


def test_a_category_that_sells_little_follows_the_shop_and_a_short_log_says_nothing() -> None:
    days = np.arange(MONDAY, MONDAY + 7)
    sparse = replace(WEEKENDS, units=WEEKENDS.units * np.array([[1.0], [1.0], [1.0], [0.0]]))
    shop, none = sparse.index("COFFEE", days, "US"), sparse.index("BREAD", days, "US")
    assert shop is not None
    assert none is not None
    assert none == pytest.approx(shop, rel=0.05)
    assert sparse.index("CHEESE", days, "US") is None
    assert demand_of([1.0] * 7, weeks=3).index("TEA", days, "US") is None


def test_demand_counts_purchases_of_the_catalogue_and_survives_its_file(tmp_path: Path) -> None:
    noon = datetime(2025, 3, 3, 12, tzinfo=UTC)
    rows = [("tea-1", "purchase", 3, 0), ("tea-1", "view", 9, 0)]
    rows += [("soap-1", "purchase", 1, 2), ("x", "purchase", 7, 1)]
    times = [noon + timedelta(days=row[3]) for row in rows]
    events = pa.table(
        {
            "item_id": [row[0] for row in rows],
            "type": [row[1] for row in rows],
            "quantity": [row[2] for row in rows],
            "occurred_at": pa.array(times, pa.timestamp("us", "UTC")),
        }
    )
    found = DayDemand.of(events, {"tea-1": "TEA", "soap-1": "SOAP"})
    assert (found.categories, found.first) == (("SOAP", "TEA"), MONDAY)
    assert found.units.tolist() == [[0, 0, 1], [3, 0, 0]]
    found.save(tmp_path)
    again = DayDemand.load(tmp_path)
    assert again is not None
    assert (again.categories, again.first, again.units.tolist()) == (
        found.categories,
        MONDAY,
        found.units.tolist(),
    )
    assert DayDemand.load(tmp_path / "none") is None
    with pytest.raises(ValueError, match="hold no purchase of an item"):
        DayDemand.of(events, {"bread-1": "BREAD"})


def test_a_small_budget_goes_to_the_days_of_most_demand_and_an_ample_one_to_all() -> None:
    dear = replace(BRIEF, budget=Money(500), channels=(Channel.MAILER,))  # pays for a dozen contacts
    few = promoted(run(dear, demand=WEEKENDS))
    assert few
    for strategy in few:
        assert (strategy.starts.weekday(), strategy.ends - strategy.starts) == (5, timedelta(days=2))
        said = next(reason for reason in strategy.reasons if reason.startswith("Runs the weekend of"))
        assert "the log's demand for" in said
        assert "the effect model itself does not tell dates apart" in said
        assert strategy.provenance["timing"] == "demand of the category by day"
    ample = promoted(run(demand=demand_of([100.0] * 5 + [110.0] * 2)))
    assert {(strategy.starts, strategy.ends) for strategy in ample} == {(BRIEF.starts, BRIEF.ends)}
    for strategy in promoted(run(dear)):
        assert (strategy.starts, strategy.ends) == (BRIEF.starts, BRIEF.ends)
        assert any("demand by day is unknown" in reason for reason in strategy.reasons)


def test_a_promotion_of_little_stock_is_made_smaller_and_says_so() -> None:
    unlimited = promoted(run(replace(BRIEF, n=20)))
    limited = promoted(run(replace(BRIEF, n=20), stock=in_stock(3)))
    smaller = [one for one in limited if any("Made smaller" in reason for reason in one.reasons)]
    assert smaller
    for strategy in smaller:
        assert strategy.provenance["stock"] == "3 units on hand"
        assert strategy.provenance["offer"].endswith("within the floors and the stock")
        assert any("since it would have sold up to" in reason for reason in strategy.reasons)
    assert max(sold(strategy, BRIEF, 1.0) for strategy in limited) <= 3
    assert max(sold(strategy, BRIEF, 1.0) for strategy in unlimited) > 3
    for strategy in unlimited:
        assert any("how much is on hand is not known" in reason for reason in strategy.reasons)
        assert strategy.provenance["stock"] == "unknown"


def test_what_cannot_be_made_small_enough_is_not_promoted_and_whoever_asked_is_told() -> None:
    notes: list[str] = []
    strategies = run(stock=in_stock(0.01), notes=notes)
    assert not promoted(strategies)
    assert len(strategies) == BRIEF.n
    assert "promotions left out since more would be sold than is on hand" in notes[0]


class Loud(PlantedMarket):
    """Words that are not those of a draft sell five times as much."""

    def predict(self, user_ids: Sequence[str], actions: Sequence[Action]) -> GridPrediction:
        found = super().predict(user_ids, actions)
        more = [5.0 if "for you" in (a.creative.headline if a.creative else "") else 1.0 for a in actions]
        conversion = np.minimum(found.conversion * np.array(more)[None, :, None], 1).astype(np.float32)
        return replace(found, conversion=conversion)


def test_words_that_sell_more_than_there_is_are_not_let_through() -> None:
    notes: list[str] = []
    strategies = run(stock=in_stock(6), predictor=Loud(USERS, CATALOGUE), notes=notes)
    assert any(note.startswith("1 promotions left out") for note in notes)
    assert not [s for s in promoted(strategies) if sold(s, BRIEF, 1.0) > 6]


def sold(strategy: Strategy, brief: Brief, demand: float) -> float:
    """Units at the upper end of the predicted interval, worked out anew."""
    assert strategy.effect is not None
    rows = audience_mask(strategy.audience, USERS)
    rate = (USERS.columns["baskets_90d"][rows] + 0.5) / 90
    part, whole = strategy.ends - strategy.starts, brief.ends - brief.starts
    shares = [float(1 - np.exp(-rate * (length / timedelta(days=1))).mean()) for length in (part, whole)]
    coming = rows.sum() * shares[0] / shares[1]
    action, cvr = strategy.actions[0], strategy.effect.cvr
    cost = action.contact_cost + discount_of(action, CATALOGUE) * cvr.value
    return min(coming, brief.budget.minor / cost if cost else np.inf) * min(cvr.high * demand, 1.0)


@given(
    stock=st.lists(st.one_of(st.floats(-5, 60), st.just(float("nan"))), min_size=20, max_size=20),
    weekdays=st.lists(st.floats(0, 300), min_size=7, max_size=7),
    budget=st.integers(0, 30_000),
    hours=st.integers(2, 24 * 60),
    max_depth=st.floats(0, 0.6),
    min_margin=st.floats(0, 0.4),
    n=st.integers(4, 16),
)
@settings(max_examples=25, deadline=None)
def test_never_more_than_is_on_hand_inside_the_period_above_the_floor(
    stock: list[float],
    weekdays: list[float],
    budget: int,
    hours: int,
    max_depth: float,
    min_margin: float,
    n: int,
) -> None:
    demand, units = demand_of(weekdays), np.array(stock)
    brief = replace(
        BRIEF,
        budget=Money(budget),
        ends=BRIEF.starts + timedelta(hours=hours),
        max_depth=max_depth,
        min_margin=min_margin,
        n=n,
    )
    if (units <= 0).all():
        with pytest.raises(ValueError, match=r"brief\.items: all 20 .* are sold out"):
            run(brief, stock=units, demand=demand)
        return
    planned: dict[str, float] = {}
    for strategy in promoted(run(brief, stock=units, demand=demand)):
        assert brief.starts <= strategy.starts < strategy.ends <= brief.ends
        item = CATALOGUE[strategy.actions[0].item_id or ""]
        price = item.price * (1 - Decimal(str(strategy.actions[0].offer.depth)))
        assert price - item.unit_cost >= price * Decimal(str(min_margin))
        index = demand.index(item.category, Window(strategy.starts, strategy.ends, "").dates, "US")
        high = sold(strategy, brief, 1.0 if index is None else float(index.mean()))
        planned[item.item_id] = planned.get(item.item_id, 0.0) + high
        on_hand = units[CATALOGUE.index[item.item_id]]
        if np.isnan(on_hand):
            assert strategy.provenance["stock"] == "unknown"
        else:
            assert planned[item.item_id] <= max(on_hand, 0.0) + 1e-6


def test_stock_of_another_shape_is_refused() -> None:
    with pytest.raises(ValueError, match="stock: needs 20 units, one per catalogue item, NaN where unknown"):
        run(stock=np.ones(3))
