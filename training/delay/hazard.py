"""How late conversions come, from a log that only shows those that have come: right truncation.

A conversion with delay D is seen only if D ≤ E, the time from the contact to the end of the log. In reversed
time the delay has a hazard g(j) = P(D in bin j | D ≤ end of bin j) that truncation leaves as it is: of the
conversions whose E reaches beyond bin j, those in bin j over those up to it. Then F(end of bin k) is the
product of 1 − g(j) over j > k. It is the maximum of the likelihood of D given D ≤ E. Source: Lynden-Bell
(1971); Kalbfleisch and Lawless (1989), Inference based on retrospective ascertainment. With covariates,
boosted trees add to the log odds of g (a discrete-time hazard by logistic regression on bins: Allison, 1982).
C conversions, J bins.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.special import expit, logit

Floats = NDArray[np.float64]
BINS = 32
MIN_CONVERSIONS = 50  # that reach beyond a bin; longer delays cannot be told from none
_SMOOTH = 0.5  # events added to either side of a bin
_TREES = {
    "objective": "binary",
    "learning_rate": 0.05,
    "num_leaves": 6,
    "min_data_in_leaf": 200,
    "lambda_l2": 5.0,
    "feature_fraction": 0.8,
    "num_threads": 1,
    "deterministic": True,
    "force_row_wise": True,
    "verbosity": -1,
}
_ROUNDS, _PATIENCE = 400, 25
_PARTS = 4  # of the conversions: each chooses when the trees of the others stop
_MIN_GAIN = 1e-4  # of held-out log loss per bin, below which covariates are left out


@dataclass(frozen=True)
class DelayModel:
    """edges: `[J + 1]` ends of the bins, the first 0, in the unit of the delays. hazard: `[J]` g of each bin,
    the first 1. trees: what features add to the log odds of g, empty where they did not help.

    Longer delays than the last edge are taken not to happen: no log of that length can show them.
    """

    edges: Floats
    hazard: Floats
    trees: Sequence[Any] = field(default=())

    def seen(self, elapsed: Floats, features: Floats) -> Floats:
        """`[N]` P(a conversion has come within `elapsed` [N]) for rows with `features` `[N, F]`.

        Rises with elapsed, from 0 to 1; between edges by straight lines.
        """
        curves = self.curves(features if self.trees else features[:1])
        place = np.clip(np.searchsorted(self.edges, elapsed, side="right") - 1, 0, len(self.hazard) - 1)
        left, right = self.edges[place], self.edges[place + 1]
        share = np.clip((elapsed - left) / (right - left), 0.0, 1.0)
        row = np.arange(len(elapsed)) if len(curves) > 1 else np.zeros(len(elapsed), dtype=np.intp)
        return np.asarray((1 - share) * curves[row, place] + share * curves[row, place + 1])

    def curves(self, features: Floats) -> Floats:
        """`[n, J + 1]` P(a conversion has come) at the edges, for rows with `features` `[n, F]`."""
        hazard = np.repeat(self.hazard[None], len(features), axis=0)
        for bin_ in range(1, len(self.hazard) if self.trees else 1):
            table = np.column_stack([features, np.full(len(features), float(bin_))])
            hazard[:, bin_] = expit(logit(self.hazard[bin_]) + _added(self.trees, table))
        return self._curve(hazard)

    @staticmethod
    def _curve(hazard: Floats) -> Floats:
        """`[n, J + 1]` F at the edges."""
        backwards = np.cumprod(1 - hazard[:, ::-1], axis=1)[:, ::-1]
        return np.concatenate([backwards, np.ones((len(hazard), 1))], axis=1)


def fit_delay(
    delay: Floats, elapsed: Floats, features: Floats | None = None, units: NDArray[Any] | None = None
) -> DelayModel:
    """Fit on conversions: delay, elapsed `[C]` (0 ≤ delay ≤ elapsed), features `[C, F]`, units `[C]`.

    features: None fits one distribution for all; otherwise trees are kept only if conversions of units that
    they have not seen become more likely. Raises ValueError with fewer than 50 conversions, or a delay
    outside its range.
    """
    bad = np.flatnonzero(~((delay >= 0) & (delay <= elapsed)))
    if bad.size:
        raise ValueError(
            f"delay: {delay[bad[0]]:g} at conversion {bad[0]} is outside [0, {elapsed[bad[0]]:g}], the time "
            "from its contact to the end of the log"
        )
    if len(delay) < MIN_CONVERSIONS:
        raise ValueError(
            f"delay: {len(delay)} conversions are too few for a distribution, of {MIN_CONVERSIONS}"
        )
    edges = _edges(delay, elapsed)
    event, risk = _counts(delay, elapsed, edges)
    hazard = (event + _SMOOTH) / (risk + 2 * _SMOOTH)
    hazard[0] = 1.0
    plain = DelayModel(edges, hazard)
    if features is None or features.shape[1] == 0 or len(hazard) < 2:
        return plain
    own = np.arange(len(delay)) if units is None else np.unique(units, return_inverse=True)[1].ravel()
    return DelayModel(edges, hazard, _fit_trees(plain, delay, elapsed, features, own % _PARTS))


def _edges(delay: Floats, elapsed: Floats) -> Floats:
    """Ends of bins with about equal numbers of conversions, up to the last that enough of them reach
    beyond."""
    furthest = float(np.sort(elapsed)[-min(MIN_CONVERSIONS, len(elapsed))])
    inner = np.quantile(delay[delay <= furthest], np.linspace(0, 1, BINS + 1)[1:-1])
    return np.unique(np.concatenate([[0.0], inner[(inner > 0) & (inner < furthest)], [max(furthest, 1e-9)]]))


def _bins(delay: Floats, edges: Floats) -> NDArray[np.intp]:
    """`[C]` the bin (its end belongs to it); J for delays beyond the last."""
    return np.maximum(np.searchsorted(edges, delay, side="left") - 1, 0)


def _counts(delay: Floats, elapsed: Floats, edges: Floats) -> tuple[Floats, Floats]:
    """`[J]` conversions in the bin, and up to it, of those whose elapsed time reaches its end."""
    bins = _bins(delay, edges)
    event, risk = np.zeros(len(edges) - 1), np.zeros(len(edges) - 1)
    for bin_, end in enumerate(edges[1:]):
        reaches = elapsed >= end
        event[bin_], risk[bin_] = (reaches & (bins == bin_)).sum(), (reaches & (bins <= bin_)).sum()
    return event, risk


def _fit_trees(
    plain: DelayModel, delay: Floats, elapsed: Floats, features: Floats, part: NDArray[np.intp]
) -> tuple[Any, ...]:
    """A booster on (features, bin) → event in reversed time; none where held-out conversions gain nothing.

    It has as many rounds as were best, on average, for conversions that the others did not hold.
    """
    import lightgbm

    owner, bin_, event = _exposures(delay, elapsed, plain.edges)
    table = np.column_stack([features[owner], bin_.astype(np.float64)])
    start, best, gain = logit(plain.hazard[bin_]), list[int](), 0.0
    for number in range(_PARTS):
        held = part[owner] == number
        if not held.any() or held.all():
            return ()
        rows = lightgbm.Dataset(table[~held], event[~held], init_score=start[~held])
        valid = lightgbm.Dataset(table[held], event[held], init_score=start[held], reference=rows)
        stop = lightgbm.early_stopping(_PATIENCE, verbose=False)
        found = lightgbm.train(_TREES, rows, _ROUNDS, valid_sets=[valid], callbacks=[stop])
        best.append(found.best_iteration)
        moved = start[held] + _added([found], table[held])
        gain += _loss(event[held], start[held]) - _loss(event[held], moved)
    if gain / len(event) <= _MIN_GAIN:
        return ()
    everything = lightgbm.Dataset(table, event, init_score=start)
    return (lightgbm.train(_TREES, everything, max(round(float(np.mean(best))), 1)),)


def _exposures(
    delay: Floats, elapsed: Floats, edges: Floats
) -> tuple[NDArray[np.intp], NDArray[np.intp], Floats]:
    """Every conversion and bin from the last that its elapsed time reaches down to its own, bin 0 left
    out."""
    bins, last = _bins(delay, edges), np.searchsorted(edges, elapsed, side="right") - 2
    own = np.arange(1, len(edges) - 1)
    inside = (own >= np.maximum(bins, 1)[:, None]) & (own <= last[:, None])
    owner, place = np.nonzero(inside)
    return owner, own[place], (own[place] == bins[owner]).astype(np.float64)


def _added(trees: Sequence[Any], table: Floats) -> Floats:
    return np.asarray(np.mean([one.predict(table, raw_score=True) for one in trees], axis=0))


def _loss(event: Floats, score: Floats) -> float:
    return float(np.sum(np.logaddexp(0.0, score) - event * score))
