"""A simulated shop with two campaigns and a live policy; challengers are worse or better by construction."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime

import numpy as np
from market_cases import CATEGORIES, action, small_catalogue, small_users

from qiance.decide.rule import policy_probabilities
from qiance.domain import CONTROL_ACTION, Channel
from qiance.evaluate.bandit_log import BanditLog
from qiance.evaluate.gate import Verdict, judge
from qiance.market import Market
from qiance.market.simulate import ContactWindow, MarketLog, collect_log

USERS, DAYS, PER_DAY = 4_000, 28, 1_500
EPSILON = 0.1  # the default share of exploration
START = datetime(2025, 1, 1, tzinfo=UTC)
ALONE, GUESSING = "leaves users alone", "guesses what is best for each user"
CAMPAIGNS = {"first": range(1, 9), "second": range(9, 17)}


@dataclass(frozen=True)
class Played:
    """A market's log `[n]` under its live policy; truth: `[n, A]` expected margin after the contact."""

    log: MarketLog
    contact_cost: np.ndarray
    truth: np.ndarray
    live: np.ndarray
    admissible: np.ndarray


def play(seed: int, live: str = ALONE) -> Played:
    """Four weeks of a market under a policy that leaves users alone or guesses, but for its exploration."""
    users, shares = small_users(USERS, seed)
    market = Market.build(users, shares, CATEGORIES, small_catalogue(), seed)
    offered = [
        action(item, channel, depth)
        for item in list(market.catalogue)[:4]
        for channel in (Channel.EMAIL, Channel.DISPLAY)
        for depth in (0.0, 0.3)
    ]
    table = market.table((CONTROL_ACTION, *offered))
    random = np.random.default_rng([seed, 1])
    # Who is in the audience of which action, as segments would have it: control is for everybody.
    audience = random.random((USERS, len(table))) < 0.7
    audience[:, 0] = True
    believed = random.normal(size=audience.shape)
    if live == ALONE:
        believed[:, 0] = 1e3
    truth: list[np.ndarray] = []

    def choose(rows: np.ndarray, _: np.ndarray) -> np.ndarray:
        truth.append(market.truth(rows, table).margin - table.contact_cost)
        return decided(believed[rows], audience[rows])

    window = ContactWindow(USERS)
    log = collect_log(market, table, choose, START, DAYS, PER_DAY, window, random)
    return Played(log, table.contact_cost, np.vstack(truth), log.probabilities, audience[log.user])


def decided(value: np.ndarray, admissible: np.ndarray) -> np.ndarray:
    """`[n, A]` probabilities of the decision rule, without a price."""
    return policy_probabilities(value, np.zeros_like(value), admissible, 0.0, EPSILON)


def gate(played: Played, sign: float) -> tuple[Verdict, float]:
    """What the gate says of a challenger that prefers what truly is best (1) or worst (−1), and the truth.

    The truth: its improvement per decision over the live policy, in the states that the market was in.
    """
    policy = decided(sign * played.truth, played.admissible)
    log = played.log
    reward = log.margin - played.contact_cost[log.action]
    bandit = BanditLog(log.action, reward, log.propensity, cluster=log.user)
    campaigns = {name: played.admissible[:, list(columns)].any(axis=1) for name, columns in CAMPAIGNS.items()}
    gain = float(((policy - played.live) * played.truth).sum(axis=1).mean())
    return judge(bandit, policy, played.live, None, campaigns), gain
