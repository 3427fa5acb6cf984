"""One learner of the effects, fitted on some of the rows; see `qiance.artifacts.uplift`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.special import logit

from qiance.artifacts.uplift import Inputs, Learner
from qiance.features.encoder import Encoder
from training.uplift.rows import UpliftRows

Mask = NDArray[np.bool_]
Floats = NDArray[np.float64]

_FREE = 10.0  # an arm's own intercept pays a hundredth of the penalty: the mean effect is not shrunk


@dataclass(frozen=True, slots=True)
class UpliftSettings:
    """members: K, each trained without one of as many folds. halves: H. simulations: see `intervals`.

    leaves of each tree: effects are a weak signal, and larger trees follow noise. shared_rounds, head_rounds:
    most trees of the outcome, common and by arm; each ends at its best round on the fold left out, patience
    rounds after it. contrast_rounds: trees of the effect, on pseudo-outcomes that are too noisy to choose a
    round by. min_rows, contrast_rows: of a leaf. linear_strength: inverse of the ridge penalty. seed: with
    equal data, the same model. threads: of LightGBM.
    """

    members: int = 5
    halves: int = 10
    simulations: int = 2
    leaves: int = 4
    learning_rate: float = 0.05
    shared_rounds: int = 300
    head_rounds: int = 40
    patience: int = 50
    min_rows: int = 100
    contrast_rounds: int = 100
    contrast_rate: float = 0.03
    contrast_rows: int = 300
    row_share: float = 0.8
    feature_share: float = 0.7
    linear_strength: float = 0.02
    seed: int = 0
    threads: int = 1

    def __post_init__(self) -> None:
        for name, least in (("members", 2), ("halves", 3), ("simulations", 1)):
            if getattr(self, name) < least:
                raise ValueError(f"{name}: {getattr(self, name)} is below {least}")


@dataclass(frozen=True)
class Data:
    """Encoded rows: inputs, outcome `[N]`, arm `[N]`, propensity `[N]`; codes: categories in the table."""

    encoder: Encoder
    inputs: Inputs
    codes: list[int]
    target: Floats
    arm: NDArray[np.int64]
    arms: int
    control: int
    propensity: Floats

    @classmethod
    def of(cls, rows: UpliftRows) -> Data:
        """Encode; the encoder sees no outcome and no arm."""
        encoder = Encoder.fit(rows.rows.schema, rows.rows.columns)
        inputs = Inputs.of(encoder, rows.rows.columns)
        first = inputs.table.shape[1] - len(encoder.vocabularies)
        codes = list(range(first, inputs.table.shape[1]))
        return cls(
            encoder, inputs, codes, rows.target, rows.arm, len(rows.arms), rows.control, rows.propensity
        )

    def pseudo_outcomes(self, chances: Floats) -> Floats:
        """Γ `[N, A]`: doubly robust scores of each row's effects, from chances `[N, A]` by models without it.

        Γ_a = μ_a − μ_0 + (1[arm = a] − 1[arm = 0]) (y − μ_arm) / e; its mean given x is the effect where e or
        μ is right. Source: Robins, Rotnitzky and Zhao (1994); as a regression target, Kennedy (2023).
        """
        rows = np.arange(len(self.target))
        gap = (self.target - chances[rows, self.arm]) / self.propensity
        weighted = np.zeros_like(chances)
        weighted[rows, self.arm] = gap
        scores = chances + weighted
        return np.asarray(scores - scores[:, [self.control]])


def fit_outcomes(data: Data, fit: Mask, choose: Mask | None, settings: UpliftSettings, seed: int) -> Learner:
    """A learner without contrasts, on the rows `fit`; trees stop by the rows `choose`.

    Without `choose` their number is that of a learner before: pass it by settings.
    """
    arms = range(data.arms)
    intercepts = np.array([_log_odds(data.target[fit & (data.arm == arm)]) for arm in arms])
    offset = intercepts[data.arm]
    growth = _Growth("binary", settings.shared_rounds, settings.learning_rate, settings.min_rows)
    shared = _trees(data, data.target, offset, fit, choose, growth, settings, seed)
    offset = offset + np.asarray(shared.predict(data.inputs.table, raw_score=True))
    growth, heads = replace(growth, rounds=settings.head_rounds), []
    for arm in arms:
        own = data.arm == arm
        stop = None if choose is None else choose & own
        heads.append(_trees(data, data.target, offset, fit & own, stop, growth, settings, seed + 1 + arm))
    linear = _fit_linear(data, fit, settings)
    return Learner(data.control, linear, intercepts, shared, heads, ())


def fit_contrasts(
    learner: Learner, data: Data, scores: Floats, fit: Mask, settings: UpliftSettings, seed: int
) -> Learner:
    """`learner` with its contrasts: trees on the pseudo-outcomes `scores` `[N, A]` of the rows `fit`."""
    growth = _Growth("regression", settings.contrast_rounds, settings.contrast_rate, settings.contrast_rows)
    zero = np.zeros(len(data.target))
    contrasts = [
        None
        if arm == data.control
        else _trees(data, scores[:, arm], zero, fit, None, growth, settings, seed + 100 + arm)
        for arm in range(data.arms)
    ]
    return replace(learner, contrasts=contrasts)


def rounds_of(learners: Sequence[Learner]) -> tuple[int, int]:
    """Median numbers of shared trees and of trees of a head."""
    shared = np.median([one.shared.num_trees() for one in learners])
    heads = np.median([head.num_trees() for one in learners for head in one.heads])
    return max(int(shared), 1), max(int(heads), 1)


def _log_odds(outcome: Floats) -> float:
    """Half an event more of either kind: no arm is without."""
    return float(logit((outcome.sum() + 0.5) / (len(outcome) + 1)))


def _fit_linear(data: Data, fit: Mask, settings: UpliftSettings) -> Floats:
    """`[A, 1 + F]` coefficients by arm: common ones plus what the arm changes, both drawn to 0 by a ridge."""
    from sklearn.linear_model import LogisticRegression

    width = data.inputs.linear.shape[1]
    others = [arm for arm in range(data.arms) if arm != data.control]
    blocks = [data.inputs.linear[fit][:, 1:]]
    blocks += [data.inputs.linear[fit] * (data.arm[fit] == arm)[:, None] for arm in others]
    for block in blocks[1:]:
        block[:, 0] *= _FREE
    model = LogisticRegression(C=settings.linear_strength, max_iter=1_000)
    model.fit(np.hstack(blocks), data.target[fit])
    common = np.r_[model.intercept_, model.coef_[0, : width - 1]]
    found = np.tile(common, (data.arms, 1))
    for place, arm in enumerate(others):
        start = width - 1 + place * width
        change = model.coef_[0, start : start + width].copy()
        change[0] *= _FREE
        found[arm] += change
    return found


@dataclass(frozen=True, slots=True)
class _Growth:
    """How trees grow beyond what is common to all: rounds at most, min_rows of a leaf."""

    objective: str
    rounds: int
    rate: float
    min_rows: int


def _trees(
    data: Data,
    target: Floats,
    offset: Floats,
    fit: Mask,
    choose: Mask | None,
    growth: _Growth,
    settings: UpliftSettings,
    seed: int,
) -> Any:
    """A booster as it will be served; without a split where there is nothing to say."""
    import lightgbm

    def dataset(mask: Mask, like: Any = None) -> Any:
        return lightgbm.Dataset(
            data.inputs.table[mask],
            target[mask],
            init_score=offset[mask],
            categorical_feature=data.codes,
            reference=like,
        )

    rows = dataset(fit)
    stop = [] if choose is None else [lightgbm.early_stopping(settings.patience, verbose=False)]
    found = lightgbm.train(
        _params(growth, settings, seed),
        rows,
        growth.rounds,
        valid_sets=[] if choose is None else [dataset(choose, rows)],
        callbacks=stop,
    )
    best = found.best_iteration if choose is not None else growth.rounds
    return lightgbm.Booster(model_str=found.model_to_string(num_iteration=best))


def _params(growth: _Growth, settings: UpliftSettings, seed: int) -> dict[str, Any]:
    return {
        "objective": growth.objective,
        "boost_from_average": False,
        "learning_rate": growth.rate,
        "num_leaves": settings.leaves,
        "min_data_in_leaf": growth.min_rows,
        "bagging_fraction": settings.row_share,
        "bagging_freq": 1,
        "feature_fraction": settings.feature_share,
        "num_threads": settings.threads,
        "seed": seed,
        "deterministic": True,
        "force_row_wise": True,
        "verbosity": -1,
    }
