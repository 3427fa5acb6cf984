"""Bandits side by side in the simulated shop: the same users, uniforms and chance for all."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum

import numpy as np
from scipy import stats

from qiance.bandits.agent import Bandit, BanditSettings, Fit
from qiance.bandits.choice import Rule
from qiance.bandits.play import Player, Rows, Schedule, Tell, play
from qiance.bandits.posterior import Prior
from qiance.bandits.shop import Shop
from qiance.domain import Interval
from qiance.evaluate.arrays import FloatArray

CONFIDENCE = 0.9
# A market of its own for what is tuned beforehand.
_TUNING_SEED = 1_000_000
# What an offer changes is small beside the noise of a basket: about 0.2 of its deviation. Of 1, 30, 100 and
# 300 this was best, or near it, for greedy, LinTS and LinUCB alike, in one market that no benchmark plays.
RIDGE = 30.0


class Agent(StrEnum):
    """Who learns. All but neural-linear are linear in the features; all explore at least with the same ε."""

    UNIFORM = "uniform"
    EPSILON_GREEDY = "epsilon-greedy"
    LIN_TS = "lin-ts"
    LIN_UCB = "lin-ucb"
    NEURAL_LINEAR = "neural-linear"


BEST_CONSTANT = "best-constant"
RULES = {
    Agent.UNIFORM: Rule.UNIFORM,
    Agent.EPSILON_GREEDY: Rule.GREEDY,
    Agent.LIN_TS: Rule.THOMPSON,
    Agent.LIN_UCB: Rule.UCB,
    Agent.NEURAL_LINEAR: Rule.THOMPSON,
}


@dataclass(frozen=True)
class Contender:
    """make: a fresh player. fit: how its network is fitted."""

    make: Callable[[], Player]
    fit: Fit | None = None


@dataclass(frozen=True, eq=False)
class Result:
    """Of one contender, `[seeds]`, minor units per 1,000 decisions: value over leaving everybody alone,
    regret against the best admissible action, and the value of the last quarter of the days."""

    value: FloatArray
    regret: FloatArray
    late: FloatArray

    @classmethod
    def of(cls, played: Sequence[Rows]) -> Result:
        """From one play per seed."""
        late = [rows.value[rows.day >= (rows.day[-1] + 1) * 3 // 4].mean() for rows in played]
        value, regret = [rows.value.mean() for rows in played], [rows.regret.mean() for rows in played]
        return cls(*(1_000 * np.array(found) for found in (value, regret, late)))


def bandit_of(agent: Agent, shop: Shop, window: float, epsilon: float) -> Bandit:
    """A bandit of the shop that has learned nothing yet."""
    centre, scale = shop.moments
    settings = BanditSettings(
        rule=RULES[agent],
        epsilon=epsilon,
        prior=Prior(ridge=RIDGE),
        window=window,
        keep=agent is Agent.NEURAL_LINEAR,
    )
    cost = shop.table.contact_cost
    return Bandit(shop.features, shop.arms, settings, cost=cost, centre=centre, scale=scale)


def contenders(shop: Shop, schedule: Schedule, epsilon: float, fit: Fit) -> dict[str, Contender]:
    """Every agent, and the arm that brings most when everybody gets it, found in another market.

    fit: of the network of neural-linear.
    """
    arm = best_constant(shop, schedule)
    found = {BEST_CONSTANT: Contender(lambda: arm)}
    for agent in Agent:

        def make(agent: Agent = agent) -> Player:
            return bandit_of(agent, shop, schedule.window, epsilon)

        found[agent] = Contender(make, fit if agent is Agent.NEURAL_LINEAR else None)
    return found


def best_constant(shop: Shop, schedule: Schedule) -> int:
    """The arm of the highest value when it is all that is done."""
    values = [play(shop, arm, schedule, _TUNING_SEED).value.mean() for arm in range(len(shop.arms))]
    return int(np.argmax(values))


def compare(
    shop: Shop,
    found: Mapping[str, Contender],
    schedule: Schedule,
    seeds: Sequence[int],
    tell: Tell,
    keep: Callable[[str, int, Player, Rows], None] | None = None,
) -> dict[str, Result]:
    """Play every contender with every seed; `keep` is handed each player and what it did."""
    results, total = {}, len(found) * len(seeds)
    for number, (name, contender) in enumerate(found.items()):
        played = []
        for turn, seed in enumerate(seeds):
            done = (number * len(seeds) + turn) / total

            def told(share: float, text: str, name: str = name, done: float = done) -> None:
                tell(done + share / total, f"{name}: {text}")

            player = contender.make()
            rows = play(shop, player, schedule, seed, contender.fit, told)
            if keep is not None:
                keep(name, seed, player, rows)
            played.append(rows)
        results[name] = Result.of(played)
    return results


def interval_of(values: FloatArray) -> Interval:
    """Mean of `[n]` with its 90 % Student-t interval; the mean alone where there is only one."""
    mean = float(values.mean())
    if values.size < 2:
        return Interval(mean, mean, mean)
    half = stats.t.ppf(0.5 + CONFIDENCE / 2, values.size - 1) * values.std(ddof=1) / np.sqrt(values.size)
    return Interval(mean, mean - float(half), mean + float(half))
