"""Days of a simulated shop: users arrive, a policy chooses, the market answers, the log is kept."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from datetime import datetime, timedelta

import numpy as np
from numpy.typing import NDArray

from qiance.market.market import ActionTable, Market

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
Bools = NDArray[np.bool_]
CONTACT_DAYS = 7
DAY_S = 86_400

# (users [n], contacts_7d [n]) → choice probabilities [n, A]
Chooser = Callable[[Ints, Floats], Floats]


class ContactWindow:
    """Contacts of each user in the last seven days, by day."""

    def __init__(self, num_users: int) -> None:
        self._days: deque[Floats] = deque([np.zeros(num_users)] * CONTACT_DAYS, maxlen=CONTACT_DAYS)
        self._today: Floats = np.zeros(num_users)

    def counts(self, users: Ints) -> Floats:
        """Contacts of `users` in the seven days before today."""
        return np.asarray(sum(day[users] for day in self._days), dtype=np.float64)

    def add(self, users: Ints, contacted: Bools) -> None:
        """Note today's contacts."""
        np.add.at(self._today, users, contacted.astype(np.float64))

    def end_day(self) -> None:
        """Today becomes yesterday."""
        self._days.append(self._today)
        self._today = np.zeros_like(self._today)


@dataclass(frozen=True)
class MarketLog:
    """Logged decisions with their outcomes, `[n]` each.

    user, action: rows; at: seconds since the epoch; probabilities: `[n, A]`; propensity of the choice.
    click, conversion in {0, 1}; sales, margin (before contact cost), discount: minor units.
    """

    user: Ints
    action: Ints
    at: Ints
    contacts_7d: Floats
    probabilities: Floats
    propensity: Floats
    click: Ints
    conversion: Ints
    sales: Ints
    margin: Ints
    discount: Ints

    def __len__(self) -> int:
        return len(self.user)

    @classmethod
    def concatenate(cls, parts: Sequence[MarketLog]) -> MarketLog:
        """One log of all parts, in order."""
        names = [f.name for f in fields(cls)]
        return cls(**{name: np.concatenate([getattr(part, name) for part in parts]) for name in names})


def second_of_day(users: Ints) -> Ints:
    """When in the day a user comes: always the same, so that seven days are seven days exactly."""
    return np.asarray(users * 7_919 % DAY_S, dtype=np.int64)


def arrivals(rng: np.random.Generator, cohort: Ints, per_day: int) -> Ints:
    """Users of `cohort` who come on one day, each at most once, in the order of their time of day."""
    if per_day > len(cohort):
        raise ValueError(f"per_day: {per_day} arrivals from a cohort of {len(cohort)} users")
    users = rng.choice(cohort, per_day, replace=False)
    return np.asarray(users[np.argsort(second_of_day(users), kind="stable")], dtype=np.int64)


def collect_log(
    market: Market,
    actions: ActionTable,
    choose: Chooser,
    start: datetime,
    days: int,
    per_day: int,
    window: ContactWindow,
    rng: np.random.Generator,
    on_day: Callable[[int], None] | None = None,
) -> MarketLog:
    """Run `days` days from `start` under the policy `choose`; the market's state moves on."""
    everybody = np.arange(len(market.population))
    parts = []
    for day in range(days):
        users = arrivals(rng, everybody, per_day)
        contacts = window.counts(users)
        probabilities = choose(users, contacts)
        choice = _draw(probabilities, rng)
        answers = market.step(users, actions, choice)
        window.add(users, actions.channel[choice] > 0)
        midnight = int((start + timedelta(days=day)).timestamp())
        parts.append(
            MarketLog(
                user=users,
                action=choice,
                at=midnight + second_of_day(users),
                contacts_7d=contacts,
                probabilities=probabilities,
                propensity=probabilities[np.arange(len(users)), choice],
                click=answers.click,
                conversion=answers.conversion,
                sales=answers.sales,
                margin=answers.margin,
                discount=answers.discount,
            )
        )
        window.end_day()
        market.advance_day()
        if on_day:
            on_day(day)
    return MarketLog.concatenate(parts)


def uniform_over(mask: Callable[[Ints], Bools]) -> Chooser:
    """The exploring policy: equal probability for every admissible action; `mask` gives `[n, A]`."""

    def choose(users: Ints, _: Floats) -> Floats:
        admissible = mask(users)
        return np.asarray(admissible / admissible.sum(axis=1, keepdims=True), dtype=np.float64)

    return choose


def _draw(probabilities: Floats, rng: np.random.Generator) -> Ints:
    cumulative = np.cumsum(probabilities, axis=1)
    uniforms = rng.random(len(probabilities)) * cumulative[:, -1]
    return np.asarray((uniforms[:, None] >= cumulative).sum(axis=1), dtype=np.int64)
