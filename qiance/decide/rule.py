"""Choose one action per user: argmax of value − λ·cost, with ε-greedy exploration of known propensity.

The choice follows from the float32 scores, the admissible set, ε and one uniform number per user, and from
nothing else: those are logged, and `replay` gives the same choice bit for bit.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from qiance.evaluate.arrays import (
    BoolArray,
    FloatArray,
    IndexArray,
    finite_matrix,
    finite_vector,
    fraction,
    mask_matrix,
    refuse_where,
)

Scores = NDArray[np.float32]


@dataclass(frozen=True, slots=True, eq=False)
class Decided:
    """One choice for each of U users among A actions.

    choice: `[U]` column chosen. probabilities: `[U, A]` of every action, 0 where inadmissible.
    propensity: `[U]`, probabilities[u, choice[u]]. score: `[U, A]` float32, value − λ·cost.
    uniforms: `[U]` numbers in [0, 1) that the choice was drawn with; log them to replay it.
    """

    choice: IndexArray
    probabilities: FloatArray
    propensity: FloatArray
    score: Scores
    uniforms: FloatArray


def decide(
    value: ArrayLike,
    cost: ArrayLike,
    admissible: ArrayLike,
    shadow_price: float,
    epsilon: float,
    *,
    rng: np.random.Generator | None = None,
    uniforms: ArrayLike | None = None,
) -> Decided:
    """Decide for U users among A actions; column 0 is `control` and admissible to everybody.

    value: `[U, A]` expected incremental value, minor units; 0 for control.
    cost: `[U, A]` expected cost against the budget, minor units, ≥ 0.
    admissible: `[U, A]` bool: audience, consent, caps, stock, floors and budget admit it.
    shadow_price: λ ≥ 0, value given up per minor unit of budget; for several budgets pass
        cost = Σ_k λ_k cost_k and λ = 1.
    epsilon: share of exploration in [0, 1]. Each of the N admissible actions of a user has probability ε/N,
        the best one 1 − ε more; ties go to the lowest column.
    rng or uniforms: exactly one; `uniforms` `[U]` are the numbers in [0, 1) to draw with.

    ValueError names the array, row, column and value that is wrong (NaN and infinity among them).
    """
    score = scores(value, cost, shadow_price)
    mask = with_control(admissible, score.shape)
    drawn = uniforms_of(rng, uniforms, score.shape[0])
    probabilities = _epsilon_greedy(score, mask, epsilon)
    choice = draw(probabilities, drawn)
    propensity = probabilities[np.arange(choice.size), choice]
    return Decided(choice, probabilities, propensity, score, drawn)


def policy_probabilities(
    value: ArrayLike, cost: ArrayLike, admissible: ArrayLike, shadow_price: float, epsilon: float
) -> FloatArray:
    """`[U, A]` probabilities with which `decide` would choose, without drawing; arguments as there.

    Epsilon 0 gives the greedy policy as rows of 0 and 1: what off-policy evaluation wants.
    """
    score = scores(value, cost, shadow_price)
    return _epsilon_greedy(score, with_control(admissible, score.shape), epsilon)


def scores(value: ArrayLike, cost: ArrayLike, shadow_price: float) -> Scores:
    """value − λ·cost, `[U, A]`, computed in float64 and rounded once to the float32 that is logged."""
    worth = finite_matrix("value", value)
    price = finite_matrix("cost", cost, worth.shape)
    refuse_where("cost", price, price < 0, "must be ≥ 0 minor units")
    if not 0 <= shadow_price < np.inf:
        raise ValueError(f"shadow_price: {shadow_price} is outside [0, infinity)")
    exact = worth.astype(np.float64) - np.float64(shadow_price) * price.astype(np.float64)
    limit = float(np.finfo(np.float32).max)
    refuse_where("value − λ·cost", exact, np.abs(exact) > limit, "too large for the float32 that is logged")
    return exact.astype(np.float32)


def replay(score: ArrayLike, admissible: ArrayLike, epsilon: float, uniform: ArrayLike) -> IndexArray:
    """The choice `[U]` that `decide` made, from logged float32 scores `[U, A]` and uniforms `[U]`.

    The same bit for bit, and also when only the admissible columns were logged, as numbers among those.
    """
    logged = finite_matrix("score", score).astype(np.float32)
    mask = with_control(admissible, logged.shape)
    drawn = uniforms_of(None, uniform, logged.shape[0])
    return draw(_epsilon_greedy(logged, mask, epsilon), drawn)


def with_control(admissible: ArrayLike, shape: tuple[int, ...]) -> BoolArray:
    """`admissible` as a bool array of `shape` whose column 0, control, is True; else ValueError."""
    mask = mask_matrix("admissible", admissible, shape)
    refuse_where("admissible", mask[:, :1], ~mask[:, :1], "column 0 is control, always admissible")
    return mask


def uniforms_of(rng: np.random.Generator | None, uniforms: ArrayLike | None, rows: int) -> FloatArray:
    """`[rows]` numbers in [0, 1): those given, or drawn by `rng`; ValueError unless exactly one is given."""
    if uniforms is None:
        if rng is None:
            raise ValueError("uniforms: pass either rng or uniforms, got neither")
        return rng.random(rows)
    if rng is not None:
        raise ValueError("uniforms: pass either rng or uniforms, got both")
    drawn = finite_vector("uniforms", uniforms, rows)
    refuse_where("uniforms", drawn, (drawn < 0) | (drawn >= 1), "must be in [0, 1)")
    return drawn


def _epsilon_greedy(score: Scores, mask: BoolArray, epsilon: float) -> FloatArray:
    """ε/N on each of the N admissible actions, and 1 − ε more on the best (lowest column of equals)."""
    fraction("epsilon", epsilon)
    share = epsilon / mask.sum(axis=1, dtype=np.int64)
    probabilities = np.where(mask, share[:, None], 0.0)
    best = np.where(mask, score, np.float32(-np.inf)).argmax(axis=1)
    # Added as 1 − ε + share, never as 1 − (N − 1)·share: the floor ε/N then holds exactly.
    probabilities[np.arange(best.size), best] += 1.0 - epsilon
    return probabilities


def draw(probabilities: FloatArray, uniforms: FloatArray) -> IndexArray:
    """`[U]` the first column whose cumulative probability exceeds the uniform.

    The running sum is sequential, so inadmissible columns (exact zeros) do not change it. Where rounding
    leaves the last sum under the uniform, the last admissible action with any probability is taken.
    """
    reached = np.cumsum(probabilities, axis=1) <= uniforms[:, None]
    possible = probabilities > 0
    last = possible.shape[1] - 1 - possible[:, ::-1].argmax(axis=1)
    return np.asarray(np.minimum(reached.sum(axis=1), last), dtype=np.int64)
