"""Planning of promotions: whom to contact, how often and how deep, where users tire and stock up."""

from __future__ import annotations

from dataclasses import dataclass

import gymnasium
import numpy as np

from qiance.market.market import FATIGUE_DECAY, STOCK_DECAY
from rllib.lockstep import AloneEnv, Floats, Floats32, Info, LockstepEnv
from rllib.segments import Segments, made_up

DAYS = 30
DEEPEST = 0.4
LEAST_OFFER = 0.02  # below it nothing is taken off
FATIGUE_SEEN, STOCK_SEEN, DEMAND_SEEN = 4.0, 2.0, 2.0  # what counts as 1 in an observation
BUDGET_SHARE = 0.4


@dataclass(frozen=True, slots=True)
class Rules:
    """What does not depend on the segments.

    demand: log-odds of a click follow, per segment, an autoregression with this standard deviation and
    correlation from day to day. budget_share: budget ÷ what contacting everybody daily at half the greatest
    depth would take of fresh users.
    """

    horizon: int = DAYS
    spread: float = 0.4
    correlation: float = 0.8
    budget_share: float = BUDGET_SHARE

    def __post_init__(self) -> None:
        for name, low, high in (("spread", 0.0, 3.0), ("correlation", 0.0, 1.0)):
            if not low <= getattr(self, name) <= high:
                raise ValueError(f"{name}: {getattr(self, name)} is outside [{low:g}, {high:g}]")
        if not 0 < self.budget_share < np.inf:
            raise ValueError(f"budget_share: {self.budget_share} is not a positive number")


