"""NeoRL's SalesPromotion as a natively vectorised Gymnasium environment."""

from __future__ import annotations

from pathlib import Path

import gymnasium
import numpy as np
from numpy.typing import NDArray

from rllib.lockstep import AloneEnv, Floats, Floats32, Info, LockstepEnv
from rllib.sales_users import ORDERS, STATE, load_users

DAYS, COUPONS, SEEN_DAYS, MOST_FEE = 30, 5, 60, 100.0
DEEPEST, SHALLOWEST = 0.60, 0.95  # price factors
# Of the state as the user models see it: real = scaled × SCALE.
SCALE = np.array([36, 4, 24, 4, 12, 400, 60, 1600, 50, 120, 45, 16, 12, 400, 0.4, 6, 5, 0.4])
TOTAL, AVG, SPREAD, MIN, MAX = range(5)  # of a group: of orders from 0 on, of fees from 5 on
IDLE, DISC_ORDERS, DISC_DAYS, DISC_FEE, ACCEPTED, WEEKDAY, COUPON, DISCOUNT = range(10, STATE)
NO_DISCOUNT = 0.4  # `ACCEPTED` of a user who never took one
_CLIPPED = [1, 2, 3, 4, *range(6, STATE)]
_DECAY = 0.99


class SalesVectorEnv(LockstepEnv):
    """Coupons for learned shoppers: an episode is one user over 30 days, a step is a day.

    Each day the agent hands a user n one-day coupons with price factor d. Five networks that were fitted to
    a real shop's log say whether the user buys, how often and for how much; hand-made rules say how weekday
    and discount change that, and how a user comes to wait for discounts: whoever once took one holds back
    without one as large. Source: Qin et al., "NeoRL: A Near Real-World Benchmark for Offline Reinforcement
    Learning" (2022), environment SalesPromotion. A user's return, averaged over all 10,000 users, is the
    return of the benchmark.

    ## Action
    `Box([0, 0.6], [5, 0.95], (2,), float32)`: number of coupons (rounded), and the price factor of each.

    ## Observation
    `Box(0, …, (4,), float32)`:

    | num | observation | unit |
    | --- | --- | --- |
    | 0 | orders so far, the 60 days before included | orders |
    | 1 | orders a day over the same days | orders, at most 6 |
    | 2 | fee of an order, a day without one counting 0, mean over the same days | money, at most 100 |
    | 3 | weekday | 0 to 6; 1 on the first day |

    ## Reward
    Sales after discounts, less the discounts once more: orders × fee − 2 × discount given. `info` has
    `orders`, `fee` and `discount` of the day.

    ## Episode end
    Terminates after `horizon` days; it is never truncated.

    ## Arguments
    num_envs: users at once. They start from the published states, without replacement while those suffice.
    data: folder with the users, see `rllib.sales_users`. horizon: days, 30 in the benchmark.
    """

    def __init__(self, num_envs: int, data: str | Path, horizon: int = DAYS) -> None:
        self._users = load_users(Path(data))
        most = self._users.seen[:, 0].max() + ORDERS * max(horizon, 1)
        high = np.array([most, ORDERS, MOST_FEE, 6], dtype=np.float32)
        self.single_observation_space = gymnasium.spaces.Box(0.0, high, (4,), np.float32)
        low, high = np.array([0.0, DEEPEST]), np.array([COUPONS, SHALLOWEST])
        self.single_action_space = gymnasium.spaces.Box(low.astype(np.float32), high.astype(np.float32))
        super().__init__(num_envs, horizon)

    def _begin(self) -> Floats32:
        pool = len(self._users.states)
        users = np.resize(self.np_random.permutation(pool), self.num_envs)
        # One row per number, so that each is contiguous.
        self._state = np.ascontiguousarray((self._users.states[users] * SCALE).T)
        self._seen = np.ascontiguousarray(self._users.seen[users].T)
        return self._observe()

    def _live(self, actions: Floats) -> tuple[Floats32, Floats, Info]:
        coupons = np.rint(actions[:, 0])
        discount = np.where(coupons > 0, 1.0 - actions[:, 1], 0.0)
        state, rng = self._state, self.np_random
        state[COUPON], state[DISCOUNT] = coupons, discount
        orders, fee = self._users.sample((state.T / SCALE).astype(np.float32), rng)
        orders = moved_by_weekday(orders, state[WEEKDAY], rng)
        orders = moved_by_discount(orders, coupons, discount, state[ACCEPTED], rng)
        orders, fee = settled(orders, fee, state[5:10], rng)
        used = np.minimum(orders, coupons)
        given = discount * used * fee
        remember(state, orders, fee, np.where(used > 0, discount, NO_DISCOUNT))
        self._show(orders, fee)
        return self._observe(), orders * fee - 2.0 * given, {"orders": orders, "fee": fee, "discount": given}

    def _show(self, orders: Floats, fee: Floats) -> None:
        """Running means over the days that the agent knows of."""
        days, seen = SEEN_DAYS + self.day, self._seen
        bought = np.clip(orders, 0, ORDERS)
        seen[0] += bought
        seen[1] = (seen[1] * days + bought) / (days + 1)
        seen[2] = (seen[2] * days + np.clip(fee, 0.0, MOST_FEE)) / (days + 1)
        seen[3] = self._state[WEEKDAY]

    def _observe(self) -> Floats32:
        return self._seen.T.astype(np.float32)


