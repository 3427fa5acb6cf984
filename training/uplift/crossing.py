"""Learners fitted fold by fold, and weighed by rows that none of them saw."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import nnls

from qiance.artifacts.uplift import CANDIDATES, Anchor, Learner
from training.response.rows import held_out
from training.uplift.folds import folds_by_arm
from training.uplift.learner import Data, UpliftSettings, fit_contrasts, fit_outcomes
from training.uplift.rows import UpliftRows

Floats = NDArray[np.float64]

# Weights expected before a log is seen, the least for the noisiest target; and how far they may be off.
PRIOR = {"linear": 0.25, "heads": 0.25, "proportional": 0.25, "doubly_robust": 0.1}
SPREAD = 0.2

Tell = Callable[[float, str], None]


@dataclass(frozen=True)
class Crossed:
    """K members, and what they say of rows they have not seen.

    chances: `[N, A]`, mean of linear model and heads. candidates: `[N, A, M]`. scores: `[N, A]`
    pseudo-outcomes. weights: `[M]` of the candidates.
    """

    members: list[Learner]
    chances: Floats
    candidates: Floats
    scores: Floats
    anchor: Anchor
    weights: Floats

    @property
    def effects(self) -> Floats:
        """`[N, A]` of the training rows, each by the member that did not see it."""
        return self.anchor.effects(self.candidates, self.weights)


def cross_fit(rows: UpliftRows, data: Data, settings: UpliftSettings, tell: Tell) -> Crossed:
    """Fit the members and weigh their candidates."""
    fold = folds_by_arm(rows.rows, rows.arm, settings.members, settings.seed)
    members, chances = list[Learner](), np.empty((len(rows), data.arms))
    for number, (train, held) in enumerate(held_out(fold)):
        tell(0.8 * number / settings.members, f"member {number + 1} of {settings.members}")
        seed = settings.seed + 1_000 * number
        members.append(fit_outcomes(data, train, held, settings, seed))
        chances[held] = np.mean(members[-1].chances(data.inputs.take(held)), axis=0)
    scores = data.pseudo_outcomes(chances)
    candidates = np.empty((len(rows), data.arms, len(CANDIDATES)))
    for number, (train, held) in enumerate(held_out(fold)):
        tell(0.8 + 0.2 * number / settings.members, "effects from pseudo-outcomes")
        seed = settings.seed + 1_000 * number
        members[number] = fit_contrasts(members[number], data, scores, train, settings, seed)
        candidates[held] = members[number].candidates(data.inputs.take(held))
    anchor = Anchor(scores.mean(axis=0), candidates.mean(axis=0))
    return Crossed(members, chances, candidates, scores, anchor, weigh(candidates, scores, anchor))


def weigh(candidates: Floats, scores: Floats, anchor: Anchor, prior: Mapping[str, float] = PRIOR) -> Floats:
    """`[M]` ≥ 0: least squares of scores around their means on candidates around theirs, near `prior`.

    As the candidates are of rows that they had not seen, noise in them draws their weight to 0 (causal
    stacking: Han and Wu, 2022; with the doubly robust loss: Lan and Syrgkanis, 2023). Scores are so noisy
    that weights of similar candidates are chance, so they have a normal prior with deviation `SPREAD`, which
    a large log overrules. A candidate that `prior` does not name gets 0.
    """
    kept = [place for place, name in enumerate(CANDIDATES) if name in prior]
    x = (candidates - anchor.means)[:, :, kept].reshape(-1, len(kept))
    y = (scores - anchor.ate).ravel()
    strength = float((scores - anchor.ate).var(axis=0).sum()) / (scores.shape[1] - 1) / SPREAD**2
    wanted = x.T @ y + strength * np.array([prior[CANDIDATES[place]] for place in kept])
    root = np.linalg.cholesky(x.T @ x + strength * np.eye(len(kept)))
    weights = np.zeros(len(CANDIDATES))
    weights[kept] = nnls(root.T, np.linalg.solve(root, wanted))[0]
    return weights
