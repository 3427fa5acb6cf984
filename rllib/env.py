"""The simulated market as a Gymnasium environment in which a policy moves the shadow price of a budget."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
from numpy.typing import NDArray

from qiance.decide.pacing import CONTACT_DAYS, OBSERVATION, Observation, PacingState, multiplier, observe
from qiance.decide.rule import decide
from qiance.market import Truth
from rllib.world import Campaign, load_world

Ints = NDArray[np.int64]


class PacingEnv(gymnasium.Env[Observation, NDArray[np.float32]]):
    """One budget of one campaign over its horizon; a step is a day.

    On a day a random share of the users arrives, in random order; `qiance.decide.decide` chooses for each by
    argmax of predicted value − λ·predicted cost with λ = λ₀·3^action. The market's truth then says what that
    brings and costs on expectation, and how fatigue (contacts) and stock (units bought on offer) grow; both
    decay overnight. The predictions do not know of fatigue and stock, nor of how much traffic will come: that
    is left to the policy. Spending never passes the cap: who arrives after it is exhausted gets control.

    ## Action
    `Box(-1, 1, (1,), float32)`: exponent a of the multiplier 3^a of λ₀ for the day.

    ## Observation
    `Box(-1, 1, (6,), float32)`, see `qiance.decide.pacing.observe`:

    | num | observation | unit |
    | --- | --- | --- |
    | 0 | days left | fraction of the horizon |
    | 1 | budget left | fraction of the cap |
    | 2 | budget left ÷ days left | natural logarithm ÷ 2, clipped |
    | 3 | contacts over 7 days | per active user and day, clipped |
    | 4 | return on cost of the last day, r | r ÷ (1 + abs r) |
    | 5 | multiplier of the last day | logarithm to base 3 |

    ## Reward
    True (expected) incremental margin of the day over doing nothing, after goods, discounts and contact
    costs, as a fraction of the budget's cap: an episode's return is what each unit of budget brought.
    `info["margin"]` has it in minor units.

    ## Episode end
    Terminates after `horizon_days`; it is never truncated. An exhausted budget does not end it: the days that
    are left bring nothing.

    ## Arguments
    config: `{"world": path}` of a file written by `rllib.world.save_world`.
    """

    metadata: dict[str, Any] = {"render_modes": []}  # noqa: RUF012  # as Gymnasium declares it

    def __init__(self, config: Mapping[str, Any]) -> None:
        if "world" not in config:
            raise ValueError(
                "config: 'world' is missing; pass the path of a file from rllib.world.save_world"
            )
        self._world = load_world(Path(config["world"]))
        self._market = self._world.market()
        self.action_space = gymnasium.spaces.Box(-1.0, 1.0, (1,), np.float32)
        self.observation_space = gymnasium.spaces.Box(-1.0, 1.0, (len(OBSERVATION),), np.float32)
        self._start()

    @property
    def campaign(self) -> Campaign:
        """The budget, its base price and the expected traffic."""
        return self._world.campaign

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Observation, dict[str, Any]]:
        """Start an episode; `seed` fixes its traffic, `options` are not used."""
        super().reset(seed=seed)
        self._market.fatigue[:] = self._world.fatigue
        self._market.stock[:] = self._world.stock
        self._start()
        spread = self.campaign.traffic_spread
        self._traffic = float(np.exp(spread * self.np_random.standard_normal() - 0.5 * spread**2))
        return observe(self._state), {}

    def step(self, action: NDArray[np.float32]) -> tuple[Observation, float, bool, bool, dict[str, Any]]:
        """Run one day with λ = λ₀·3^action."""
        factor = multiplier(float(np.asarray(action).reshape(-1)[0]))
        return self.run_day(factor)

    def run_day(self, factor: float) -> tuple[Observation, float, bool, bool, dict[str, Any]]:
        """The same for a multiplier: arrive, decide, cap, account, remember, observe."""
        if self._state.day >= self.campaign.horizon_days:
            raise ValueError(f"day: the episode is over after {self._state.day} days; call reset() first")
        users = self._arrivals()
        choice = self._choose(users, factor)
        choice, truth = self._cap(users, choice)
        info = self._account(users, choice, truth, factor)
        self._remember(users, choice, truth)
        self._advance(users, info)
        reward = info["margin"] / self.campaign.budget
        over = self._state.day == self.campaign.horizon_days
        return observe(self._state), float(reward), over, False, info

    def _start(self) -> None:
        self._traffic = 1.0
        self._contacts: deque[int] = deque(maxlen=CONTACT_DAYS)
        self._active: deque[Ints] = deque(maxlen=CONTACT_DAYS)
        self._state = PacingState(self.campaign.horizon_days, 0, float(self.campaign.budget))

    def _arrivals(self) -> Ints:
        size = len(self._world.value)
        share = min(self.campaign.arrivals_per_day * self._traffic / size, 1.0)
        count = int(self.np_random.binomial(size, share))
        return self.np_random.permutation(size)[:count]

    def _choose(self, users: Ints, factor: float) -> Ints:
        if not users.size:
            return users
        world, campaign = self._world, self.campaign
        grids = (world.value[users], world.cost[users], world.admissible[users])
        price = campaign.shadow_price * factor
        return decide(*grids, price, campaign.epsilon, rng=self.np_random).choice

    def _cap(self, users: Ints, choice: Ints) -> tuple[Ints, Truth]:
        """Control from the first user on whose cost would pass the cap."""
        truth = self._market.truth(users, self._world.table, choice)
        left = self.campaign.budget - self._state.spent
        paid = np.cumsum(truth.cost) <= left
        if paid.all():
            return choice, truth
        choice = np.where(paid, choice, 0)
        return choice, self._market.truth(users, self._world.table, choice)

    def _account(self, users: Ints, choice: Ints, truth: Truth, factor: float) -> dict[str, Any]:
        """Money of the day, minor units, and what was done."""
        nothing = self._market.truth(users, self._world.table, np.zeros_like(choice))
        contact_cost = self._world.table.contact_cost[choice]
        return {
            "margin": float((truth.margin - contact_cost - nothing.margin).sum()),
            "predicted": float(self._world.value[users, choice].sum()),
            "cost": float(truth.cost.sum()),
            "arrivals": int(users.size),
            "contacts": int((self._world.table.channel[choice] > 0).sum()),
            "multiplier": factor,
        }

    def _remember(self, users: Ints, choice: Ints, truth: Truth) -> None:
        """Fatigue and stock by expectation, then a night's decay."""
        market, table = self._market, self._world.table
        market.fatigue[users] += table.channel[choice] > 0
        offered = (table.depth[choice] > 0) & (table.category[choice] >= 0)
        market.stock[users[offered], table.category[choice[offered]]] += truth.conversion[offered]
        market.advance_day()

    def _advance(self, users: Ints, info: dict[str, Any]) -> None:
        """The state at the start of the next day; a user arrives at most once a day."""
        self._contacts.append(info["contacts"])
        self._active.append(users)
        self._state = PacingState(
            horizon_days=self.campaign.horizon_days,
            day=self._state.day + 1,
            budget_cap=float(self.campaign.budget),
            spent=self._state.spent + info["cost"],
            contacts_per_user=sum(self._contacts) / max(self._num_active(), 1),
            last_cost=info["cost"],
            last_value=info["predicted"],
            last_multiplier=info["multiplier"],
        )

    def _num_active(self) -> int:
        return int(np.unique(np.concatenate(self._active)).size) if self._active else 0
