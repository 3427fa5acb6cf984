"""How wide the intervals of effects must be: found by fitting again to outcomes whose truth is known.

The spread of learners on halves of the units is how far an estimate moves by chance. It leaves out what
shrinkage and small trees keep from being learned. So outcomes are drawn anew for the same rows and arms from
the model itself, everything is fitted to them, and the spread is widened until it covers the effect of 90 %
of the rows.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from qiance.artifacts.uplift import CANDIDATES, Anchor, Effects, Learner, UpliftScorer
from training.uplift.crossing import Crossed, Tell, cross_fit
from training.uplift.folds import halves_of
from training.uplift.learner import Data, UpliftSettings, fit_contrasts, fit_outcomes, rounds_of
from training.uplift.rows import UpliftRows

Floats = NDArray[np.float64]

CONFIDENCE = 0.9
_EDGE = 1e-3  # chances that outcomes are drawn with are this far from 0 and 1
_MOST = 20_000  # rows that widths are compared on


def spread_weights(weights: Floats) -> Floats:
    """Weights for the halves: effects are drawn to the mean for want of proof, their doubt is not.

    Where nothing was shown to differ, the linear candidate says how much could.
    """
    if weights.sum() <= 0:
        return np.eye(len(weights))[CANDIDATES.index("linear")]
    return np.asarray(weights / min(float(weights.sum()), 1.0))


def fit_halves(
    rows: UpliftRows, data: Data, crossed: Crossed, settings: UpliftSettings, tell: Tell
) -> tuple[list[Learner], list[Anchor]]:
    """H learners, each on half of the units: their spread is about that of an estimate from all of them."""
    shared, heads = rounds_of(crossed.members)
    fixed = replace(settings, shared_rounds=shared, head_rounds=heads)
    learners, anchors = [], []
    for number, half in enumerate(halves_of(rows.rows, settings.halves, settings.seed)):
        tell(number / settings.halves, f"half {number + 1} of {settings.halves}")
        seed = settings.seed + 100_000 + 1_000 * number
        learner = fit_outcomes(data, half, None, fixed, seed)
        learner = fit_contrasts(learner, data, crossed.scores, half, fixed, seed)
        means = learner.candidates(data.inputs.take(half)).mean(axis=0)
        learners.append(learner)
        anchors.append(Anchor(crossed.scores[half].mean(axis=0), means))
    return learners, anchors


def width_scale(
    rows: UpliftRows, data: Data, crossed: Crossed, scorer: UpliftScorer, settings: UpliftSettings, tell: Tell
) -> float:
    """Factor on the spread of the halves, 1 at least. Shapes as in `qiance.artifacts.uplift`."""
    random = np.random.default_rng(settings.seed)
    some = np.sort(random.permutation(len(rows))[:_MOST])
    draws = scorer.draws(data.inputs.take(some))
    truth = _truth(crossed, draws)
    planted = np.clip(crossed.chances[:, [rows.control]] + truth, _EDGE, 1 - _EDGE)
    truth = planted - planted[:, [rows.control]]
    half = Effects(truth[some], draws, 1.0).half_width(CONFIDENCE)[:, list(rows.treatments)]
    ratios = []
    for number in range(settings.simulations):
        tell(number / settings.simulations, f"fitting to known truth, {number + 1} of {settings.simulations}")
        found = _refit(rows, data, planted, settings, random, settings.seed + number + 1)
        missed = np.abs(found - truth)[some][:, list(rows.treatments)]
        ratios.append(missed / np.maximum(half, 1e-12))
    return max(float(np.quantile(ratios, CONFIDENCE)), 1.0)


def _truth(crossed: Crossed, draws: Floats) -> Floats:
    """`[N, A]` effects to draw outcomes from: as varied as the rows are likely to be.

    What is estimated varies less than the truth where it is shrunk: by about its own variance of error. So
    deviations from the mean are stretched until their variance is that of the estimate plus the error's.
    """
    unshrunk = np.einsum(
        "nam,m->na", crossed.candidates - crossed.anchor.means, spread_weights(crossed.weights)
    )
    own = np.einsum("nam,m->na", crossed.candidates - crossed.anchor.means, crossed.weights)
    error = (draws - draws.mean(axis=0)).var(axis=2, ddof=1).mean(axis=0)
    wanted = np.sqrt(own.var(axis=0) + error)
    present = unshrunk.std(axis=0)
    stretch = np.divide(wanted, present, out=np.zeros_like(wanted), where=present > 0)
    return np.asarray(crossed.anchor.ate + unshrunk * stretch)


def _refit(
    rows: UpliftRows,
    data: Data,
    planted: Floats,
    settings: UpliftSettings,
    random: np.random.Generator,
    seed: int,
) -> Floats:
    """`[N, A]` effects that everything fitted anew finds where the chances `planted` `[N, A]` hold."""
    chance = planted[np.arange(len(rows)), rows.arm]
    target = (random.random(len(rows)) < chance).astype(np.float64)
    drawn = replace(rows, rows=replace(rows.rows, target=target))
    settings = replace(settings, seed=seed)
    return cross_fit(drawn, replace(data, target=target), settings, lambda _share, _text: None).effects
