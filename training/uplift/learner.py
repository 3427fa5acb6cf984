"""One learner of the effects, fitted on some of the rows; see `qiance.artifacts.uplift`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.special import logit

from qiance.artifacts.uplift import Inputs, Learner
from qiance.features.schema import Encoder
from training.uplift.rows import UpliftRows

Mask = NDArray[np.bool_]
Floats = NDArray[np.float64]


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
    shared = _trees(data, "binary", data.target, offset, fit, choose, settings, seed)
    offset = offset + np.asarray(shared.predict(data.inputs.table, raw_score=True))
    by_arm = replace(settings, shared_rounds=settings.head_rounds)
    heads = [
        _trees(
            data,
            "binary",
            data.target,
            offset,
            fit & (data.arm == arm),
            None if choose is None else choose & (data.arm == arm),
            by_arm,
            seed + 1 + arm,
        )
        for arm in arms
    ]
    linear = _fit_linear(data, fit, settings)
    return Learner(data.control, linear, intercepts, shared, heads, ())


def fit_contrasts(
    learner: Learner, data: Data, scores: Floats, fit: Mask, settings: UpliftSettings, seed: int
) -> Learner:
    """`learner` with its contrasts: trees on the pseudo-outcomes `scores` `[N, A]` of the rows `fit`."""
    own = replace(
        settings,
        shared_rounds=settings.contrast_rounds,
        learning_rate=settings.contrast_rate,
        min_rows=settings.contrast_rows,
    )
    zero = np.zeros(len(data.target))
    contrasts = [
        None
        if arm == data.control
        else _trees(data, "regression", scores[:, arm], zero, fit, None, own, seed + 100 + arm)
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


_FREE = 10.0  # an arm's own intercept pays a hundredth of the penalty: the mean effect is not shrunk


def _trees(
    data: Data,
    objective: str,
    target: Floats,
    offset: Floats,
    fit: Mask,
    choose: Mask | None,
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
        _params(objective, settings, seed),
        rows,
        settings.shared_rounds,
        valid_sets=[] if choose is None else [dataset(choose, rows)],
        callbacks=stop,
    )
    best = found.best_iteration if choose is not None else settings.shared_rounds
    return lightgbm.Booster(model_str=found.model_to_string(num_iteration=best))


def _params(objective: str, settings: UpliftSettings, seed: int) -> dict[str, Any]:
    return {
        "objective": objective,
        "boost_from_average": False,
        "learning_rate": settings.learning_rate,
        "num_leaves": settings.leaves,
        "min_data_in_leaf": settings.min_rows,
        "bagging_fraction": settings.row_share,
        "bagging_freq": 1,
        "feature_fraction": settings.feature_share,
        "num_threads": settings.threads,
        "seed": seed,
        "deterministic": True,
        "force_row_wise": True,
        "verbosity": -1,
    }
