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
        pending = (made.offer, paid)
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
        stream.settle(made.offer, real[rows][picked])
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
        stream.settle(made.offer, cost[rows][picked])
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


@pytest.mark.parametrize(
    ("name", "wanted"), [("cost", r"\(3, 2, 2\)"), ("slots", r"\(3,\)"), ("visits", r"\(3,\)")]
)
def test_later_visits_of_other_users_are_refused(name, wanted):
    given = {
        "value": np.ones((3, 2, 2)),
        "cost": np.ones((3, 2, 2)),
        "slots": np.ones(3, int),
        "visits": np.ones(3),
    }
    with pytest.raises(ValueError, match=rf"{name}: has shape .*; must be {wanted}"):
        Later(**{**given, name: given[name][:2]})
    with pytest.raises(ValueError, match=r"value: has shape \(3, 2\); must be \[n, J, A\]"):
        Later(**{**given, "value": np.ones((3, 2))})


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
        ({"units": np.array([1, 1, -1, 1])}, r"units: row 2 is -1\.0; must be ≥ 0"),
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


def small(budget: float = 100.0) -> StreamAllocator:
    """A stream over two actions: nothing, and one that is worth 10 and costs 1."""
    plan = (np.tile([0.0, 10.0], (9, 1)), np.tile([0.0, 1.0], (9, 1)), np.ones((9, 2), dtype=bool))
    return StreamAllocator(StreamSettings(budget, np.array([3.0]), targets=np.zeros(1)), *plan)


ARRIVALS = {
    "value": np.tile([0.0, 10.0], (3, 1)),
    "cost": np.tile([0.0, 1.0], (3, 1)),
    "admissible": np.ones((3, 2), dtype=bool),
    "most": np.tile([0.0, 4.0], (3, 1)),
}


def state(stream: StreamAllocator) -> tuple[float, ...]:
    return stream.spent, stream.reserved, stream.left, stream.units[1]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"most": np.array([[0, 4.0], [0, -5.0], [0, 4.0]])}, r"most: row 1, column 1 is -5\.0; must be ≥ 0"),
        (
            {"most": np.array([[0, 4.0], [0, np.nan], [0, 4.0]])},
            "most: row 1, column 1 is nan; must be finite",
        ),
        (
            {"most": np.array([[0, 4.0], [0, 4.0], [9.0, 4]])},
            r"most: row 2, column 0 is 9\.0; must be ≥ 0, and 0 in column 0",
        ),
        ({"most": np.ones((2, 2))}, r"most: has shape \(2, 2\); must be \(3, 2\)"),
        ({"most": np.ones(3)}, r"most: has shape \(3,\); must have 2 dimensions"),
        ({"value": np.ones((3, 5))}, "value: has 5 columns; must have 2, as plan_value"),
        ({"cost": -ARRIVALS["cost"]}, r"cost: row 0, column 1 is -1\.0; must be ≥ 0"),
        ({"cost": np.ones((3, 2))}, r"cost: row 0, column 0 is 1\.0; must be ≥ 0, and 0 in column 0"),
        ({"admissible": np.ones((3, 2))}, "admissible: dtype is float64; must be bool"),
        ({"uses": np.ones((2, 3, 2))}, r"uses: has shape \(2, 3, 2\); must be \(1, 3, 2\), one matrix per"),
        ({"uses": np.full((1, 3, 2), np.inf)}, "uses: constraint 0, row 0, column 0 is inf"),
        (
            {"later": Later(np.ones((2, 1, 2)), np.ones((2, 1, 2)), np.ones(2), np.ones(2))},
            "later: is of 2 users; must be of 3",
        ),
        ({"uniforms": np.array([0.5, 1.5, 0.5])}, r"uniforms: row 1 is 1\.5"),
    ],
)
def test_arrivals_that_make_no_sense_are_refused_and_change_nothing(change, message):
    stream = small()
    made = stream.decide(**ARRIVALS)
    before = state(stream)
    with pytest.raises(ValueError, match=message):
        stream.decide(**{**ARRIVALS, **change})
    assert state(stream) == before
    stream.settle(made.offer, np.full(3, 4.0))
    assert state(stream) == (12.0, 0.0, 88.0, np.inf)


def test_predictions_for_the_plan_are_checked_too():
    plan = [ARRIVALS["value"], ARRIVALS["cost"], ARRIVALS["admissible"]]
    for place, name in enumerate(("plan_value", "plan_cost", "plan_admissible")):
        given = [part[:, 0] if at == place else part for at, part in enumerate(plan)]
        with pytest.raises(ValueError, match=rf"{name}: has shape \(3,\)"):
            StreamAllocator(StreamSettings(9.0, np.ones(1)), *given)


