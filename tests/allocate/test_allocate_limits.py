"""Limits beside budgets: kept to the last, as good as an independent solver's plan, named when impossible."""

from __future__ import annotations

import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import optimize

from qiance.allocate import (
    DailyBudgets,
    DepthFairness,
    FrequencyCap,
    InfeasibleError,
    MarginFloor,
    SegmentFloor,
    Stock,
    allocate,
)

DEPTH = np.array([0.0, 0.1, 0.2, 0.3])


def make_case(users, seed):
    """(value, cost, budget, admissible, limits, rows); rows: `(coefficients [U, A], most)` built by hand."""
    rng = np.random.default_rng(seed)
    shape = (users, 4)
    value, cost = rng.gamma(1, 100, shape), rng.gamma(2, 30, shape)
    value[:, 0], cost[:, 0] = 0, 0
    admissible = rng.random(shape) < 0.9
    admissible[:, 0] = True
    day, member, group = rng.integers(0, 2, users), rng.random(users) < 0.4, rng.integers(0, 2, users)
    budget, units = 0.35 * cost.max(axis=1).sum(), np.array([np.inf, np.inf, np.ceil(users / 6), np.inf])
    daily = budget * np.array([0.5, 0.6])
    margin = value - 0.5 * cost + 20
    given_something = np.broadcast_to(np.arange(4) > 0, shape)
    limits = [
        DailyBudgets(cost, day, daily),
        Stock(units),
        SegmentFloor(member, 0.3, "newcomers"),
        MarginFloor(margin, value + 60, 0.2),
        DepthFairness(group, DEPTH, 0.05),
    ]
    rows = [(cost, budget)]
    rows += [(cost * (day == d)[:, None], daily[d]) for d in range(2)]
    rows.append((np.broadcast_to(np.arange(4) == 2, shape) * 1.0, units[2]))
    rows.append((-1.0 * given_something * member[:, None], -np.ceil(0.3 * member.sum() - 1e-9)))
    rows.append((0.2 * (value + 60) - margin, 0.0))
    counts = np.bincount(group, minlength=2)
    if counts.all():
        means = [DEPTH * (group == g)[:, None] / counts[g] for g in range(2)]
        rows += [(means[0] - means[1], 0.05), (means[1] - means[0], 0.05)]
    return value, cost, budget, admissible, limits, rows


def reference(value, admissible, rows, person=None, most=0):
    """The best whole-number value by HiGHS, formulated here from scratch; None where there is no plan."""
    users, actions = value.shape
    once = np.kron(np.eye(users), np.ones(actions))
    constraints = [optimize.LinearConstraint(once, 1, 1)]
    constraints += [optimize.LinearConstraint(part.reshape(1, -1), -np.inf, top) for part, top in rows]
    if person is not None:
        for one in np.unique(person):
            taken = np.outer(person == one, np.arange(actions) > 0).reshape(1, -1) * 1.0
            constraints.append(optimize.LinearConstraint(taken, -np.inf, most))
    found = optimize.milp(
        -value.ravel(),
        integrality=np.ones(value.size),
        bounds=optimize.Bounds(0, admissible.ravel() * 1.0),
        constraints=constraints,
        options={"mip_rel_gap": 1e-5, "node_limit": 3_000},
    )
    return -found.fun if found.status == 0 else None


def check_kept(found, admissible, rows):
    at = np.arange(len(found.choice))
    assert admissible[at, found.choice].all()
    for part, top in rows:
        assert part[at, found.choice].sum() <= top + 1e-9 * max(abs(top), 1.0)


@settings(max_examples=12, deadline=None)
@given(users=st.integers(8, 30), seed=st.integers(0, 10**6))
def test_every_limit_is_kept_and_the_plan_is_the_solvers(users, seed):
    value, cost, budget, admissible, limits, rows = make_case(users, seed)
    best = reference(value, admissible, rows)
    if best is None:
        with pytest.raises(InfeasibleError):
            allocate(value, cost, budget, admissible, limits=limits)
        return
    found = allocate(value, cost, budget, admissible, limits=limits)
    check_kept(found, admissible, rows)
    assert found.value == pytest.approx(best, rel=5e-5)
    assert found.bound >= best * (1 - 5e-5)
    assert found.gap == pytest.approx(max(found.bound - found.value, 0.0))


@settings(max_examples=10, deadline=None)
@given(seed=st.integers(0, 10**6), most=st.integers(0, 2))
def test_the_frequency_cap_holds_and_costs_as_little_as_it_must(seed, most):
    value, cost, budget, admissible, _, rows = make_case(24, seed)
    person = np.random.default_rng(seed).integers(0, 9, 24)
    found = allocate(value, cost, budget, admissible, limits=[FrequencyCap(person * 7, most)])
    check_kept(found, admissible, rows[:1])
    assert np.bincount(person, found.choice > 0).max() <= most
    best = reference(value, admissible, rows[:1], person, most)
    assert found.value == pytest.approx(best, rel=5e-5, abs=1e-9)


@pytest.mark.parametrize("capped", [False, True])
def test_thousands_of_rows_under_all_limits(capped):
    value, cost, budget, admissible, limits, rows = make_case(3_000, 3)
    person = np.random.default_rng(0).integers(0, 2_000, 3_000)
    if capped:
        limits = [*limits, FrequencyCap(person, 1)]
    found = allocate(value, cost, budget, admissible, limits=limits)
    check_kept(found, admissible, rows)
    assert 0 <= found.gap <= 2e-5 * found.bound
    if capped:
        assert np.bincount(person, found.choice > 0).max() <= 1
    uses = {use.name: use for use in found.limits}
    at = np.arange(3_000)
    assert uses["budget"].used == pytest.approx(cost[at, found.choice].sum())
    assert uses["newcomers"].minimum
    assert uses["newcomers"].used >= uses["newcomers"].limit > 0


