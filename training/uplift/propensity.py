"""With which probability a row got its arm: as logged, or estimated from the features."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from qiance.artifacts.uplift import linear_inputs
from qiance.data.errors import DataError
from qiance.features.encoder import Encoder
from training.response.rows import ResponseRows, held_out
from training.uplift.folds import folds_by_arm

Floats = NDArray[np.float64]

FLOOR = 0.01  # estimated propensities below it count as it: one row must not weigh as a hundred
MAX_BELOW = 0.5  # share of rows for which an arm was out of reach, from which there is nothing to compare
_FOLDS = 5
_STRENGTH = 1.0  # inverse of the ridge penalty


@dataclass(frozen=True, slots=True)
class Overlap:
    """Can the arms be compared. source: of the propensities. constant: an arm's is the same in all rows.

    smallest: by arm, propensity of the rows that got it. effective_rows: by arm, (Σ 1/e)² / Σ 1/e² of those
    rows. out_of_reach: by arm, the share of all rows for which its estimated propensity is below 1 % (None
    where only that of the arm given is known). raised: share of rows whose own estimate was raised to 1 %.
    """

    source: Literal["logged", "randomised", "estimated"]
    constant: bool
    smallest: dict[str, float]
    effective_rows: dict[str, float]
    out_of_reach: dict[str, float] | None = None
    raised: float = 0.0

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def of_shares(arms: tuple[str, ...], arm: NDArray[np.int64]) -> tuple[Floats, Overlap]:
    """Of a test that was randomised alike for all rows: the share of each arm is its propensity."""
    propensity = (np.bincount(arm, minlength=len(arms)) / len(arm))[arm]
    return propensity, replace(of_known(arms, arm, propensity), source="randomised")


def of_known(arms: tuple[str, ...], arm: NDArray[np.int64], propensity: Floats) -> Overlap:
    """Of logged propensities `[N]` of the arms given."""
    own = {name: propensity[arm == number] for number, name in enumerate(arms)}
    constant = all(float(np.ptp(values)) < 1e-9 for values in own.values())
    return Overlap("logged", constant, *_by_arm(own))


def estimate_propensity(
    rows: ResponseRows, arms: tuple[str, ...], arm: NDArray[np.int64], seed: int
) -> tuple[Floats, Overlap]:
    """`[N]`, by multinomial logistic regression without the row's own fold.

    It holds where everything that the arm was chosen by is among the features. `DataError` where an arm was
    out of reach for half of the rows or more.
    """
    chances = _cross_fitted(rows, arm, seed)
    below = {name: float((chances[:, number] < FLOOR).mean()) for number, name in enumerate(arms)}
    worst = max(below, key=lambda name: below[name])
    if below[worst] >= MAX_BELOW:
        raise DataError(
            rows.name,
            f"has no overlap: for {below[worst]:.0%} of the rows the arm {worst!r} was all but impossible "
            f"(estimated propensity below {FLOOR:.0%})",
            "keep rows that could have got every arm, leave out features that decide it, or draw at random",
        )
    own = chances[np.arange(len(arm)), arm]
    kept = np.maximum(own, FLOOR)
    by_name = {name: kept[arm == number] for number, name in enumerate(arms)}
    return kept, Overlap("estimated", False, *_by_arm(by_name), below, float((own < FLOOR).mean()))


def _cross_fitted(rows: ResponseRows, arm: NDArray[np.int64], seed: int) -> Floats:
    from sklearn.linear_model import LogisticRegression

    encoder = Encoder.fit(rows.schema, rows.columns)
    inputs = linear_inputs(encoder, *encoder.encode(rows.columns))[:, 1:]
    chances = np.empty((len(rows), int(arm.max()) + 1))
    for train, held in held_out(folds_by_arm(rows, arm, _FOLDS, seed)):
        model = LogisticRegression(C=_STRENGTH, max_iter=1_000).fit(inputs[train], arm[train])
        chances[held] = model.predict_proba(inputs[held])
    return chances


def _by_arm(own: dict[str, Floats]) -> tuple[dict[str, float], dict[str, float]]:
    smallest = {name: float(values.min()) for name, values in own.items()}
    effective = {name: float((1 / v).sum() ** 2 / (1 / v**2).sum()) for name, v in own.items()}
    return smallest, effective
