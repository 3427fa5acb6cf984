"""Conversion rates from a log that is cut: P(conversion) where only P(conversion) · F(elapsed) can be seen.

The likelihood of what was seen is p F for a conversion and 1 − p F for none yet (Chapelle, 2014, Modeling
delayed feedback in display advertising), with F from `training.delay.hazard` instead of an exponential delay.
p is fitted by boosted trees. Of a contact without a conversion, one is still to come with probability
q = p (1 − F) / (1 − p F). N rows.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import optimize
from scipy.special import expit, logit

Floats = NDArray[np.float64]
_EDGE = 1e-6
_PARTS = 3
_ROUNDS, _PATIENCE = 600, 30
_TREES = {
    "learning_rate": 0.05,
    "num_leaves": 8,
    "min_data_in_leaf": 100,
    "bagging_fraction": 0.8,
    "bagging_freq": 1,
    "feature_fraction": 0.8,
    "lambda_l2": 1.0,
    "num_threads": 1,
    "deterministic": True,
    "force_row_wise": True,
    "verbosity": -1,
}


@dataclass(frozen=True)
class Feedback:
    """rate: `[N]` p, by trees that had not seen the row's unit. still: `[N]` q, 0 for conversions."""

    rate: Floats
    still: Floats


def fit_feedback(
    observed: Floats, seen: Floats, features: Floats, units: NDArray[Any], seed: int = 0
) -> Feedback:
    """observed: `[N]` 0 or 1; seen: `[N]` F in [0, 1]; features `[N, F]`; units `[N]` stay on one side of a
    split.

    Raises ValueError without a conversion.
    """
    if not observed.any():
        raise ValueError("observed: has no conversion, so that no rate can be learned")
    _, codes = np.unique(units, return_inverse=True)
    part = np.random.default_rng(seed).permutation(codes.max() + 1)[codes.ravel()] % _PARTS
    start = float(logit(np.clip(overall_rate(observed, seen), _EDGE, 1 - _EDGE)))
    score = np.full(len(observed), start)
    if features.shape[1] and len(np.unique(part)) == _PARTS:
        for number in range(_PARTS):
            held = part == number
            score[held] += _fit(observed, seen, features, held, start, seed + number)
    rate = np.asarray(expit(score))
    return Feedback(rate, still_to_come(observed, rate, seen))


def still_to_come(observed: Floats, rate: Floats, seen: Floats) -> Floats:
    """`[N]` P(a conversion is still to come | none has come within the elapsed time)."""
    missed = rate * (1 - seen)
    return np.where(observed > 0, 0.0, missed / np.maximum(1 - rate * seen, _EDGE))


def overall_rate(observed: Floats, seen: Floats) -> float:
    """The one rate that makes the log most likely."""

    def loss(rate: float) -> float:
        chance = np.clip(rate * seen, 1e-12, 1 - 1e-12)
        return -float(np.mean(np.where(observed > 0, np.log(chance), np.log1p(-chance))))

    found = optimize.minimize_scalar(loss, bounds=(_EDGE, 1 - _EDGE), method="bounded")
    return float(found.x)


def _fit(
    observed: Floats, seen: Floats, features: Floats, held: NDArray[np.bool_], start: float, seed: int
) -> Floats:
    """Scores of the held rows beyond `start`, by trees on the others that stop where they predict these
    best."""
    import lightgbm

    def dataset(rows: NDArray[np.bool_], like: Any = None) -> Any:
        return lightgbm.Dataset(
            features[rows],
            observed[rows],
            init_score=np.full(int(rows.sum()), start),
            reference=like,
            free_raw_data=False,
        )

    parts = {False: seen[~held], True: seen[held]}
    train = dataset(~held)
    found = lightgbm.train(
        {**_TREES, "objective": _objective(parts[False]), "seed": seed, "metric": "None"},
        train,
        _ROUNDS,
        valid_sets=[dataset(held, train)],
        feval=_judge(parts[True]),
        callbacks=[lightgbm.early_stopping(_PATIENCE, verbose=False)],
    )
    return np.asarray(found.predict(features[held], num_iteration=found.best_iteration, raw_score=True))


def _objective(seen: Floats) -> Callable[[Floats, Any], tuple[Floats, Floats]]:
    """Gradient p − E[converts in the end | what was seen], as in EM, with the curvature p (1 − p)."""

    def gradients(score: Floats, rows: Any) -> tuple[Floats, Floats]:
        rate, observed = expit(score), rows.get_label()
        in_the_end = observed + still_to_come(observed, rate, seen)
        return rate - in_the_end, np.maximum(rate * (1 - rate), _EDGE)

    return gradients


def _judge(seen: Floats) -> Callable[[Floats, Any], tuple[str, float, bool]]:
    def loss(score: Floats, rows: Any) -> tuple[str, float, bool]:
        chance, observed = np.clip(expit(score) * seen, 1e-12, 1 - 1e-12), rows.get_label()
        value = -np.mean(np.where(observed > 0, np.log(chance), np.log1p(-chance)))
        return "seen_log_loss", float(value), False

    return loss
