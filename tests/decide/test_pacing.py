from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from qiance.decide.pacing import (
    LIMIT,
    OBSERVATION,
    Constant,
    EvenPace,
    PacingState,
    multiplier,
    observation_hash,
    observe,
)

amounts = st.floats(0, 1e9, allow_subnormal=False)


def test_observe_worked_example() -> None:
    state = PacingState(
        horizon_days=10,
        day=5,
        budget_cap=1_000,
        spent=750,
        contacts_per_user=1.4,
        last_cost=100,
        last_value=300,
        last_multiplier=math.sqrt(3),
    )
    expected = [0.5, 0.25, math.log(0.5) / 2, 0.2, 0.75, 0.5]
    np.testing.assert_allclose(observe(state), expected, rtol=1e-6)
    assert observe(state).dtype == np.float32


def test_first_day_is_on_pace_and_neutral() -> None:
    assert observe(PacingState(10, 0, 1_000)).tolist() == [1, 1, 0, 0, 0, 0]


@given(
    horizon=st.integers(1, 365),
    share=st.floats(0, 1),
    cap=st.floats(1e-3, 1e9),
    spent=amounts,
    contacts=amounts,
    cost=amounts,
    value=st.floats(-1e9, 1e9),
    last=st.floats(1e-6, 1e6),
)
@example(horizon=1, share=0.0, cap=1.0, spent=0.0, contacts=0.0, cost=7.5e-304, value=134_794.0, last=1.0)
def test_observations_stay_in_their_box(
    horizon: int,
    share: float,
    cap: float,
    spent: float,
    contacts: float,
    cost: float,
    value: float,
    last: float,
) -> None:
    state = PacingState(horizon, int(share * horizon), cap, spent, contacts, cost, value, last)
    seen = observe(state)
    assert seen.shape == (len(OBSERVATION),)
    assert (np.abs(seen) <= 1).all()
    for policy in (EvenPace(), EvenPace(4.0), Constant(2.0)):
        assert 1 / LIMIT - 1e-9 <= policy.multiplier(seen) <= LIMIT + 1e-9


@pytest.mark.parametrize(
    ("action", "expected"), [(0, 1), (1, 3), (-1, 1 / 3), (0.5, math.sqrt(3)), (7, 3), (-math.inf, 1 / 3)]
)
def test_multiplier_is_a_clipped_power_of_three(action: float, expected: float) -> None:
    assert multiplier(action) == pytest.approx(expected, rel=1e-12)


def test_multiplier_refuses_nan() -> None:
    with pytest.raises(ValueError, match="action: is NaN"):
        multiplier(math.nan)


def test_even_pace_pushes_against_the_deviation() -> None:
    behind = observe(PacingState(10, 5, 1_000, spent=250))
    ahead = observe(PacingState(10, 5, 1_000, spent=750))
    exhausted = observe(PacingState(10, 5, 1_000, spent=1_000))
    assert EvenPace(1.0).multiplier(behind) == pytest.approx(0.5 / 0.75, rel=1e-6)
    assert EvenPace(1.0).multiplier(ahead) == pytest.approx(2.0, rel=1e-6)
    assert EvenPace(2.0).multiplier(exhausted) == pytest.approx(3.0)
    assert EvenPace(0.0).multiplier(ahead) == 1.0


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"horizon_days": 0}, "horizon_days: 0 is less than 1 day"),
        ({"day": 11}, r"day: 11 is outside \[0, 10\]"),
        ({"day": -1}, "day: -1 is outside"),
        ({"budget_cap": 0}, "budget_cap: 0 is not a positive number"),
        ({"budget_cap": math.nan}, "budget_cap: nan"),
        ({"spent": -1.0}, "spent: -1.0 is not a number ≥ 0"),
        ({"spent": math.nan}, "spent: nan"),
        ({"contacts_per_user": math.inf}, "contacts_per_user: inf"),
        ({"last_cost": -0.5}, "last_cost: -0.5"),
        ({"last_value": math.nan}, "last_value: nan is not a finite"),
        ({"last_multiplier": 0.0}, "last_multiplier: 0.0 is not a positive"),
    ],
)
def test_bad_states_are_refused(change: dict[str, float], message: str) -> None:
    fields: dict[str, float] = {"horizon_days": 10, "day": 0, "budget_cap": 1_000}
    with pytest.raises(ValueError, match=message):
        PacingState(**(fields | change))  # type: ignore[arg-type]


def test_bad_rules_are_refused() -> None:
    with pytest.raises(ValueError, match=r"value: 3\.5 is outside"):
        Constant(3.5)
    with pytest.raises(ValueError, match="gain: -1 is not"):
        EvenPace(-1)


def test_observation_hash_is_stable() -> None:
    assert observation_hash() == observation_hash()
    assert len(observation_hash()) == 64
