"""How good an uplift model is, by cross-fitting: every row judged by models that never saw its unit."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import astuple, dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qiance.evaluate.ab import mean_interval
from qiance.evaluate.bandit_log import BanditLog
from qiance.evaluate.ope import Estimate, difference, estimate
from qiance.evaluate.uplift import qini_intervals, rate, targeting_policy
from training.response.rows import held_out
from training.uplift.crossing import Tell
from training.uplift.folds import folds_by_arm
from training.uplift.learner import Data, UpliftSettings
from training.uplift.rows import UpliftRows
from training.uplift.stack import fit_uplift

Floats = NDArray[np.float64]

BUDGETS = (0.1, 0.3, 0.5)
CURVE = tuple(step / 20 for step in range(21))
CONFIDENCE = 0.95
QINI = ("qini_radcliffe", "cumulative_gain", "auuc")


@dataclass(frozen=True)
class HeldOut:
    """By models without the row's fold: effects `[N, A]`, chances of the outcome `[N, A]`, scores `[N, A]`.

    scores: doubly robust pseudo-outcomes from those chances.
    """

    effects: Floats
    chances: Floats
    scores: Floats


def cross_validate(rows: UpliftRows, folds: int, settings: UpliftSettings, tell: Tell) -> HeldOut:
    """Fit everything `folds` times, each time without a fold."""
    data = Data.of(rows)
    fold = folds_by_arm(rows.rows, rows.arm, folds, settings.seed + 7)
    effects, chances = np.empty((len(rows), data.arms)), np.empty((len(rows), data.arms))
    for number, (train, held) in enumerate(held_out(fold)):

        def told(share: float, text: str, number: int = number) -> None:
            tell((number + share) / folds, f"fold {number + 1} of {folds}: {text}")

        scorer = fit_uplift(rows.take(train), settings, told, intervals=False).scorer
        inputs = scorer.inputs(rows.take(held).rows.columns)
        effects[held] = scorer.value(inputs)
        chances[held] = scorer.chances(inputs)
    return HeldOut(effects, chances, data.pseudo_outcomes(chances))


def judge(rows: UpliftRows, held: HeldOut, cost: Floats) -> dict[str, Any]:
    """What metrics.json says of it: by arm `ate`, `qini` and `rate`, and `policy_value` by budget.

    cost: `[A]` in units of the outcome. Policy values are per user of all, net of cost, doubly robust.
    """
    return {
        "ate": {rows.arms[arm]: _ate(rows, held, arm) for arm in rows.treatments},
        "qini": {rows.arms[arm]: _qini(rows, held, arm) for arm in rows.treatments},
        "rate": {rows.arms[arm]: _rate(rows, held, arm) for arm in rows.treatments},
        "policy_value": {f"{budget:g}": _at(rows, held, cost, budget) for budget in BUDGETS},
    }


def _ate(rows: UpliftRows, held: HeldOut, arm: int) -> dict[str, float]:
    """Mean of the doubly robust scores; naive: the difference of the groups' means."""
    found = mean_interval(held.scores[:, arm], CONFIDENCE, rows.rows.units)
    given = [rows.target[rows.arm == one].mean() for one in (arm, rows.control)]
    return {
        "value": found.value,
        "low": found.low,
        "high": found.high,
        "naive": float(given[0] - given[1]),
        "predicted": float(held.effects[:, arm].mean()),
    }


def _qini(rows: UpliftRows, held: HeldOut, arm: int) -> dict[str, float | None]:
    """By both definitions the area above the straight line, and AUUC, each with `_low` and `_high`.

    None where the log was targeted: the curves compare those who got the arm with those who got control,
    which says nothing of effects where the two differ beforehand. `rate` holds for such a log too. Bounds
    alone are None where there are too few units to tell.
    """
    if not rows.overlap.constant:
        return dict.fromkeys(f"{name}{end}" for name in QINI for end in ("", "_low", "_high"))
    pair = (rows.arm == arm) | (rows.arm == rows.control)
    found = qini_intervals(
        rows.target[pair],
        (rows.arm == arm)[pair],
        held.effects[pair, arm],
        CONFIDENCE,
        cluster=rows.rows.units[pair],
    )
    figures = {
        f"{name}{end}": value
        for name in QINI
        for end, value in zip(("", "_low", "_high"), astuple(found[name]), strict=True)
    }
    return {name: value if math.isfinite(value) else None for name, value in figures.items()}


def _rate(rows: UpliftRows, held: HeldOut, arm: int) -> dict[str, float]:
    found = rate(held.effects[:, arm], held.scores[:, arm], confidence=CONFIDENCE, cluster=rows.rows.units)
    return {"value": found.value, "low": found.low, "high": found.high}


def _policies(rows: UpliftRows, held: HeldOut, cost: Floats, budget: float) -> dict[str, Floats]:
    """`[N, A]` probabilities. response: the likeliest to respond first, each with his likeliest arm."""
    drawn = np.tile(np.eye(len(rows.arms))[rows.control] * (1 - budget), (len(rows), 1))
    net = held.scores.mean(axis=0) - cost
    best = max(rows.treatments, key=lambda arm: float(net[arm]))
    drawn[:, best] += budget
    return {
        "uplift": targeting_policy(held.effects, budget, rows.control, cost.tolist()),
        "response": targeting_policy(held.chances, budget, rows.control),
        "random": drawn,
    }


def _at(rows: UpliftRows, held: HeldOut, cost: Floats, budget: float) -> dict[str, Any]:
    """Values at one budget, and the gain of uplift over the two others with paired intervals."""
    log, model = _net(rows, cost), held.chances - cost
    policies = _policies(rows, held, cost, budget)
    found: dict[str, Any] = {
        name: _interval(estimate(log, probs, model, confidence=CONFIDENCE))
        for name, probs in policies.items()
    }
    for other in ("random", "response"):
        gain = difference(log, policies["uplift"], policies[other], model, confidence=CONFIDENCE)
        found[f"gain_over_{other}"] = _interval(gain)
    treated = 1 - policies["uplift"][:, rows.control].mean()
    return {**found, "treated": float(treated)}


def curve(rows: UpliftRows, held: HeldOut, cost: Floats) -> list[dict[str, float]]:
    """The cost curve: what treating the best share of users is worth, by share, as rows of `curve.csv`."""
    log, model, lines = _net(rows, cost), held.chances - cost, list[dict[str, float]]()
    for budget in CURVE:
        policies = _policies(rows, held, cost, budget)
        found = {name: estimate(log, probs, model) for name, probs in policies.items()}
        given, own = policies["uplift"].mean(axis=0), found["uplift"]
        lines.append(
            {
                "budget": budget,
                "value": own.value,
                "low": own.low,
                "high": own.high,
                **{name: found[name].value for name in ("response", "random")},
                "treated": float(1 - given[rows.control]),
                "cost": float(given @ cost),
            }
        )
    return lines


def _net(rows: UpliftRows, cost: Floats) -> BanditLog:
    log = rows.log()
    return replace(log, reward=log.reward - cost[log.action])


def _interval(found: Estimate) -> Mapping[str, float]:
    return {"value": found.value, "low": found.low, "high": found.high}