class SalesEnv(AloneEnv):
    """`SalesVectorEnv` with one user."""

    def __init__(self, data: str | Path, horizon: int = DAYS) -> None:
        super().__init__(SalesVectorEnv(1, data, horizon))


def moved_by_weekday(orders: Floats, weekday: Floats, rng: np.random.Generator) -> Floats:
    """More orders on days 0 and 4, fewer on 5 and 6."""
    u = rng.random(orders.size)
    day = np.rint(weekday)
    more = ((day == 0) | (day == 4)) & (u < 0.25)
    fewer = (orders >= 1) & (((day == 5) & (u < 0.25)) | ((day == 6) & (u < 0.4)))
    return np.asarray(orders + more - fewer)


def moved_by_discount(
    orders: Floats, coupons: Floats, discount: Floats, accepted: Floats, rng: np.random.Generator
) -> Floats:
    """What coupons add and their absence takes, given the least discount `accepted` so far."""
    u, v = rng.random((2, orders.size))
    offered, buys, enough = coupons > 0, orders >= 1, discount >= accepted
    spoilt = accepted < 0.15
    change = np.zeros(orders.size)
    change[offered & ~buys & ~enough & (u < discount)] = 1.0
    change[offered & ~buys & enough] = 1.0
    change[offered & buys & ~enough & (u < 1.0 - discount)] = -1.0
    waits = ~offered & buys
    change[waits & spoilt & (u < 0.25)] = -1.0
    change = np.where(waits & ~spoilt, -np.rint(0.75 * orders), change)
    chance = np.where(discount >= 0.35, 1.5 * discount, np.where(discount >= 0.25, discount, 0.0))
    return np.asarray(np.rint(orders + change + (v < chance)))


def settled(orders: Floats, fee: Floats, fees: Floats, rng: np.random.Generator) -> tuple[Floats, Floats]:
    """Fees within the user's habits (`fees`: total, mean, spread, least, most, `[5, n]`), or none."""
    floor = np.maximum(fees[MIN] - np.sqrt(fees[SPREAD]), 0.0)
    ceiling = np.maximum(fees[MAX], fees[AVG] + 3.0 * np.sqrt(fees[MAX]))
    fee = np.where(fee > 0, np.clip(fee, floor, ceiling), fee)
    usual = fees[AVG] + 1.5 * rng.standard_normal(fee.size)
    fee = np.where((orders >= 1) & (fee <= 0.1), usual, fee)
    bought = (orders >= 1) & (fee > 0.1)
    return np.where(bought, orders, 0.0), np.where(bought, fee, 0.0)


def remember(state: Floats, orders: Floats, fee: Floats, taken: Floats) -> None:
    """The state `[18, n]` of the next day, in place, real units; `taken`: discount used, 0.4 for none."""
    bought = orders > 0
    _count(state[0:5], orders, bought)
    _count(state[5:10], fee, bought)
    state[IDLE] = np.where(bought, 0.0, state[IDLE] + 1.0)
    for place, new in ((DISC_ORDERS, orders), (DISC_DAYS, bought), (DISC_FEE, orders * fee)):
        state[place] = _DECAY * state[place] + new
    state[ACCEPTED] = np.minimum(state[ACCEPTED], taken)
    state[WEEKDAY] = (np.rint(state[WEEKDAY]) + 1) % 7
    state[COUPON] = state[DISCOUNT] = 0.0
    state[_CLIPPED] = np.clip(state[_CLIPPED], 0.0, SCALE[_CLIPPED, None])


def _count(group: Floats, x: Floats, bought: NDArray[np.bool_]) -> None:
    """Total, running mean, sum of squared deviations (Welford), least and most of `x` where `bought`."""
    mean = group[AVG].copy()
    times = np.where(mean > 0, np.rint(group[TOTAL] / (mean + 1e-10)), 0.0)
    new = mean + (x - mean) / (times + 1.0)
    group[TOTAL] += x
    group[AVG] = np.where(bought, new, mean)
    group[SPREAD] += np.where(bought, (x - new) * (x - mean), 0.0)
    least = np.where(group[MIN] == 0, x, np.minimum(group[MIN], x))
    group[MIN] = np.where(bought, least, group[MIN])
    group[MAX] = np.where(bought, np.maximum(group[MAX], x), group[MAX])
