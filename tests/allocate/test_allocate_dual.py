"""The allocator: always feasible, bounded, near the LP, and fast enough for a million users."""

from __future__ import annotations

import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qiance.allocate import allocate, greedy_roi, lp_bound, top_response
from qiance.decide import decide


def make_problem(users, actions, constraints, seed, kind="gamma", tightness=None):
    """(value, cost [K, U, A], budget [K], admissible): `kind` shapes ties and outliers."""
    rng = np.random.default_rng(seed)
    value = rng.gamma(1, 100, (users, actions)) * (rng.random((users, actions)) < 0.8)
    cost = rng.gamma(2, 30, (constraints, users, actions))
    if kind == "integer":
        value, cost = np.round(value / 50), np.round(cost / 30)
    elif kind == "segments":  # the same numbers for many users: everybody is tied
        value, cost = value[[0] * users], cost[:, [0] * users]
    elif kind == "proportional":
        value = 1.7 * cost[0]
    elif kind == "negative":
        value -= 60
    value[:, 0], cost[:, :, 0] = 0, 0
    share = rng.uniform(0, 0.5, constraints) if tightness is None else tightness
    admissible = rng.random((users, actions)) < 0.8
    admissible[:, 0] = True
    return value, cost, cost.max(axis=2).sum(axis=1) * share, admissible


KINDS = ["gamma", "integer", "segments", "proportional", "negative"]


@settings(max_examples=40, deadline=None)
@given(
    users=st.integers(1, 30),
    actions=st.integers(1, 6),
    constraints=st.integers(1, 3),
    seed=st.integers(0, 10**6),
    kind=st.sampled_from(KINDS),
    broke=st.booleans(),
)
def test_feasible_bounded_and_near_the_lp(users, actions, constraints, seed, kind, broke):
    value, cost, budget, admissible = make_problem(users, actions, constraints, seed, kind)
    if broke:
        budget[0] = 0.0
    found = allocate(value, cost, budget, admissible)
    rows = np.arange(users)
    spent = cost[:, rows, found.choice].sum(axis=1)
    assert (spent <= budget).all()
    np.testing.assert_allclose(found.cost, spent)
    assert admissible[rows, found.choice].all()
    assert found.value == pytest.approx(value[rows, found.choice].sum())
    assert (found.shadow_price >= 0).all()

    best = lp_bound(value, cost, budget, admissible)
    scale = 1e-6 * max(best, 1.0)
    assert found.value <= best + scale
    assert found.bound <= best + scale
    assert found.gap <= 1e-4 * max(best, 1.0)  # small problems are solved to the end
    assert found.gap == pytest.approx(max(found.bound - found.value, 0.0))


@settings(max_examples=30, deadline=None)
@given(users=st.integers(1, 60), seed=st.integers(0, 10**6), kind=st.sampled_from(KINDS))
def test_one_budget_leaves_less_than_one_value(users, seed, kind):
    value, cost, budget, admissible = make_problem(users, 5, 1, seed, kind)
    found = allocate(value, cost[0], budget[0], admissible)
    assert found.bound - found.value <= max(float(value.max()), 0.0) + 1e-6


def brute_force(value, cost, budget):
    best = 0.0
    for number in range(value.shape[1] ** value.shape[0]):
        choice = np.unravel_index(number, (value.shape[1],) * value.shape[0])
        rows = np.arange(value.shape[0])
        if (cost[:, rows, choice].sum(axis=1) <= budget).all():
            best = max(best, float(value[rows, choice].sum()))
    return best


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("seed", range(12))
def test_small_problems_are_solved_to_the_best_of_every_integral_allocation(seed, kind):
    value, cost, budget, _ = make_problem(6, 3, 1 + seed % 2, seed, kind)
    best = brute_force(value, cost, budget)
    found = allocate(value, cost, budget)
    assert found.value <= best + 1e-9 <= found.bound + 2e-9
    assert found.value >= (1 - 2e-5) * best - 1e-9  # as docs/allocation.md promises


def test_loose_budget_gives_everybody_the_best_and_a_price_of_zero():
    value, cost, _, _ = make_problem(50, 4, 2, 3)
    found = allocate(value, cost, [1e9, 1e9])
    np.testing.assert_array_equal(found.choice, value.argmax(axis=1))
    np.testing.assert_array_equal(found.shadow_price, [0, 0])
    assert found.gap == 0


def test_no_budget_gives_nobody_anything_that_costs():
    value, cost, _, _ = make_problem(50, 4, 1, 4)
    found = allocate(value, cost, 0.0)
    assert not found.choice.any()
    assert found.gap == pytest.approx(0.0, abs=1e-3)


def test_tied_users_fill_both_budgets():
    """Values known per segment only: thousands tie at the price, and a mixture must use both budgets."""
    value = np.tile([0.0, 4.0, 4.0, 6.0], (3000, 1))
    cost = np.tile(np.array([[0.0, 1.0, 3.0, 4.0], [0.0, 3.0, 1.0, 4.0]])[:, None], (1, 3000, 1))
    found = allocate(value, cost, [3000.0, 3000.0])
    assert (found.cost <= 3000).all()
    assert found.gap <= 2 * 6.0
    assert found.bound == pytest.approx(lp_bound(value[:600], cost[:, :600], [600.0, 600.0]) * 5)


