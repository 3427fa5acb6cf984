"""Users arrive one by one: the lease holds whatever comes, and the budget is used well under drift."""

from __future__ import annotations

import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qiance.allocate import allocate
from qiance.allocate.later import Later, ReturnRate
from qiance.allocate.streaming import StreamAllocator, StreamSettings


def arrivals(rng, count, level=1.0, actions=4):
    value = level * rng.gamma(1, 100, (count, actions))
    cost = rng.gamma(2, 30, (count, actions))
    value[:, 0], cost[:, 0] = 0, 0
    return value, cost, np.ones((count, actions), dtype=bool)


def run(stream, value, cost, admissible, batch=25, paid_share=None, every=8):
    """Everybody in order of time, outcomes one batch late; (choices, paid in all)."""
    rng = np.random.default_rng(0)
    choices, paid_all, pending = [], 0.0, None
    for number, start in enumerate(range(0, len(value), batch)):
        rows = slice(start, start + batch)
        if number % every == 0:
            stream.replan(start / len(value))
        most = 2.0 * cost[rows]
        made = stream.decide(value[rows], cost[rows], admissible[rows], most)
        if pending is not None:
            stream.settle(*pending)
        at = np.arange(made.choice.size)
        high = np.full(at.size, 1.0) if paid_share is None else paid_share(rng, at.size)
        paid = np.minimum(cost[rows][at, made.choice] * high, most[at, made.choice])
        pending = (cost[rows][at, made.choice], most[at, made.choice], paid)
        paid_all += paid.sum()
        choices.append(made.choice)
    stream.settle(*pending)
    return np.concatenate(choices), paid_all


@settings(max_examples=30, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    share=st.floats(0, 0.5),
    dear=st.floats(0.1, 2.0),
    wrong=st.floats(0.2, 5.0),
    units=st.integers(0, 60),
)
def test_neither_budget_nor_stock_is_ever_passed(seed, share, dear, wrong, units):
    """Whatever costs turn out to be, however wrong the forecast."""
    rng = np.random.default_rng(seed)
    value, cost, admissible = arrivals(rng, 400)
    budget = share * cost.max(axis=1).sum()
    stock = np.array([np.inf, np.inf, units, np.inf])
    plan = StreamSettings(budget=budget, forecast=np.array([400 * wrong]), units=stock, window=200)
    stream = StreamAllocator(plan, *arrivals(rng, 200))
    choice, paid = run(stream, value, cost, admissible, paid_share=lambda r, n: r.uniform(0, 2 * dear, n))
    assert paid <= budget * (1 + 1e-9)
    assert stream.spent == pytest.approx(paid)
    assert stream.reserved == pytest.approx(0.0, abs=1e-6)
    assert (choice == 2).sum() <= units


@pytest.mark.parametrize("drift", ["none", "more arrivals", "higher values", "dearer"])
def test_the_budget_is_used_well_when_the_day_drifts(drift):
    rng = np.random.default_rng(1)
    late = 6_000 if drift == "more arrivals" else 3_000
    morning, afternoon = arrivals(rng, 3_000), arrivals(rng, late, 1.5 if drift == "higher values" else 1.0)
    value, cost, admissible = (np.concatenate(pair) for pair in zip(morning, afternoon, strict=True))
    real = cost.copy()
    if drift == "dearer":
        real[3_000:] *= 1.5
    budget = 0.1 * real.max(axis=1).sum()
    stream = StreamAllocator(
        StreamSettings(budget=budget, forecast=np.full(24, 250.0)), *arrivals(rng, 2_000)
    )
    at, choices = np.arange(len(value)), []
    for start in range(0, len(value), 20):
        now = start / 6_000 if start < 3_000 else 0.5 + 0.5 * (start - 3_000) / late
        if start % 200 == 0:
            stream.replan(now)
        rows = slice(start, start + 20)
        made = stream.decide(value[rows], cost[rows], admissible[rows], 2 * cost[rows])
        picked = np.arange(made.choice.size), made.choice
        stream.settle(cost[rows][picked], 2 * cost[rows][picked], real[rows][picked])
        choices.append(made.choice)
    choice = np.concatenate(choices)
    best = allocate(value, real, budget, admissible).bound
    assert real[at, choice].sum() <= budget * (1 + 1e-9)
    assert real[at, choice].sum() >= 0.97 * budget
    assert value[at, choice].sum() >= (0.98 if drift == "none" else 0.93) * best


