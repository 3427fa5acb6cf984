"""Days of the simulated shop under a bandit: a batch a day, purchases that come days later, and the truth."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields

import numpy as np

from qiance.bandits.agent import Bandit, Fit
from qiance.bandits.choice import choose
from qiance.bandits.pending import Ids
from qiance.bandits.shop import Shop
from qiance.evaluate.arrays import BoolArray, FloatArray, IndexArray
from qiance.market.market import Market, Responses
from qiance.market.simulate import ContactWindow, arrivals

Tell = Callable[[float, str], None]
Player = Bandit | int  # an arm: everybody who admits it gets it, others control


@dataclass(frozen=True, slots=True)
class Schedule:
    """days: to play. per_day: decisions a day, one batch. delay: mean days from a decision to its purchase, a
    geometric law cut at `window` days, after which there was none. refit: days between fits of a network."""

    days: int = 60
    per_day: int = 2_000
    delay: float = 2.0
    window: int = 7
    refit: int = 7

    def __post_init__(self) -> None:
        for field in fields(self):
            if not getattr(self, field.name) >= 1:
                raise ValueError(f"{field.name}: {getattr(self, field.name)} is under 1")


@dataclass(frozen=True, eq=False)
class Rows:
    """N decisions in order. ids: `[N]`; user, action, day `[N]`; context `[N, d]`; admissible, probabilities,
    truth `[N, A]`: the latter the expected margin after the contact's cost, in the state the market was in.
    click, conversion, sales, margin (before the contact's cost): what came of it, minor units, `[N]`.
    """

    ids: Ids
    user: IndexArray
    action: IndexArray
    day: IndexArray
    context: FloatArray
    admissible: BoolArray
    probabilities: FloatArray
    truth: FloatArray
    click: IndexArray
    conversion: IndexArray
    sales: IndexArray
    margin: IndexArray

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def propensity(self) -> FloatArray:
        """`[N]` of the choice."""
        return np.asarray(self.probabilities[np.arange(len(self)), self.action])

    @property
    def value(self) -> FloatArray:
        """`[N]` expected margin over leaving the user alone, by the probabilities of the choice."""
        return np.asarray((self.probabilities * self.truth).sum(axis=1) - self.truth[:, 0])

    @property
    def regret(self) -> FloatArray:
        """`[N]` what the best admissible action would have brought more."""
        best = np.where(self.admissible, self.truth, -np.inf).max(axis=1)
        return np.asarray(best - self.truth[:, 0] - self.value)

    @classmethod
    def join(cls, parts: Sequence[Rows]) -> Rows:
        """All parts, in order."""
        names = [field.name for field in fields(cls)]
        return cls(**{name: np.concatenate([getattr(part, name) for part in parts]) for name in names})


def play(
    shop: Shop,
    player: Player,
    schedule: Schedule,
    seed: int,
    fit: Fit | None = None,
    tell: Tell | None = None,
) -> Rows:
    """Play every day of the schedule; a bandit learns as outcomes come, and its network by `fit` if given.

    player: an arm instead of a bandit is what everybody who admits it gets, and others control. Users,
    uniforms and the market's own chance are those of `seed`, the same for every player.
    """
    rng, market = np.random.default_rng([seed, 3]), shop.market(seed)
    window, everybody = ContactWindow(len(market.population)), np.arange(len(market.population))
    due: dict[int, list[tuple[Ids, FloatArray]]] = {}
    parts = []
    for day in range(schedule.days):
        if isinstance(player, Bandit):
            for ids, reward in due.pop(day, []):
                player.outcomes(ids, reward)
            player.close(day)
            if fit is not None and day % schedule.refit == 0 and len(player.log):
                player.refit(fit)
        users = arrivals(rng, everybody, schedule.per_day)
        rows = _decide(shop, player, market, users, window, day, rng)
        parts.append(rows)
        _schedule(due, rows, schedule, rng)
        window.add(users, shop.table.channel[rows.action] > 0)
        window.end_day()
        market.advance_day()
        if tell:
            tell((day + 1) / schedule.days, f"day {day + 1} of {schedule.days}")
    return Rows.join(parts)


def _decide(
    shop: Shop,
    player: Player,
    market: Market,
    users: IndexArray,
    window: ContactWindow,
    day: int,
    rng: np.random.Generator,
) -> Rows:
    """One batch: chosen, remembered, answered."""
    context, mask = shop.context(users, window.counts(users)), shop.admissible[users]
    ids = np.array([f"{day:04d}-{user}" for user in users])
    if isinstance(player, Bandit):
        chosen = player.choose(context, mask, rng=rng)
        player.decided(ids, context, chosen.choice, day)
    else:
        arm = np.where(mask[:, player], player, 0)
        chosen = choose(np.eye(mask.shape[1])[arm], rng=rng)
    truth = market.truth(users, shop.table).margin - shop.table.contact_cost
    answers: Responses = market.step(users, shop.table, chosen.choice)
    return Rows(
        ids=ids,
        user=users,
        action=chosen.choice,
        day=np.full(len(users), day),
        context=context,
        admissible=mask,
        probabilities=chosen.probabilities,
        truth=truth,
        click=answers.click,
        conversion=answers.conversion,
        sales=answers.sales,
        margin=answers.margin,
    )


def _schedule(
    due: dict[int, list[tuple[Ids, FloatArray]]], rows: Rows, schedule: Schedule, rng: np.random.Generator
) -> None:
    """Purchases come when they come; nothing says that there was none but the end of the window."""
    wait = np.minimum(rng.geometric(1.0 / schedule.delay, len(rows)), schedule.window)
    for days in np.unique(wait):
        some = (wait == days) & (rows.conversion == 1)
        if some.any():
            due.setdefault(int(rows.day[0] + days), []).append((rows.ids[some], rows.margin[some] * 1.0))
