"""From what is believed of n users × A actions to a choice with an exact propensity.

A rule turns means and uncertainties into probabilities; the choice is then drawn from these very numbers, so
a logged propensity is the probability with which the choice was made, whatever the rule approximates.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

import numpy as np
from numpy.typing import ArrayLike
from scipy.special import ndtr

from qiance.decide.rule import draw, uniforms_of, with_control
from qiance.evaluate.arrays import (
    BoolArray,
    FloatArray,
    IndexArray,
    finite_matrix,
    fraction,
    refuse_where,
)

# Beyond so many standard deviations a Gaussian counts as nothing: 4e-11 of it.
_TAIL = 6.5
# Step of the trapezoid rule on the logarithmic axis. A Gaussian is at least 1 / _TAIL wide there.
_STEP = 1 / 12
_CHUNK = 1_000_000  # numbers held at a time


class Rule(StrEnum):
    """How an action is chosen.

    thompson: with the probability that it is the best. ucb: the highest mean + width · deviation. greedy: the
    highest mean. uniform: any. Equals of ucb and greedy share the probability.
    """

    THOMPSON = "thompson"
    UCB = "ucb"
    GREEDY = "greedy"
    UNIFORM = "uniform"


@dataclass(frozen=True, slots=True, eq=False)
class Chosen:
    """One choice for each of n users among A actions.

    choice: `[n]` column chosen. probabilities: `[n, A]` of every action, 0 where inadmissible.
    propensity: `[n]`, probabilities[i, choice[i]]. uniforms: `[n]` numbers in [0, 1) that it was drawn with.
    """

    choice: IndexArray
    probabilities: FloatArray
    propensity: FloatArray
    uniforms: FloatArray


def choose(
    probabilities: FloatArray,
    *,
    rng: np.random.Generator | None = None,
    uniforms: ArrayLike | None = None,
) -> Chosen:
    """Draw from probabilities `[n, A]` with exactly one of a generator and uniforms `[n]` in [0, 1)."""
    drawn = uniforms_of(rng, uniforms, len(probabilities))
    choice = draw(probabilities, drawn)
    return Chosen(choice, probabilities, probabilities[np.arange(choice.size), choice], drawn)


def rule_probabilities(
    rule: Rule,
    mean: ArrayLike,
    deviation: ArrayLike,
    admissible: ArrayLike,
    width: float = 1.0,
    epsilon: float = 0.0,
) -> FloatArray:
    """`[n, A]` probabilities of every action; column 0 is control and admissible to everybody.

    mean, deviation: `[n, A]` of the expected reward, Gaussian and independent between actions; deviation > 0.
    admissible: `[n, A]` bool. width: ≥ 0, multiplies the deviation: v of Agrawal & Goyal (2013), α of Li et
    al. (2010). epsilon: share of exploration in [0, 1]: each of a user's N admissible actions has at least
    ε/N.

    ValueError names the array, row, column and value that is wrong.
    """
    means = finite_matrix("mean", mean).astype(np.float64)
    spread = finite_matrix("deviation", deviation, means.shape).astype(np.float64)
    refuse_where("deviation", spread, spread <= 0, "must be > 0")
    mask = with_control(admissible, means.shape)
    fraction("epsilon", epsilon)
    fraction("width", width, high=np.inf)
    if rule is Rule.THOMPSON and width > 0:
        best = best_probabilities(means, width * spread, mask)
    elif rule is Rule.UNIFORM:
        best = _equally(mask)
    else:
        index = means + width * spread if rule is Rule.UCB else means
        hopeful = np.where(mask, index, -np.inf)
        best = _equally(hopeful == hopeful.max(axis=1, keepdims=True))
    # Added to what is ≥ 0, so the floor ε/N holds exactly.
    share = epsilon / mask.sum(axis=1, keepdims=True)
    return np.asarray((1.0 - epsilon) * best + np.where(mask, share, 0.0))


def best_probabilities(mean: FloatArray, deviation: FloatArray, admissible: BoolArray) -> FloatArray:
    """`[n, A]` P(action a has the highest reward) for independent N(mean, deviation²); 0 where inadmissible.

    Two admissible actions have the closed form Φ((μ₁ − μ₂) / √(σ₁² + σ₂²)). For more, with L the largest
    μ_b − 6.5 σ_b, below which the highest is not,

        P_a = ∫ f_a(x) Π_{b≠a} F_b(x) dx,   x = L + e^s,

    by the trapezoid rule in s. Whatever matters lies within 13 of its own deviations of L, so it is about as
    wide in s as anything else, and one grid serves actions known well and not at all; the error falls faster
    than any power of the step (Trefethen & Weideman, SIAM Review 56, 2014) and is below 1e-5 here.
    """
    found = np.zeros_like(mean)
    number = admissible.sum(axis=1)
    found[number == 1, 0] = 1.0  # control
    pairs, more = np.flatnonzero(number == 2), np.flatnonzero(number > 2)
    if pairs.size:
        found[pairs] = _of_two(mean[pairs], deviation[pairs], admissible[pairs])
    means, spread = np.where(admissible, mean, -np.inf)[more], deviation[more]
    grid = _grid(means, spread)
    # Rows that need about as many points together.
    order, step = np.argsort(grid[2] - grid[1]), max(_CHUNK // (64 * mean.shape[1]), 1)
    for first in range(0, order.size, step):
        some = order[first : first + step]
        found[more[some]] = _of_many(spread[some], *(part[some] for part in grid))
    return found


def _of_two(mean: FloatArray, deviation: FloatArray, admissible: BoolArray) -> FloatArray:
    found, rows = np.zeros_like(mean), np.arange(len(mean))
    other = admissible.shape[1] - 1 - admissible[:, ::-1].argmax(axis=1)
    gap = mean[:, 0] - mean[rows, other]
    found[:, 0] = ndtr(gap / np.hypot(deviation[:, 0], deviation[rows, other]))
    found[rows, other] = 1.0 - found[:, 0]
    return found


def _grid(mean: FloatArray, deviation: FloatArray) -> tuple[FloatArray, FloatArray, FloatArray]:
    """(μ − L) / σ `[n, A]`, and the least and the largest s `[n]`.

    `mean` is −∞ where inadmissible: surely below every x.
    """
    rows, top = np.arange(len(mean)), (mean - _TAIL * deviation).argmax(axis=1)
    widest = deviation[rows, top]
    above = mean - mean[rows, top][:, None] + _TAIL * widest[:, None]
    # One deviation above L, the action that gave L is still 5.5 of its own below its mean.
    return above / deviation, np.log(widest), np.log((above + _TAIL * deviation).max(axis=1))


def _of_many(deviation: FloatArray, above: FloatArray, start: FloatArray, end: FloatArray) -> FloatArray:
    points = int(np.ceil((end - start).max() / _STEP)) + 1
    distance = np.exp(start[:, None] + (end - start)[:, None] * np.linspace(0.0, 1.0, points))
    z = distance[:, None, :] / deviation[:, :, None] - above[:, :, None]
    below = ndtr(z)
    density = np.exp(-0.5 * np.square(z)) / deviation[:, :, None]
    # z > −6.5, so no F_b is 0. dx = e^s ds; constants go when rows are scaled to 1.
    weight = np.einsum("naq,nq->na", density / below, below.prod(axis=1) * distance)
    return np.asarray(weight / weight.sum(axis=1, keepdims=True))


def _equally(mask: BoolArray) -> FloatArray:
    return np.asarray(mask / mask.sum(axis=1, keepdims=True), dtype=np.float64)
