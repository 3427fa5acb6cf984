"""Pacing: how the shadow price moves with the state of the budget, the same in training and in serving.

Once a day a policy looks at an observation of the campaign and answers with a multiplier m of the price λ₀
that the allocation found; the decision rule then works with λ = m·λ₀ (dual pacing of budgets, e.g. Balseiro
and Gur, "Learning in Repeated Auctions with Budgets", Management Science 2019).
"""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

Observation = NDArray[np.float32]

OBSERVATION = (
    "days_left",
    "budget_left",
    "budget_left_to_pace",
    "contact_pressure",
    "return_on_cost",
    "last_multiplier",
)
CONTACT_DAYS = 7  # window of `contacts_per_user`
LIMIT = 3.0  # a policy may divide or multiply the price by at most this
_LOG_LIMIT = math.log(LIMIT)
_PACE_LIMIT = 2.0  # of |ln(budget left ÷ days left)|


@dataclass(frozen=True, slots=True)
class PacingState:
    """A campaign at the start of a day.

    horizon_days: length of the campaign, ≥ 1. day: days that are over, 0 to horizon_days.
    budget_cap: what may be spent in all, minor units, > 0. spent: of that until now, minor units.
    contacts_per_user: contacts of the last 7 days per user who was active in them.
    last_cost, last_value: spend and predicted incremental margin of the last day, minor units.
    last_multiplier: that the last day ran with, 1 before the first.
    """

    horizon_days: int
    day: int
    budget_cap: float
    spent: float = 0.0
    contacts_per_user: float = 0.0
    last_cost: float = 0.0
    last_value: float = 0.0
    last_multiplier: float = 1.0

    def __post_init__(self) -> None:
        if self.horizon_days < 1:
            raise ValueError(f"horizon_days: {self.horizon_days} is less than 1 day")
        if not 0 <= self.day <= self.horizon_days:
            raise ValueError(f"day: {self.day} is outside [0, {self.horizon_days}], the horizon")
        if not 0 < self.budget_cap < math.inf:
            raise ValueError(f"budget_cap: {self.budget_cap} is not a positive number of minor units")
        if not 0 < self.last_multiplier < math.inf:
            raise ValueError(f"last_multiplier: {self.last_multiplier} is not a positive number")
        for name in ("spent", "contacts_per_user", "last_cost"):
            if not 0 <= getattr(self, name) < math.inf:
                raise ValueError(f"{name}: {getattr(self, name)} is not a number ≥ 0")
        if not math.isfinite(self.last_value):
            raise ValueError(f"last_value: {self.last_value} is not a finite number of minor units")


class PacingPolicy(Protocol):
    """Whatever moves the shadow price: a trained network, a rule, a constant."""

    def multiplier(self, observation: Observation) -> float:
        """Factor on λ₀ for the coming day, in [1/3, 3], from `observe` of the state."""
        ...


def observe(state: PacingState) -> Observation:
    """What a policy sees, `[6]` float32 in the order of `OBSERVATION`, each in [−1, 1].

    0 days_left: d = (horizon − day) ÷ horizon.
    1 budget_left: b = (cap − spent) ÷ cap, 0 where overspent.
    2 budget_left_to_pace: ln(b ÷ d) ÷ 2, clipped: 0 spends evenly, positive has money to spare.
    3 contact_pressure: contacts per active user and day over 7 days, clipped at 1.
    4 return_on_cost: r ÷ (1 + |r|) of r = predicted incremental margin ÷ cost, last day; 0 without cost.
    5 last_multiplier: ln m ÷ ln 3, clipped.
    """
    days = (state.horizon_days - state.day) / state.horizon_days
    budget = max(1.0 - state.spent / state.budget_cap, 0.0)
    # The floors only keep the logarithm finite: half a day, and a budget that the clip below ends anyway.
    pace = math.log(max(budget, 1e-6) / max(days, 0.5 / state.horizon_days))
    # r ÷ (1 + |r|), written so that no cost is too small for it.
    returned = state.last_value / (state.last_cost + abs(state.last_value)) if state.last_cost > 0 else 0.0
    seen = (
        days,
        budget,
        _clip(pace / _PACE_LIMIT),
        _clip(state.contacts_per_user / CONTACT_DAYS),
        returned,
        _clip(math.log(state.last_multiplier) / _LOG_LIMIT),
    )
    return np.array(seen, dtype=np.float32)


def multiplier(action: float) -> float:
    """Factor on λ₀ of an action in [−1, 1]: 3^action; what is outside is clipped first."""
    if math.isnan(action):
        raise ValueError("action: is NaN; a policy must answer with a number")
    return math.exp(_clip(action) * _LOG_LIMIT)


def observation_hash() -> str:
    """SHA-256 (hex) of what a policy is built on: names, limits and order; exported with it and checked."""
    text = "\n".join((*OBSERVATION, f"{CONTACT_DAYS} {LIMIT} {_PACE_LIMIT}"))
    return hashlib.sha256(text.encode()).hexdigest()


@dataclass(frozen=True, slots=True)
class Constant:
    """The same multiplier every day; 1 keeps the allocation's price."""

    value: float = 1.0

    def __post_init__(self) -> None:
        if not 1 / LIMIT - 1e-9 <= self.value <= LIMIT + 1e-9:
            raise ValueError(
                f"value: {self.value} is outside [1/{LIMIT:g}, {LIMIT:g}], the range of multipliers"
            )

    def multiplier(self, observation: Observation) -> float:
        """`value`, whatever is seen."""
        return self.value


@dataclass(frozen=True, slots=True)
class EvenPace:
    """A proportional controller in logarithms: ln m = −gain · ln(budget left ÷ days left).

    Behind the even pace the price falls, ahead of it the price rises; gain ≥ 0, without dimension.
    """

    gain: float = 1.0

    def __post_init__(self) -> None:
        if not 0 <= self.gain < math.inf:
            raise ValueError(f"gain: {self.gain} is not a number ≥ 0")

    def multiplier(self, observation: Observation) -> float:
        """Factor on λ₀ in [1/3, 3]."""
        return multiplier(-self.gain * float(observation[2]) * _PACE_LIMIT / _LOG_LIMIT)


def _clip(x: float) -> float:
    return min(max(x, -1.0), 1.0)
