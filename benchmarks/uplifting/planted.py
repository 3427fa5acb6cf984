"""Effects planted on the users of the e-mail test: what every arm would do to every user is known.

Three families, written down before the learner was: effects that are constant or interact on the scale of log
odds, effects that are additive on that of probabilities and have nothing to do with the base rate, and
effects by steps. Base rates and mean effects are near those of the real test; some users are put off by an
e-mail.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.special import expit

from qiance.features.schema import Columns

FAMILIES = ("odds", "additive", "steps")
ARMS = ("No E-Mail", "Mens E-Mail", "Womens E-Mail")
_EDGE = 0.01  # chances are this far from 0 and 1 at least

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Planted:
    """chance: `[N, 3]` probability of a visit under each of `ARMS`; arm: `[N]`; outcome: `[N]` 0 or 1.

    propensity: `[N]` of the arm that was drawn.
    """

    chance: Floats
    arm: NDArray[np.int64]
    outcome: Floats
    propensity: Floats

    @property
    def effect(self) -> Floats:
        """`[N, 3]` true effect of each arm over no e-mail."""
        return np.asarray(self.chance - self.chance[:, :1])


def plant(columns: Columns, family: str, targeted: bool, seed: int) -> Planted:
    """Outcomes of a test on these users; targeted: who bought more gets e-mails more often, by a rule."""
    random = np.random.default_rng(seed)
    chance = _chances(columns, family)
    shares = _targeting(columns) if targeted else np.full(chance.shape, 1 / 3)
    arm = (random.random((len(chance), 1)) > shares.cumsum(axis=1)[:, :-1]).sum(axis=1)
    rows = np.arange(len(chance))
    outcome = (random.random(len(chance)) < chance[rows, arm]).astype(np.float64)
    return Planted(chance, arm, outcome, shares[rows, arm])


def _chances(columns: Columns, family: str) -> Floats:
    recency, history = columns["recency"], np.log1p(columns["history"])
    mens, womens, newbie = columns["mens"], columns["womens"], columns["newbie"]
    web = (columns["channel"] == "Web").astype(np.float64)
    rural = (columns["zip_code"] == "Rural").astype(np.float64)
    score = (
        -2.2 - 0.06 * (recency - 6) + 0.25 * (history - 5) - 0.4 * newbie + 0.3 * rural + 0.5 * mens * womens
    )
    if family == "odds":
        first = 0.35 + 0.35 * mens - 0.2 * newbie * (1 - rural)
        second = 0.05 + 0.55 * womens - 0.03 * (recency - 6)
        return np.asarray(expit(np.column_stack([score, score + first, score + second])))
    base = expit(score)
    if family == "additive":
        first = 0.05 + 0.05 * mens - 0.03 * (history - 5)
        second = 0.01 + 0.07 * womens + 0.004 * (recency - 6) - 0.03 * web
    elif family == "steps":
        first = 0.03 + 0.09 * ((mens == 1) & (recency <= 6)) - 0.05 * ((newbie == 1) & (history < 5))
        second = 0.02 + 0.10 * ((womens == 1) & (history > 5)) - 0.04 * ((rural == 1) & (recency > 6))
    else:
        raise ValueError(f"family: {family!r} is not known; choose one of {', '.join(FAMILIES)}")
    return np.clip(np.column_stack([base, base + first, base + second]), _EDGE, 1 - _EDGE)


def _targeting(columns: Columns) -> Floats:
    """`[N, 3]` chances of each arm: old and large customers are written to, by what they bought."""
    warm = -0.25 * (columns["recency"] - 6) + 0.5 * (np.log1p(columns["history"]) - 5)
    score = np.column_stack(
        [np.zeros(len(warm)), 0.8 * columns["mens"] + warm, 0.8 * columns["womens"] + warm]
    )
    share = np.exp(score - score.max(axis=1, keepdims=True))
    return np.asarray(0.05 + 0.85 * share / share.sum(axis=1, keepdims=True))
