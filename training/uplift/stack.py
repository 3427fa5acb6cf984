"""From rows to a scorer: members, halves, and the width of intervals."""

from __future__ import annotations

from dataclasses import dataclass, replace

from qiance.artifacts.uplift import UpliftScorer
from training.uplift.crossing import Crossed, Tell, cross_fit
from training.uplift.intervals import fit_halves, spread_weights, width_scale
from training.uplift.learner import Data, UpliftSettings
from training.uplift.rows import UpliftRows


@dataclass(frozen=True)
class Fitted:
    """A scorer, and what its members say of rows they have not seen."""

    scorer: UpliftScorer
    crossed: Crossed


def fit_uplift(rows: UpliftRows, settings: UpliftSettings, tell: Tell, intervals: bool = True) -> Fitted:
    """Fit on all of `rows`; without `intervals` there are no halves, and only `value` of the scorer works."""
    data = Data.of(rows)
    share = 0.4 if intervals else 1.0
    crossed = cross_fit(rows, data, settings, lambda done, text: tell(share * done, text))
    spread = spread_weights(crossed.weights)
    scorer = UpliftScorer(data.encoder, crossed.members, crossed.anchor, [], [], crossed.weights, spread, 1.0)
    if not intervals:
        return Fitted(scorer, crossed)
    halves, anchors = fit_halves(
        rows, data, crossed, settings, lambda done, text: tell(0.4 + 0.3 * done, text)
    )
    scorer = replace(scorer, halves=halves, half_anchors=anchors)
    scale = width_scale(
        rows, data, crossed, scorer, settings, lambda done, text: tell(0.7 + 0.3 * done, text)
    )
    return Fitted(replace(scorer, scale=scale), crossed)