@pytest.mark.parametrize(
    ("offer", "paid", "message"),
    [
        ([0, 1], [4.0, 4.5], r"paid: row 1 is 4\.5, more than the 4 reserved for it"),
        ([0, 1], [1.0, -2.0], r"paid: row 1 is -2\.0; must be ≥ 0"),
        ([0, 1], [1.0, np.nan], "paid: row 1 is nan"),
        ([0, 1], [1.0], "paid: has 1 rows; must have 2"),
        ([0, 7], [1.0, 1.0], "offer: row 1 is 7.*; is not open: settled already, or never made"),
        ([0, 0], [1.0, 1.0], "offer: row 1 is 0.*; is named twice"),
        ([0.5], [1.0], r"offer: row 0 is 0\.5; is not open"),
        ([[0, 1]], [1.0], r"offer: has shape \(1, 2\)"),
        ([-1], [1.0], r"paid: row 0 is 1, more than the 0 reserved"),
    ],
)
def test_outcomes_that_make_no_sense_are_refused_and_change_nothing(offer, paid, message):
    stream = small()
    stream.decide(**ARRIVALS)
    before = state(stream)
    with pytest.raises(ValueError, match=message):
        stream.settle(offer, paid)
    assert state(stream) == before


def test_an_offer_is_settled_once():
    stream = small()
    made = stream.decide(**ARRIVALS)
    stream.settle(made.offer, np.ones(3))
    with pytest.raises(ValueError, match=r"offer: row 0 is 0.*; is not open"):
        stream.settle(made.offer, np.ones(3))
    assert state(stream) == (3.0, 0.0, 97.0, np.inf)
    with pytest.raises(ValueError, match=r"now: 1\.5 is outside"):
        stream.replan(1.5)


def test_who_gets_nothing_has_nothing_to_settle():
    stream = small(budget=4.0)
    made = stream.decide(**ARRIVALS)
    np.testing.assert_array_equal(made.choice, [1, 0, 0])
    np.testing.assert_array_equal(made.offer, [0, -1, -1])
    stream.settle(made.offer, np.zeros(3))
    assert stream.left == 4.0


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    budget=st.floats(0, 3_000),
    stock=st.integers(0, 40),
    acts=st.lists(st.sampled_from(["decide", "settle", "again", "replan", "wrong"]), min_size=5, max_size=40),
)
def test_the_budget_is_never_passed_whatever_comes_in_which_order(seed, budget, stock, acts):
    """Batches of any size, outcomes late, in part and in any order, mistakes in between."""
    rng = np.random.default_rng(seed)
    plan = StreamSettings(budget, np.array([300.0]), np.array([np.inf, stock, np.inf]), window=50)
    stream = StreamAllocator(plan, *arrivals(rng, 60, actions=3))
    open_, paid_all, given_all = {}, 0.0, 0
    for step, act in enumerate(acts):
        if act == "replan":
            stream.replan(step / len(acts))
        elif act == "wrong":
            value, cost, admissible = arrivals(rng, 4, actions=3)
            with pytest.raises(ValueError, match="most: row"):
                stream.decide(value, cost, admissible, -cost)
        elif act == "decide":
            value, cost, admissible = arrivals(rng, int(rng.integers(1, 30)), actions=3)
            most = cost * rng.uniform(0, 3, cost.shape)
            made = stream.decide(value, cost, admissible, most, epsilon=0.2, uniforms=rng.random(len(cost)))
            at = np.arange(len(cost))
            open_ |= dict(zip(made.offer.tolist(), most[at, made.choice].tolist(), strict=True))
            given_all += int((made.choice == 1).sum())
        else:
            keys = [key for key in open_ if rng.random() < 0.6]
            paid = np.array([open_[key] * rng.choice([0.0, rng.random(), 1.0]) for key in keys])
            if keys:
                stream.settle(keys, paid)
                paid_all += paid.sum()
                open_ = {key: most for key, most in open_.items() if key not in keys or key == -1}
            settled = [key for key in keys if key != -1]
            if act == "again" and settled:
                with pytest.raises(ValueError, match="is not open"):
                    stream.settle(settled[:1], [0.0])
        assert stream.spent == pytest.approx(paid_all)
        assert stream.reserved == pytest.approx(sum(open_.values()), abs=1e-6)
        assert stream.spent + stream.reserved <= budget * (1 + 1e-9)
        assert given_all <= stock
