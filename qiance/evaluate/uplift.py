"""How well a score finds those whom a treatment moves: Qini curves, RATE, and what targeting by it is worth.

Rows have an outcome y, a treatment t (0 or 1), the propensity e = P(t = 1), and a score s: higher is treated
first. Shapes: n rows, K arms. Two quantities go by the name Qini in the field; both are here, named.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import stats

from qiance.domain import Interval
from qiance.evaluate.arrays import BoolArray, FloatArray, finite_matrix, finite_vector, fraction, refuse_where
from qiance.evaluate.bandit_log import BanditLog
from qiance.evaluate.ope import Estimate, estimate


@dataclass(frozen=True, slots=True, eq=False)
class Curve:
    """A curve over the share of users who are treated, best score first.

    share, gain: `[m]`, from (0, 0) on; rows of equal score come together, so their order does not matter.
    """

    share: FloatArray
    gain: FloatArray

    @property
    def area(self) -> float:
        """∫ gain d(share) by trapezoids."""
        return float(np.trapezoid(self.gain, self.share))

    @property
    def above_line(self) -> float:
        """Area between the curve and the straight line to its end: 0 for a score that says nothing."""
        return self.area - float(self.gain[-1]) / 2


@dataclass(frozen=True, slots=True)
class Rate:
    """Rank-weighted average treatment effect with its interval; std_error by half-sampling."""

    value: float
    low: float
    high: float
    std_error: float


def qini_radcliffe(outcome: ArrayLike, treated: ArrayLike, score: ArrayLike) -> Curve:
    """Qini curve (a): incremental outcomes among the treated, per treated user of all.

    gain(k) = [Y₁(k) − Y₀(k) · N₁(k) / N₀(k)] / N₁(n): sums of outcomes and numbers of users among the k best
    scores. `above_line` is the coefficient Q without normalisation. Source: Radcliffe (2007), Using control
    groups to target on predicted lift. Raises ValueError for bad arrays or only one group.
    """
    y, t, ends, share = _ranked(outcome, treated, score)
    ones, zeros = _sums(y * t, ends), _sums(y * ~t, ends)
    n_ones, n_zeros = _sums(t, ends), _sums(~t, ends)
    # Before the first control user nothing can be compared: he counts as one who did nothing.
    scaled = zeros * np.divide(n_ones, n_zeros, out=np.zeros_like(zeros), where=n_zeros > 0)
    return Curve(share, _from_zero((ones - scaled) / n_ones[-1]))


def cumulative_gain(outcome: ArrayLike, treated: ArrayLike, score: ArrayLike) -> Curve:
    """Qini curve (b), the cumulative gain: uplift among the k best scores times their share.

    gain(k) = [Y₁(k) / N₁(k) − Y₀(k) / N₀(k)] · k / n. `area` is the AUUC, `above_line` the coefficient.
    Source: Gutierrez and Gérardy (2017), Causal inference and uplift modelling. Raises as `qini_radcliffe`.
    """
    y, t, ends, share = _ranked(outcome, treated, score)
    means = [
        np.divide(
            _sums(y * group, ends), _sums(group, ends), out=np.zeros(len(ends)), where=_sums(group, ends) > 0
        )
        for group in (t, ~t)
    ]
    return Curve(share, _from_zero((means[0] - means[1]) * share[1:]))


def qini_intervals(
    outcome: ArrayLike,
    treated: ArrayLike,
    score: ArrayLike,
    confidence: float = 0.95,
    draws: int = 200,
    seed: int = 0,
    cluster: ArrayLike | None = None,
) -> Mapping[str, Interval]:
    """`qini_radcliffe` and `cumulative_gain` above the line and `auuc`, with intervals by half-sampling.

    They say how far the figures would move with other users and the same score. A figure of half of the units
    (rows, or `cluster`) differs from that of all by as much as that of all from the population's, so the
    deviation between halves is the standard error. Source: as `rate`, to whose family the Qini coefficient
    belongs. Bounds are NaN where most halves lack treated or untreated rows. Raises as `qini_radcliffe`.
    """
    y, t = _outcomes(outcome, treated)
    s = finite_vector("score", score, len(y))
    fraction("confidence", confidence, open_ends=True)
    # Sorted once: a half of sorted rows is sorted.
    order = np.argsort(-s, kind="stable")
    y, t, s = y[order], t[order], s[order]
    units = None if cluster is None else np.asarray(cluster)[order]
    halves = [rows for rows in _halves(s.size, units, draws, seed) if t[rows].any() and not t[rows].all()]
    whole, z = _qinis(y, t, s), float(stats.norm.ppf(0.5 + confidence / 2))
    error = np.full(len(whole), np.nan)
    if 2 * len(halves) > draws:
        error = np.std([list(_qinis(y[h], t[h], s[h]).values()) for h in halves], axis=0, ddof=1)
    return {
        name: Interval(value, value - z * float(own), value + z * float(own))
        for (name, value), own in zip(whole.items(), error, strict=True)
    }


def _qinis(y: FloatArray, t: BoolArray, s: FloatArray) -> dict[str, float]:
    gain = cumulative_gain(y, t, s)
    return {
        "qini_radcliffe": qini_radcliffe(y, t, s).above_line,
        "cumulative_gain": gain.above_line,
        "auuc": gain.area,
    }


def effect_scores(
    outcome: ArrayLike,
    treated: ArrayLike,
    propensity: ArrayLike,
    model: ArrayLike | None = None,
) -> FloatArray:
    """Γ `[n]`: unbiased scores of each row's effect, doubly robust.

    Γ = q₁ − q₀ + t (y − q₁) / e − (1 − t)(y − q₀) / (1 − e). model: `[n, 2]` expected outcomes q₀, q₁ from a
    model that has not seen the row; None takes the two groups' means, which costs variance and no bias where
    e is known. Source: Robins, Rotnitzky and Zhao (1994). Raises ValueError for e outside (0, 1).
    """
    y, t = _outcomes(outcome, treated)
    e = finite_vector("propensity", propensity, len(y))
    refuse_where("propensity", e, (e <= 0) | (e >= 1), "must be in (0, 1): both groups must be possible")
    if model is None:
        weights = (~t / (1 - e), t / e)
        q = np.tile([float(w @ y / w.sum()) for w in weights], (len(y), 1))
    else:
        q = np.asarray(finite_matrix("model", np.asarray(model), (len(y), 2)), dtype=np.float64)
    gap = y - np.where(t, q[:, 1], q[:, 0])
    return np.asarray(q[:, 1] - q[:, 0] + np.where(t, gap / e, -gap / (1 - e)))


def rate(
    score: ArrayLike,
    effects: ArrayLike,
    weighting: str = "autoc",
    confidence: float = 0.95,
    draws: int = 200,
    seed: int = 0,
    cluster: ArrayLike | None = None,
) -> Rate:
    """Rank-weighted average treatment effect of a prioritisation by `score`.

    effects: `[n]` from `effect_scores`. TOC(q) = mean effect among the share q with the best scores − mean
    effect of all; weighting "autoc" is ∫ TOC(q) dq and finds few who respond strongly, "qini" is
    ∫ q TOC(q) dq. The standard error is that of half-samples of the units (rows, or `cluster`). Source:
    Yadlowsky, Fleming, Shah, Brunskill and Wager (2021), Evaluating treatment prioritization rules via RATE.
    """
    s, gamma = finite_vector("score", score), finite_vector("effects", effects)
    if s.shape != gamma.shape:
        raise ValueError(f"effects: has {gamma.size} rows; must have {s.size}, one per score")
    if weighting not in ("autoc", "qini"):
        raise ValueError(f"weighting: {weighting!r} is not known; choose autoc or qini")
    fraction("confidence", confidence, open_ends=True)
    value = _rate(s, gamma, weighting)
    halves = _halves(s.size, cluster, draws, seed)
    error = float(np.std([_rate(s[rows], gamma[rows], weighting) for rows in halves], ddof=1))
    z = float(stats.norm.ppf(0.5 + confidence / 2))
    return Rate(value, value - z * error, value + z * error, error)


def _halves(size: int, cluster: ArrayLike | None, draws: int, seed: int) -> Iterator[BoolArray]:
    """Half of the units (rows, or `cluster`) at random, `draws` times, as masks of the rows."""
    units = (
        np.arange(size) if cluster is None else np.unique(np.asarray(cluster), return_inverse=True)[1].ravel()
    )
    count, random = int(units.max()) + 1, np.random.default_rng(seed)
    for _ in range(draws):
        half = np.zeros(count, dtype=np.bool_)
        half[random.permutation(count)[: count // 2]] = True
        yield half[units]


def _rate(score: FloatArray, gamma: FloatArray, weighting: str) -> float:
    order = np.argsort(-score, kind="stable")
    ranked = _tied_means(score[order], gamma[order])
    k = np.arange(1, len(ranked) + 1)
    toc = np.cumsum(ranked) / k - ranked.mean()
    return float(toc.mean() if weighting == "autoc" else (toc * k / len(ranked)).mean())


def _tied_means(score: FloatArray, values: FloatArray) -> FloatArray:
    """Values of equal scores replaced by their mean: what a random order among them gives on average."""
    starts = np.flatnonzero(np.r_[True, np.diff(score) != 0])
    sizes = np.diff(np.r_[starts, len(score)])
    return np.repeat(np.add.reduceat(values, starts) / sizes, sizes)


def targeting_policy(
    uplift: ArrayLike, budget: float, control: int = 0, cost: Sequence[float] | None = None
) -> NDArray[np.float64]:
    """`[n, K]` probabilities: the `budget` of users with most to gain get their best arm, others control.

    uplift: `[n, K]` predicted gain of each arm over control in the units of `cost`; the control's column is
    not read. cost: `[K]` of giving an arm to one user. Nobody is treated at a predicted loss.
    """
    gains = np.array(finite_matrix("uplift", np.asarray(uplift)), dtype=np.float64)
    n, arms = gains.shape
    fraction("budget", budget)
    if not 0 <= control < arms:
        raise ValueError(f"control: {control} is no column of uplift, which has {arms}")
    gains -= np.zeros(arms) if cost is None else finite_vector("cost", cost, arms)
    gains[:, control] = 0.0
    best = gains.argmax(axis=1)
    most = gains[np.arange(n), best]
    order = np.argsort(-most, kind="stable")
    chosen = np.full(n, control)
    treated = order[: round(budget * n)]
    treated = treated[most[treated] > 0]
    chosen[treated] = best[treated]
    return np.asarray(np.eye(arms)[chosen])


def targeting_value(
    log: BanditLog,
    uplift: ArrayLike,
    budgets: Sequence[float],
    control: int = 0,
    cost: Sequence[float] | None = None,
    model: NDArray[Any] | None = None,
    confidence: float = 0.95,
) -> Mapping[float, Estimate]:
    """Mean outcome per user, cost of arms taken off, if the best share of users were treated, by share.

    log: of several arms with their propensities. uplift, cost: see `targeting_policy`. model: `[n, K]`
    expected outcomes; with it the estimate is self-normalised doubly robust, else self-normalised by
    propensity (SNIPS; Swaminathan and Joachims, 2015). It is the cost curve where budgets run from 0 to 1.
    """
    prices = None if cost is None else finite_vector("cost", cost)
    paid = log if prices is None else _net(log, prices)
    net = None if model is None else np.asarray(model) - (0.0 if prices is None else prices)
    name = "snipw" if model is None else "sndr"
    return {
        budget: estimate(paid, targeting_policy(uplift, budget, control, cost), net, name, confidence)
        for budget in budgets
    }


def resampled_interval(values: ArrayLike, test_share: float, confidence: float = 0.95) -> Interval:
    """Mean over repeated random splits with an interval that knows that the splits share their rows.

    values: `[J]`, one per split; test_share: of the rows that judge. The variance of the mean is taken as
    (1 / J + test / train) · s². Source: Nadeau and Bengio (2003), Inference for the generalization error.
    """
    found = finite_vector("values", values)
    fraction("test_share", test_share, open_ends=True)
    if found.size < 2:
        raise ValueError("values: has one split; the spread between splits needs two or more")
    spread = float(found.var(ddof=1)) * (1 / found.size + test_share / (1 - test_share))
    half = float(stats.t.ppf(0.5 + confidence / 2, found.size - 1)) * spread**0.5
    mean = float(found.mean())
    return Interval(mean, mean - half, mean + half)


def _net(log: BanditLog, cost: FloatArray) -> BanditLog:
    refuse_where("action", log.action, log.action >= len(cost), f"out of range: cost has {len(cost)} arms")
    reward = log.reward - cost[log.action]
    return BanditLog(log.action, reward, log.propensity, log.context, log.position, log.cluster)


def _outcomes(outcome: ArrayLike, treated: ArrayLike) -> tuple[FloatArray, BoolArray]:
    y = finite_vector("outcome", outcome)
    given = finite_vector("treated", treated, len(y))
    refuse_where("treated", given, (given != 0) & (given != 1), "must be 0 or 1")
    t = given == 1
    if t.all() or not t.any():
        raise ValueError(f"treated: all rows are {int(t[0])}; a comparison needs both groups")
    return y, t


def _ranked(
    outcome: ArrayLike, treated: ArrayLike, score: ArrayLike
) -> tuple[FloatArray, BoolArray, NDArray[np.intp], FloatArray]:
    """y and t by falling score; the last place of each group of equal scores; shares treated, from 0 on."""
    y, t = _outcomes(outcome, treated)
    s = finite_vector("score", score, len(y))
    order = np.argsort(-s, kind="stable")
    ends = np.flatnonzero(np.r_[np.diff(s[order]) != 0, True])
    return y[order], t[order], ends, _from_zero((ends + 1) / len(y))


def _sums(values: NDArray[Any], ends: NDArray[np.intp]) -> FloatArray:
    return np.asarray(np.cumsum(values, dtype=np.float64)[ends])


def _from_zero(values: NDArray[Any]) -> FloatArray:
    return np.concatenate([[0.0], values])