@pytest.mark.parametrize("kept", [False, True])
def test_an_average_is_kept_by_its_own_price(kept):
    """Two fifths of a segment that the values pass over must get something."""
    rng = np.random.default_rng(2)
    value, cost, admissible = arrivals(rng, 4_000)
    poor = np.arange(4_000) % 3 == 0
    value[poor] *= 0.2
    budget = 0.15 * cost.max(axis=1).sum()
    plan = StreamSettings(budget=budget, forecast=np.array([4_000.0]), targets=np.zeros(1), step=0.2)
    stream = StreamAllocator(plan, value[:2_000], cost[:2_000], admissible[:2_000])
    choices = []
    for start in range(0, 4_000, 20):
        rows = slice(start, start + 20)
        if start % 200 == 0:
            stream.replan(start / 4_000)
        # 0.4 · members − members that get something ≤ 0
        uses = (0.4 - (np.arange(4) > 0)) * poor[rows, None]
        given = {"uses": uses[None]} if kept else {}
        made = stream.decide(value[rows], cost[rows], admissible[rows], cost[rows], **given)
        picked = np.arange(20), made.choice
        stream.settle(cost[rows][picked], cost[rows][picked], cost[rows][picked])
        choices.append(made.choice)
    share = (np.concatenate(choices)[poor] > 0).mean()
    assert share == pytest.approx(0.4, abs=0.03) if kept else share < 0.3


def test_a_slot_is_worth_the_best_that_it_can_still_bring():
    """One slot and many visits to come: only the best visit should have it; two slots, the two best."""
    value = np.zeros((3, 2, 2))
    value[:, 0, 1], value[:, 1, 1] = 10.0, 100.0
    later = Later(value, np.zeros((3, 2, 2)), np.array([1, 2, 9]), np.array([60.0, 60.0, 60.0]))
    worth = later.slot_worth(0.0)
    assert worth[0] == pytest.approx(100, rel=0.02)
    assert worth[1] == pytest.approx(100, rel=0.02)
    assert worth[2] == 0
    few = Later(value, np.zeros((3, 2, 2)), np.array([1, 1, 2]), np.array([0.0, 0.1, 0.1])).slot_worth(0.0)
    assert few[0] == 0
    assert few[1] == pytest.approx(0.1 * 55, rel=0.1)
    assert few[2] < few[1] / 5


def test_returns_are_counted():
    rng, rate = np.random.default_rng(0), ReturnRate(1 / 100)
    for _ in range(400):
        rate.add(rng.integers(0, 1_000, 20))
    assert rate.per_arrival == pytest.approx(1 / 1_000, rel=0.1)
    with pytest.raises(ValueError, match="per_arrival: 2 is outside"):
        ReturnRate(2)


def test_decisions_take_microseconds():
    rng = np.random.default_rng(3)
    value, cost, admissible = arrivals(rng, 3_000, actions=6)
    plan = StreamSettings(budget=0.1 * cost.sum(), forecast=np.array([3_000.0]))
    stream = StreamAllocator(plan, value[:2_000], cost[:2_000], admissible[:2_000])
    times = []
    for row in range(2_000):
        rows = slice(row, row + 1)
        started = time.thread_time()
        stream.decide(value[rows], cost[rows], admissible[rows], cost[rows])
        times.append(time.thread_time() - started)
    assert np.quantile(times, 0.99) < 5e-3


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"budget": -1.0}, "budget: -1.0 is not a number ≥ 0"),
        ({"forecast": np.zeros(3)}, "forecast: nobody is expected"),
        ({"forecast": np.array([1.0, np.nan])}, "forecast: row 1 is nan"),
        ({"window": 0}, "window: 0 is less than one arrival"),
        ({"memory": 0.0}, "memory: 0.0 is not a positive number"),
        ({"units": np.ones(2)}, r"units: has shape \(2,\); must be \(4,\)"),
    ],
)
def test_settings_that_make_no_sense_are_refused(change, message):
    with pytest.raises(ValueError, match=message):
        StreamAllocator(
            StreamSettings(**{"budget": 1.0, "forecast": np.ones(1), **change}),
            *arrivals(np.random.default_rng(0), 9),
        )


def test_exploring_has_known_propensities_and_needs_numbers_to_draw_with():
    rng = np.random.default_rng(4)
    value, cost, admissible = arrivals(rng, 2_000)
    stream = StreamAllocator(StreamSettings(1e9, np.array([2_000.0])), value, cost, admissible)
    with pytest.raises(ValueError, match="uniforms: exploring needs numbers"):
        stream.decide(value, cost, admissible, cost, epsilon=0.2)
    made = stream.decide(value, cost, admissible, cost, epsilon=0.2, uniforms=rng.random(2_000))
    explored = made.choice != value.argmax(axis=1)
    assert explored.mean() == pytest.approx(0.15, abs=0.03)
    np.testing.assert_allclose(made.propensity[explored], 0.05)


def test_paying_more_than_was_reserved_is_refused():
    stream = StreamAllocator(StreamSettings(9.0, np.ones(1)), *arrivals(np.random.default_rng(0), 9))
    with pytest.raises(ValueError, match="paid: is more than was reserved"):
        stream.settle(np.ones(1), np.ones(1), np.full(1, 2.0))
    with pytest.raises(ValueError, match=r"now: 1\.5 is outside"):
        stream.replan(1.5)
