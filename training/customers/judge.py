"""How good forecasts of customers are, on a period that nothing was learned from."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from qiance.customers.forecast import Forecast
from qiance.customers.history import History
from qiance.evaluate.prediction import auc, ece, ece_floor, log_loss, rmse
from training.customers.outcome import Outcome

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Said:
    """What any model says of U customers, `[U]` each; within: `[U, D]` P(next purchase by day d). The parts
    that a model does not have are None."""

    churn: Floats
    purchases: Floats
    value: Floats | None = None
    purchases_median: Floats | None = None
    value_median: Floats | None = None
    within: Floats | None = None

    @classmethod
    def of(cls, forecast: Forecast) -> Said:
        return cls(
            forecast.churn,
            forecast.purchases,
            forecast.value,
            forecast.purchases_median,
            forecast.value_median,
            forecast.within,
        )


def score(said: Said, outcome: Outcome) -> dict[str, float]:
    """Churn, next purchase, count and value; figures that need both outcomes are left out where all are
    alike.

    *_mae, *_rmse are of expected values, *_mae_median of medians, which is what a mean absolute error is
    least for; *_bias: sum predicted / sum actual. next_purchase_c: P(who is said to come back sooner does),
    with the days without a purchase within the horizon as score; next_purchase_ibs: mean over customers and
    days of (came by then − P)², the integrated Brier score (Graf et al., 1999; nobody is lost before the
    horizon's end).
    """
    figures = _churn(said.churn, outcome.churned)
    figures |= _amount("count", said.purchases, outcome.count, said.purchases_median)
    if said.value is not None:
        figures |= _amount("value", said.value, outcome.value, said.value_median)
    if said.within is not None:
        figures |= _next(said.within, outcome.next_day)
    return figures


def intervals(forecast: Forecast, outcome: Outcome) -> dict[str, float]:
    """Share of 90 % intervals that hold what happened: of value, for all and for those who bought, and of the
    next purchase."""
    held = (forecast.value_low <= outcome.value) & (outcome.value <= forecast.value_high)
    due = (forecast.next_low <= outcome.next_day) & (outcome.next_day <= forecast.next_high)
    buys = outcome.count > 0
    figures = {"value_cover90": float(held.mean()), "next_purchase_cover90": float(due.mean())}
    figures["value_width90"] = float((forecast.value_high - forecast.value_low).mean())
    return figures | ({"value_cover90_buyers": float(held[buys].mean())} if buys.any() else {})


def past_rate(history: History, horizon: int) -> Said:
    """The naive baseline: everybody goes on as before, at purchases / days since the first one."""
    rate = history.bought / (history.age + 1)
    count = rate * horizon
    within = -np.expm1(-np.outer(rate, np.arange(1.0, horizon + 1)))
    return Said(np.exp(-count), count, count * history.mean_value, within=within)


def _churn(chance: Floats, churned: Floats) -> dict[str, float]:
    figures = {
        "churn_rate": float(churned.mean()),
        "churn_log_loss": log_loss(churned, chance),
        "churn_brier": float(np.mean((churned - chance) ** 2)),
        "churn_ece": ece(churned, chance),
        "churn_ece_floor": ece_floor(chance),
    }
    return figures | ({"churn_auc": auc(churned, chance)} if 0 < churned.mean() < 1 else {})


def _amount(name: str, mean: Floats, actual: Floats, median: Floats | None) -> dict[str, float]:
    figures = {f"{name}_mae": float(np.abs(mean - actual).mean()), f"{name}_rmse": rmse(actual, mean)}
    if actual.sum() > 0:
        figures[f"{name}_bias"] = float(mean.sum() / actual.sum())
    if median is not None:
        figures[f"{name}_mae_median"] = float(np.abs(median - actual).mean())
    return figures


def _next(within: Floats, next_day: Floats) -> dict[str, float]:
    days = within.shape[1]
    came = next_day[:, None] <= np.arange(1, days + 1)
    figures = {"next_purchase_ibs": float(np.mean((came - within) ** 2))}
    if np.unique(np.minimum(next_day, days + 1)).size > 1:
        figures["next_purchase_c"] = concordance(np.minimum(next_day, days + 1), (1 - within).sum(axis=1))
    return figures


def concordance(time: Floats, score_: Floats) -> float:
    """P(score of the later > score of the sooner) + ½ P(equal), over pairs with different times `[U]`.

    From Kendall's τ_b, which counts pairs in n log n: (P − Q) = τ_b √((n₀ − n₁)(n₀ − n₂)), n₁ and n₂ pairs
    tied in time and in score. Source: Harrell et al. (1982); Kendall (1945).
    """
    pairs = len(time) * (len(time) - 1) / 2
    tied = [pairs - _ties(values) for values in (time, score_)]
    if not tied[1]:
        return 0.5
    tau = float(stats.kendalltau(time, score_, variant="b").statistic)
    return 0.5 + 0.5 * tau * float(np.sqrt(tied[0] * tied[1])) / tied[0]


def _ties(values: Floats) -> float:
    count = np.unique(values, return_counts=True)[1].astype(np.float64)
    return float((count * (count - 1) / 2).sum())
