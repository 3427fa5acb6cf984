"""What nobody can beat in `PromotionVectorEnv`: the best plan of one who knows all demand beforehand.

For given demand a campaign is a deterministic control problem whose segments share only the budget. With a
price λ on spending they fall apart, and each is solved by dynamic programming over fatigue and stock. For
every λ ≥ 0, λ·budget + Σ_s V_s(λ) is at least what any policy earns (weak duality; Hawkins, "A Lagrangian
decomposition approach to weakly coupled dynamic optimization problems", 2003), and knowing demand beforehand
can only help (Brown, Smith and Sun, "Information Relaxations and Duality in Stochastic Dynamic Programs",
2010). The least over λ is the bound. It is exact up to the grid: values are interpolated between its points,
and shares and depths are those of the grid. `HindsightPlan` follows the plan, so that what it earns shows how
tight the bound is.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from qiance.market.market import FATIGUE_DECAY, STOCK_DECAY
from rllib.lockstep import Floats, Floats32
from rllib.promotion import DEEPEST, FATIGUE_SEEN, STOCK_SEEN, PromotionVectorEnv, encode

FATIGUE = np.linspace(0.0, 4.0, 13)
STOCK = np.linspace(0.0, 1.5, 16)
DEPTHS = np.linspace(0.0, DEEPEST, 9)
SHARES = np.linspace(0.0, 1.0, 9)
_DEAREST, _LOOKS = 4.0, 12  # bracket and steps of the search for λ
_GOLDEN = 0.5 * (np.sqrt(5.0) - 1.0)


@dataclass(frozen=True)
class Hindsight:
    """The bound per episode.

    bound: `[n]`, as a fraction of the budget, like returns. price: `[n]` λ. values: `[T+1, n, S, F, K]` of a
    segment from a day on, net of λ·spending, minor units. demand: `[T, n, S]`.
    """

    bound: Floats
    price: Floats
    values: NDArray[np.float32]
    demand: Floats


def hindsight(env: PromotionVectorEnv, seed: int) -> Hindsight:
    """The bound of the episodes that `env.reset(seed=seed)` starts; `env` is left at their end."""
    demand, fatigue, stock = _episodes(env, seed)
    day = _Days(env, demand)
    low, high = np.zeros(env.num_envs), np.full(env.num_envs, _DEAREST)
    left, right = high - _GOLDEN * (high - low), low + _GOLDEN * (high - low)
    at_left, at_right = (day.dual(x, fatigue, stock)[0] for x in (left, right))
    for _ in range(_LOOKS):
        # Golden section, each episode on its own side: the dual is convex in λ.
        down = at_left < at_right
        low, high = np.where(down, low, left), np.where(down, right, high)
        fresh = np.where(down, high - _GOLDEN * (high - low), low + _GOLDEN * (high - low))
        found = day.dual(fresh, fatigue, stock)[0]
        left, right = np.where(down, fresh, right), np.where(down, left, fresh)
        at_left, at_right = np.where(down, found, at_right), np.where(down, at_left, found)
    price = np.where(at_left < at_right, left, right)
    bound, values = day.dual(price, fatigue, stock)
    return Hindsight(bound / env.budget, price, values, demand)


class HindsightPlan:
    """The plan behind the bound as a policy, for the episodes that it was made for, from their first day."""

    def __init__(self, env: PromotionVectorEnv, found: Hindsight) -> None:
        self._env, self._found, self._day = env, found, 0

    def act(self, observations: Floats32) -> Floats32:
        """Actions `[n, 2·S]` of the next day."""
        size, seen = len(self._env.segments), observations.astype(np.float64)
        fatigue, stock = seen[:, :size, None] * FATIGUE_SEEN, seen[:, size : 2 * size, None] * STOCK_SEEN
        demand, values = self._found.demand[self._day], self._found.values[self._day + 1]
        self._day += 1
        gain, cost, bought = _answers(self._env, demand, fatigue, stock)
        net = gain - self._found.price[:, None, None] * cost
        best = np.full(fatigue.shape, -np.inf)
        plan = np.zeros((2, *fatigue.shape))
        for share in SHARES:
            for place, depth in enumerate(DEPTHS):
                after = _after(values, fatigue, stock, share, bought[place] * (depth > 0))
                value = share * net[place] + after
                better = value > best
                best = np.where(better, value, best)
                plan = np.where(better, np.array([share, depth]).reshape(2, 1, 1, 1), plan)
        return encode(plan[0, ..., 0], plan[1, ..., 0])


class _Days:
    """The days of given episodes on the grid, `[n, S, F·K]`; what λ does not change is worked out once."""

    def __init__(self, env: PromotionVectorEnv, demand: Floats) -> None:
        self._env, self._demand = env, demand
        grid = np.meshgrid(FATIGUE, STOCK, indexing="ij")
        shape = (*demand.shape[1:], FATIGUE.size * STOCK.size)
        full = (-1, *demand.shape[1:], FATIGUE.size, STOCK.size)
        fatigue, stock = (np.broadcast_to(x.ravel(), shape) for x in grid)
        self._stock = stock.reshape(full[1:]).astype(np.float32)
        days = [_answers(env, today, fatigue, stock) for today in demand]
        self._gain, self._cost, self._bought = (
            np.array(part, dtype=np.float32).reshape(len(demand), *full) for part in zip(*days, strict=True)
        )

    def dual(self, price: Floats, fatigue: Floats, stock: Floats) -> tuple[Floats, NDArray[np.float32]]:
        """λ·budget + Σ V(λ) `[n]` from the given start `[n, S]`, minor units, and all values."""
        days, shape = len(self._demand), (*self._demand.shape[1:], FATIGUE.size, STOCK.size)
        values = np.zeros((days + 1, *shape), dtype=np.float32)
        for day in range(days - 1, -1, -1):
            values[day] = self._best(day, price.astype(np.float32), values[day + 1])
        start = _read(values[0], fatigue[..., None], stock[..., None])[..., 0]
        return price * self._env.budget + start.sum(axis=1), values

    def _best(self, day: int, price: Floats32, after: Floats32) -> Floats32:
        """Value at the start of a day, `[n, S, F, K]`, given that of the next."""
        best = _along(_tired(after, 0.0), STOCK_DECAY * self._stock)
        for share in SHARES[1:].astype(np.float32):
            ahead = _tired(after, share)
            for place, depth in enumerate(DEPTHS):
                net = self._gain[day, place] - price[:, None, None, None] * self._cost[day, place]
                bought = self._bought[day, place] * np.float32(depth > 0)
                then = _along(ahead, STOCK_DECAY * (self._stock + share * bought))
                np.maximum(best, share * net + then, out=best)
        return best


def _tired(after: Floats32, share: float) -> Floats32:
    """Values `[n, S, F, K]` after a day on which `share` was contacted: read along fatigue."""
    f, df = _place(FATIGUE_DECAY * (FATIGUE + share), FATIGUE)
    return (1 - df)[:, None] * after[:, :, f] + df[:, None] * after[:, :, f + 1]


def _along(ahead: Floats32, stock: Floats) -> Floats32:
    """Values `[n, S, F, K]` read at the given stock."""
    k, dk = _place(stock, STOCK)
    left, right = (np.take_along_axis(ahead, at, axis=3) for at in (k, k + 1))
    return left + dk * (right - left)


def _episodes(env: PromotionVectorEnv, seed: int) -> tuple[Floats, Floats, Floats]:
    """Demand `[T, n, S]`, which does not depend on actions, and fatigue and stock at the start `[n, S]`."""
    env.reset(seed=seed)
    fatigue, stock = env.fatigue.copy(), env.stock.copy()
    nothing, demand = np.full(env.action_space.shape, -1.0, dtype=np.float32), []
    for _ in range(env.horizon):
        demand.append(env.demand.copy())
        env.step(nothing)
    return np.array(demand), fatigue, stock


def _answers(
    env: PromotionVectorEnv, demand: Floats, fatigue: Floats, stock: Floats
) -> tuple[Floats, Floats, Floats]:
    """Margin and cost of contacting a whole segment, and purchases per user: `[D, n, S, G]` at each depth."""
    shape, users = fatigue.shape, env.segments.size[:, None]
    segment = np.broadcast_to(np.arange(shape[1])[:, None], shape).ravel()
    rows = [np.broadcast_to(x, shape).ravel() for x in (demand[..., None], fatigue, stock)]
    crowd, found = env.segments.crowd(segment), []
    for depth in DEPTHS:
        truth = crowd.contacted(np.full(segment.size, depth), *rows)
        gain, cost, bought = (x.reshape(shape) for x in (crowd.gain(truth), truth.cost, truth.conversion))
        found.append((users * gain, users * cost, bought))
    gains, costs, purchases = (np.array(part) for part in zip(*found, strict=True))
    return gains, costs, purchases


def _after(
    values: NDArray[np.float32], fatigue: Floats, stock: Floats, share: float, bought: Floats
) -> Floats:
    """Value `[n, S, G]` of the state that follows."""
    return _read(values, FATIGUE_DECAY * (fatigue + share), STOCK_DECAY * (stock + share * bought))


def _read(values: NDArray[np.float32], fatigue: Floats, stock: Floats) -> Floats:
    """Values `[n, S, F, K]` at fatigue and stock `[n, S, G]`, linear between points, flat beyond."""
    f, df = _place(fatigue, FATIGUE)
    k, dk = _place(stock, STOCK)
    flat = values.reshape(*values.shape[:2], -1)
    corner = [np.take_along_axis(flat, (f + i) * STOCK.size + k + j, axis=2) for i in (0, 1) for j in (0, 1)]
    return (1 - df) * ((1 - dk) * corner[0] + dk * corner[1]) + df * ((1 - dk) * corner[2] + dk * corner[3])


def _place(x: Floats, grid: Floats) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    at = np.clip(x / (grid[1] - grid[0]), 0.0, grid.size - 1.0)
    left = np.minimum(at.astype(np.int64), grid.size - 2)
    return left, (at - left).astype(np.float32)