class PromotionVectorEnv(LockstepEnv):
    """Campaigns of 30 days to the segments of `qiance.market`, thousands side by side.

    Each day the agent says for every segment which share of it is contacted and how deep the offer is. What
    that brings is the market's expectation. A contact tires (fatigue, which wears off by a fifth a day), and
    who buys on offer has stock and needs nothing for a while (it wears off by a tenth a day). Demand of each
    segment goes up and down. Spending never passes the budget: contacts of the day on which it ends are cut
    by the same share in all segments.

    ## Action
    `Box(-1, 1, (2·S,), float32)`: for each segment the share contacted, 0 to 1, then for each segment the
    depth of the offer, 0 to 0.4; both linear in the action. A depth below 0.02 is none.

    ## Observation
    `Box(-1, 1, (3·S + 3,), float32)`:

    | num | observation | unit |
    | --- | --- | --- |
    | 0 to S−1 | fatigue | contacts ÷ 4 |
    | S to 2·S−1 | stock | units per user ÷ 2, clipped |
    | 2·S to 3·S−1 | demand of yesterday; 0 where nobody was contacted | log-odds ÷ 2, clipped |
    | 3·S | days left | fraction of the horizon |
    | 3·S+1 | budget left | fraction of the budget |
    | 3·S+2 | budget left ÷ days left | natural logarithm ÷ 2, clipped |

    ## Reward
    Expected margin of the day over leaving everybody alone, discounts and contact costs taken off, as a
    fraction of the budget. `info` has it as `margin`, and `cost`, in minor units.

    ## Episode end
    Terminates after `horizon` days; it is never truncated.

    ## Arguments
    num_envs: campaigns at once. segments: see `rllib.segments`; None for four of a made-up population. rules:
    see `Rules`.
    """

    def __init__(self, num_envs: int, segments: Segments | None = None, rules: Rules | None = None) -> None:
        segments = segments or made_up()
        self.segments, self.rules = segments, rules or Rules()
        size = len(segments)
        self.single_action_space = gymnasium.spaces.Box(-1.0, 1.0, (2 * size,), np.float32)
        self.single_observation_space = gymnasium.spaces.Box(-1.0, 1.0, (3 * size + 3,), np.float32)
        self.budget = budget(segments, self.rules)
        self.crowd = segments.crowd(np.tile(np.arange(size), num_envs))
        super().__init__(num_envs, self.rules.horizon)

    def _begin(self) -> Floats32:
        shape, rng = (self.num_envs, len(self.segments)), self.np_random
        self.fatigue = rng.uniform(0.0, 2.0, shape)
        self.stock = rng.uniform(0.0, 0.2, shape)
        self.left = np.full(self.num_envs, self.budget)
        self.demand = self.rules.spread * rng.standard_normal(shape)
        self._noticed = np.zeros(shape)
        return self._observe()

    def _live(self, actions: Floats) -> tuple[Floats32, Floats, Info]:
        share, depth = decode(actions)
        truth = self.crowd.contacted(*(x.ravel() for x in (depth, self.demand, self.fatigue, self.stock)))
        share, cost = self._capped(share, truth.cost.reshape(share.shape))
        reached = self.segments.size * share
        margin = (reached * self.crowd.gain(truth).reshape(share.shape)).sum(axis=1)
        self.left = np.maximum(self.left - cost, 0.0)
        self._noticed = np.where(share > 0, self.demand, 0.0)
        self.fatigue = FATIGUE_DECAY * (self.fatigue + share)
        bought = truth.conversion.reshape(share.shape)
        self.stock = STOCK_DECAY * (self.stock + share * bought * (depth > 0))
        self.demand = self._next_demand()
        return self._observe(1), margin / self.budget, {"margin": margin, "cost": cost}

    def _capped(self, share: Floats, cost: Floats) -> tuple[Floats, Floats]:
        """Shares `[n, S]` that the budget pays for, and what they cost `[n]`."""
        wanted = (self.segments.size * share * cost).sum(axis=1)
        paid = np.minimum(1.0, self.left / np.maximum(wanted, 1e-9))
        return share * paid[:, None], wanted * paid

    def _next_demand(self) -> Floats:
        rules = self.rules
        fresh = rules.spread * np.sqrt(1.0 - rules.correlation**2)
        return np.asarray(
            rules.correlation * self.demand + fresh * self.np_random.standard_normal(self.demand.shape)
        )

    def _observe(self, ahead: int = 0) -> Floats32:
        days = np.full(self.num_envs, 1.0 - (self.day + ahead) / self.horizon)
        budget = self.left / self.budget
        pace = np.log(np.maximum(budget, 1e-6) / np.maximum(days, 0.5 / self.horizon))
        columns = [self.fatigue / FATIGUE_SEEN, self.stock / STOCK_SEEN, self._noticed / DEMAND_SEEN]
        seen = np.hstack([*columns, np.stack([days, budget, pace / 2.0], axis=1)])
        return np.clip(seen, -1.0, 1.0).astype(np.float32)


class PromotionEnv(AloneEnv):
    """`PromotionVectorEnv` with one campaign."""

    def __init__(self, segments: Segments | None = None, rules: Rules | None = None) -> None:
        super().__init__(PromotionVectorEnv(1, segments, rules))


def decode(actions: Floats) -> tuple[Floats, Floats]:
    """Share contacted and depth, `[n, S]` each, of actions `[n, 2·S]` in [−1, 1]."""
    share, depth = np.split(0.5 * (actions + 1.0), 2, axis=1)
    depth = DEEPEST * depth
    return share, np.where(depth < LEAST_OFFER, 0.0, depth)


def encode(share: Floats, depth: Floats) -> Floats32:
    """Actions `[n, 2·S]` of share and depth, `[n, S]` each: the inverse of `decode`."""
    return np.hstack([2.0 * share - 1.0, 2.0 * depth / DEEPEST - 1.0]).astype(np.float32)


def budget(segments: Segments, rules: Rules) -> float:
    """Minor units that a campaign may spend."""
    crowd, zeros = segments.crowd(np.arange(len(segments))), np.zeros(len(segments))
    cost = crowd.contacted(np.full(len(segments), DEEPEST / 2), zeros, zeros, zeros).cost
    return float(rules.budget_share * rules.horizon * (segments.size * cost).sum())