def test_shadow_price_is_the_worth_of_the_next_unit():
    value, cost, budget, _ = make_problem(1000, 6, 2, 5, tightness=np.array([0.1, 0.12]))
    found = allocate(value, cost, budget)
    for k in range(2):
        more = budget.copy()
        more[k] *= 1.01
        gain = (allocate(value, cost, more).bound - found.bound) / (more[k] - budget[k])
        assert gain == pytest.approx(found.shadow_price[k], rel=0.05, abs=0.01)


def test_the_decision_rule_at_the_shadow_price_repeats_the_allocation():
    value, cost, budget, admissible = make_problem(5000, 6, 1, 6, tightness=0.1)
    found = allocate(value, cost[0], budget[0], admissible)
    price = float(found.shadow_price[0])
    made = decide(value, cost[0], admissible, price, 0.0, uniforms=np.zeros(5000))
    # What is left of the budget raises a few users above what the price alone gives them.
    assert (made.choice != found.choice).sum() <= 10


def test_same_problem_same_answer():
    value, cost, budget, admissible = make_problem(1000, 5, 3, 7)
    first, second = (allocate(value, cost, budget, admissible) for _ in range(2))
    np.testing.assert_array_equal(first.choice, second.choice)


def test_beats_the_rules_of_thumb_which_keep_the_budget_too():
    value, cost, budget, admissible = make_problem(5000, 6, 1, 8, tightness=0.15)
    limit = float(budget[0])
    ours = allocate(value, cost[0], limit, admissible)
    score = np.random.default_rng(0).random(value.shape)
    score[:, 0] = 0
    for plan in (
        greedy_roi(value, cost[0], limit, admissible),
        top_response(score, cost[0], limit, admissible, value=value),
    ):
        assert plan.cost[0] <= limit
        assert admissible[np.arange(5000), plan.choice].all()
        assert 0 < plan.value < ours.value


def test_greedy_roi_takes_free_gains_first_and_passes_over_what_does_not_fit():
    value = np.array([[0.0, 5.0], [0.0, 10.0], [0.0, 4.0], [0.0, -1.0]])
    cost = np.array([[0.0, 0.0], [0.0, 8.0], [0.0, 4.0], [0.0, 0.0]])
    np.testing.assert_array_equal(greedy_roi(value, cost, 5.0).choice, [1, 0, 1, 0])


GOOD = (np.array([[0.0, 1.0], [0.0, 2.0]]), np.array([[0.0, 1.0], [0.0, 1.0]]), 1.0)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"value": [[0, 1], [0, np.nan]]}, r"value: row 1, column 1 is nan; must be finite"),
        (
            {"cost": [[0, 1], [0, -3.0]]},
            r"cost: constraint 0, row 1, column 1 is -3.0; must be finite and ≥ 0",
        ),
        ({"cost": [[0, 1], [5.0, 1]]}, r"cost of column 0: row 0, column 1 is 5.0|column 0 is doing nothing"),
        ({"cost": [[0, 1]]}, r"cost: has shape \(1, 2\); must be \(2, 2\), or \(K, \*\(2, 2\)\)"),
        ({"cost": [["a", "b"], ["c", "d"]]}, r"cost: dtype"),
        ({"budget": -1.0}, r"budget: row 0 is -1.0; must be ≥ 0"),
        ({"budget": np.inf}, r"budget: row 0 is inf; must be finite"),
        ({"budget": [1.0, 2.0]}, r"budget: has 2 entries; cost has 1 constraints"),
        (
            {"admissible": [[True, True], [False, True]]},
            r"admissible: row 1, column 0 is False; column 0 is doing",
        ),
        ({"admissible": [[1, 1], [1, 1]]}, r"admissible: dtype is int64; must be bool"),
        ({"value": np.empty((0, 2))}, r"value: is empty"),
    ],
)
def test_bad_input_is_named(change, message):
    value, cost, budget = GOOD
    arguments = {"value": value, "cost": cost, "budget": budget, **change}
    with pytest.raises(ValueError, match=message):
        allocate(**arguments)


@pytest.mark.slow
def test_a_million_users_in_seconds():
    value, cost, budget, _ = make_problem(1_000_000, 10, 1, 9, tightness=0.1)
    started = time.process_time()
    found = allocate(value, cost[0], budget[0])
    assert time.process_time() - started < 20  # about 1 s on a quiet core
    assert found.cost[0] <= budget[0]
    assert found.gap <= value.max()


@pytest.mark.slow
def test_a_million_users_with_three_budgets():
    value, cost, budget, _ = make_problem(1_000_000, 10, 3, 10, tightness=np.array([0.1, 0.12, 0.2]))
    started = time.process_time()
    found = allocate(value, cost, budget)
    assert time.process_time() - started < 60
    assert (found.cost <= budget).all()
    assert found.gap <= 1e-6 * found.bound