def test_the_price_of_a_limit_is_what_relaxing_it_brings():
    value, cost, budget, admissible, _, _ = make_case(2_400, 4)
    before, after = (
        allocate(value, cost, budget, admissible, limits=[Stock(np.array([np.inf, np.inf, np.inf, units]))])
        for units in (240.0, 246.0)
    )
    price = before.limits[1].price
    assert price > 0
    assert (after.bound - before.bound) / 6 == pytest.approx(price, rel=0.1)


def test_a_floor_that_admits_too_few_is_named():
    value, cost, _, admissible, _, _ = make_case(40, 5)
    member = np.zeros(40, dtype=bool)
    member[:10] = True
    admissible[:8, 1:] = False
    with pytest.raises(
        InfeasibleError, match=r"newcomers: cannot be met by any plan: it asks for 5, .* reach"
    ):
        allocate(value, cost, 1e9, admissible, limits=[SegmentFloor(member, 0.5, "newcomers")])


@pytest.mark.parametrize("users", [40, pytest.param(9_000, marks=pytest.mark.slow)])
def test_limits_that_only_fail_together_are_named_together(users):
    value, cost, _, _, _, _ = make_case(users, 6)
    stock = Stock(np.full(4, np.inf))
    with pytest.raises(InfeasibleError) as caught:
        allocate(
            value,
            cost + (np.arange(4) > 0),
            3.0,
            limits=[SegmentFloor(np.ones(users, dtype=bool), 0.9), stock],
        )
    assert set(caught.value.limits) == {"budget", "segment floor"}


def test_a_binding_stock_may_be_met_exactly_and_never_passed():
    value = np.tile([0.0, 5.0, 4.0], (4_000, 1))
    found = allocate(value, np.zeros((4_000, 3)), 0.0, limits=[Stock(np.array([np.inf, 1_234.0, 99.5]))])
    np.testing.assert_array_equal(np.bincount(found.choice)[1:], [1_234, 99])
    assert found.value == pytest.approx(5 * 1_234 + 4 * 99)


ONES = np.ones(2, dtype=bool)
COST = np.array([[0.0, 1.0], [0.0, 1.0]])


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Stock(np.array([1.0, 2.0])), r"stock.units: row 0 is 1.0; doing nothing never runs out"),
        (lambda: Stock(np.array([np.inf, -2.0])), r"stock.units: row 1 is -2.0; must be ≥ 0"),
        (lambda: SegmentFloor(ONES, 1.5), r"segment floor.share: 1.5 is outside \[0, 1\]"),
        (lambda: SegmentFloor(np.ones(2), 0.5), r"segment floor.member: dtype is float64; must be bool"),
        (lambda: FrequencyCap(np.array([0, 1]), -1), r"frequency cap.most: -1 is not a whole number"),
        (lambda: FrequencyCap(np.array([0, -1]), 1), r"frequency cap.person: row 1 is -1; must be ≥ 0"),
        (
            lambda: DailyBudgets(COST, np.array([0, 2]), np.ones(2)),
            r"daily budget.day: row 1 is 2; limits has 2",
        ),
        (lambda: DailyBudgets(COST, np.array([0, 1]), -np.ones(2)), r"daily budget.limits: row 0 is -1.0"),
        (lambda: MarginFloor(COST, COST * np.nan, 0.1), r"margin floor.sales: row 0, column 0 is nan"),
        (lambda: DepthFairness(np.array([0, -2]), DEPTH, 0.1), r"depth fairness.group: row 1 is -2"),
        (
            lambda: DepthFairness(np.array([0, 1]), DEPTH, -0.1),
            r"depth fairness.spread: -0.1 is not a number",
        ),
    ],
)
def test_a_limit_that_makes_no_sense_is_refused_when_made(make, message):
    with pytest.raises(ValueError, match=message):
        make()


@pytest.mark.parametrize(
    ("limit", "message"),
    [
        (Stock(np.array([np.inf, 1.0, 1.0])), r"stock.units: has 3 entries; there are 2 actions"),
        (
            SegmentFloor(np.ones(3, dtype=bool), 0.5),
            r"segment floor.member: has shape \(3,\); must be \(2,\)",
        ),
        (FrequencyCap(np.zeros(3, dtype=int), 1), r"frequency cap.person: has shape \(3,\)"),
        (DepthFairness(np.array([0, 1]), DEPTH, 0.1), r"depth fairness.depth: has 4 entries; there are 2"),
    ],
)
def test_a_limit_of_another_problem_is_refused(limit, message):
    with pytest.raises(ValueError, match=message):
        allocate(COST, COST, 1.0, limits=[limit])


def test_two_frequency_caps_are_refused():
    caps = [FrequencyCap(np.array([0, 0]), 1), FrequencyCap(np.array([0, 1]), 1, "weekly")]
    with pytest.raises(ValueError, match="weekly: a problem has one frequency cap"):
        allocate(COST, COST, 1.0, limits=caps)


@pytest.mark.slow
def test_a_million_rows_under_all_limits():
    value, cost, budget, admissible, limits, rows = make_case(1_000_000, 7)
    started = time.process_time()
    found = allocate(value, cost, budget, admissible, limits=limits)
    assert time.process_time() - started < 90
    check_kept(found, admissible, rows)
    assert found.gap <= 1e-5 * found.bound
